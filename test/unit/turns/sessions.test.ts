import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { openSessions, sessionIdPattern, type Sessions } from '../../../src/turns/sessions.ts';

const id = '0c6f2f1e-8f0e-4a51-9d0c-3a4e5b6c7d8e';
const record = { userId: 7, totalCostUsd: 0.0125 };
const dayMs = 24 * 60 * 60 * 1000;

interface Store {
  readonly sessions: Sessions;
  readonly stateDir: string;
  readonly folder: string;
}

async function openStore(t: TestContext): Promise<Store> {
  const root = await mkdtemp(join(tmpdir(), 'claude-api-sessions-'));
  t.after(() => rm(root, { recursive: true, force: true }));
  const stateDir = join(root, 'state');
  return { sessions: await openSessions(stateDir), stateDir, folder: join(stateDir, 'sessions') };
}

async function writeOld(path: string, ageMs: number, text = '{}'): Promise<void> {
  await writeFile(path, text);
  const time = new Date(Date.now() - ageMs);
  await utimes(path, time, time);
}

async function modeOf(path: string): Promise<string> {
  return ((await stat(path)).mode & 0o777).toString(8);
}

test('a saved record is found again, also by another run of the server', async (t) => {
  const { sessions, stateDir } = await openStore(t);
  await sessions.add(id, record);
  assert.deepEqual(await sessions.find(id), record);
  assert.deepEqual(await (await openSessions(stateDir)).find(id), record);
});

test('an unknown id is no record', async (t) => {
  const { sessions } = await openStore(t);
  assert.equal(await sessions.find(id), undefined);
});

test('ids are told apart by every letter and its case', async (t) => {
  const { sessions } = await openStore(t);
  await sessions.add('abc', record);
  for (const other of ['ABC', 'ab', 'abcd', 'abc-', 'abc_']) assert.equal(await sessions.find(other), undefined, other);
});

test('saving again replaces the record', async (t) => {
  const { sessions, folder } = await openStore(t);
  await sessions.add(id, record);
  await sessions.update(id, { userId: 7, totalCostUsd: 1 });
  assert.deepEqual(await sessions.find(id), { userId: 7, totalCostUsd: 1 });
  assert.deepEqual(await readdir(folder), [`${id}.json`]);
});

test('the largest user_id and any cost come back exactly', async (t) => {
  const { sessions } = await openStore(t);
  const exact = { userId: Number.MAX_SAFE_INTEGER, totalCostUsd: 0.1 + 0.2 };
  await sessions.add(id, exact);
  assert.deepEqual(await sessions.find(id), exact);
});

test('only the service user may read records, whatever the umask', async (t) => {
  const umask = process.umask(0);
  t.after(() => process.umask(umask));
  const { sessions, stateDir, folder } = await openStore(t);
  await sessions.add(id, record);
  assert.equal(await modeOf(stateDir), '700');
  assert.equal(await modeOf(folder), '700');
  assert.equal(await modeOf(join(folder, `${id}.json`)), '600');
});

test('a reader sees the old record or the new one, never half of one', async (t) => {
  const { sessions } = await openStore(t);
  await sessions.add(id, { userId: 1, totalCostUsd: 1 });
  let isReading = true;
  const write = async (): Promise<void> => {
    for (let i = 2; isReading; i += 1) await sessions.update(id, { userId: i, totalCostUsd: i });
  };
  const writing = Promise.all([write(), write(), write()]);
  try {
    for (let i = 0; i < 500; i += 1) {
      const seen = await sessions.find(id);
      assert.ok(seen !== undefined, 'the record was gone for a moment');
      assert.equal(seen.totalCostUsd, seen.userId);
      await new Promise((resolve) => setImmediate(resolve));
    }
  } finally {
    isReading = false;
    await writing;
  }
  assert.ok(((await sessions.find(id))?.userId ?? 0) > 2, 'nothing was written meanwhile');
});

test('a new record never writes into the file of the old one', async (t) => {
  const { sessions, folder } = await openStore(t);
  const file = join(folder, `${id}.json`);
  await sessions.add(id, record);
  const before = await stat(file);
  await sessions.update(id, { ...record, totalCostUsd: 2 });
  assert.notEqual((await stat(file)).ino, before.ino);
});

test('a save that fails says so and leaves nothing behind', async (t) => {
  const { sessions, folder } = await openStore(t);
  // A folder where the record belongs: what was written cannot be put there, not even by root.
  await mkdir(join(folder, `${id}.json`));
  await assert.rejects(sessions.add(id, record), { code: 'EISDIR' });
  assert.deepEqual(await readdir(folder), [`${id}.json`]);
});

test('a save without its folder says so', async (t) => {
  const { sessions, folder } = await openStore(t);
  await rm(folder, { recursive: true });
  await assert.rejects(sessions.add(id, record), { code: 'ENOENT' });
});

const escapingIds = ['', '.', '..', '../outside', '../../outside', '/outside', 'a/b', 'a\\b', '-a', '_a', 'a.b', 'a b', 'a\0', 'a\n', 'ż', 'a'.repeat(129), '%2e%2e', '~'];

test('an id that could leave the folder is no record, even where a file lies', async (t) => {
  const { sessions, stateDir } = await openStore(t);
  await writeFile(join(stateDir, 'outside.json'), JSON.stringify({ user_id: 7, total_cost_usd: 0 }));
  for (const escaping of escapingIds) {
    assert.equal(sessionIdPattern.test(escaping), false, JSON.stringify(escaping));
    assert.equal(await sessions.find(escaping), undefined, JSON.stringify(escaping));
  }
});

test('an id that could leave the folder is never written', async (t) => {
  const { sessions, stateDir, folder } = await openStore(t);
  for (const escaping of escapingIds) {
    await assert.rejects(sessions.add(escaping, record), JSON.stringify(escaping));
    await assert.rejects(sessions.update(escaping, record), JSON.stringify(escaping));
  }
  assert.deepEqual([await readdir(folder), await readdir(stateDir)], [[], ['sessions']]);
});

test('an id of 1 to 128 letters, digits, - and _ is one, when it begins with a letter or digit', () => {
  for (const good of ['a', '0', 'A-_9', id, id.toUpperCase(), 'a'.repeat(128)]) assert.ok(sessionIdPattern.test(good), good);
});

const damaged = {
  'an empty file': '',
  'half a record': '{"user_id":7,"total_co',
  'another type of value': '[]',
  null: 'null',
  'a record without an owner': '{"total_cost_usd":0}',
  'a record without a cost': '{"user_id":7}',
  'an owner that is text': '{"user_id":"7","total_cost_usd":0}',
  'a cost that is text': '{"user_id":7,"total_cost_usd":"0"}',
};

for (const [title, text] of Object.entries(damaged)) {
  test(`a damaged record is an error, not an unknown session: ${title}`, async (t) => {
    const { sessions, folder } = await openStore(t);
    await writeFile(join(folder, `${id}.json`), text);
    await assert.rejects(sessions.find(id), (error: unknown) => error instanceof Error && !error.message.includes(folder));
  });
}

test('sweep removes what was not written for so long, and counts it', async (t) => {
  const { sessions, folder } = await openStore(t);
  await sessions.add('fresh', record);
  await writeOld(join(folder, 'younger.json'), 29 * dayMs);
  await writeOld(join(folder, 'older.json'), 31 * dayMs);
  await writeOld(join(folder, 'oldest.json'), 400 * dayMs);
  assert.equal(await sessions.sweep(30 * dayMs), 2);
  assert.deepEqual((await readdir(folder)).sort(), ['fresh.json', 'younger.json']);
  assert.equal(await sessions.sweep(30 * dayMs), 0);
});

test('a record written again begins a new age', async (t) => {
  const { sessions, folder } = await openStore(t);
  await writeOld(join(folder, `${id}.json`), 31 * dayMs, JSON.stringify({ user_id: 7, total_cost_usd: 0 }));
  await sessions.add(id, record);
  assert.equal(await sessions.sweep(30 * dayMs), 0);
  assert.deepEqual(await sessions.find(id), record);
});

test('what a crash left half-written is swept with the rest', async (t) => {
  const { sessions, folder } = await openStore(t);
  await writeOld(join(folder, `${id}.json.5f1c.tmp`), 31 * dayMs, '{"user_');
  assert.equal(await sessions.sweep(30 * dayMs), 1);
  assert.deepEqual(await readdir(folder), []);
});

test('half-written files are no records', async (t) => {
  const { sessions, folder } = await openStore(t);
  await writeFile(join(folder, `${id}.json.5f1c.tmp`), JSON.stringify({ user_id: 7, total_cost_usd: 0 }));
  assert.equal(await sessions.find(id), undefined);
  assert.equal(await sessions.find(`${id}.json.5f1c.tmp`), undefined);
});

test('records hold the owner and the cost, and nothing else', async (t) => {
  const { sessions, folder } = await openStore(t);
  await sessions.add(id, record);
  assert.deepEqual(JSON.parse(await readFile(join(folder, `${id}.json`), 'utf8')), { user_id: 7, total_cost_usd: 0.0125 });
});
