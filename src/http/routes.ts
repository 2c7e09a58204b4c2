import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Verdict } from '../auth.ts';
import { namedOver, weightOf } from './accept.ts';
import type { BodyHold } from './body-memory.ts';
import { readChatRequest } from './body.ts';
import { answerProblem, levelOf, send, sendJson, setCommonHeaders, writeProblem, type Exchange } from './exchange.ts';
import type { Chat, ChatAnswer, ChatEvent, ChatRequest } from '../turns/chat.ts';
import type { Figures } from '../turns/figures.ts';
import type { Health } from './health.ts';
import { metricsText, metricsType, type HealthDetails } from './metrics.ts';
import type { Fields, Level, Log } from '../log.ts';
import { describeBug, Problem, problemBody, toProblem } from '../problem.ts';
import { EventStream, type StreamTimes } from './sse.ts';

/** What the routes need of the rest of the server. */
export interface RouteOptions {
  readonly auth: (headerValues: readonly string[]) => Verdict;
  readonly chat: Pick<Chat, 'run'>;
  readonly health: () => Health;
  /** More about the server, for a caller with the key. */
  readonly healthDetails: () => Promise<HealthDetails>;
  readonly figures: Figures;
  readonly maxBodyBytes: number;
  readonly holdBody: () => BodyHold;
  /** Origins whose pages may call; `*` for all. */
  readonly corsOrigins: readonly string[];
  readonly log: Log;
}

const methodsOf: Readonly<Record<string, readonly string[]>> = {
  '/health': ['GET', 'HEAD'],
  '/api/v1/chat': ['POST'],
};

/** Answers one request, whatever it is. Never rejects. */
export async function answerRequest(exchange: Exchange, options: RouteOptions, times: StreamTimes): Promise<void> {
  setCommonHeaders(exchange, options.corsOrigins);
  await route(exchange, options, times).catch((error: unknown) => answerProblem(exchange, toProblem(error), options.log));
}

async function route(exchange: Exchange, options: RouteOptions, times: StreamTimes): Promise<void> {
  const { req, res } = exchange;
  const hosts = req.headersDistinct['host'] ?? [];
  if (hosts.length > 1 || (hosts.length === 0 && req.httpVersion === '1.1')) {
    throw new Problem('malformed_request', 'The request must have one Host header.');
  }
  const path = pathOf(req.url ?? '');
  const methods = methodsOf[path];
  if (req.method === 'OPTIONS' && (methods !== undefined || path === '*')) return sendOptions(res, methods ?? []);
  if (methods === undefined) throw new Problem('not_found', 'There are two routes here: POST /api/v1/chat and GET /health.');
  if (!methods.includes(req.method ?? '')) {
    res.setHeader('Allow', [...methods, 'OPTIONS'].join(', '));
    throw new Problem('method_not_allowed', `This route takes ${methods.join(' and ')}.`);
  }
  await (path === '/health' ? sendHealth(exchange, options) : runChat(exchange, options, times));
}

async function sendHealth({ req, res }: Exchange, { auth, health, healthDetails, figures }: RouteOptions): Promise<void> {
  // Nobody needs a key here, but a wrong one is a mistake, or a guess.
  const hasKey = req.headers.authorization !== undefined;
  if (hasKey) requireKey(req, auth);
  const body = health();
  const isUp = body.status === 'ok';
  const details = hasKey ? await healthDetails() : undefined;
  if (details !== undefined && isForScraper(req.headers.accept ?? '')) send(res, 200, metricsText(isUp, details, figures), metricsType);
  else sendJson(res, isUp ? 200 : 503, { ...body, ...details }, 'application/json');
}

/** Whether this is Prometheus: axios' default header names text too, but wants it no more than JSON. */
function isForScraper(accept: string): boolean {
  const weights = ['text/plain', 'application/openmetrics-text'].map((type) => weightOf(accept, type));
  return Math.max(...weights) > weightOf(accept, 'application/json');
}

async function runChat(exchange: Exchange, options: RouteOptions, times: StreamTimes): Promise<void> {
  requireKey(exchange.req, options.auth);
  const hold = options.holdBody();
  try {
    await answerChat(exchange, await readChatRequest(exchange, options.maxBodyBytes, hold), options, times);
  } finally {
    hold.end();
  }
}

async function answerChat(exchange: Exchange, request: ChatRequest, options: RouteOptions, times: StreamTimes): Promise<void> {
  const { req, res, requestId } = exchange;
  const startedAt = performance.now();
  const caller = callerSignal(req, res);
  const isStreaming = namedOver(req.headers.accept ?? '', 'text/event-stream', 'application/json');
  const stream = isStreaming ? new EventStream(res, times, caller) : undefined;
  const { userId: user, sessionId: asked } = request;
  let origin: string | undefined;
  let isReplayed = false;
  const onEvent = (event: ChatEvent): void => {
    if (event.type === 'admitted') origin = event.origin;
    if (event.type === 'replayed') {
      isReplayed = true;
      res.setHeader('Idempotency-Replayed', 'true');
    }
    if (stream !== undefined) sendEvent(stream, event);
  };
  // A turn that many collect costs once and fails once: the rest stands in the log with it alone.
  const logEnd = (level: Level, fields: Fields, rest: Fields): void => {
    if (isReplayed) options.log('info', 'replay', { request: requestId, user, ...fields });
    else options.log(level, 'turn', { request: requestId, user, ...fields, process: origin, ...rest });
  };
  try {
    const answer = await options.chat.run(request, caller, onEvent);
    const body = answerBody(answer);
    if (stream === undefined) sendJson(res, 200, body, 'application/json');
    else stream.end('result', body);
    const { sessionId: session, durationMs: ms, costUsd: cost } = answer;
    logEnd('info', { session, status: 200 }, { ms, cost });
  } catch (error) {
    const problem = toProblem(error);
    if (stream?.isOpen) stream.end('error', problemBody(problem));
    else writeProblem(exchange, problem);
    const { sessionId: session = asked, durationMs: ms = Math.round(performance.now() - startedAt), costUsd: cost } = problem.extras;
    // No turn fails like that but for its caller.
    const { status, code } = problem.code === 'request_timeout' ? { status: 499, code: 'caller_gone' } : problem;
    logEnd(levelOf(problem), { session, status, code }, { ms, cost, cause: describeBug(problem.extras.cause) });
  }
}

/** Aborts when the caller's connection ends before its answer is out. */
function callerSignal(req: IncomingMessage, res: ServerResponse): AbortSignal {
  const caller = new AbortController();
  const onClose = (): void => {
    if (!res.writableFinished) caller.abort(new Problem('request_timeout', 'The caller has gone.'));
  };
  // Of the connection, not of `res`: an answer that waits behind another one does not hear of the connection's end.
  // Any number of pipelined requests may wait on one connection.
  req.socket.setMaxListeners(0).on('close', onClose);
  res.on('close', () => req.socket.off('close', onClose));
  return caller.signal;
}

/** One event of a turn in the names callers know; that a turn was admitted shows by the stream itself. */
function sendEvent(stream: EventStream, event: ChatEvent): void {
  if (event.type === 'admitted') stream.open();
  if (event.type === 'session') stream.send('session', { session_id: event.sessionId });
  if (event.type === 'tool') stream.send('tool', { name: event.name });
  if (event.type === 'delta') stream.send('delta', { text: event.text });
}

function requireKey(req: IncomingMessage, auth: RouteOptions['auth']): void {
  const verdict = auth(req.headersDistinct['authorization'] ?? []);
  const header = 'header "Authorization: Bearer <CLAUDE_API_KEY>".';
  if (verdict === 'missing_api_key') throw new Problem(verdict, `Send the ${header}`);
  if (verdict === 'invalid_api_key') throw new Problem(verdict, `Wrong API key. Send exactly one ${header}`);
}

function answerBody({ content, given, sessionId, costUsd, durationMs }: ChatAnswer): object {
  const { files, omitted } = given ?? { files: [], omitted: [] };
  return {
    content,
    session_id: sessionId,
    cost: costUsd,
    duration_ms: durationMs,
    ...(files.length > 0 && { files }),
    ...(omitted.length > 0 && { omitted_files: omitted }),
  };
}

function sendOptions(res: ServerResponse, methods: readonly string[]): void {
  const allowed = [...methods, 'OPTIONS'].join(', ');
  res.setHeader('Allow', allowed);
  if (res.hasHeader('Access-Control-Allow-Origin')) {
    res.setHeader('Access-Control-Allow-Methods', allowed);
    res.setHeader('Access-Control-Allow-Headers', 'Authorization, Content-Type, X-Request-Id, X-User-Id, Idempotency-Key');
    res.setHeader('Access-Control-Max-Age', '600');
  }
  res.writeHead(204).end();
}

/** The path of a request target in origin or absolute form (RFC 9112 section 3.2), taken literally: no decoding, no dots. */
function pathOf(target: string): string {
  return target.replace(/^https?:\/\/[^/?#]*/i, '').replace(/[?#].*$/s, '');
}
