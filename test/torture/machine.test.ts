import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { chmod, mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { Agent, request } from 'node:http';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { needs, needsToRun } from '../needs.ts';
import { apiKey, makeHome, startServer, until, type Reply, type RunningServer, type StreamEvent } from '../running-server.ts';

const isRoot = process.getuid?.() === 0;
// After a turn its user's folder is counted, by a process of its own.
const countAfterMs = 1500;
// Root may write everywhere by its capabilities: without them it is a user like others.
const asOrdinaryUser = isRoot ? ['setpriv', '--bounding-set=-all', '--inh-caps=-all'] : [];
const onSmallDisk = ['unshare', '--mount', '--propagation', 'private', 'sh', '-c', 'mount -t tmpfs -o size=40m tmpfs "$0" && exec "$@"'] as const;
const noSmallDisk = needs(['root', 'unshare'], 'full disks') || needsToRun([...onSmallDisk, '/mnt', 'true'], 'leave to mount', 'full disks');

/** A turn is refused with this cause in the log, and costs nothing; once it is mended, old and new dialogues go on. */
async function refusedAndBack(server: RunningServer, cause: RegExp, breakIt: () => unknown, mend: () => unknown): Promise<void> {
  const first = await server.chat({ prompt: 'before' });
  assert.equal(first.status, 200, JSON.stringify(first.body));
  const sessionId = first.body['session_id'];
  await breakIt();
  for (const body of [{ prompt: 'meanwhile' }, { prompt: 'meanwhile', session_id: sessionId }]) assertUnavailable(await server.chat(body));
  assert.match(String((await server.logged('turn', (line) => line['code'] === 'storage_unavailable' && cause.test(String(line['cause']))))['cause']), cause);
  assert.equal((await server.request('/health')).status, 200);
  await mend();
  const again = await server.chat({ prompt: 'play history', session_id: sessionId });
  assert.deepEqual([again.status, again.body['content']], [200, '["before","play history"]']);
  assert.equal((await server.chat({ prompt: 'new' })).status, 200);
}

function assertUnavailable(reply: Reply): void {
  assert.deepEqual([reply.status, reply.body['code'], reply.headers.get('retry-after')], [503, 'storage_unavailable', '10']);
}

test('a full disk is said before a turn, and over when there is room again', { skip: noSmallDisk }, async (t) => {
  const home = await makeHome(t);
  await mkdir(join(home, 'state'));
  const server = await startServer(t, {}, home, [...onSmallDisk, join(home, 'state')]);
  const filler = `/proc/${server.pid}/root${join(home, 'state/filler')}`;
  const cause = /CLAUDE_STATE_DIR: its disk is full: make room for 16 MB/;
  await refusedAndBack(server, cause, () => writeFile(filler, Buffer.alloc(30 * 1024 * 1024)), () => rm(filler));
});

test('a state folder that is not writable is said before a turn, and over when it is', { skip: isRoot && needs(['setpriv'], 'folders that cannot be written') }, async (t) => {
  const home = await makeHome(t);
  const server = await startServer(t, {}, home, asOrdinaryUser);
  const path = join(home, 'state/users');
  await refusedAndBack(server, /CLAUDE_STATE_DIR: let the user the server runs as write there \(EACCES\)/, () => chmod(path, 0o500), () => chmod(path, 0o700));
});

for (const folder of ['state', 'state/users']) {
  test(`a vanished ${folder} makes no dialogue unknown, and none anew`, async (t) => {
    const server = await startServer(t);
    const path = join(server.home, folder);
    await refusedAndBack(server, /CLAUDE_STATE_DIR: the folder is gone/, () => rename(path, `${path}.away`), async () => {
      assert.equal(existsSync(path), false, 'the server made no other in its place');
      await rename(`${path}.away`, path);
    });
  });
}

test('a transcript that is away makes its own dialogue unknown, which goes on once it is back', async (t) => {
  const server = await startServer(t, { CLAUDE_WARM_SECONDS: '0' });
  const { session_id: sessionId } = (await server.chat({ prompt: 'before' })).body;
  const transcript = join(server.home, `state/users/1/home/projects/work/${String(sessionId)}.jsonl`);
  await rename(transcript, `${transcript}.away`);
  const reply = await server.chat({ prompt: 'on', session_id: sessionId });
  assert.deepEqual([reply.status, reply.body['code']], [404, 'session_not_found']);
  assert.equal((await server.chat({ prompt: 'other', user_id: 2 })).status, 200);
  await rename(`${transcript}.away`, transcript);
  assert.equal((await server.chat({ prompt: 'play history', session_id: sessionId })).body['content'], '["before","play history"]');
});

/** A chat over a connection that is open already: a server without descriptors accepts no new one. */
function chatOver(agent: Agent, server: RunningServer, body: object): Promise<Record<string, unknown>> {
  return new Promise((resolve, reject) => {
    const headers = { Authorization: `Bearer ${apiKey}`, 'Content-Type': 'application/json' };
    const req = request({ agent, host: '127.0.0.1', port: server.port, path: '/api/v1/chat', method: 'POST', headers }, (res) => {
      let text = '';
      res.setEncoding('utf8').on('data', (part: string) => (text += part));
      res.on('end', () => resolve(JSON.parse(text) as Record<string, unknown>));
    });
    req.on('error', reject);
    req.end(JSON.stringify(body));
  });
}

test('without descriptors the server is busy, and over it when there are some', { skip: needs(['root', 'prlimit'], 'a machine without descriptors') }, async (t) => {
  const server = await startServer(t, { CLAUDE_WARM_SECONDS: '0' });
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  t.after(() => agent.destroy());
  assert.equal((await chatOver(agent, server, { prompt: 'before', user_id: 1 }))['content'], 'you said: before');
  await new Promise((resolve) => setTimeout(resolve, countAfterMs));
  const limit = (count: number): void => void execFileSync('prlimit', ['--pid', String(server.pid), `--nofile=${count}:1000`]);
  // What a process that has gone held is closed a moment after it.
  const openNow = (): number => readdirSync(`/proc/${server.pid}/fd`).length;
  const open = await until('the descriptors of the last process to be closed', async () => {
    const before = openNow();
    const isGone = (await server.leftovers()).length === 0;
    await new Promise((resolve) => setTimeout(resolve, 100));
    return isGone && openNow() === before ? before : undefined;
  });
  for (const spare of [0, 1, 3, 5]) {
    limit(open + spare);
    assert.equal((await chatOver(agent, server, { prompt: 'meanwhile', user_id: 1 }))['code'], 'busy', `${spare} descriptors free`);
  }
  limit(1000);
  assert.equal((await chatOver(agent, server, { prompt: 'after', user_id: 1 }))['content'], 'you said: after');
  assert.deepEqual(server.lines.filter((line) => line.event === 'bug'), []);
});

/** A control group for the server's processes, of either kind of hierarchy, or undefined where none can be made. */
function makePidsGroup(t: TestContext): string | undefined {
  for (const base of ['/sys/fs/cgroup/pids', '/sys/fs/cgroup']) {
    const folder = join(base, `claude-api-test-${process.pid}`);
    try {
      mkdirSync(folder);
    } catch {
      continue;
    }
    t.after(() => rmdirSync(folder));
    if (existsSync(join(folder, 'pids.max'))) return folder;
  }
  return undefined;
}

test('where no process may be started the server is busy, and over it when one may', { skip: needs(['root'], 'a machine without room for processes') }, async (t) => {
  // The hook that ends the servers must run before the one that removes their group.
  const home = await makeHome(t);
  const group = makePidsGroup(t);
  if (group === undefined) return t.skip('needs a control group for pids: a machine without room for processes');
  const server = await startServer(t, { CLAUDE_WARM_SECONDS: '0' }, home);
  assert.equal((await server.chat({ prompt: 'before' })).status, 200);
  await new Promise((resolve) => setTimeout(resolve, countAfterMs));
  writeFileSync(join(group, 'cgroup.procs'), String(server.pid));
  writeFileSync(join(group, 'pids.max'), readFileSync(join(group, 'pids.current'), 'utf8'));
  const meanwhile = await server.chat({ prompt: 'meanwhile' });
  assert.deepEqual([meanwhile.status, meanwhile.body['code'], Number(meanwhile.headers.get('retry-after')) > 0], [503, 'busy', true]);
  writeFileSync(join(group, 'pids.max'), 'max');
  assert.equal((await server.chat({ prompt: 'after' })).status, 200);
  await server.end();
});

test('a clock that jumps, back or ahead, disturbs no turn, limit or session', async (t) => {
  const jump = "let hours = 0; process.on('SIGUSR2', () => (hours = hours === 0 ? -48 : 48)); const now = Date.now; Date.now = () => now() + hours * 3600e3;";
  const server = await startServer(t, { NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(jump)}`, RATE_LIMIT_PER_MINUTE: '4' });
  const first = await server.chat({ prompt: 'before' });
  for (const _ of ['back', 'ahead']) {
    process.kill(server.pid, 'SIGUSR2');
    assert.equal((await server.chat({ prompt: 'after', session_id: first.body['session_id'] })).status, 200);
  }
  assert.equal((await server.chat({ prompt: 'fourth' })).status, 200);
  const fifth = await server.chat({ prompt: 'fifth' });
  assert.equal(fifth.status, 429);
  const seconds = Number(fifth.headers.get('retry-after'));
  assert.ok(seconds >= 1 && seconds <= 60, `${seconds}`);
});

test('a CLI ended for want of memory is an error of its turn only, and its dialogue goes on', async (t) => {
  const server = await startServer(t);
  const { session_id: sessionId } = (await server.chat({ prompt: 'before' })).body;
  const { body: pid } = await server.chat({ prompt: 'play pid', session_id: sessionId });
  let last: StreamEvent | undefined;
  for await (const event of server.stream({ prompt: 'play slow 20000', session_id: sessionId })) {
    // The turn has begun, in the process of the one before.
    if (event.name === 'session') process.kill(Number(pid['content']), 'SIGKILL');
    last = event;
  }
  assert.deepEqual([last?.name, last?.data['status'], last?.data['code'], last?.data['session_id']], ['error', 502, 'claude_failed', sessionId]);
  assert.match(String(last?.data['detail']), /was ended by SIGKILL/);
  assert.equal((await server.chat({ prompt: 'on', session_id: sessionId })).status, 200);
});
