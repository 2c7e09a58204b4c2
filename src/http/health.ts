import type { Log } from '../log.ts';
import { toProblem, type Problem } from '../problem.ts';

/** What `/health` answers: to everybody, and with the key also the details. */
export interface Health {
  readonly status: 'ok' | 'draining' | 'unavailable';
  /** What to do about it, when unavailable. */
  readonly detail?: string;
}

/** Whether the server can do its work, learnt from its own turns; asking costs no process. */
export interface HealthMonitor {
  /** To be told of the end of every turn asked for: what it failed with, or undefined for an answer. */
  readonly onTurnEnd: (problem: Problem | undefined) => void;
  readonly health: () => Health;
  /** Turns that are over and failures among them since the start, and the CLI's version where known. */
  readonly counts: () => { readonly claude_version: string | null; readonly turns: number; readonly failures: number };
  /** Looks for the CLI, now and, while it cannot be run, again every `retryMs`; logs what it finds. Never rejects. */
  readonly watchCli: () => Promise<void>;
}

/**
 * A monitor of the CLI and the turns it runs. `probeVersion` gives the CLI's version, and throws the Problem that keeps
 * it from running. Looks at nothing before it is asked.
 */
export function createHealthMonitor(
  probeVersion: () => Promise<string>,
  isDraining: () => boolean,
  log: Log,
  retryMs = 10_000,
): HealthMonitor {
  let trouble: Problem | undefined;
  let version: string | undefined;
  let turns = 0;
  let failures = 0;
  let retry: NodeJS.Timeout | undefined;

  async function watchCli(): Promise<void> {
    try {
      version = await probeVersion();
      setTrouble(undefined);
    } catch (error) {
      version = undefined;
      setTrouble(toProblem(error));
    }
  }

  function setTrouble(problem: Problem | undefined): void {
    if (problem === undefined && trouble !== undefined) log('info', 'claude_found');
    if (problem !== undefined && trouble?.code !== problem.code) {
      log('error', 'claude_unavailable', { code: problem.code, message: problem.message });
    }
    trouble = problem;
    clearTimeout(retry);
    if (trouble !== undefined) retry = setTimeout(() => void watchCli(), retryMs).unref();
  }

  return {
    watchCli,
    onTurnEnd(problem) {
      turns += 1;
      // What the caller did wrong, hanging up included, is no failure of the server's.
      if (problem !== undefined && problem.status >= 500) failures += 1;
      if (problem?.code === 'claude_not_found' || problem?.code === 'claude_too_old') setTrouble(problem);
      if (problem !== undefined || trouble === undefined) return;
      setTrouble(undefined);
      void watchCli();
    },
    health() {
      if (isDraining()) return { status: 'draining' };
      return trouble === undefined ? { status: 'ok' } : { status: 'unavailable', detail: trouble.message };
    },
    counts: () => ({ claude_version: version ?? null, turns, failures }),
  };
}
