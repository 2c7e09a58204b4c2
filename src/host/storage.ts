import { accessSync, constants, existsSync, statfsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Log } from '../log.ts';
import { describeBug, errorCode, Problem, toProblem } from '../problem.ts';
import { noRoom } from './memory.ts';

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

/** The problem of a file or folder that cannot be used. The cause, for the log, says what to do; no path is in it. */
export function storageUnavailable(error: unknown, setting = 'CLAUDE_STATE_DIR'): Problem {
  const code = errorCode(error);
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
