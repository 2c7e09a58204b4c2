import assert from 'node:assert/strict';
import fs from 'node:fs';
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { createStorageCheck, findShortage, logStorage, storageUnavailable } from '../../../src/host/storage.ts';
import { Problem } from '../../../src/problem.ts';

/** A state folder whose users lie on another file system. */
async function stateOn(t: TestContext, path: string): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'claude-api-storage-'));
  t.after(() => rm(folder, { recursive: true }));
  await symlink(path, join(folder, 'users'));
  return folder;
}

test('what is missing elsewhere counts as if it were taken', async (t) => {
  const folder = await stateOn(t, '/dev/shm');
  assert.equal(findShortage(folder, { bytes: Infinity, files: 0 }), 'bytes');
  assert.equal(findShortage(folder, { bytes: 0, files: Infinity }), 'files');
});

test('a file system that counts neither blocks nor files is short of nothing', async (t) => {
  assert.equal(findShortage(await stateOn(t, '/proc'), { bytes: 1, files: 1 }), undefined);
});

type Disk = { readonly blocks: number; readonly bavail: number; readonly bsize: number; readonly files: number; readonly ffree: number };

/** What this says of a state folder whose disk is as told. */
async function onDisk<T>(t: TestContext, disk: Partial<Disk>, ask: (stateDir: string) => T): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'claude-api-storage-'));
  t.after(() => rm(folder, { recursive: true }));
  await mkdir(join(folder, 'users'));
  t.mock.method(fs, 'statfsSync', (path: string) => (assert.equal(path, join(folder, 'users')), { blocks: 0, bavail: 0, bsize: 4096, files: 0, ffree: 0, ...disk }));
  syncBuiltinESMExports();
  try {
    return ask(folder);
  } finally {
    t.mock.restoreAll();
    syncBuiltinESMExports();
  }
}

function causeOf(act: () => void): string | undefined {
  try {
    act();
    return undefined;
  } catch (error) {
    assert.ok(error instanceof Problem);
    assert.deepEqual([error.code, error.extras.retryAfterSeconds], ['storage_unavailable', 10]);
    return (error.extras.cause as Error).message;
  }
}

test('no turn begins with less than 16 MiB or without an inode', async (t) => {
  const cause = (disk: Partial<Disk>): Promise<string | undefined> => onDisk(t, disk, (folder) => causeOf(createStorageCheck(folder)));
  const full = 'CLAUDE_STATE_DIR: its disk is full: make room for 16 MB at least';
  assert.equal(await cause({ blocks: 1_000_000, bavail: 4096 }), undefined);
  assert.equal(await cause({ blocks: 1_000_000, bavail: 4095 }), full);
  assert.equal(await cause({ blocks: 1, bavail: 0 }), full);
  assert.equal(await cause({ files: 10, ffree: 1 }), undefined);
  assert.equal(await cause({ files: 1, ffree: 0 }), full);
  assert.equal(await cause({}), undefined, 'neither is counted');
});

test('a disk is nearly full below 512 MiB or 5 %, whichever is less, or 2 % of the inodes', async (t) => {
  const short = (disk: Partial<Disk>): Promise<string | undefined> => onDisk(t, disk, (folder) => findShortage(folder, { bytes: 0, files: 0 }));
  const [large, small] = [{ blocks: 25_000_000 }, { blocks: 262_144 }];
  assert.deepEqual([await short({ ...large, bavail: 131_072 }), await short({ ...large, bavail: 131_071 })], [undefined, 'bytes']);
  assert.deepEqual([await short({ ...small, bavail: 13_108 }), await short({ ...small, bavail: 13_107 })], [undefined, 'bytes']);
  assert.deepEqual([await short({ files: 100, ffree: 2 }), await short({ files: 100, ffree: 1 }), await short({ files: 1, ffree: 0 })], [undefined, 'files', 'files']);
  assert.equal(findShortage('/nowhere', { bytes: Infinity, files: Infinity }), undefined);
});

test('a folder that is gone or no folder is told, and logged', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'claude-api-storage-'));
  t.after(() => rm(folder, { recursive: true }));
  assert.match(String(causeOf(createStorageCheck(folder))), /the folder is gone.*\(ENOENT\)$/);
  await writeFile(join(folder, 'users'), '', { mode: 0o600 });
  assert.match(String(causeOf(createStorageCheck(folder))), /\(EACCES\)$/);
  const lines: unknown[] = [];
  logStorage(createStorageCheck(folder), (level, event, fields) => lines.push([level, event, typeof fields?.['cause']]));
  logStorage(() => {}, () => assert.fail('there is nothing to say'));
  assert.deepEqual(lines, [['error', 'storage_unavailable', 'string']]);
});

test('the cause says what to do about each error of the system', () => {
  const remedies = {
    EACCES: /let the user the server runs as write/, EPERM: /let the user the server runs as write/, EROFS: /read-only/, ELOOP: /a link lies/, ENOTDIR: /a file lies/,
    ENOENT: /put it back/, ENOSPC: /make room/, EDQUOT: /quota/, EIO: /look after its disk/,
  };
  const causeBy = (error: unknown): string => String(causeOf(() => {
    throw storageUnavailable(error);
  }));
  for (const [code, remedy] of Object.entries(remedies)) assert.match(causeBy(Object.assign(new Error('/secret'), { code })), new RegExp(`^CLAUDE_STATE_DIR: .*${remedy.source}.* \\(${code}\\)$`));
  assert.equal(causeBy(new Error('other words')), 'CLAUDE_STATE_DIR: other words');
  for (const code of ['EMFILE', 'ENFILE']) assert.equal(storageUnavailable(Object.assign(new Error(), { code })).code, 'busy');
});
