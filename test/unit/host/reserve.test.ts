import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { createReserve } from '../../../src/host/reserve.ts';

test('a reserve takes room and a thousand files of the disk, gives all of it back, and can be kept again', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'claude-api-reserve-'));
  t.after(() => rm(folder, { recursive: true }));
  const reserve = createReserve(folder);
  const all = { bytes: 64 * 1024 * 1024, files: 1000 };
  assert.deepEqual(reserve.missing(), all);
  for (let i = 0; i < 2; i += 1) {
    await Promise.all([reserve.keep(), reserve.keep()]);
    assert.equal((await readdir(join(folder, 'reserve'))).length, 1000);
    assert.ok((await stat(join(folder, 'reserve/bytes'))).blocks * 512 >= 64 * 1024 * 1024);
    for (const { missing } of [reserve, createReserve(folder)]) assert.deepEqual(missing(), { bytes: 0, files: 0 });
    // As by a server after one that was killed.
    await createReserve(folder).give();
    assert.deepEqual(await readdir(folder), []);
    await reserve.give();
    assert.deepEqual(reserve.missing(), all);
  }
});

test('where none can be kept, nothing is said and nothing is left', async () => {
  const reserve = createReserve('/dev/null');
  await reserve.keep();
  await reserve.give();
});
