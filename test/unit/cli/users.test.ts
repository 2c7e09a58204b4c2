import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, realpathSync, renameSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { openUsers, type Users } from '../../../src/cli/users.ts';
import type { Problem } from '../../../src/problem.ts';
import { needs } from '../../needs.ts';

const id = 'f1b19141-9e1d-4e8d-a902-a05c85145ac0';
const otherId = '00000000-0000-4000-8000-000000000000';
const dayMs = 24 * 60 * 60 * 1000;

async function makeUsers(t: TestContext): Promise<{ users: Users; root: string }> {
  const state = realpathSync(mkdtempSync(join(tmpdir(), 'claude-api-users-')));
  t.after(() => rmSync(state, { recursive: true, force: true }));
  return { users: await openUsers(state), root: join(state, 'users') };
}

/** Runs the test of this title as an ordinary user where this one is root, who may read everything. Gives whether it did. */
function ranAsOrdinaryUser(title: string): boolean {
  if (process.getuid?.() !== 0) return false;
  const asOrdinaryUser = fileURLToPath(new URL('../../bin/as-ordinary-user', import.meta.url));
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const command = [process.execPath, '--import', import.meta.resolve('tsx'), '--test', '--test-reporter=tap', `--test-name-pattern=${title}`];
  const output = execFileSync(asOrdinaryUser, [...command, fileURLToPath(import.meta.url)], { env, encoding: 'utf8', timeout: 60_000 });
  assert.match(output, /^# fail 0$/m);
  assert.match(output, new RegExp(`^ok \\d+ - ${title}$`, 'm'));
  return true;
}

/** Puts a transcript where the CLI would. */
function writeTranscript(root: string, userId: number, sessionId: string, ageDays = 0): string {
  const folder = join(root, String(userId), 'home/projects/work');
  mkdirSync(folder, { recursive: true });
  const path = join(folder, `${sessionId}.jsonl`);
  writeFileSync(path, 'x');
  const seconds = (Date.now() - ageDays * dayMs) / 1000;
  utimesSync(path, seconds, seconds);
  return path;
}

test('a user has a folder of four, for the service user alone, whatever the umask', async (t) => {
  const { users, root } = await makeUsers(t);
  const before = process.umask(0o000);
  t.after(() => process.umask(before));
  const folders = await users.prepare(7, 1);
  assert.deepEqual(readdirSync(join(root, '7')).sort(), ['home', 'tmp', 'turns', 'work']);
  assert.deepEqual([folders.home, folders.work, folders.tmp], ['home', 'work', 'tmp'].map((name) => join(root, '7', name)));
  for (const path of [root, join(root, '7'), ...['home', 'tmp', 'turns', 'work'].map((name) => join(root, '7', name))]) {
    assert.equal(lstatSync(path).mode & 0o777, 0o700, path);
  }
  await users.prepare(7, 1);
});

test('folders that are there already are taken as they are', async (t) => {
  const { users, root } = await makeUsers(t);
  mkdirSync(join(root, '7/work'), { recursive: true });
  writeFileSync(join(root, '7/work/kept'), '');
  await users.prepare(7, 1);
  assert.ok(existsSync(join(root, '7/work/kept')));
});

for (const [what, put] of [
  ['a link', (path: string) => symlinkSync('/tmp', path)],
  ['a file', (path: string) => writeFileSync(path, '')],
] as const) {
  test(`${what} in the place of a user's folder is no folder to work in`, async (t) => {
    const { users, root } = await makeUsers(t);
    for (const name of ['home', 'work', 'tmp']) {
      rmSync(join(root, '7'), { recursive: true, force: true });
      mkdirSync(join(root, '7'));
      put(join(root, '7', name));
      await assert.rejects(users.prepare(7, 1), { code: 'storage_unavailable' }, name);
    }
  });
}

test('without the folder of all users none is made in its place', async (t) => {
  const { users, root } = await makeUsers(t);
  rmSync(root, { recursive: true });
  await assert.rejects(users.prepare(7, 1), { code: 'storage_unavailable' });
  assert.equal(existsSync(root), false);
});

test('a folder that was removed, replaced or swapped for a link is noticed', async (t) => {
  const { users, root } = await makeUsers(t);
  for (const name of ['home', 'work', 'tmp']) {
    const path = join(root, '7', name);
    const folders = await users.prepare(7, 1);
    assert.equal(folders.isUnchanged(), true);
    writeFileSync(join(path, 'file'), 'what lies inside does not count');
    assert.equal(folders.isUnchanged(), true);
    renameSync(path, `${path}.away`);
    assert.equal(folders.isUnchanged(), false, `${name} is gone`);
    symlinkSync(`${path}.away`, path);
    assert.equal(folders.isUnchanged(), false, `${name} is a link`);
    rmSync(path);
    mkdirSync(path);
    assert.equal(folders.isUnchanged(), false, `${name} is another folder`);
    rmSync(path, { recursive: true });
    renameSync(`${path}.away`, path);
    assert.equal(folders.isUnchanged(), true, `${name} is back`);
  }
});

test('a user’s folder that cannot be looked into any more counts as another, and does not throw', async (t) => {
  const { users, root } = await makeUsers(t);
  const folders = await users.prepare(7, 1);
  renameSync(join(root, '7'), join(root, '7.away'));
  symlinkSync('7', join(root, '7'));
  assert.equal(folders.isUnchanged(), false);
});

test('a folder that its user closed to everybody is no folder to work in', async (t) => {
  if (ranAsOrdinaryUser('a folder that its user closed to everybody is no folder to work in')) return;
  const { users, root } = await makeUsers(t);
  for (const name of ['home', 'work', 'tmp']) {
    const folders = await users.prepare(7, 1);
    chmodSync(join(root, '7', name), 0o000);
    assert.equal(folders.isUnchanged(), false, name);
    await assert.rejects(users.prepare(7, 1), { code: 'storage_unavailable' }, name);
    chmodSync(join(root, '7', name), 0o700);
  }
});

test('a folder that cannot be made is told by its own cause', async (t) => {
  if (ranAsOrdinaryUser('a folder that cannot be made is told by its own cause')) return;
  const { users, root } = await makeUsers(t);
  chmodSync(root, 0o500);
  await assert.rejects(users.prepare(7, 1), (error: Problem) => /\(EACCES\)/.test(String(error.extras.cause)));
});

test('a link in the place of all that is of a user is no folder to work in', async (t) => {
  const { users, root } = await makeUsers(t);
  await users.prepare(8, 1);
  symlinkSync('8', join(root, '7'));
  await assert.rejects(users.prepare(7, 1), { code: 'storage_unavailable' });
});

test('a user’s folder that the server cannot open is trouble of the server’s, and no unknown session', async (t) => {
  const { users, root } = await makeUsers(t);
  writeTranscript(root, 8, id);
  for (const put of [(path: string) => symlinkSync('8', path), (path: string) => writeFileSync(path, '')]) {
    put(join(root, '7'));
    assert.throws(() => users.hasSession(7, id), { code: 'storage_unavailable' });
    rmSync(join(root, '7'));
  }
});

test('a session is whose transcript lies in the folder, and nobody else’s', async (t) => {
  const { users, root } = await makeUsers(t);
  await users.prepare(1, 1);
  assert.equal(users.hasSession(1, id), false);
  writeTranscript(root, 1, id);
  const open = readdirSync('/proc/self/fd').length;
  assert.deepEqual([users.hasSession(1, id), users.hasSession(2, id), users.hasSession(1, otherId)], [true, false, false]);
  assert.equal(readdirSync('/proc/self/fd').length, open, 'nothing is left open');
  assert.deepEqual([users.find(1), users.find(2)], [join(root, '1'), undefined]);
  await users.prepare(2, 1);
  assert.equal(users.hasSession(2, id), false);
});

test('what is no lower-case UUID is not looked for', async (t) => {
  const { users, root } = await makeUsers(t);
  for (const wrong of [id.toUpperCase(), 'abc', id.slice(1), `../work/${id}`, `${id}.jsonl`, `${id}\n`, '']) {
    writeTranscript(root, 1, wrong);
    assert.equal(users.hasSession(1, wrong), false, JSON.stringify(wrong));
  }
});

test('what a user plants in the place of a transcript is no session of theirs', async (t) => {
  const { users, root } = await makeUsers(t);
  const foreign = writeTranscript(root, 1, id);
  const folder = join(root, '2/home/projects/work');
  const socket = createServer();
  t.after(() => socket.close());
  const planted: Record<string, (path: string) => void> = {
    link: (path) => symlinkSync(foreign, path),
    'dangling link': (path) => symlinkSync('/nowhere', path),
    folder: (path) => mkdirSync(path),
    FIFO: (path) => execFileSync('mkfifo', [path]),
    // It is bound before listen returns.
    socket: (path) => void socket.listen(path),
    'empty file': (path) => writeFileSync(path, ''),
  };
  for (const [what, plant] of Object.entries(planted)) {
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true });
    plant(join(folder, `${id}.jsonl`));
    assert.equal(users.hasSession(2, id), false, what);
  }
  rmSync(folder, { recursive: true });
  symlinkSync(join(root, '1/home/projects/work'), folder);
  assert.equal(users.hasSession(2, id), false, 'a link above it');
});

test('a file the user made unreadable is no session, and no trouble of the server', async (t) => {
  if (ranAsOrdinaryUser('a file the user made unreadable is no session, and no trouble of the server')) return;
  const { users, root } = await makeUsers(t);
  chmodSync(writeTranscript(root, 1, id), 0o000);
  assert.equal(users.hasSession(1, id), false);
});

test('a transcript that its user keeps to themselves by a lease is no session meanwhile', { skip: needs(['python3'], 'takes a lease on a file') }, async (t) => {
  const { users, root } = await makeUsers(t);
  const path = writeTranscript(root, 1, id);
  const script = 'import fcntl, signal, sys\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\nfile = open(sys.argv[1], "r+")\n'
    + 'fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\nprint("held", flush=True)\nsys.stdin.read()';
  const holder = spawn('python3', ['-c', script, path], { stdio: ['pipe', 'pipe', 'inherit'] });
  t.after(() => holder.kill('SIGKILL'));
  await once(holder.stdout, 'data', { signal: AbortSignal.timeout(10_000) });
  assert.equal(users.hasSession(1, id), false);
});

test('the sweep removes old transcripts of all users with what belongs to them, and nothing else', async (t) => {
  const { users, root } = await makeUsers(t);
  const old = writeTranscript(root, 1, id, 31);
  writeTranscript(root, 1, 'bbbbbbbb-0000-4000-8000-000000000000', 31);
  mkdirSync(join(old, '../', id, 'subagents'), { recursive: true });
  const young = writeTranscript(root, 1, otherId, 29);
  const otherUsers = writeTranscript(root, 22, id, 400);
  writeTranscript(root, 17, id, 400);
  renameSync(join(root, '17'), join(root, '17.bak'));
  const folder = join(root, '1/home/projects/work');
  const outside = writeTranscript(root, 3, otherId, 1);
  symlinkSync(outside, join(folder, 'aaaaaaaa-0000-4000-8000-000000000000.jsonl'));
  const notes = [join(folder, 'notes.txt'), join(folder, `${id}-jsonl`)];
  for (const path of notes) writeFileSync(path, '');
  for (const path of notes) utimesSync(path, 0, 0);
  assert.equal(await users.sweep(30 * dayMs), 3);
  assert.deepEqual([old, otherUsers, young, outside, ...notes].map((path) => existsSync(path)), [false, false, true, true, true, true]);
  assert.equal(existsSync(join(folder, id)), false);
  assert.ok(existsSync(join(root, '17.bak/home/projects/work', `${id}.jsonl`)), 'a copy of the operator\'s is no user');
});

test('the sweep is not led out by links in the place of folders', async (t) => {
  const { users, root } = await makeUsers(t);
  const victim = writeTranscript(root, 1, id, 0);
  utimesSync(victim, 0, 0);
  mkdirSync(join(root, '2'));
  symlinkSync(join(root, '1/home'), join(root, '2/home'));
  mkdirSync(join(root, '3/home/projects'), { recursive: true });
  symlinkSync(join(root, '1/home/projects/work'), join(root, '3/home/projects/work'));
  rmSync(join(root, '4'), { force: true });
  symlinkSync(join(root, '1'), join(root, '4'));
  const moved = join(root, '..', 'kept');
  renameSync(join(root, '1'), moved);
  symlinkSync(moved, join(root, '1'));
  assert.equal(await users.sweep(dayMs), 0);
  assert.ok(existsSync(join(moved, 'home/projects/work', `${id}.jsonl`)));
});

test('a tidied user has nothing in tmp and turns, and one without them is no trouble', async (t) => {
  const { users, root } = await makeUsers(t);
  await users.tidy(1);
  const { tmp, work } = await users.prepare(1, 1);
  mkdirSync(join(tmp, 'a/b'), { recursive: true });
  writeFileSync(join(work, 'kept'), '');
  symlinkSync(work, join(tmp, 'a/link'));
  await users.tidy(1);
  assert.deepEqual([readdirSync(tmp), readdirSync(join(root, '1/turns')), readdirSync(join(root, '1/work'))], [[], [], ['kept']]);
});
