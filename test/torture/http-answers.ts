import assert from 'node:assert/strict';
import { STATUS_CODES } from 'node:http';
import { problemCodes } from '../../src/problem.ts';
import { apiKey } from '../running-server.ts';
import type { Sent } from './http-requests.ts';

export interface Answer {
  readonly status: number;
  readonly headers: ReadonlyMap<string, string>;
  readonly body: string;
}

const knownHeaders = new Set([
  'date', 'connection', 'keep-alive', 'content-type', 'content-length', 'transfer-encoding', 'cache-control', 'x-request-id', 'x-content-type-options', 'x-accel-buffering', 'www-authenticate', 'retry-after', 'allow', 'vary',
  'access-control-allow-origin', 'access-control-expose-headers', 'access-control-allow-methods', 'access-control-allow-headers', 'access-control-max-age',
]);

/** What a server sends on one connection, taken apart without mercy: a byte that belongs to no answer is an error. */
export class AnswerReader {
  #unread: Buffer = Buffer.alloc(0);
  isEnded = false;

  push(chunk: Buffer): void {
    this.#unread = this.#unread.length === 0 ? chunk : Buffer.concat([this.#unread, chunk]);
  }

  get unread(): string {
    return this.#unread.toString('latin1');
  }

  /** The next answer, once all of it is there. */
  take(isToHead: boolean): Answer | undefined {
    const headEnd = this.#unread.indexOf('\r\n\r\n');
    if (headEnd === -1) return undefined;
    const [statusLine = '', ...lines] = this.#unread.toString('latin1', 0, headEnd).split('\r\n');
    const [, digits = '', reason] = /^HTTP\/1\.1 ([1-5]\d\d) ([A-Za-z ]+)$/.exec(statusLine) ?? assert.fail(`not an answer: ${JSON.stringify(this.unread.slice(0, 300))}`);
    assert.equal(reason, STATUS_CODES[Number(digits)]);
    const headers = new Map<string, string>();
    for (const line of lines) {
      const [, name = '', value = ''] = /^([A-Za-z-]+): ([\x20-\x7e]*)$/.exec(line) ?? assert.fail(`not a header: ${JSON.stringify(line)}`);
      assert.ok(knownHeaders.has(name.toLowerCase()) && !headers.has(name.toLowerCase()), `header ${line}`);
      headers.set(name.toLowerCase(), value);
    }
    const body = this.#bodyFrom(headEnd + 4, Number(digits), headers, isToHead);
    if (body === undefined) return undefined;
    this.#unread = this.#unread.subarray(body.end);
    return { status: Number(digits), headers, body: body.text };
  }

  #bodyFrom(start: number, status: number, headers: ReadonlyMap<string, string>, isToHead: boolean): { text: string; end: number } | undefined {
    if (isToHead || status < 200 || status === 204) return { text: '', end: start };
    const length = headers.get('content-length');
    if (headers.get('transfer-encoding') === 'chunked') {
      assert.equal(length, undefined, 'a length and chunks');
      return this.#chunksFrom(start);
    }
    if (length === undefined) {
      assert.equal(headers.get('connection'), 'close', 'no length, no chunks, and the connection stays');
      return this.isEnded ? { text: this.#unread.toString('utf8', start), end: this.#unread.length } : undefined;
    }
    assert.match(length, /^\d+$/);
    const end = start + Number(length);
    return this.#unread.length < end ? undefined : { text: this.#unread.toString('utf8', start, end), end };
  }

  #chunksFrom(start: number): { text: string; end: number } | undefined {
    const parts: Buffer[] = [];
    for (let at = start; ; ) {
      const lineEnd = this.#unread.indexOf('\r\n', at);
      if (lineEnd === -1) return undefined;
      const line = this.#unread.toString('latin1', at, lineEnd);
      assert.match(line, /^[0-9a-f]+$/, 'a chunk size');
      const end = lineEnd + 2 + Number.parseInt(line, 16);
      if (this.#unread.length < end + 2) return undefined;
      assert.equal(this.#unread.toString('latin1', end, end + 2), '\r\n', 'the end of a chunk');
      if (end === lineEnd + 2) return { text: Buffer.concat(parts).toString(), end: end + 2 };
      parts.push(this.#unread.subarray(lineEnd + 2, end));
      at = end + 2;
    }
  }
}

/** Checks that an answer is one of the right ones to this request, and whole. Gives its name, as in "401 invalid_api_key". */
export function checkAnswer(sent: Sent, answer: Answer): string {
  const { status, headers, body } = answer;
  const name = nameOf(answer);
  const right = sent.isHead ? sent.right.map((each) => each.slice(0, 3)) : sent.right;
  // An event stream says what went wrong in its last event.
  const isStream = headers.get('content-type') === 'text/event-stream; charset=utf-8';
  const said = isStream ? lastEventOf(body, sent) : name;
  assert.ok(right.includes(sent.isHead ? String(status) : said), `wants ${sent.right.join(' or ')}, got ${said}: ${body.slice(0, 300)}`);
  assert.ok(!body.includes(apiKey), 'the key is in the answer');
  if (isStream) assert.ok(sent.streams, 'nobody asked for a stream');
  const isRefusedUnheard = name === '400 malformed_request' || name.startsWith('431') || name.startsWith('408') || (sent.isUnheard && name === '404 not_found');
  const requestId = headers.get('x-request-id') ?? '';
  if (sent.requestId !== undefined && !isRefusedUnheard) assert.equal(requestId, sent.requestId);
  else if (requestId !== sent.requestId) assert.match(requestId, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
  if (!isRefusedUnheard) {
    assert.equal(headers.get('x-content-type-options'), 'nosniff');
    assert.equal(headers.get('access-control-allow-origin'), sent.allowOrigin);
    assert.equal(headers.get('vary'), 'Origin');
  }
  if (status === 204) assert.match(headers.get('allow') ?? '', /OPTIONS$/);
  if (status === 200 && !isStream) checkGood(sent, body);
  return said;
}

/** The name of an answer: its status, and the code of its problem, whose members are checked. */
export function nameOf({ status, headers, body }: Answer): string {
  if (status < 400) {
    if (status !== 204) assert.match(headers.get('content-type') ?? '', /^(application\/json|text\/event-stream; charset=utf-8)$/);
    return String(status);
  }
  assert.equal(headers.get('content-type'), 'application/problem+json');
  if (status === 401) assert.equal(headers.get('www-authenticate'), 'Bearer');
  if (status === 405) assert.match(headers.get('allow') ?? '', /^(GET, HEAD|POST), OPTIONS$/);
  if (body === '') return String(status);
  assert.equal(headers.get('content-length'), String(Buffer.byteLength(body)));
  return nameOfProblem(JSON.parse(body), status);
}

function nameOfProblem(value: unknown, status: number): string {
  assert.ok(typeof value === 'object' && value !== null);
  const problem = value as Record<string, unknown>;
  const code = problemCodes.find((each) => each === problem['code']) ?? assert.fail(`no known code: ${JSON.stringify(problem)}`);
  assert.deepEqual([problem['status'], problem['type']], [status, `urn:claude-api:problem:${code}`]);
  for (const member of ['title', 'detail']) assert.ok(typeof problem[member] === 'string' && problem[member] !== '', member);
  return `${status} ${code}`;
}

function checkGood({ route, isHead, isKeyed, content }: Sent, body: string): void {
  if (isHead) return assert.equal(body, '');
  const answer = JSON.parse(body) as Record<string, unknown>;
  if (route === 'health') {
    assert.equal(answer['status'], 'ok');
    if (!isKeyed) assert.equal(body, '{"status":"ok"}');
  } else checkTurn(answer, content);
}

function checkTurn(answer: Record<string, unknown>, content: RegExp | undefined): void {
  assert.deepEqual(Object.keys(answer), ['content', 'session_id', 'cost', 'duration_ms']);
  assert.match(String(answer['content']), content ?? assert.fail('nobody asked for a turn'));
  assert.match(String(answer['session_id']), /^[0-9a-f-]{36}$/);
}

/** Checks a whole event stream; gives the name of what its last event says. */
function lastEventOf(stream: string, { content }: Sent): string {
  assert.ok(stream.endsWith('\n\n'), 'the stream ends in mid-event');
  const events = stream.slice(0, -2).split('\n\n').filter((block) => block !== ': still working').map((block) => {
    const [, name = '', data = ''] = /^event: (session|delta|tool|result|error)\ndata: (\{[^\n]*\})$/.exec(block) ?? assert.fail(`not an event: ${JSON.stringify(block.slice(0, 200))}`);
    return { name, data: JSON.parse(data) as Record<string, unknown> };
  });
  const last = events.at(-1) ?? assert.fail('no event');
  assert.ok(['result', 'error'].includes(last.name) && events.slice(0, -1).every(({ name }) => !['result', 'error'].includes(name)), 'one last event');
  if (last.name === 'error') return nameOfProblem(last.data, Number(last.data['status']));
  checkTurn(last.data, content);
  return '200';
}
