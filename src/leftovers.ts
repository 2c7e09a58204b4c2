import { readdir, readFile } from 'node:fs/promises';
import { createServer } from 'node:net';

/**
 * The variable every process of ours carries: the CLI and, by inheritance, the tools it starts, which make sessions of
 * their own and so escape a kill of the process group (measured). Deliberately not a name other programs use.
 */
export const markerName = 'CLAUDEAPI_WORKER';

/**
 * Claims a name on this machine until the process ends, however it ends: an abstract socket (unix(7)) is gone with its
 * owner, so no stale lock is ever left. Gives false when another process has it.
 */
export function claim(name: string): Promise<boolean> {
  return new Promise((resolve) => {
    const holder = createServer();
    holder.on('error', () => resolve(false));
    holder.listen(`\0${name}`, () => resolve(true));
    holder.unref();
  });
}

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
  const matches = await Promise.all(
    pids.map(async (pid) => {
      const environment = await readFile(`/proc/${pid}/environ`).catch(() => Buffer.alloc(0));
      return Buffer.concat([Buffer.from('\0'), environment]).includes(needle);
    }),
  );
  return pids.filter((_, i) => matches[i]);
}

function killQuietly(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // Gone already.
  }
}
