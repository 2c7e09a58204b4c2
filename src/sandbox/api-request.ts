import type { IncomingMessage, ServerResponse } from 'node:http';
import { describeBug, errorCode } from '../problem.ts';
import type { Log } from '../log.ts';
import { relayAnswer } from './api-answer.ts';
import type { ApiTurn } from './api-turn.ts';
import type { Credentials } from './credentials.ts';
import { maxBodyBytes, Refused, takeBody, type BodyMemory } from './incoming-body.ts';
import type { BodyRules } from './request-body.ts';
import { forwardedHeaders, pathOf, targetOf, type Target } from './request-head.ts';
import type { Share } from './share.ts';
import { noTokens, type Tokens } from './usage.ts';
import type { Upstream, UpstreamAnswer } from './upstream.ts';

/** What all sandboxes' requests go through. */
export interface ProxyParts extends BodyMemory {
  readonly upstream: Upstream;
  readonly credentials: Credentials;
  readonly rules: () => BodyRules;
  readonly onDroppedBetas: (names: readonly string[]) => void;
  /** How long a stream of events may be silent. */
  readonly idleMs: number;
  readonly log: Log;
}

/** What one process has for itself. */
export interface Lane {
  /** Requests under way. */
  readonly slots: Share;
  /** Large bodies: one, so that nobody can hold all there is. */
  readonly largeBodies: Share;
}

/** One request of a process, and what it goes through. */
interface PassedRequest {
  readonly parts: ProxyParts;
  readonly lane: Lane;
  readonly turn: ApiTurn;
  readonly req: IncomingMessage;
  readonly res: ServerResponse;
}

/** Takes one request of a process during its turn through all checks to the API and its answer back. Never rejects. */
export async function passRequest(request: PassedRequest): Promise<void> {
  const { parts, lane, turn, req, res } = request;
  const stop = new AbortController();
  const onEnd = (): void => stop.abort(turn.ended.reason);
  turn.ended.addEventListener('abort', onEnd, { once: true });
  res.once('close', () => stop.abort(new Error('the client hung up')));
  // An answer that waits behind another one has no connection yet, and Node does not tell it of the end.
  const { socket } = req;
  const onGone = (): void => void (res.socket === null && res.emit('close'));
  socket.once('close', onGone);
  let freeSlot = (): void => {};
  try {
    const target = checkHead(turn, req);
    freeSlot = await lane.slots.take(1, stop.signal);
    const { answer, inputGuess } = await askWithBody(request, target, stop.signal);
    // From here on the answer decides what the end of the turn means.
    turn.ended.removeEventListener('abort', onEnd);
    await relayAnswer(answer, res, turn, { idleMs: parts.idleMs, isCounted: target === 'messages', inputGuess });
  } catch (error) {
    settleFailure(request, error);
  } finally {
    turn.ended.removeEventListener('abort', onEnd);
    socket.off('close', onGone);
    freeSlot();
  }
}

/** The API's answer to the request's body; a function of its own, so that nothing keeps the body while the answer streams. */
async function askWithBody(request: PassedRequest, target: Target, signal: AbortSignal) {
  const { parts, lane, turn, req } = request;
  const intake = { memory: parts, largeBodies: lane.largeBodies, target, rules: parts.rules(), signal };
  const { body, textLength, release } = await takeBody(req, intake);
  try {
    const isCounted = target === 'messages';
    if (isCounted && !turn.hasTokensLeft()) throw outOfTokens;
    const inputGuess = isCounted ? { ...noTokens, input: Math.ceil(textLength / 4) } : noTokens;
    const answer = await countingIfLeft(turn, signal, inputGuess, () => ask(request, target, body, signal));
    return { answer, inputGuess };
  } finally {
    release();
  }
}

/** Who leaves before the API's first word has sent the prompt all the same. Counted at once: the turn's report may be next. */
async function countingIfLeft<T>(turn: ApiTurn, signal: AbortSignal, guess: Tokens, act: () => Promise<T>): Promise<T> {
  const onStop = (): void => turn.addTokens(guess);
  signal.addEventListener('abort', onStop, { once: true });
  try {
    return await act();
  } finally {
    signal.removeEventListener('abort', onStop);
  }
}

// As much as the largest body: whoever sends more wants to keep the server busy.
const maxDiscardedBytes = maxBodyBytes;

/** Says no to a request whose body stays unread, but for passing by: the connection goes on, a flood ends it. */
export function turnAway(req: IncomingMessage, res: ServerResponse, status: number, type: string, message: string): void {
  const body = JSON.stringify({ type: 'error', error: { type, message } });
  res.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body), 'x-should-retry': 'false' });
  res.end(body);
  if (req.complete) return;
  let leftBytes = maxDiscardedBytes;
  req.on('data', (chunk: Buffer) => {
    leftBytes -= chunk.length;
    if (leftBytes < 0) req.destroy();
  });
}

/** Something that is not to be had now. */
class TurnedAway extends Error {
  readonly status: number;
  readonly type: string;

  constructor(status: number, type: string, message: string) {
    super(message);
    this.status = status;
    this.type = type;
  }
}

const outOfTurn = new TurnedAway(429, 'rate_limit_error', 'Too much of this turn was refused.');
const outOfTokens = new TurnedAway(429, 'rate_limit_error', 'This user has had the tokens of the day.');

/** The way to the API broke; the cause is the system's error. */
class Broken extends Error {}

function checkHead(turn: ApiTurn, req: IncomingMessage): Target {
  // Neither work nor lines of the log for whoever goes on and on until the turn is ended.
  if (turn.isSpoilt) throw outOfTurn;
  if (!turn.countRequest()) throw new Refused('more requests than a turn may have');
  const target = targetOf(req);
  if (target === undefined) throw new Refused('another address of the API');
  if (req.headers['content-encoding'] !== undefined) throw new Refused('a compressed body');
  return target;
}

/** The API's answer, asked twice where a new login may cure a 401. */
async function ask({ parts, req }: PassedRequest, target: Target, body: Uint8Array, signal: AbortSignal): Promise<UpstreamAnswer> {
  const send = async () => {
    const login = await parts.credentials.current();
    if (login === undefined) throw new TurnedAway(401, 'authentication_error', 'The server has no login for the API.');
    const { headers, droppedBetas } = forwardedHeaders(req.headers, login.beta);
    parts.onDroppedBetas(droppedBetas);
    const request = { path: pathOf[target], headers: { ...headers, ...login.headers }, body };
    const answer = await parts.upstream.send(request, signal).catch((error: unknown) => {
      throw new Broken('the API cannot be reached', { cause: error });
    });
    // Node's parser takes 029 for one, and its server does not.
    if (answer.status < 100) {
      answer.body.destroy();
      throw new Broken('the API cannot be reached', { cause: new Error('the answer has no status that is one') });
    }
    if (!/^(?:identity)?$/.test(answer.headers['content-encoding'] ?? '')) {
      answer.body.destroy();
      throw new Broken('nothing can be counted', { cause: new Error('the answer is compressed, though this was not asked for') });
    }
    return { login, answer };
  };
  const { login, answer } = await send();
  if (answer.status !== 401 || !(await parts.credentials.renew(login))) return answer;
  answer.body.on('error', () => {}).resume();
  return (await send()).answer;
}

/** The one place that turns a failure into an answer, or into the end of the connection. */
function settleFailure({ parts: { log }, turn, req, res }: PassedRequest, error: unknown): void {
  if (error instanceof Refused) {
    turn.countRefusal();
    log('warning', 'api_refused', { ...turn.logFields, what: error.message });
    // 402 is what the CLI neither repeats nor rewords (fact 45).
    turnAway(req, res, 402, 'invalid_request_error', `The server does not allow ${error.message}.`);
  } else if (error instanceof TurnedAway) {
    turnAway(req, res, error.status, error.type, error.message);
  } else {
    const isOurs = turn.ended.aborted || req.socket.destroyed;
    if (error instanceof Broken && !isOurs) {
      turn.fail({ status: undefined, type: 'connection_error', retryAfterSeconds: undefined });
      log('warning', 'api_unreachable', { ...turn.logFields, cause: errorCode(error.cause) ?? describeBug(error.cause) });
    } else if (!isOurs) log('error', 'bug', { ...turn.logFields, message: 'please report this', cause: describeBug(error) });
    // Mirrored, not told: an answer of ours would take the CLI's own way out of a broken connection from it (fact 7).
    req.socket.destroy();
  }
}
