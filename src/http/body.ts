import type { IncomingMessage, ServerResponse } from 'node:http';
import type { ChatRequest } from '../turns/chat.ts';
import { isObject, type Json } from '../json.ts';
import { Problem } from '../problem.ts';
import type { BodyHold } from './body-memory.ts';
import { readFiles, type FieldError } from './files.ts';
import { fingerprintOf, isKey } from './idempotency.ts';

type RequestAndAnswer = { readonly req: IncomingMessage; readonly res: ServerResponse };

// A caller that is refused in mid-body gets this much more read and thrown away, so that it sees the answer and may go
// on with the connection; beyond it the connection is cut.
const maxDiscardedBytes = 64 * 1024 * 1024;

// Not counted: a prompt finds its way also while files take all the memory there is for bodies.
const smallBytes = 64 * 1024;

const sessionIdPattern = /^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$/;

const example = '{"prompt": "Hello", "user_id": 1}';

/**
 * The body of a chat request, read and checked. Throws Problem: 415 for another type than JSON, 413 once more than
 * `maxBytes` have come, 400 for what is no JSON object in UTF-8, 422 with every wrong field at once, 408 when the
 * caller goes away, 503 when there is no memory left to `hold` it. Sends `100 Continue` where the caller waits for it
 * (RFC 9110 section 10.1.1).
 */
export async function readChatRequest({ req, res }: RequestAndAnswer, maxBytes: number, hold: BodyHold): Promise<ChatRequest> {
  requireJsonType(req);
  const body = parseObject(await readBytes({ req, res }, maxBytes, hold));
  const request = parseChatRequest(body, req.headersDistinct);
  const key = req.headers['idempotency-key'];
  return typeof key === 'string' ? { ...request, retryKey: { key, fingerprint: fingerprintOf(body) } } : request;
}

/** Lets the rest of an unread body pass by, up to a limit; then the connection is cut. */
export function discardBody(req: IncomingMessage): void {
  if (req.complete) return;
  let leftBytes = maxDiscardedBytes;
  req.on('data', (chunk: Buffer) => {
    leftBytes -= chunk.length;
    if (leftBytes < 0) req.destroy();
  });
}

/**
 * A chat request from a parsed JSON object. Throws Problem `invalid_request` that names every wrong field, and the headers
 * that are wrong: the user that a proxy chose this machine for, and the key of a retry.
 */
function parseChatRequest(body: Json, headers: IncomingMessage['headersDistinct']): ChatRequest {
  const { prompt, user_id: userId, session_id: sessionId, files: given, ...unknown } = body;
  const { files, errors: fileErrors } = readFiles(given);
  const errors = [
    ...promptErrors(prompt, Array.isArray(given) && given.length > 0),
    ...userIdErrors(userId),
    ...routeErrors(userId, headers['x-user-id'] ?? []),
    ...sessionIdErrors(sessionId),
    ...fileErrors,
    ...Object.keys(unknown).slice(0, 20).map(unknownField),
    ...keyErrors(headers['idempotency-key']),
  ];
  if (errors.length > 0 || typeof prompt !== 'string' || typeof userId !== 'number') {
    throw new Problem('invalid_request', errors.map(({ detail }) => detail).join(' '), { errors });
  }
  return { prompt, userId, ...(files.length > 0 && { files }), ...(typeof sessionId === 'string' && { sessionId }) };
}

function promptErrors(prompt: unknown, hasFiles: boolean): FieldError[] {
  const wrong = (fault: string): FieldError[] => [{ field: 'prompt', detail: `prompt ${fault}.` }];
  if (prompt === undefined) return wrong('is required');
  if (typeof prompt !== 'string') return wrong('must be a string');
  if (prompt.trim() === '' && !hasFiles) return wrong('must not be empty');
  if (prompt.includes('\0')) return wrong('must not contain NUL');
  // No UTF-8 can carry half a surrogate pair: it would reach Claude as another text.
  return /\p{Surrogate}/u.test(prompt) ? wrong('must be well-formed Unicode, without lone surrogates') : [];
}

function userIdErrors(userId: unknown): FieldError[] {
  if (userId === undefined) return [{ field: 'user_id', detail: 'user_id is required.' }];
  if (Number.isSafeInteger(userId) && Number(userId) >= 1) return [];
  return [{ field: 'user_id', detail: 'user_id must be an integer from 1 to 9007199254740991.' }];
}

/** On another machine than their own a user would begin a second folder. */
function routeErrors(userId: unknown, routedBy: readonly string[]): FieldError[] {
  if (routedBy.every((text) => text === String(userId))) return [];
  return [{ field: 'X-User-Id', detail: 'The header X-User-Id, where there is one, must be the same number as user_id.' }];
}

function sessionIdErrors(sessionId: unknown): FieldError[] {
  if (sessionId === undefined || sessionId === null) return [];
  if (typeof sessionId === 'string' && sessionIdPattern.test(sessionId)) return [];
  return [{ field: 'session_id', detail: 'session_id must be that of an earlier answer, or null for a new dialogue.' }];
}

function keyErrors(keys: readonly string[] | undefined): FieldError[] {
  if (keys === undefined || isKey(keys)) return [];
  return [{ field: 'Idempotency-Key', detail: 'Idempotency-Key must be one header of 1 to 128 visible ASCII characters, without blanks.' }];
}

const knownFields = ['prompt', 'user_id', 'session_id', 'files'];

function unknownField(name: string): FieldError {
  const field = name.slice(0, 100);
  const meant = knownFields.find((known) => resembles(field, known));
  return { field, detail: `Unknown field ${JSON.stringify(field)}${meant === undefined ? '.' : `; did you mean "${meant}"?`}` };
}

/** Whether a name is the beginning of a known one, or made of the same letters but for two; case and `_` aside. */
function resembles(name: string, known: string): boolean {
  const [letters = '', missing = ''] = [name, known].map((text) => text.toLowerCase().replace(/[^a-z]/g, ''));
  const left = [...missing];
  let added = 0;
  for (const letter of letters) {
    const at = left.indexOf(letter);
    if (at === -1) added += 1;
    else left.splice(at, 1);
  }
  return letters.length >= 3 && (missing.startsWith(letters) || added + left.length <= 2);
}

function requireJsonType(req: IncomingMessage): void {
  const type = req.headers['content-type'];
  const isJson = type === undefined || /^application\/(?:[\w.-]+\+)?json\s*(?:;\s*charset="?utf-8"?\s*)?;?$/i.test(type.trim());
  const isPlain = ['', 'identity'].includes(req.headers['content-encoding']?.toLowerCase() ?? '');
  if (isJson && isPlain) return;
  const detail = 'Send the body as uncompressed JSON in UTF-8, with the header "Content-Type: application/json".';
  throw new Problem('unsupported_media_type', detail);
}

function readBytes({ req, res }: RequestAndAnswer, maxBytes: number, hold: BodyHold): Promise<Buffer> {
  const tooLarge = new Problem('body_too_large', `The body is larger than the ${maxBytes} bytes that MAX_BODY_BYTES allows.`);
  if (Number(req.headers['content-length'] ?? 0) > maxBytes) throw tooLarge;
  if (req.headers.expect !== undefined && req.httpVersion === '1.1') res.writeContinue();
  return new Promise((resolve, reject) => {
    let chunks: Buffer[] = [];
    let totalBytes = 0;
    req.on('data', (chunk: Buffer) => {
      totalBytes += chunk.length;
      if (totalBytes <= maxBytes && hold.take(Math.max(0, Math.min(chunk.length, totalBytes - smallBytes)))) {
        chunks.push(chunk);
        return;
      }
      chunks = [];
      reject(totalBytes > maxBytes ? tooLarge : tooManyAtOnce());
    });
    req.on('end', () => resolve(Buffer.concat(chunks)));
    const gone = (): void => reject(new Problem('request_timeout', 'The request did not arrive in full.'));
    req.on('error', gone);
    req.on('close', gone);
  });
}

function tooManyAtOnce(): Problem {
  return new Problem('busy', 'Too many large requests are under way; try again in a few seconds.', { retryAfterSeconds: 5 });
}

function parseObject(bytes: Buffer): Json {
  const value = parseJson(bytes);
  if (isObject(value)) return value;
  throw new Problem('malformed_json', `The body must be a JSON object like ${example}.`);
}

function parseJson(bytes: Buffer): unknown {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new Problem('malformed_json', 'The body is not UTF-8; send JSON in UTF-8.');
  }
  try {
    return JSON.parse(text);
  } catch (error) {
    // The rest of V8's message quotes the body, which may be somebody's prompt.
    const [where = ''] = /at position \d+/.exec(String(error)) ?? [];
    throw new Problem('malformed_json', `The body is not valid JSON${where && ` ${where}`}; send an object like ${example}.`);
  }
}
