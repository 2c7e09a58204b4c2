import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';

/**
 * A way to close the server without waiting for anybody: connections without an answer under way end at once, the others
 * behind their answers or after `graceMs`. Resolves once none is left. Node's own `closeIdleConnections` leaves those
 * alone that have not sent a whole head yet.
 */
export function createCloser(server: Server): (graceMs: number) => Promise<void> {
  const answersOf = new Map<Socket, Set<ServerResponse>>();
  let isClosing = false;

  const endIfIdle = (socket: Socket): void => {
    if (![...(answersOf.get(socket) ?? [])].some(isUnderWay)) socket.destroy();
  };
  server.on('connection', (socket) => {
    answersOf.set(socket, new Set());
    socket.on('close', () => answersOf.delete(socket));
  });
  const onRequest = ({ socket }: IncomingMessage, res: ServerResponse): void => {
    answersOf.get(socket)?.add(res);
    res.on('close', () => {
      answersOf.get(socket)?.delete(res);
      if (isClosing) endIfIdle(socket);
    });
  };
  for (const event of ['request', 'checkContinue', 'checkExpectation']) server.on(event, onRequest);

  return async (graceMs) => {
    isClosing = true;
    const closed = new Promise<void>((resolve) => server.close(() => resolve()));
    for (const socket of answersOf.keys()) endIfIdle(socket);
    const timer = setTimeout(() => [...answersOf.keys()].forEach((socket) => socket.destroy()), graceMs);
    await closed;
    clearTimeout(timer);
  };
}

/** The request has arrived whole, or is being answered before it has. */
function isUnderWay(res: ServerResponse): boolean {
  return res.req.complete || res.headersSent;
}
