import type { Log } from './log.ts';
import { shuttingDown } from './problem.ts';

// For the last answers to be written, at least, after the last turn.
const answerGraceMs = 2000;
// One Ctrl-C comes from the terminal, npm and node --watch each, some late; a person who means it presses again.
const sameStopMs = 600;

/** What a shutdown ends. */
interface ShutdownParts {
  /** Turns new turns away; resolves once every process is gone. */
  readonly pool: { close(): Promise<void> };
  /** Ends the connections, those that are being answered after `graceMs` at the latest. */
  readonly closeConnections: (graceMs: number) => Promise<void>;
  /** Aborted with a Problem when running turns must end. */
  readonly closing: AbortController;
  /** Ends at once every process that carries this server's mark. */
  readonly endProcesses: () => Promise<unknown>;
}

/** Ends a server as `Stoppable.stop` promises: first its turns, then its processes, then its connections. */
export async function drain({ pool, closeConnections, closing, endProcesses }: ShutdownParts, graceMs: number): Promise<void> {
  const endsAt = performance.now() + graceMs;
  const timer = setTimeout(() => closing.abort(shuttingDown(stopped)), graceMs);
  await pool.close();
  clearTimeout(timer);
  // The CLI may just be asked for its version.
  await endProcesses();
  await closeConnections(Math.max(answerGraceMs, endsAt - performance.now()));
}

const stopped = 'The server was stopped during this turn; the dialogue can go on when it is back.';

/** How a process comes to its end: the first cause lets the app stop, the next one quits. */
interface Ending {
  /** Stops within `graceMs`; a signal right behind the first is the same one. */
  bySignal(signal: NodeJS.Signals, graceMs: number): void;
  /** Stops at once, with this exit code. */
  byFailure(exitCode: number): void;
}

/** What can be ended. */
export interface Stoppable {
  /** Lets running turns finish for `graceMs`, ends the rest, and resolves once no process and no connection is left; once only. */
  stop(graceMs: number): Promise<void>;
  /** Ends every process of this server at once, a stop under way or not; connections are left as they are. */
  quit(): Promise<unknown>;
}

/** The end of the process that runs the app. `exit` is called when nothing is left: with 0, a failure's code, or 1 after a quit. */
export function createEnding(app: Stoppable, exit: (code: number) => void, log: Log): Ending {
  let stoppedAt: number | undefined;
  let exitCode = 0;
  const end = async (graceMs: number): Promise<void> => {
    if (stoppedAt !== undefined) exitCode ||= 1;
    const ended = stoppedAt === undefined ? app.stop(graceMs) : app.quit();
    stoppedAt ??= performance.now();
    await ended;
    exit(exitCode);
  };
  return {
    bySignal(signal, graceMs) {
      if (stoppedAt !== undefined && performance.now() - stoppedAt < sameStopMs) return;
      log('info', stoppedAt === undefined ? 'draining' : 'quitting', { signal });
      void end(graceMs);
    },
    byFailure(code) {
      exitCode ||= code;
      void end(0);
    },
  };
}
