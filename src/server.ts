import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import { createBodyMemory } from './http/body-memory.ts';
import { answerBroken } from './http/broken.ts';
import { exchangeOf, type Exchange } from './http/exchange.ts';
import { answerRequest, type RouteOptions } from './http/routes.ts';
import type { StreamTimes } from './http/sse.ts';

/** How long a caller may take, in milliseconds. A turn has its own limit. */
interface Timeouts extends StreamTimes {
  readonly headersMs: number;
  /** The whole request, body included. */
  readonly requestMs: number;
  /**
   * How long a connection stays on which nothing moves: an idle one, and one whose finished answer nobody takes. Above
   * nginx's 60 s, so that it never reuses one we are just closing.
   */
  readonly keepAliveMs: number;
  readonly checkEveryMs: number;
}

const defaultTimeouts: Timeouts = {
  headersMs: 20_000,
  requestMs: 120_000,
  keepAliveMs: 75_000,
  checkEveryMs: 5_000,
  headAfterMs: 10_000,
  heartbeatMs: 15_000,
};

/** What the HTTP side needs of the rest of the server. */
export interface ServerOptions extends Omit<RouteOptions, 'holdBody'> {
  readonly timeouts?: Partial<Timeouts>;
  /** What large bodies may take together, from their arrival to their answer. */
  readonly maxHeldBytes?: number;
}

// On the smallest machine, of 1 GB, the processes need the rest.
const defaultMaxHeldBytes = 128 * 1024 * 1024;

/** The HTTP side: connections, and what becomes of those that break the rules; the routes answer. Does not listen yet. */
export function createHttpServer(options: ServerOptions): Server {
  const routes = { ...options, holdBody: createBodyMemory(options.maxHeldBytes ?? defaultMaxHeldBytes) };
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
    void answerRequest(exchange, routes, timeouts);
  };
  for (const event of ['request', 'checkContinue', 'checkExpectation']) server.on(event, onRequest);
  answerBroken(server, answering, options.log, timeouts.headersMs);
  return server;
}

/** A sentence for the operator about a server that cannot listen, and what to do. */
export function listenProblem(error: NodeJS.ErrnoException, { host, port }: { readonly host: string; readonly port: number }): string {
  if (error.code === 'EADDRINUSE') return `port ${port} is taken by another program: set another PORT, or stop the other one`;
  if (error.code === 'EACCES') return `port ${port} needs root: set PORT to 1024 or more`;
  return `cannot listen on ${host}:${port} (${error.code})`;
}
