import { randomUUID } from 'node:crypto';
import { STATUS_CODES, type Server } from 'node:http';
import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { Log } from '../log.ts';
import { Problem, problemBody } from '../problem.ts';
import { answerProblem, type Exchange } from './exchange.ts';

/** A connection on which something arrived that is no request, or nothing in time. */
export interface BrokenConnection {
  /** The caller sends nothing more. */
  readonly hasEnded: boolean;
  /** It is given up on already, or can take no answer: a reset one, say. */
  readonly isRefused: boolean;
  /** The last request that has no whole answer yet: none, one still arriving, or one that arrived or is being answered. */
  readonly request: 'none' | 'arriving' | 'heard';
}

/**
 * What to do: end the connection; nothing; refuse what came; refuse it behind the answers under way; or give the request
 * that is arriving an error for its answer.
 */
export type Reaction = 'destroy' | 'ignore' | 'refuse' | 'refuse_later' | 'answer';

/** How the server reacts to a broken connection. No request that was sound loses its answer by what comes after it. */
export function reaction({ hasEnded, isRefused, request }: BrokenConnection): Reaction {
  if (hasEnded && request !== 'none') return 'destroy';
  // Whatever else it sends passes by unheard: closing now would reset the connection, and the answers under way with it.
  if (isRefused) return 'ignore';
  return ({ none: 'refuse', arriving: 'answer', heard: 'refuse_later' } as const)[request];
}

/**
 * Gives every caller on a broken connection a problem object, where it can still take one, and ends the connection.
 * `answering` knows the last request under way on each; a refused caller has `lingerMs` to read what it is told.
 */
export function answerBroken(server: Server, answering: WeakMap<Duplex, Exchange>, log: Log, lingerMs: number): void {
  // Connections on which nothing can be understood any more.
  const refused = new WeakSet<Duplex>();

  const refuse = (socket: Duplex, problem: Problem): void => {
    if (!socket.writable) return;
    const requestId = randomUUID();
    const remote = socket instanceof Socket ? socket.remoteAddress : undefined;
    log('info', 'request', { request: requestId, status: problem.status, code: problem.code, remote });
    socket.end(rawAnswer(problem, requestId));
    // To close it at once would reset it, and the answer with it, where the caller still sends; it may do so for ever.
    const timer = setTimeout(() => socket.destroy(), lingerMs);
    socket.on('close', () => clearTimeout(timer));
  };

  const refuseBehind = (exchange: Exchange | undefined, socket: Duplex, problem: Problem): void => {
    if (exchange === undefined) refuse(socket, problem);
    else exchange.res.on('close', () => refuse(socket, problem));
  };

  // Here Node takes its own listeners off the socket; without a listener of ours it only closes it.
  server.on('connect', (_req, socket) => {
    socket.on('error', () => {}).resume();
    refuseBehind(answering.get(socket), socket, new Problem('not_found', 'This is no proxy: CONNECT leads nowhere.'));
  });

  server.on('clientError', (error: NodeJS.ErrnoException, socket) => {
    const exchange = answering.get(socket);
    const does = reaction({
      hasEnded: socket.readableEnded,
      isRefused: refused.has(socket) || !socket.writable,
      request: requestState(exchange),
    });
    refused.add(socket);
    const problem = connectionProblem(error.code);
    if (does === 'destroy') socket.destroy();
    if (does === 'refuse' || does === 'refuse_later') refuseBehind(exchange, socket, problem);
    if (does === 'answer' && exchange !== undefined) {
      exchange.res.setHeader('Connection', 'close');
      answerProblem(exchange, problem, log);
    }
  });
}

function requestState(exchange: Exchange | undefined): BrokenConnection['request'] {
  if (exchange === undefined) return 'none';
  return exchange.req.complete || exchange.res.headersSent ? 'heard' : 'arriving';
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
