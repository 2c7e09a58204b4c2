import { randomUUID } from 'node:crypto';
import { createServer, STATUS_CODES, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { Problem, problemBody } from './problem.ts';
import { answerProblem, answerRequest, exchangeOf, type Exchange, type RouteOptions } from './http/routes.ts';

/** How long a caller may take, in milliseconds. A turn has its own limit. */
interface Timeouts {
  readonly headersMs: number;
  /** The whole request, body included. */
  readonly requestMs: number;
  /**
   * How long a connection stays on which nothing moves: an idle one, and one whose finished answer nobody takes. Above
   * nginx's 60 s, so that it never reuses one we are just closing.
   */
  readonly keepAliveMs: number;
  readonly checkEveryMs: number;
  readonly heartbeatMs: number;
}

const defaultTimeouts: Timeouts = { headersMs: 20_000, requestMs: 120_000, keepAliveMs: 75_000, checkEveryMs: 5_000, heartbeatMs: 15_000 };

/** What the HTTP side needs of the rest of the server. */
export interface ServerOptions extends RouteOptions {
  readonly timeouts?: Partial<Timeouts>;
}

/** The HTTP side: connections, and what becomes of those that break the rules; the routes answer. Does not listen yet. */
export function createHttpServer(options: ServerOptions): Server {
  const timeouts = { ...defaultTimeouts, ...options.timeouts };
  const server = createServer({
    headersTimeout: timeouts.headersMs,
    requestTimeout: timeouts.requestMs,
    keepAliveTimeout: timeouts.keepAliveMs,
    connectionsCheckingInterval: timeouts.checkEveryMs,
    // Node's own answer to a missing Host has no body; ours says what is wrong.
    requireHostHeader: false,
  });
  server.timeout = timeouts.keepAliveMs;
  // Node drops what comes after some 1,000 headers without a word; their 16 KiB are limit enough.
  server.maxHeadersCount = 0;
  const answering = new WeakMap<Duplex, Exchange>();
  // Connections on which nothing can be understood any more.
  const refused = new WeakSet<Duplex>();

  const onRequest = (req: IncomingMessage, res: ServerResponse): void => {
    const exchange = exchangeOf(req, res);
    answering.set(req.socket, exchange);
    res.on('close', () => {
      // Requests sent without waiting are under way together; answers go out in order, so the last one is the one to keep.
      if (answering.get(req.socket) === exchange) answering.delete(req.socket);
    });
    // A reset connection shows here as well as in the body's reader; it needs no second answer.
    res.on('error', () => {});
    res.on('timeout', () => {
      // A turn may be silent for as long as CLAUDE_TIMEOUT_SECONDS says. Node's timer goes off once, so it is wound up again.
      if (res.writableEnded) req.socket.destroy();
      else req.socket.setTimeout(timeouts.keepAliveMs);
    });
    void answerRequest(exchange, options, timeouts.heartbeatMs);
  };
  const refuse = (socket: Duplex, problem: Problem): void => {
    if (!socket.writable) return;
    const requestId = randomUUID();
    const remote = socket instanceof Socket ? socket.remoteAddress : undefined;
    options.log('info', 'request', { request: requestId, status: problem.status, code: problem.code, remote });
    socket.end(rawAnswer(problem, requestId));
  };
  server.on('request', onRequest);
  server.on('checkContinue', onRequest);
  server.on('checkExpectation', onRequest);
  server.on('clientError', (error: NodeJS.ErrnoException, socket) => {
    const problem = connectionProblem(error.code);
    const exchange = answering.get(socket);
    const isRepeated = refused.has(socket) || !socket.writable;
    refused.add(socket);
    const isGone = error.code === 'ECONNRESET' || (exchange !== undefined && socket.readableEnded);
    if (isGone || (isRepeated && exchange === undefined && problem.code === 'request_timeout')) {
      socket.destroy();
    } else if (isRepeated) {
      // Whatever else it sends passes by unheard: closing now would reset the connection, and the answers under way with it.
    } else if (exchange === undefined) {
      refuse(socket, problem);
    } else if (exchange.res.headersSent) {
      exchange.res.on('close', () => refuse(socket, problem));
    } else {
      exchange.res.setHeader('Connection', 'close');
      // Behind a whole request (its Content-Length counts characters, say) the trouble is not that one's: it is still answered.
      if (!exchange.req.complete) answerProblem(exchange, problem, options.log);
    }
  });
  return server;
}

function connectionProblem(code: string | undefined): Problem {
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT') return new Problem('request_timeout', 'The request did not arrive in time.');
  if (code === 'HPE_HEADER_OVERFLOW') return new Problem('headers_too_large', 'The request headers are larger than 16 KiB.');
  return new Problem('malformed_request', 'The request is not valid HTTP/1.1.');
}

/** An answer to what never became a request, so that even this caller gets a problem object. */
function rawAnswer(problem: Problem, requestId: string): string {
  const text = JSON.stringify(problemBody(problem));
  const headers = {
    'Content-Type': 'application/problem+json',
    'Content-Length': Buffer.byteLength(text),
    'X-Request-Id': requestId,
    Connection: 'close',
  };
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`).join('');
  return `HTTP/1.1 ${problem.status} ${STATUS_CODES[problem.status] ?? ''}\r\n${lines}\r\n${text}`;
}
