import type { Chat } from '../turns/chat.ts';
import type { Claude } from '../claude.ts';
import { claudeNotFound } from '../cli/outcome.ts';
import { compareVersions } from '../cli/protocol.ts';
import type { Log } from '../log.ts';
import { toProblem } from '../problem.ts';

/** The oldest CLI that the walls between users were proven on. */
const oldestProvenVersion = '2.1.197';

/** What `/health` answers: to everybody, and with the key also the details. */
export interface Health {
  readonly status: 'ok' | 'draining' | 'unavailable';
  /** What to do about it, when unavailable. */
  readonly detail?: string;
}

/** Whether the server can do its work, learnt from its own turns; asking costs no process. */
export interface HealthMonitor {
  /** The same chat, with every turn counted that is asked for. */
  readonly watched: Chat;
  readonly health: () => Health;
  /** Turns asked for and failures since the start, and the CLI's version where known. */
  readonly counts: () => { readonly claude_version: string | null; readonly turns: number; readonly failures: number };
  /** Looks for the CLI, now and, while it cannot be run, again every `retryMs`; logs what it finds. Never rejects. */
  readonly watchCli: () => Promise<void>;
}

/** A monitor of one chat and its CLI. Looks at nothing before it is asked. */
export function createHealthMonitor(chat: Chat, claude: Pick<Claude, 'probeVersion'>, isDraining: () => boolean, log: Log, retryMs = 10_000): HealthMonitor {
  let isAvailable = true;
  let version: string | undefined;
  let turns = 0;
  let failures = 0;
  let retry: NodeJS.Timeout | undefined;

  async function watchCli(): Promise<void> {
    version = await claude.probeVersion();
    setAvailable(version !== undefined);
    if (version !== undefined && compareVersions(version, oldestProvenVersion) < 0) {
      log('warning', 'claude_old', { claude_version: version, message: `the walls between users are proven on CLI ${oldestProvenVersion} and later: update it` });
    }
  }

  function setAvailable(isNowAvailable: boolean): void {
    if (isNowAvailable && !isAvailable) log('info', 'claude_found');
    if (!isNowAvailable && isAvailable) log('error', 'claude_not_found', { message: claudeNotFound().message });
    isAvailable = isNowAvailable;
    clearTimeout(retry);
    if (!isAvailable) retry = setTimeout(() => void watchCli(), retryMs).unref();
  }

  return {
    watchCli,
    watched: {
      async run(request, signal, onEvent) {
        turns += 1;
        try {
          const answer = await chat.run(request, signal, onEvent);
          if (!isAvailable) {
            setAvailable(true);
            void watchCli();
          }
          return answer;
        } catch (error) {
          const problem = toProblem(error);
          // What the caller did wrong, hanging up included, is no failure of the server's.
          if (problem.status >= 500) failures += 1;
          if (problem.code === 'claude_not_found') setAvailable(false);
          throw error;
        }
      },
    },
    health() {
      if (isDraining()) return { status: 'draining' };
      return isAvailable ? { status: 'ok' } : { status: 'unavailable', detail: claudeNotFound().message };
    },
    counts: () => ({ claude_version: version ?? null, turns, failures }),
  };
}
