import { randomUUID } from 'node:crypto';
import { readFileSync, rmSync, statSync, utimesSync, type Stats } from 'node:fs';
import { mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { storageUnavailable } from '../host/storage.ts';
import { errorCode } from '../problem.ts';

/** What must outlive the server about one dialogue. */
export interface SessionRecord {
  /** The end user it belongs to. */
  readonly userId: number;
  /** The running total in US dollars that a resumed process goes on from, for CLIs that need it told; else 0. */
  readonly totalCostUsd: number;
}

/** Who owns which dialogue, on disk. */
export interface Sessions {
  /** The record, or undefined for an unknown id. Throws Problem `storage_unavailable` for one that cannot be read. */
  find(sessionId: string): Promise<SessionRecord | undefined>;
  /** Writes a new record, so that it survives a power cut. */
  add(sessionId: string, record: SessionRecord): Promise<void>;
  /** Writes it anew; a reader sees the old record or the new one, whatever ends the server meanwhile. */
  update(sessionId: string, record: SessionRecord): Promise<void>;
  /** Says that the session is still in use. Throws Problem `storage_unavailable` when that cannot be written. */
  touch(sessionId: string): void;
  /** Removes records neither written nor touched for `maxAgeMs`; gives how many. */
  sweep(maxAgeMs: number): Promise<number>;
}

/** The ids a caller may name; they double as file names, so nothing in them can leave the folder. */
export const sessionIdPattern = /^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$/;

/** Records in `<stateDir>/sessions`, one file each, made readable to the service user alone. Throws when it cannot be made. */
export async function openSessions(stateDir: string): Promise<Sessions> {
  const folder = join(stateDir, 'sessions');
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const fileOf = (sessionId: string): string => {
    if (!sessionIdPattern.test(sessionId)) throw new Error('not a session id');
    return join(folder, `${sessionId}.json`);
  };

  return {
    async find(sessionId) {
      if (!sessionIdPattern.test(sessionId)) return undefined;
      try {
        // A few bytes on every turn's way: reading them at once takes less than four trips through the thread pool.
        return parseRecord(readFileSync(fileOf(sessionId), 'utf8'));
      } catch (error) {
        if (errorCode(error) === 'ENOENT') return undefined;
        throw storageUnavailable(error);
      }
    },

    async add(sessionId, record) {
      await writeAtomically(fileOf(sessionId), record, { isDurable: true });
    },

    async update(sessionId, record) {
      // What a power cut may take from a total is not worth a wait for the disk in every turn.
      await writeAtomically(fileOf(sessionId), record, { isDurable: false });
    },

    touch(sessionId) {
      const now = new Date();
      try {
        // At once: through the thread pool one turn of a session would overtake another (measured).
        utimesSync(fileOf(sessionId), now, now);
      } catch (error) {
        throw storageUnavailable(error);
      }
    },

    async sweep(maxAgeMs) {
      const oldest = Date.now() - maxAgeMs;
      const isOld = (entry: Stats | undefined): boolean => entry?.isFile() === true && entry.mtimeMs < oldest;
      let removed = 0;
      for (const name of await readdir(folder)) {
        const path = join(folder, name);
        if (!isOld(await stat(path).catch(() => undefined))) continue;
        // Once more, with nothing in between: its session may have been touched meanwhile.
        if (!isOld(statSync(path, { throwIfNoEntry: false }))) continue;
        rmSync(path, { force: true });
        removed += 1;
      }
      return removed;
    },
  };
}

function parseRecord(text: string): SessionRecord {
  const value = parseJson(text);
  if (typeof value === 'object' && value !== null && 'user_id' in value && 'total_cost_usd' in value) {
    const { user_id: userId, total_cost_usd: totalCostUsd } = value;
    if (typeof userId === 'number' && typeof totalCostUsd === 'number') return { userId, totalCostUsd };
  }
  throw new Error('the record of this session is damaged: restore it from a backup, or delete it');
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

async function writeAtomically(path: string, { userId, totalCostUsd }: SessionRecord, { isDurable }: { isDurable: boolean }): Promise<void> {
  const temporary = `${path}.${randomUUID()}.tmp`;
  try {
    const file = await open(temporary, 'wx', 0o600);
    try {
      await file.writeFile(JSON.stringify({ user_id: userId, total_cost_usd: totalCostUsd }));
      if (isDurable) await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    if (isDurable) await syncFolder(dirname(path));
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

/** The new name is only safe on disk when its folder is (fsync(2)). */
async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}
