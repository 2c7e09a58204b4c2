import { execFile } from 'node:child_process';
import { existsSync, statfsSync } from 'node:fs';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';

/** Room on the disk of the users' folders that is kept from all, so that others can go on when one has filled the rest. */
export interface Reserve {
  /** Keeps it, where it is not kept already. Never rejects. */
  keep(): Promise<void>;
  /** Gives it up. Never rejects. */
  give(): Promise<void>;
  /** What of it would still have to be taken from the disk: all or nothing. */
  missing(): { readonly bytes: number; readonly files: number };
}

// Some hundred turns, and as many new dialogues.
const mostBytes = 64 * 1024 * 1024;
const keptFiles = 1000;

/** The reserve in `stateDir`, where an earlier server may have left it. Changes nothing yet; what cannot be kept is not tried again. */
export function createReserve(stateDir: string): Reserve {
  const folder = join(stateDir, 'reserve');
  const keptBytes = shareOfDisk(stateDir);
  let changing = Promise.resolve();
  let isKept = existsSync(join(folder, String(keptFiles - 1)));

  async function keep(): Promise<void> {
    isKept = true;
    await mkdir(folder, { mode: 0o700, recursive: true });
    await promisify(execFile)('fallocate', ['--length', String(keptBytes), join(folder, 'bytes')]);
    for (let i = 1; i < keptFiles; i += 1) await writeFile(join(folder, String(i)), '');
  }

  async function give(): Promise<void> {
    isKept = false;
    await rm(folder, { recursive: true, force: true });
  }

  const inTurn = (change: () => Promise<void>): Promise<void> => (changing = changing.then(change).catch(() => {}));
  return {
    keep: async () => (isKept ? undefined : inTurn(keep)),
    give: () => inTurn(give),
    missing: () => (isKept ? { bytes: 0, files: 0 } : { bytes: keptBytes, files: keptFiles }),
  };
}

/** A twentieth of a small disk: one that could not be kept would be missing for good, and nobody have a turn again. */
function shareOfDisk(path: string): number {
  try {
    const { blocks, bsize } = statfsSync(path);
    return blocks > 0 ? Math.min(mostBytes, Math.floor((blocks * bsize) / 20)) : mostBytes;
  } catch {
    return mostBytes;
  }
}
