import assert from 'node:assert/strict';
import { mkdtemp, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { findShortage } from '../../../src/host/storage.ts';

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
