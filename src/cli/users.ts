import { accessSync, constants, existsSync, lstatSync } from 'node:fs';
import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { Folder } from '../host/folder.ts';
import { storageUnavailable } from '../host/storage.ts';
import { errorCode } from '../problem.ts';
import { Boxes } from './boxes.ts';

/** The name the CLI gives the folder of its transcripts, whatever path it works in (fact 39). */
export const projectName = 'work';

/** The folders of one end user, as absolute paths. Their parents are the server's own. */
export interface UserFolders {
  /** The CLI's own: transcripts, memory, settings. */
  readonly home: string;
  /** Where Claude works. */
  readonly work: string;
  readonly tmp: string;
  /** Of one process: what goes into its turns and comes out of them. */
  readonly boxes: Boxes;
  /** Whether all of them are still the ones they were, none removed, replaced or closed to the server. Asks the kernel each time. */
  isUnchanged(): boolean;
}

/** All that is kept of end users: a folder each, `<id>/{home,work,tmp,turns}`. What lies in these four is the user's. */
export interface Users {
  /** The folder that holds all of theirs; undefined where there is none. */
  find(userId: number): string | undefined;
  /** The user's folders for the process of this number, made where they are missing. Throws Problem `storage_unavailable`. */
  prepare(userId: number, process: number): Promise<UserFolders>;
  /**
   * Whether a transcript of this session lies in the user's folder. An id that is no lower-case UUID is not looked for.
   * Throws Problem `busy` or `storage_unavailable` when the machine cannot tell.
   */
  hasSession(userId: number, sessionId: string): boolean;
  /** Removes what lies in the user's `tmp` and `turns`. To be called while no process of theirs lives. Never rejects. */
  tidy(userId: number): Promise<void>;
  /** Removes the transcripts of all users that nobody wrote to for `maxAgeMs`; gives how many. Rejects when `users` cannot be read. */
  sweep(maxAgeMs: number): Promise<number>;
}

const uuidPattern = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const transcripts = ['home', 'projects', projectName];
// What the end user may have put in the place of a transcript or of a folder above it, or never made: no session then. EAGAIN: they
// hold a lease on it (F_SETLEASE in fcntl(2)).
const notThere = new Set(['ENOENT', 'ELOOP', 'ENOTDIR', 'ENXIO', 'EACCES', 'EAGAIN']);

/** The users below `<stateDir>/users`, a folder that is made if need be. Throws when it cannot be made. */
export async function openUsers(stateDir: string): Promise<Users> {
  const root = join(stateDir, 'users');
  await mkdir(root, { recursive: true, mode: 0o700 });

  return {
    find(userId) {
      const path = join(root, String(userId));
      return existsSync(path) ? path : undefined;
    },

    async prepare(userId, process) {
      const folder = join(root, String(userId));
      const paths = { home: join(folder, 'home'), work: join(folder, 'work'), tmp: join(folder, 'tmp') };
      const turns = join(folder, 'turns');
      const own = join(turns, String(process));
      const boxes = new Boxes(own);
      try {
        // Not the parents of all: where these are gone, others must not come up in the place of a disk that is not mounted.
        for (const path of [folder, ...Object.values(paths), turns, own, boxes.inbox, boxes.outbox]) await makeFolder(path);
        const all = [folder, ...Object.values(paths), boxes.inbox, boxes.outbox];
        const identity = identityOf(all);
        return { ...paths, boxes, isUnchanged: () => isStill(identity, all) };
      } catch (error) {
        throw storageUnavailable(error);
      }
    },

    hasSession(userId, sessionId) {
      if (!uuidPattern.test(sessionId)) return false;
      const path = join(root, String(userId));
      let folder: Folder | undefined;
      let isTheirs = false;
      try {
        // The server's own: where it cannot be opened that is no end user's doing, and no reason to forget a session.
        Folder.open(path).close();
        isTheirs = true;
        folder = Folder.open(path, transcripts);
        const entry = folder.stat(`${sessionId}.jsonl`);
        return entry.isFile() && entry.size > 0;
      } catch (error) {
        const code = errorCode(error) ?? '';
        if (code === 'ENOENT' || (isTheirs && notThere.has(code))) return false;
        throw storageUnavailable(error);
      } finally {
        folder?.close();
      }
    },

    async tidy(userId) {
      for (const name of ['tmp', 'turns']) await Folder.use(join(root, String(userId)), [name], (folder) => folder.empty());
    },

    async sweep(maxAgeMs) {
      let removed = 0;
      for (const name of await readdir(root)) {
        // A copy of the operator's beside it, such as 17.bak, is no user.
        if (!/^\d+$/.test(name)) continue;
        await Folder.use(join(root, name), transcripts, async (folder) => {
          removed += await sweepTranscripts(folder, Date.now() - maxAgeMs);
        });
      }
      return removed;
    },
  };
}

/** Removes the transcripts last written before `oldestMs`, each with the folder of the same name that the CLI keeps beside it. */
async function sweepTranscripts(folder: Folder, oldestMs: number): Promise<number> {
  let removed = 0;
  for await (const name of folder.names()) {
    const [, id] = /^([0-9a-f-]{36})\.jsonl$/.exec(name.toString('latin1')) ?? [];
    if (id === undefined || !isOlder(folder, name, oldestMs)) continue;
    await Promise.all([folder.remove(name), folder.remove(id)]);
    removed += 1;
  }
  return removed;
}

function isOlder(folder: Folder, name: Buffer, oldestMs: number): boolean {
  try {
    return folder.stat(name).mtimeMs < oldestMs;
  } catch {
    // Not ours to judge: a link, or not to be opened.
    return false;
  }
}

async function makeFolder(path: string): Promise<void> {
  await mkdir(path, { mode: 0o700 }).catch((error: unknown) => {
    if (errorCode(error) !== 'EEXIST') throw error;
  });
}

/** Device and inode of each. Throws when one is not there, no folder, or not to be used, which would look like a CLI that does not run. */
function identityOf(paths: readonly string[]): string {
  const identities = paths.map((path) => {
    const entry = lstatSync(path);
    if (!entry.isDirectory()) throw new Error('something else lies where a folder of a user should be: remove it');
    accessSync(path, constants.R_OK | constants.W_OK | constants.X_OK);
    return `${entry.dev}:${entry.ino}`;
  });
  return identities.join(' ');
}

function isStill(identity: string, paths: readonly string[]): boolean {
  try {
    return identityOf(paths) === identity;
  } catch {
    return false;
  }
}
