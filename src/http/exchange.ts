import { randomUUID } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Level, Log } from '../log.ts';
import { describeBug, problemBody, problemHeaders, type Problem } from '../problem.ts';
import { discardBody } from './body.ts';

/** A request and its answer. */
export type Exchange = { readonly req: IncomingMessage; readonly res: ServerResponse; readonly requestId: string };

/** A request and its answer, under the caller's own id where that is a sane one, else under a new one. */
export function exchangeOf(req: IncomingMessage, res: ServerResponse): Exchange {
  const [given = '', ...others] = req.headersDistinct['x-request-id'] ?? [];
  const isSane = others.length === 0 && /^[A-Za-z0-9._:-]{1,128}$/.test(given);
  return { req, res, requestId: isSane ? given : randomUUID() };
}

/** What every answer says: its id, which pages may read it, whether the connection must end. */
export function setCommonHeaders({ req, res, requestId }: Exchange, corsOrigins: readonly string[]): void {
  res.setHeader('X-Request-Id', requestId);
  res.setHeader('X-Content-Type-Options', 'nosniff');
  // Node drops what it has read behind a request to upgrade, also where nobody upgrades: no next request may be begun there.
  if (req.headers.upgrade !== undefined) res.setHeader('Connection', 'close');
  if (corsOrigins.length === 0) return;
  const isOpen = corsOrigins.includes('*');
  if (!isOpen) res.setHeader('Vary', 'Origin');
  const { origin } = req.headers;
  if (origin === undefined || !(isOpen || corsOrigins.includes(origin))) return;
  res.setHeader('Access-Control-Allow-Origin', isOpen ? '*' : origin);
  res.setHeader('Access-Control-Expose-Headers', 'X-Request-Id, Retry-After, Idempotency-Replayed');
}

/** Answers with a problem, and logs it; does nothing where the answer is out already. */
export function answerProblem(exchange: Exchange, problem: Problem, log: Log): void {
  // Refused by its head, while its body turned out to be garbage: one answer is enough.
  if (exchange.res.writableEnded) return;
  const event = problem.status === 401 ? 'auth_failed' : 'request';
  log(levelOf(problem), event, {
    request: exchange.requestId,
    status: problem.status,
    code: problem.code,
    remote: exchange.req.socket.remoteAddress,
    cause: describeBug(problem.extras.cause),
  });
  writeProblem(exchange, problem);
}

/** Answers with a problem. Where the head of another answer is out, it can only break that off. */
export function writeProblem({ req, res }: Exchange, problem: Problem): void {
  if (res.headersSent || res.closed) {
    res.destroy();
    return;
  }
  for (const [name, value] of Object.entries(problemHeaders(problem))) res.setHeader(name, value);
  // A caller still waiting for "100 Continue" may or may not send its body now; nobody could tell it from a next request.
  if (req.headers.expect !== undefined && !req.complete) res.setHeader('Connection', 'close');
  discardBody(req);
  sendJson(res, problem.status, problemBody(problem), 'application/problem+json');
}

/** Answers with JSON of this type. */
export function sendJson(res: ServerResponse, status: number, body: object, type: string): void {
  send(res, status, JSON.stringify(body), type);
}

/** Answers with text of this type. */
export function send(res: ServerResponse, status: number, text: string, type: string): void {
  res.writeHead(status, { 'Content-Type': type, 'Content-Length': Buffer.byteLength(text), 'Cache-Control': 'no-store' });
  // Node leaves the body out of an answer to HEAD by itself.
  res.end(text);
}

/** How much a problem matters to whoever reads the log. */
export function levelOf(problem: Problem): Level {
  if (problem.code === 'internal_error') return 'error';
  return problem.status >= 500 ? 'warning' : 'info';
}
