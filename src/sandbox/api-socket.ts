import { once } from 'node:events';
import { chmod, mkdir, rm, rmdir } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import { join } from 'node:path';
import { passRequest, turnAway, type Lane, type ProxyParts } from './api-request.ts';
import { ApiTurn, type TurnLimits, type TurnReport } from './api-turn.ts';
import { createShare } from './share.ts';

/** The API as one process sees it. */
export interface ProxySocket {
  /** The socket, in the folder it was opened in. */
  readonly path: string;
  /** From now on the process may ask, within these limits. Throws Error during a turn. */
  beginTurn(limits: TurnLimits): void;
  /** From now on it may not; what it still has open ends. Throws Error outside a turn. */
  endTurn(): TurnReport;
  /** Ends everything and removes the folder. Never rejects; may be called twice. */
  close(): Promise<void>;
}

/** The name of a socket in its folder, which is what is bound into a sandbox. */
export const socketName = 's';

const maxRequestsAtOnce = 4;
const maxConnections = 64;

// sun_path has 108 bytes, and Node reports a longer socket as listening under a name cut short (fact 48).
const maxPathBytes = 100;

/** What is wrong with a folder for sockets, in a sentence for the operator; undefined for a good one. */
export function socketPathProblem(folder: string): string | undefined {
  const length = Buffer.byteLength(join(folder, socketName));
  return length > maxPathBytes ? `The path of the API proxy's socket has ${length} bytes; ${maxPathBytes} are possible.` : undefined;
}

/**
 * A socket in a folder of its own, made with mode 0700, that listens until it is closed: a connection the CLI keeps
 * from turn to turn goes on. Rejects with Error for a path that is too long, or the system's own.
 */
export async function openSocket(parts: ProxyParts, folder: string): Promise<ProxySocket> {
  const problem = socketPathProblem(folder);
  if (problem !== undefined) throw new Error(problem);
  await mkdir(folder, { recursive: true, mode: 0o700 });
  await chmod(folder, 0o700);
  const path = join(folder, socketName);
  const lane: Lane = { slots: createShare(maxRequestsAtOnce), largeBodies: createShare(1) };
  let turn: ApiTurn | undefined;
  // No limits of time on this side: the CLI keeps its connection, and a body may wait unread for its memory.
  const server = createServer({ keepAliveTimeout: 0, requestTimeout: 0 }, (req, res) => {
    res.on('error', () => {});
    if (turn !== undefined) void passRequest({ parts, lane, turn, req, res });
    else turnAway(req, res, 429, 'rate_limit_error', 'The API can be asked during a turn only.');
  });
  server.maxConnections = maxConnections;
  server.on('connection', (socket) => socket.setMaxListeners(0)); // each request that waits on it has one
  await listenAt(server, path);

  return {
    path,
    beginTurn(limits) {
      if (turn !== undefined) throw new Error('there is a turn already');
      turn = new ApiTurn(limits);
    },
    endTurn() {
      if (turn === undefined) throw new Error('there is no turn');
      const report = turn.end();
      turn = undefined;
      return report;
    },
    async close() {
      endServer(server);
      await rmdir(folder).catch(() => {});
    },
  };
}

/**
 * Has the server listen at this path, in the place of whatever was there, for its own account alone. Rejects with the
 * system's error.
 */
export async function listenAt(server: Server, path: string): Promise<void> {
  await rm(path, { force: true });
  server.listen(path);
  await once(server, 'listening');
  await chmod(path, 0o600);
  server.on('error', () => {}); // a connection that could not be taken is the client's failure
}

/** Ends the server with its connections; its path goes with it. May be called twice. */
export function endServer(server: Server): void {
  server.close();
  server.closeAllConnections();
}
