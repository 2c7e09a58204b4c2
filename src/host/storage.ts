import { accessSync, constants, statfsSync } from 'node:fs';
import { join } from 'node:path';
import type { Log } from '../log.ts';
import { describeBug, errorCode, Problem, toProblem } from '../problem.ts';
import { machineExhausted } from './memory.ts';
import type { Reserve } from './reserve.ts';

// As much as a long turn may add to a dialogue: with less no turn begins.
const leastFreeBytes = 16 * 1024 * 1024;

/**
 * A check that a turn can be kept: the users' folders are there, writable and not full. It throws Problem
 * `storage_unavailable`, whose cause says what to do. It asks the kernel and writes nothing, which takes some
 * microseconds. The CLI answers all the same where it cannot save the dialogue, or not at all (fact 13): so nobody would
 * notice before the money is spent, or until the restart.
 */
export function createStorageCheck(stateDir: string): () => void {
  const path = join(stateDir, 'users');
  return () => {
    try {
      accessSync(path, constants.W_OK | constants.X_OK);
      const { blocks, bavail, bsize, files, ffree } = statfsSync(path);
      // Some file systems count no files, or no blocks.
      const isFull = (blocks > 0 && bavail * bsize < leastFreeBytes) || (files > 0 && ffree === 0);
      if (isFull) throw new Error(`its disk is full: make room for ${leastFreeBytes / 1024 / 1024} MB at least`);
    } catch (error) {
      throw storageUnavailable(error);
    }
  };
}

const enoughFreeBytes = 512 * 1024 * 1024;

/**
 * What the disk of the users' folders is nearly out of: less than 512 MiB or 5 % is free, whichever is less, or 2 % of the
 * inodes. What is `missing` elsewhere is not free. undefined where there is enough, or nothing can be asked.
 */
export function findShortage(stateDir: string, missing: ReturnType<Reserve['missing']>): 'bytes' | 'files' | undefined {
  try {
    const { blocks, bavail, bsize, files, ffree } = statfsSync(join(stateDir, 'users'));
    if (blocks > 0 && bavail * bsize - missing.bytes < Math.min(enoughFreeBytes, (blocks * bsize) / 20)) return 'bytes';
    return files > 0 && ffree - missing.files < files / 50 ? 'files' : undefined;
  } catch {
    return undefined;
  }
}

/** Logs what `checkStorage` finds wrong, if anything. */
export function logStorage(checkStorage: () => void, log: Log): void {
  try {
    checkStorage();
  } catch (error) {
    log('error', 'storage_unavailable', { message: 'no turn can be kept', cause: describeBug(toProblem(error).extras.cause) });
  }
}

/** The problem of a file or folder that cannot be used. The cause, for the log, says what to do; no path is in it. */
export function storageUnavailable(error: unknown): Problem {
  const code = errorCode(error);
  if (code === 'EMFILE' || code === 'ENFILE') return machineExhausted();
  return new Problem('storage_unavailable', 'The server cannot store dialogues at the moment, as its log says; try again later.', {
    retryAfterSeconds: 10,
    cause: new Error(`CLAUDE_STATE_DIR: ${remedyOf(error, code)}`),
  });
}

function remedyOf(error: unknown, code: string | undefined): string {
  if (code !== undefined) return `${remedies[code] ?? 'look after its disk'} (${code})`;
  return error instanceof Error ? error.message : String(error);
}

const remedies: Readonly<Record<string, string>> = {
  EACCES: 'let the user the server runs as write there',
  EPERM: 'let the user the server runs as write there',
  EROFS: 'its disk is mounted read-only',
  ELOOP: 'a link lies where a folder of a user should be: remove it',
  ENOTDIR: 'a file lies where a folder of a user should be: remove it',
  ENOENT: 'the folder is gone: put it back, or restart the server to begin with an empty one',
  ENOSPC: 'its disk is full: make room',
  EDQUOT: 'its disk quota is used up: make room',
};
