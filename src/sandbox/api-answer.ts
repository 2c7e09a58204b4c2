import type { IncomingHttpHeaders, ServerResponse } from 'node:http';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { ApiTurn } from './api-turn.ts';
import { answeredHeaders } from './request-head.ts';
import type { UpstreamAnswer } from './upstream.ts';
import { createMeter, isEventStream, type Tokens } from './usage.ts';

interface RelayOptions {
  /** How long a stream of events may be silent. */
  readonly idleMs: number;
  /** Whether this answer costs tokens. */
  readonly isCounted: boolean;
  /** What to count where the client leaves before the API told anything. */
  readonly inputGuess: Tokens;
}

// An answer that is not streamed is silent until it is done, and then comes at once.
const plainIdleMs = 630_000;

/**
 * Passes an answer on as it comes and counts its tokens into the turn. A connection to the API that breaks or falls
 * silent breaks the client's too; a client that leaves ends the request to the API. When the turn ends, so does an
 * answer that is not whole. Never rejects.
 */
export async function relayAnswer(answer: UpstreamAnswer, res: ServerResponse, turn: ApiTurn, options: RelayOptions): Promise<void> {
  const contentType = answer.headers['content-type'];
  const meter = createMeter(contentType);
  let isClientGone = false;
  let isSettled = false;
  const settle = (): void => {
    if (isSettled) return;
    isSettled = true;
    const { tokens, isWhole, errorType } = meter.reading();
    const isUntold = isClientGone && !isWhole && answer.status < 400 && tokens.input + tokens.cacheRead + tokens.cacheWrite === 0;
    if (options.isCounted) turn.addTokens(isUntold ? options.inputGuess : tokens);
    const type = errorType ?? (answer.body.errored !== null && !isClientGone ? 'connection_error' : undefined);
    const hasFailed = answer.status >= 400 || type !== undefined;
    if (hasFailed) turn.fail({ status: answer.status, type, retryAfterSeconds: retryAfterOf(answer.headers) });
  };
  const leave = (): void => {
    isClientGone ||= answer.body.errored === null && !answer.body.readableEnded;
    settle();
  };
  const onEnd = (): void => {
    // What is left of a whole message is its connection's end, and the connection serves the next turn.
    if (meter.reading().isWhole) return settle();
    leave();
    answer.body.destroy();
  };
  const idleMs = isEventStream(contentType) ? options.idleMs : plainIdleMs;
  const timer = setTimeout(() => answer.body.destroy(new Error('the API fell silent')), idleMs);
  const tap = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      timer.refresh();
      meter.push(chunk);
      done(null, chunk);
    },
  });
  // Before the pipeline hears of it and makes an error of the answer.
  res.once('close', leave);
  turn.ended.addEventListener('abort', onEnd, { once: true });
  try {
    if (turn.ended.aborted) onEnd();
    res.writeHead(answer.status, answeredHeaders(answer.headers)).flushHeaders();
    await pipeline(answer.body, tap, res);
  } catch {
    res.socket?.destroy();
  } finally {
    settle();
    clearTimeout(timer);
    turn.ended.removeEventListener('abort', onEnd);
  }
}

/** Whole seconds until the API wants to be asked again: `retry-after`, or else when a subscription's limit ends. */
function retryAfterOf(headers: IncomingHttpHeaders): number | undefined {
  const value = headers['retry-after'];
  if (value !== undefined) {
    const seconds = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
    return Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : undefined;
  }
  const reset = Number(headers['anthropic-ratelimit-unified-reset']);
  return reset > 0 ? Math.max(0, Math.ceil(reset - Date.now() / 1000)) : undefined;
}
