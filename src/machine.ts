import { accessSync, constants, existsSync, statfsSync } from 'node:fs';
import { totalmem } from 'node:os';
import { join } from 'node:path';
import { Problem } from './problem.ts';

// As much as a long turn may add to a dialogue: with less no turn begins.
const leastFreeBytes = 16 * 1024 * 1024;

/** A folder that every turn writes to, and the setting that says where it is. */
interface Place {
  readonly setting: string;
  readonly folder: string;
}

/**
 * A check that a turn can be kept: state folder, the CLI's own folder and its temporary one are there, writable and not
 * full. It throws Problem `storage_unavailable`, whose cause says what to do. It asks the kernel about each of the
 * folders and writes nothing, which takes some microseconds. The CLI answers all the same where it cannot save the
 * dialogue, or not at all (measured): so nobody would notice before the money is spent, or until the restart.
 */
export function createStorageCheck(stateDir: string, childEnv: Readonly<Record<string, string>>): () => void {
  const home = childEnv['HOME'] ?? '/';
  const configFolder = childEnv['CLAUDE_CONFIG_DIR'] || join(home, '.claude');
  const temporary = { setting: 'TMPDIR', folder: childEnv['CLAUDE_CODE_TMPDIR'] || childEnv['TMPDIR'] || '/tmp' };
  const state = ['sessions', 'users'].map((name) => ({ setting: 'CLAUDE_STATE_DIR', folder: join(stateDir, name) }));
  return () => {
    // The CLI makes its folder at its first start.
    const config = { setting: 'HOME', folder: existsSync(configFolder) ? configFolder : home };
    for (const place of [...state, config, temporary]) checkPlace(place);
  };
}

function checkPlace({ setting, folder }: Place): void {
  try {
    accessSync(folder, constants.W_OK | constants.X_OK);
    const { bavail, bsize, files, ffree } = statfsSync(folder);
    // Some file systems count no files at all.
    if (bavail * bsize < leastFreeBytes || (files > 0 && ffree === 0)) throw new Error(`its disk is full: make room for ${leastFreeBytes / 1024 / 1024} MB at least`);
  } catch (error) {
    throw storageUnavailable(error, setting);
  }
}

/** The problem of a file or folder that cannot be used. The cause, for the log, says what to do; no path is in it. */
export function storageUnavailable(error: unknown, setting = 'CLAUDE_STATE_DIR'): Problem {
  const code = error instanceof Error && 'code' in error ? String(error.code) : undefined;
  if (code === 'EMFILE' || code === 'ENFILE') return noRoom();
  const remedy = code === undefined ? (error as Error).message : `${remedies[code] ?? 'look after its disk'} (${code})`;
  return new Problem('storage_unavailable', 'The server cannot store dialogues at the moment, as its log says; try again later.', {
    retryAfterSeconds: 10,
    cause: new Error(`${setting}: ${remedy}`),
  });
}

const remedies: Readonly<Record<string, string>> = {
  EACCES: 'let the user the server runs as write there',
  EPERM: 'let the user the server runs as write there',
  EROFS: 'its disk is mounted read-only',
  ENOENT: 'the folder is gone: put it back, or restart the server to begin with an empty one',
  ENOSPC: 'its disk is full: make room',
  EDQUOT: 'its disk quota is used up: make room',
};

/** The problem of a machine that has no process, descriptor or memory left to start a CLI. */
export function noRoom(): Problem {
  return new Problem('busy', 'The machine has no room to start the Claude CLI at the moment; try again.', { retryAfterSeconds: 5 });
}

/** The memory this process may use, in bytes: the container's or service's limit where there is one. */
export function availableMemoryBytes(): number {
  const limit = process.constrainedMemory();
  return limit === undefined || limit === 0 ? totalmem() : Math.min(limit, totalmem());
}

/** How many CLI processes this much memory carries: one per 400 MB after the first 256 MB, at least one. */
export function defaultCapacity(memoryBytes: number): number {
  return Math.max(1, Math.floor((memoryBytes / 1024 / 1024 - 256) / 400));
}
