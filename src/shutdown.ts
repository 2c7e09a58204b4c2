import { Problem } from './problem.ts';

// For the last answers to be written, at least, after the last turn.
const answerGraceMs = 2000;

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

/** The two ways to end a server; neither exits. */
export interface Shutdown {
  /** Lets running turns finish for `graceMs`, ends the rest, and resolves once no process and no connection is left. */
  drain(graceMs: number): Promise<void>;
  /** Resolves once every process is ended, a drain under way or not. */
  quit(): Promise<void>;
}

/** The shutdown of one server; does nothing before it is asked. */
export function createShutdown({ pool, closeConnections, closing, endProcesses }: ShutdownParts): Shutdown {
  return {
    async drain(graceMs) {
      const endsAt = performance.now() + graceMs;
      const timer = setTimeout(() => closing.abort(stopped()), graceMs);
      await pool.close();
      clearTimeout(timer);
      // The CLI may just be asked for its version.
      await endProcesses();
      await closeConnections(Math.max(answerGraceMs, endsAt - performance.now()));
    },
    async quit() {
      await endProcesses();
    },
  };
}

function stopped(): Problem {
  const detail = 'The server was stopped during this turn; the dialogue can go on when it is back.';
  return new Problem('shutting_down', detail, { retryAfterSeconds: 10 });
}
