import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { test, type TestContext } from 'node:test';
import { needs } from '../needs.ts';
import { randomOf } from '../random.ts';
import { makeHome, noneLeft, RunningServer, startServer, until, within, type Reply } from '../running-server.ts';

const withoutWarm = { CLAUDE_WARM_SECONDS: '0' };

async function statusOf(server: RunningServer): Promise<Record<string, unknown>> {
  return (await (await server.request('/health')).json()) as Record<string, unknown>;
}

async function cliCount(server: RunningServer): Promise<number> {
  return (await server.leftovers()).filter((line) => line.includes('stream-json')).length;
}

function openFiles(server: RunningServer): Promise<number> {
  return readdir(`/proc/${server.pid}/fd`).then((names) => names.length);
}

async function residentMegabytes(server: RunningServer): Promise<number> {
  return (Number((await readFile(`/proc/${server.pid}/statm`, 'latin1')).split(' ')[1]) * 4096) / 1024 / 1024;
}

/** Reads the history of a dialogue through the API. */
async function historyOf(server: RunningServer, userId: number, sessionId: string): Promise<string[]> {
  const reply = await server.chat({ prompt: 'play history', user_id: userId, session_id: sessionId });
  assert.equal(reply.status, 200, JSON.stringify(reply.body));
  return JSON.parse(String(reply.body['content'])) as string[];
}

test('a dialogue stays in one process, and the numbers of /health tell it', async (t) => {
  const server = await startServer(t, { CLAUDE_MAX_CONCURRENT_REQUESTS: '3' });
  const first = await server.chat({ prompt: 'play pid' });
  const ids = await Promise.all(
    Array.from({ length: 20 }, () => server.chat({ prompt: 'play pid', session_id: first.body['session_id'] })),
  );
  assert.deepEqual(new Set(ids.map((reply) => reply.body['content'])), new Set([first.body['content']]));
  assert.deepEqual(new Set(ids.map((reply) => reply.body['cost'])), new Set([0.25]));
  const { running, queued, warm, capacity, turns, failures, login } = await statusOf(server);
  assert.deepEqual({ running, queued, warm, capacity, turns, failures, login }, { running: 0, queued: 0, warm: 2, capacity: 3, turns: 21, failures: 0, login: null });
  const turnLines = await until('a line for each', () => {
    const lines = server.lines.filter((line) => line.event === 'turn');
    return lines.length >= 21 ? lines : undefined;
  });
  assert.deepEqual(turnLines.map((line) => line['process']), ['cold', ...Array<string>(20).fill('warm')]);
});

test('a first turn of the user who last began a dialogue finds a process waiting', async (t) => {
  const server = await startServer(t);
  await server.chat({ prompt: 'hello', user_id: 5 });
  await until('the spare', async () => ((await statusOf(server))['warm'] === 2 ? true : undefined));
  await server.chat({ prompt: 'hello', user_id: 5 });
  await server.logged('turn', (line) => line['process'] === 'spare');
});

test('200 callers at once at capacity 2 with a queue of 100: 102 are served, the rest turned away before, never more than 2 processes', async (t) => {
  const server = await startServer(t, { CLAUDE_MAX_CONCURRENT_REQUESTS: '2', CLAUDE_QUEUE_LIMIT: '100', CLAUDE_QUEUE_SECONDS: '600' });
  await until('the version to be known', async () => ((await statusOf(server))['claude_version'] ? true : undefined));
  let mostAlive = 0;
  let isOver = false;
  const healthMs: number[] = [];
  const watching = (async () => {
    while (!isOver) {
      mostAlive = Math.max(mostAlive, await cliCount(server));
      const askedAt = performance.now();
      assert.equal((await server.request('/health')).status, 200);
      healthMs.push(performance.now() - askedAt);
    }
  })();
  const ends: Reply[] = [];
  const ask = async (prompt: string, userId: number): Promise<Reply> => {
    const reply = await server.chat({ prompt, user_id: userId });
    ends.push(reply);
    return reply;
  };
  // The first two hold their places until the others have come.
  const first = [ask('play hold go', 1), ask('play hold go', 2)];
  await until('both places to be taken', async () => ((await statusOf(server))['running'] === 2 ? true : undefined));
  const others = Array.from({ length: 198 }, (_, i) => ask(`turn ${i}`, i + 3));
  await until('all others to have come', () => (ends.length >= 98 ? true : undefined), 60_000);
  await server.release('go');
  const replies = await Promise.all([...first, ...others]);
  isOver = true;
  await watching;
  const served = replies.filter((reply) => reply.status === 200);
  const refused = replies.filter((reply) => reply.status === 503);
  assert.deepEqual([served.length, refused.length], [102, 98]);
  for (const reply of refused) assert.deepEqual([reply.body['code'], Number(reply.headers.get('retry-after')) > 0], ['busy', true]);
  assert.equal(mostAlive, 2);
  assert.ok(ends.slice(0, 98).every((reply) => reply.status === 503), 'turned away at once, not after a wait');
  const slowest = Math.max(...server.lines.filter((line) => line['code'] === 'busy').map((line) => Number(line['ms'])));
  t.diagnostic(`slowest refusal ${slowest} ms; slowest of ${healthMs.length} /health answers ${Math.max(...healthMs).toFixed(1)} ms`);
});

/** What a caller may meet, by scenario: any of these statuses. `hang` is left by its caller. */
const rightAnswers: Readonly<Record<string, readonly number[]>> = {
  plain: [200],
  'play slow 20': [200],
  'play tool': [200],
  'play flood-stderr': [200],
  'play die-idle': [200],
  'play unasked': [200],
  'play exit-1': [200],
  'play max-turns': [422],
  'play crash': [502],
  'play killed': [502],
  'play garbage': [502],
  'play silent': [502],
  'play truncated': [502],
  'play api 429': [429],
  'play api 529': [503],
  'play hang': [],
};

test('2,000 turns over 50 sessions with faults and hang-ups each get one right answer, and nothing is left', async (t) => {
  const random = randomOf(t);
  const server = await startServer(t, { CLAUDE_MAX_CONCURRENT_REQUESTS: '4', CLAUDE_QUEUE_LIMIT: '1000', CLAUDE_QUEUE_SECONDS: '600' });
  const sessions = Array.from({ length: 50 }, (_, i) => ({ userId: i + 1, sessionId: undefined as unknown }));
  const faults = Object.keys(rightAnswers).slice(1);
  let turns = 0;
  const openBefore = await openFiles(server);
  let megabytesAtQuarter = 0;

  async function oneTurn(session: (typeof sessions)[number]): Promise<void> {
    turns += 1;
    const number = turns;
    if (number === 500) megabytesAtQuarter = await residentMegabytes(server);
    const scenario = random() < 0.75 ? 'plain' : (faults[Math.floor(random() * faults.length)] ?? 'plain');
    const prompt = scenario === 'plain' ? `turn ${number}` : scenario;
    const caller = new AbortController();
    if (scenario === 'play hang') setTimeout(() => caller.abort(), 20 + random() * 100);
    const asked = server.chat({ prompt, user_id: session.userId, session_id: session.sessionId ?? null }, { signal: caller.signal });
    const reply = await within(`turn ${number} (${scenario})`, 60_000, asked).catch((error: unknown) => {
      assert.ok(caller.signal.aborted, `turn ${number}: ${String(error)}`);
      return undefined;
    });
    if (reply === undefined) return;
    const what = `turn ${number} (${scenario}): ${reply.status} ${JSON.stringify(reply.body)}`;
    assert.ok(rightAnswers[scenario]?.includes(reply.status), what);
    if (scenario === 'plain') assert.equal(reply.body['content'], `you said: ${prompt}`, what);
    if (reply.status === 200) assert.equal(reply.body['cost'], 0.25, what);
    session.sessionId ??= reply.body['session_id'];
    assert.equal(reply.body['session_id'], session.sessionId, what);
  }

  const callers = Array.from({ length: 10 }, async (_, caller) => {
    // Each session is one caller's own.
    for (let i = 0; turns < 2000; i += 1) {
      const session = sessions[caller + 10 * (i % 5)];
      // A few turns of one session together, as a person types: some in line, some at once.
      if (session === undefined) continue;
      await oneTurn(session);
      // A few more of the same dialogue, as a person sends them: some at once, some after the answer.
      if (session.sessionId !== undefined) await Promise.all([oneTurn(session).then(() => oneTurn(session)), oneTurn(session)]);
    }
  });
  await Promise.all(callers);

  const idle = await until('every place to be free', async () => ((await statusOf(server))['running'] === 0 ? statusOf(server) : undefined));
  assert.equal(idle['queued'], 0);
  assert.ok(Number(idle['warm']) <= 4 && (await cliCount(server)) <= 4);
  const growth = (await residentMegabytes(server)) - megabytesAtQuarter;
  t.diagnostic(`${turns} turns; memory grew ${growth.toFixed(1)} MB over the last three quarters`);
  assert.ok(growth < 64, `memory grew ${growth} MB`);
  // Three pipes for each warm process, and connections kept alive by this test.
  await until('the descriptors to be closed', async () => ((await openFiles(server)) <= openBefore + 4 * 3 + 40 ? true : undefined));
  assert.equal(await server.end('SIGTERM'), 0);
  await noneLeft(server.home);
});

for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
  test(`after ${signal} under load every answered turn is in its history`, async (t) => {
    const home = await makeHome(t);
    const before = await startServer(t, { CLAUDE_MAX_CONCURRENT_REQUESTS: '3' }, home);
    const answered = new Map<number, { sessionId: string; prompts: string[] }>();
    let isOver = false;
    const callers = Array.from({ length: 6 }, async (_, i) => {
      for (let turn = 0; !isOver; turn += 1) {
        const known = answered.get(i);
        const prompt = `turn ${turn}`;
        const reply = await before.chat({ prompt, user_id: i + 1, session_id: known?.sessionId ?? null }).catch(() => undefined);
        if (reply?.status !== 200) return;
        answered.set(i, { sessionId: String(reply.body['session_id']), prompts: [...(known?.prompts ?? []), prompt] });
      }
    });
    await until('turns of every caller', () => (answered.size === 6 && [...answered.values()].every(({ prompts }) => prompts.length > 2)) || undefined, 30_000);
    const end = await before.end(signal);
    isOver = true;
    await Promise.all(callers);
    assert.equal(end, signal === 'SIGTERM' ? 0 : 'SIGKILL');
    const after = await startServer(t, {}, home);
    for (const [i, { sessionId, prompts }] of answered) {
      const history = await historyOf(after, i + 1, sessionId);
      assert.deepEqual(prompts.filter((prompt) => !history.includes(prompt)), []);
    }
  });
}

test('told to stop, the server finishes what runs, turns away what comes, and leaves with 0', async (t) => {
  const server = await startServer(t, { CLAUDE_MAX_CONCURRENT_REQUESTS: '1' });
  const running = server.chat({ prompt: 'play hold go' });
  await until('the turn to run', async () => ((await statusOf(server))['running'] === 1 ? true : undefined));
  const queued = server.chat({ prompt: 'waiting', user_id: 2 });
  await until('a turn in the queue', async () => ((await statusOf(server))['queued'] === 1 ? true : undefined));
  const ended = server.end('SIGTERM');
  await server.logged('draining');
  const health = await fetch(`${server.url}/health`);
  assert.deepEqual([health.status, await health.text()], [503, '{"status":"draining"}']);
  for (const reply of [await server.chat({ prompt: 'late' }), await queued]) {
    assert.deepEqual([reply.status, reply.body['code'], reply.headers.get('connection')], [503, 'shutting_down', 'close']);
    assert.ok(Number(reply.headers.get('retry-after')) > 0);
  }
  await server.release('go');
  assert.equal((await running).body['content'], 'held go');
  assert.equal(await ended, 0);
  await noneLeft(server.home);
});

for (const scenario of ['hang', 'deaf', 'grandchild']) {
  test(`what plays ${scenario} beyond SHUTDOWN_SECONDS is ended with 503 and its session`, async (t) => {
    const server = await startServer(t, { SHUTDOWN_SECONDS: '0' });
    const running = server.chat({ prompt: `play ${scenario}` });
    await until('the turn to run', async () => (await readdir(`${server.home}/state/users/1/home/projects/work`).catch(() => [])).some((name) => name.endsWith('.jsonl')) || undefined);
    const ended = server.end('SIGTERM');
    const reply = await running;
    assert.deepEqual([reply.status, reply.body['code'], typeof reply.body['session_id']], [503, 'shutting_down', 'string']);
    assert.equal(await ended, 0);
    await noneLeft(server.home);
  });
}

test('a bug nobody caught is logged, and the server leaves with 70 after the same clean-up', async (t) => {
  const server = await startServer(t, { NODE_OPTIONS: `--import=data:text/javascript,process.on('SIGUSR2',()=>{throw(Error('made-up:/etc/passwd'))})` });
  const running = server.chat({ prompt: 'play hang' });
  await until('the turn to run', async () => ((await statusOf(server))['running'] === 1 ? true : undefined));
  process.kill(server.pid, 'SIGUSR2');
  assert.equal((await running).body['code'], 'shutting_down');
  assert.equal(await server.ended(), 70);
  assert.equal((await server.logged('bug').catch(() => server.lines.find((line) => line.event === 'bug')))?.['cause'], 'Error: made-up:<path>');
  await noneLeft(server.home);
});

test('a tool that outlived a killed server is ended at the next start', { skip: needs(['setpriv'], 'ends the CLI of a killed server') }, async (t) => {
  const home = await makeHome(t);
  const before = await startServer(t, withoutWarm, home);
  before.chat({ prompt: 'play grandchild' }).catch(() => {});
  await until('the tool', async () => ((await before.leftovers()).some((line) => line.includes('sleep 300')) ? true : undefined));
  await before.end('SIGKILL');
  await until('the CLI to die with its server', async () => ((await cliCount(before)) === 0 ? true : undefined));
  assert.equal((await before.leftovers()).length, 1, 'the tool has a session of its own and lives on');
  const after = await startServer(t, withoutWarm, home);
  assert.equal((await after.logged('leftovers'))['processes'], 1);
  assert.deepEqual((await after.leftovers()).filter((line) => line.includes('sleep')), []);
});

test('each user has its own limit of turns a minute', async (t: TestContext) => {
  const server = await startServer(t, { RATE_LIMIT_PER_MINUTE: '2' });
  const statuses: number[] = [];
  for (let turn = 0; turn < 3; turn += 1) statuses.push((await server.chat({ prompt: 'hello' })).status);
  assert.deepEqual(statuses, [200, 200, 429]);
  const refused = await server.chat({ prompt: 'hello' });
  assert.equal(refused.body['code'], 'rate_limited');
  const waitSeconds = Number(refused.headers.get('retry-after'));
  assert.ok(waitSeconds > 50 && waitSeconds <= 60, String(waitSeconds));
  assert.equal((await server.chat({ prompt: 'hello', user_id: 2 })).status, 200);
});

test('a turn that was busy does not count against the limit of its user', async (t) => {
  const server = await startServer(t, { RATE_LIMIT_PER_MINUTE: '2', CLAUDE_MAX_CONCURRENT_REQUESTS: '1', CLAUDE_QUEUE_LIMIT: '0' });
  const running = server.chat({ prompt: 'play hang', user_id: 2 }, { signal: AbortSignal.timeout(60_000) });
  await until('the only slot to be taken', async () => ((await statusOf(server))['running'] === 1 ? true : undefined));
  for (let turn = 0; turn < 3; turn += 1) assert.equal((await server.chat({ prompt: 'hello' })).body['code'], 'busy');
  const cli = await until('the CLI', async () => (await server.leftovers()).find((line) => line.includes('stream-json')));
  process.kill(Number.parseInt(cli, 10), 'SIGKILL');
  assert.equal((await running).status, 502);
  await until('the slot to be free', async () => ((await statusOf(server))['running'] === 0 ? true : undefined));
  const statuses: number[] = [];
  for (let turn = 0; turn < 3; turn += 1) statuses.push((await server.chat({ prompt: 'hello' })).status);
  assert.deepEqual(statuses, [200, 200, 429]);
});

test('a warm process that died is replaced unnoticed', async (t) => {
  const server = await startServer(t);
  const first = await server.chat({ prompt: 'play pid' });
  process.kill(Number(first.body['content']), 'SIGKILL');
  const second = await server.chat({ prompt: 'play history', session_id: first.body['session_id'] });
  assert.deepEqual([second.status, second.body['content']], [200, JSON.stringify(['play pid', 'play history'])]);
  assert.equal(second.body['cost'], 0.25);
});
