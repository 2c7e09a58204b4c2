import type { Log } from '../log.ts';
import { toProblem, type Problem } from '../problem.ts';

const trialUnderWay = 'The server has just started and is trying its sandbox; ask again in a few seconds.';

// One may be a folder that went away or a moment without memory.
const sandboxFailuresInRow = 3;

/** What a monitor asks. */
interface HealthSources {
  /** The CLI's version; throws the Problem that keeps it from running. */
  readonly probeVersion: () => Promise<string>;
  readonly isDraining: () => boolean;
  /** Whether it is decided how the CLI is run. */
  readonly isReady: () => boolean;
  readonly log: Log;
  /** How long until the CLI is looked for again. */
  readonly retryMs?: number | undefined;
}

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
  /** The CLI's version where it is known. */
  readonly claudeVersion: () => string | undefined;
  /** Looks for the CLI, now and, while it cannot be run, again every `retryMs`; logs what it finds. Never rejects. */
  readonly watchCli: () => Promise<void>;
}

/** A monitor of the CLI and the turns it runs. Looks at nothing before it is asked. */
export function createHealthMonitor({ probeVersion, isDraining, isReady, log, retryMs = 10_000 }: HealthSources): HealthMonitor {
  let trouble: Problem | undefined;
  let version: string | undefined;
  let sandboxFailures = 0;
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
      sandboxFailures = problem?.code === 'sandbox_unavailable' ? sandboxFailures + 1 : 0;
      const isUnusable = problem?.code === 'claude_not_found' || problem?.code === 'claude_too_old';
      if (problem !== undefined && (isUnusable || sandboxFailures >= sandboxFailuresInRow)) setTrouble(problem);
      if (problem !== undefined || trouble === undefined) return;
      setTrouble(undefined);
      void watchCli();
    },
    health() {
      if (isDraining()) return { status: 'draining' };
      if (trouble !== undefined) return { status: 'unavailable', detail: trouble.message };
      return isReady() ? { status: 'ok' } : { status: 'unavailable', detail: trialUnderWay };
    },
    claudeVersion: () => version,
  };
}
