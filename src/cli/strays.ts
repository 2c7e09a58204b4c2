import { readFileSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { setImmediate as nextTick } from 'node:timers/promises';
import { killQuietly } from '../host/processes.ts';

/**
 * The variable every process of ours carries: the CLI and, by inheritance, the tools it starts, which make sessions of
 * their own and so escape a kill of the process group (fact 18). Deliberately not a name other programs use.
 */
export const markerName = 'CLAUDEAPI_WORKER';

/**
 * Ends every process whose marker variable begins with `prefix`, and gives how many there were. Looks again until none
 * is found, so that one that forks meanwhile does not escape. Sees only processes of the same user. Never throws.
 */
export async function endMarked(prefix: string): Promise<number> {
  const needle = Buffer.from(`\0${markerName}=${prefix}`);
  const ended = new Set<number>();
  for (let round = 0; round < 5; round += 1) {
    const found = await findMarked(needle);
    if (found.length === 0) break;
    for (const pid of found) {
      ended.add(pid);
      killQuietly(pid);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return ended.size;
}

async function findMarked(needle: Buffer): Promise<number[]> {
  const names = await readdir('/proc').catch(() => []);
  const pids = names.map(Number).filter((pid) => Number.isInteger(pid) && pid !== process.pid);
  const found: number[] = [];
  for (const [i, pid] of pids.entries()) {
    // At once, not through the thread pool: these are no disk reads, and a trip there takes ten times as long (fact 36).
    if (environmentOf(pid).includes(needle)) found.push(pid);
    if (i % 32 === 31) await nextTick();
  }
  return found;
}

/** The environment a process was started with, each variable after a NUL; empty when it is gone or another user's. */
function environmentOf(pid: number): Buffer {
  try {
    return Buffer.concat([Buffer.from('\0'), readFileSync(`/proc/${pid}/environ`)]);
  } catch {
    return Buffer.alloc(0);
  }
}
