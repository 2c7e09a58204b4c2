import { accessSync, constants, existsSync, statfsSync } from 'node:fs';
import { totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import { storageUnavailable } from '../cli/outcome.ts';
import type { Log } from '../log.ts';
import { describeBug, toProblem } from '../problem.ts';

// As much as a long turn may add to a dialogue: with less no turn begins.
const leastFreeBytes = 16 * 1024 * 1024;

/** A folder that every turn writes to, and the setting that says where it is. */
interface Folder {
  readonly setting: string;
  readonly path: string;
}

/**
 * A check that a turn can be kept: state folder, the CLI's own folder and its temporary one are there, writable and not
 * full. It throws Problem `storage_unavailable`, whose cause says what to do. It asks the kernel about each of the
 * folders and writes nothing, which takes some microseconds. The CLI answers all the same where it cannot save the
 * dialogue, or not at all (measured): so nobody would notice before the money is spent, or until the restart.
 */
export function createStorageCheck(stateDir: string, childEnv: Readonly<Record<string, string>>): () => void {
  const state = ['sessions', 'users'].map((name) => ({ setting: 'CLAUDE_STATE_DIR', path: join(stateDir, name) }));
  const given = childEnv['CLAUDE_CONFIG_DIR'];
  const home = childEnv['HOME'] ?? '/';
  const setting = childEnv['CLAUDE_CODE_TMPDIR'] ? 'CLAUDE_CODE_TMPDIR' : 'TMPDIR';
  const temporary = { setting, path: childEnv[setting] || '/tmp' };
  return () => {
    const config = given ? { setting: 'CLAUDE_CONFIG_DIR', path: nearest(given, '/') } : { setting: 'HOME', path: nearest(join(home, '.claude'), join(home)) };
    for (const folder of [...state, config, temporary]) checkFolder(folder);
  };
}

/** Where the CLI will make its folder at its first start: the nearest one above that is there, no higher than `top`. */
function nearest(path: string, top: string): string {
  return path === top || path === dirname(path) || existsSync(path) ? path : nearest(dirname(path), top);
}

function checkFolder({ setting, path }: Folder): void {
  try {
    accessSync(path, constants.W_OK | constants.X_OK);
    const { blocks, bavail, bsize, files, ffree } = statfsSync(path);
    // Some file systems count no files, or no blocks.
    if ((blocks > 0 && bavail * bsize < leastFreeBytes) || (files > 0 && ffree === 0)) throw new Error(`its disk is full: make room for ${leastFreeBytes / 1024 / 1024} MB at least`);
  } catch (error) {
    throw storageUnavailable(error, setting);
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

/** The memory this process may use, in bytes: the container's or service's limit where there is one. */
export function availableMemoryBytes(): number {
  const limit = process.constrainedMemory();
  return limit === undefined || limit === 0 ? totalmem() : Math.min(limit, totalmem());
}

/** How many CLI processes this much memory carries: one per 400 MB after the first 256 MB, at least one. */
export function defaultCapacity(memoryBytes: number): number {
  return Math.max(1, Math.floor((memoryBytes / 1024 / 1024 - 256) / 400));
}
