import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readlinkSync } from 'node:fs';
import { chown, link, lstat, mkdir, readdir, readlink, rename, rm, rmdir, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { openConnection, requestBytes } from '../http-client.ts';
import { isTorture } from '../random.ts';
import { apiKey, processesOf, until } from '../running-server.ts';
import { Front, Machine, noMoves } from './front.ts';

type Json = Record<string, unknown>;

async function startStage(t: TestContext, count: number): Promise<{ front: Front; machines: readonly Machine[] }> {
  const machines = await Promise.all(Array.from({ length: count }, (_, i) => Machine.start(t, i + 1, {})));
  return { front: await Front.start(t, machines), machines };
}

function post(url: string, body: Json, more: Readonly<Record<string, string>> = {}, signal?: AbortSignal): Promise<Response> {
  const headers = { Authorization: `Bearer ${apiKey}`, 'Content-Type': 'application/json', ...more };
  return fetch(`${url}/api/v1/chat`, { method: 'POST', body: JSON.stringify(body), headers, ...(signal && { signal }) });
}

async function turn(front: Front, body: Json): Promise<Json> {
  const response = await post(front.url, body);
  const answer = (await response.json()) as Json;
  assert.equal(response.status, 200, JSON.stringify(answer));
  return answer;
}

async function healthOf(front: Front, { name }: Machine): Promise<Json> {
  const health = await fetch(`${front.url}/health/${name}`, { headers: { Authorization: `Bearer ${apiKey}` } });
  return (await health.json()) as Json;
}

async function usersAt(front: Front, machine: Machine): Promise<unknown[]> {
  const { users } = await healthOf(front, machine);
  return Array.isArray(users) ? users : assert.fail();
}

const named = (machines: readonly Machine[], name: string | undefined): Machine => machines.find((machine) => machine.name === name) ?? assert.fail(name);

test('a bucket moves with dialogues and files once its turns have ended, and nobody else notices', { skip: noMoves }, async (t) => {
  const { front, machines } = await startStage(t, 2);
  const [mine, neighbour, other] = [5, 69, 7];
  const source = named(machines, (await front.buckets())[5]);
  const target = machines.find((machine) => machine !== source) ?? assert.fail();
  const { session_id: ours } = await turn(front, { user_id: mine, prompt: 'one' });
  const { session_id: theirs } = await turn(front, { user_id: neighbour, prompt: 'one' });
  // What lies in a user's folder is theirs: links that lead out, a pipe, another owner, names that no shell would like.
  const work = join(source.home, 'state/users/5/work');
  await symlink('/etc', join(work, 'out'));
  await symlink('../../69/home', join(work, 'neighbour'));
  execFileSync('mkfifo', [join(work, 'pipe')]);
  await mkdir(join(work, "it's; a $(name)\n"));
  await writeFile(join(work, 'owned'), 'x');
  if (process.getuid?.() === 0) await chown(join(work, 'owned'), 64_123, 64_123);
  // Much larger than what they take on the disk, which is what a user is held to.
  await writeFile(join(work, 'sparse'), '');
  await truncate(join(work, 'sparse'), 64 * 1024 * 1024);
  await link(join(work, 'owned'), join(work, 'linked'));
  // An operator's own.
  const strays = ['5.bak', '5 69'];
  for (const name of strays) await mkdir(join(source.home, 'state/users', name));
  // Left by a copy that broke off.
  for (const user of ['5', '133']) await mkdir(join(target.home, 'state/users', user, 'work/stale'), { recursive: true });

  const through = turn(front, { user_id: mine, session_id: ours, prompt: 'play slow 3000 #through' });
  await until('the turn to run', async () => (await usersAt(front, source)).length === 1 || undefined);
  const startedAt = performance.now();
  const mover = front.startBuckets('move', '5', target.name);
  await mover.said('holding');
  // A turn with a key goes on when its caller has gone: HAProxy knows nothing of it.
  const caller = new AbortController();
  const gone = post(`http://${source.address}`, { user_id: neighbour, session_id: theirs, prompt: 'play slow 3000 #gone' }, { 'Idempotency-Key': 'k1' }, caller.signal);
  await until('it to run', async () => (await usersAt(front, source)).includes(neighbour) || undefined);
  caller.abort();
  await assert.rejects(gone);
  await until('the hold', async () => (await front.command(`@1 get map ${front.map} 5`)).includes(`"moving:${source.name}"`) || undefined);
  assert.equal((await front.buckets())[5], `moving:${source.name}`, 'it is written down before it is done');
  const held = await post(front.url, { user_id: neighbour, session_id: theirs, prompt: 'now?' });
  assert.deepEqual([held.status, held.headers.get('retry-after'), ((await held.json()) as Json)['code']], [503, '5', 'busy']);
  await turn(front, { user_id: other, prompt: 'hello' });
  await through;
  await mover.done();
  t.diagnostic(`moved in ${Math.round(performance.now() - startedAt)} ms`);

  assert.equal((await healthOf(front, source))['failures'], 0, 'no turn was ended');
  for (const name of strays) await rmdir(join(source.home, 'state/users', name));
  assert.deepEqual(await source.users(), [other]);
  assert.deepEqual((await readdir(join(source.home, 'state/moved'))).map((name) => name.split('.')[0]).sort(), ['5', '69']);
  assert.deepEqual(await target.users(), [mine, neighbour]);
  assert.deepEqual((await readdir(join(target.home, 'state/moved'))).map((name) => name.split('.')[0]), ['133'], 'one who was forgotten does not come back');
  const left = (await processesOf(source.home, source.server.pid)).flatMap((line) => {
    try {
      return [readlinkSync(`/proc/${Number.parseInt(line, 10)}/cwd`)];
    } catch {
      return []; // it has gone
    }
  });
  assert.deepEqual([...new Set(left)], [join(source.home, 'state/users/7/work')], 'no process of theirs is left there');
  const moved = join(target.home, 'state/users/5/work');
  assert.deepEqual((await readdir(moved)).sort(), ["it's; a $(name)\n", 'linked', 'neighbour', 'out', 'owned', 'pipe', 'sparse']);
  const sparse = await lstat(join(moved, 'sparse'));
  assert.deepEqual([sparse.size, sparse.blocks < 100], [64 * 1024 * 1024, true]);
  assert.equal((await lstat(join(moved, 'linked'))).ino, (await lstat(join(moved, 'owned'))).ino);
  assert.deepEqual(await Promise.all(['out', 'neighbour'].map((name) => readlink(join(moved, name)))), ['/etc', '../../69/home']);
  if (process.getuid?.() === 0) assert.equal((await lstat(join(moved, 'owned'))).uid, 64_123);
  for (const [user, session, prompts] of [[mine, ours, ['one', 'play slow 3000 #through']], [neighbour, theirs, ['one', 'play slow 3000 #gone']]] as const) {
    const { content } = await turn(front, { user_id: user, session_id: session, prompt: 'play history' });
    assert.equal(content, JSON.stringify([...prompts, 'play history']));
  }
});

test('what cannot be moved stays where it is, and says why', { skip: noMoves }, async (t) => {
  const { front, machines } = await startStage(t, 2);
  const buckets = await front.buckets();
  const refused = async (args: readonly string[], reason: RegExp): Promise<void> => {
    const mover = front.startBuckets(...args);
    await assert.rejects(mover.done());
    assert.match(mover.stderr, reason);
    assert.deepEqual(await front.buckets(), buckets);
  };
  await refused([], /^usage: /);
  await refused(['move', '5'], /^usage: /);
  await refused(['move', '64', 'm1'], /there is no bucket 64/);
  await refused(['move', '5', 'm9'], /no backend m9/);
  await refused(['add', 'm9'], /no backend m9/);
  const [source, target] = [named(machines, buckets[5]), buckets[5] === 'm1' ? 'm2' : 'm1'];
  await writeFile(join(source.home, 'state/sandboxed'), '');
  await refused(['move', '5', target], /has the sandbox, and m. has not/);
  await rm(join(source.home, 'state/sandboxed'));
  // As where ssh does not get there: no users seen is not no users.
  await rename(join(front.folder, 'machines', source.name), join(front.folder, 'away'));
  await refused(['move', '5', target], /^/);
  await rename(join(front.folder, 'away'), join(front.folder, 'machines', source.name));
  await front.startBuckets('move', '5', target).done();
});

for (const isReloaded of isTorture ? [false, true] : []) {
  test(`a move waits for a turn whose body is still on its way${isReloaded ? ', in an HAProxy that was reloaded since' : ''}`, { skip: noMoves }, async (t) => {
    const { front, machines } = await startStage(t, 2);
    const source = (await front.buckets())[5];
    const { session_id } = await turn(front, { user_id: 5, prompt: 'one' });
    // HAProxy has passed on what has come; the machine cannot know yet whose it is.
    const body = JSON.stringify({ user_id: 5, session_id, prompt: `two ${'x'.repeat(100_000)}` });
    const head = requestBytes('POST /api/v1/chat', [`Authorization: Bearer ${apiKey}`, 'Content-Type: application/json', `Content-Length: ${body.length}`]);
    const connection = await openConnection(t, front.port);
    await connection.send(Buffer.concat([head, Buffer.from(body.slice(0, 50_000))]));
    await until('HAProxy to have it', async () => (await front.command('@1 show table buckets key 5')).includes('conn_cur=1') || undefined);
    if (isReloaded) {
      front.reload();
      await front.isReloaded();
    }
    const mover = front.startBuckets('move', '5', machines.find(({ name }) => name !== source)?.name ?? '');
    await mover.said('holding');
    // Longer than it takes where nothing keeps it.
    await new Promise((resolve) => setTimeout(resolve, 4_000));
    assert.match(mover.lines.at(-1) ?? '', /holding/);
    await connection.send(body.slice(50_000));
    assert.equal((await connection.answer('the turn')).status, 200);
    await mover.done();
    const { content } = await turn(front, { user_id: 5, session_id, prompt: 'play history' });
    assert.equal((JSON.parse(String(content)) as string[]).length, 3);
  });
}
