import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { KeyedChats } from '../../src/turns/chat.ts';
import { KeyedTurns } from '../../src/turns/keyed.ts';
import { askByCurl, startCutter } from '../cutting-proxy.ts';
import { openConnection, requestBytes, type Connection } from '../http-client.ts';
import { answer, asJson, assertProblem, chat, chatPath, eventsOf, good, start, textOf, withKey } from '../http-stage.ts';
import { needs } from '../needs.ts';
import { apiKey, startServer, until, within, type LogLine, type Reply, type RunningServer } from '../running-server.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
const asStream = { Accept: 'text/event-stream' };
const one = { CLAUDE_MAX_CONCURRENT_REQUESTS: '1' };

function ask(server: RunningServer, body: Record<string, unknown>, key: string): Promise<Reply> {
  return server.chat(body, { headers: { 'Idempotency-Key': key }, signal: AbortSignal.timeout(60_000) });
}

async function healthOf(server: RunningServer): Promise<Record<string, unknown>> {
  return (await (await server.request('/health')).json()) as Record<string, unknown>;
}

/** The log's lines of turns, or of replays, once there are so many; a line may come after its answer. */
async function linesOf(server: RunningServer, event: 'turn' | 'replay', count: number, user?: number): Promise<LogLine[]> {
  const lines = (): LogLine[] => server.lines.filter((line) => line.event === event && (user === undefined || line['user'] === user));
  await until(`${count} lines`, () => lines().length >= count || undefined);
  assert.equal(lines().length, count);
  return lines();
}

/** A chat with a key on a connection that can be hung up. */
async function begin(t: TestContext, server: RunningServer, body: object, key: string, headers: readonly string[] = []): Promise<Connection> {
  const connection = await openConnection(t, server.port);
  connection.send(requestBytes(`POST ${chatPath}`, [`Authorization: Bearer ${apiKey}`, asJson, `Idempotency-Key: ${key}`, ...headers], JSON.stringify({ user_id: 1, ...body })));
  return connection;
}

const reaches = (server: RunningServer, name: 'running' | 'queued' | 'turns', count: number): Promise<true> =>
  until(`${name} to be ${count}`, async () => (await healthOf(server))[name] === count || undefined);

test('100 callers with one key at once, streams among them: one turn, 100 equal answers', async (t) => {
  const server = await startServer(t);
  const body = { prompt: 'play think 1000' };
  const read = async (): Promise<unknown> => {
    const events = [];
    for await (const event of server.stream(body, { headers: { ...asStream, 'Idempotency-Key': 'k' } })) events.push(event);
    assert.deepEqual(events.map(({ name }) => name), ['session', 'delta', 'delta', 'result']);
    return events.at(-1)?.data;
  };
  const json = async (): Promise<unknown> => (await ask(server, body, 'k')).body;
  const answers = await Promise.all(Array.from({ length: 100 }, (_, i) => (i % 4 === 1 ? read() : json())));
  assert.equal((answers[0] as { content: string }).content, 'thought through');
  for (const answer of answers) assert.deepEqual(answer, answers[0]);
  const { turns, idempotency_keys: keys } = await healthOf(server);
  assert.deepEqual([turns, keys], [1, 1]);
  await linesOf(server, 'turn', 1);
  assert.deepEqual((await linesOf(server, 'replay', 99)).filter((line) => 'cost' in line), [], 'the cost stands in the log once');
});

test('a retry is told that it is one, and the first request is not', async (t) => {
  const server = await startServer(t);
  const replies = [await ask(server, { prompt: 'hello' }, 'k'), await ask(server, { prompt: 'hello' }, 'k')];
  assert.deepEqual(replies.map(({ headers }) => headers.get('idempotency-replayed')), [null, 'true']);
  assert.deepEqual(replies[1]?.body, replies[0]?.body);
  assert.notEqual(replies[1]?.headers.get('x-request-id'), replies[0]?.headers.get('x-request-id'));
});

test('without a key every request is a turn', async (t) => {
  const server = await startServer(t);
  for (const count of [1, 2]) {
    await server.chat({ prompt: 'hello' });
    assert.deepEqual([(await healthOf(server))['turns'], (await healthOf(server))['idempotency_keys']], [count, 0]);
  }
});

test('a key belongs to its user, and to one body however it is written', async (t) => {
  const server = await startServer(t);
  const first = await ask(server, { prompt: 'hello' }, 'k');
  const other = await ask(server, { prompt: 'hello', user_id: 2 }, 'k');
  assert.notEqual(other.body['session_id'], first.body['session_id']);
  const conflict = await ask(server, { prompt: 'hello, you' }, 'k');
  assert.deepEqual([conflict.status, conflict.body['code'], conflict.headers.get('idempotency-replayed')], [422, 'idempotency_conflict', null]);
  const body = '{ "user_id": 1.0, "prompt": "\\u0068ello" }';
  const same = await server.request(chatPath, { method: 'POST', body, headers: { 'Idempotency-Key': 'k' } });
  assert.deepEqual(await same.json(), first.body);
  assert.equal((await healthOf(server))['turns'], 2);
});

test('a caller that hangs up at whatever stage and returns pays for one turn', async (t) => {
  const server = await startServer(t, { ...one, CLAUDE_CODE_FAKE_START: 'slow', CLAUDE_WARM_SECONDS: '0' });
  const received = (text: string) => (connection: Connection): Promise<unknown> => connection.received(text);
  const stages: ReadonlyArray<readonly [string, readonly string[], (connection: Connection) => Promise<unknown>]> = [
    ['while its process starts', [], () => reaches(server, 'running', 1)],
    ['when it has begun', [`Accept: ${asStream.Accept}`], received('text/event-stream')],
    ['in the midst of a stream', [`Accept: ${asStream.Accept}`], received('let me think')],
    ['when its answer is under way', [], received('HTTP/1.1')],
    ['when it has its answer', [], received('thought through')],
  ];
  for (const [i, [stage, headers, reached]] of stages.entries()) {
    const body = { prompt: 'play think 300', user_id: i + 1 };
    const connection = await begin(t, server, body, 'k', headers);
    await reached(connection);
    connection.hangUp();
    const reply = await ask(server, body, 'k');
    assert.deepEqual([reply.status, reply.body['content'], reply.headers.get('idempotency-replayed')], [200, 'thought through', 'true'], stage);
    const history = await server.chat({ prompt: 'play history', user_id: i + 1, session_id: reply.body['session_id'] });
    assert.deepEqual(JSON.parse(String(history.body['content'])), [body.prompt, 'play history'], stage);
    const turns = await linesOf(server, 'turn', 2, i + 1);
    assert.deepEqual(turns.map((line) => [line['status'], line['cost']]), Array(2).fill([200, 0.25]), stage);
  }
});

test('a caller that hangs up while its turn waits keeps its place, and a half-sent request is nothing', async (t) => {
  const server = await startServer(t, one);
  const running = server.chat({ prompt: 'play hold go', user_id: 9 });
  await reaches(server, 'running', 1);
  const connection = await begin(t, server, { prompt: 'hello' }, 'k');
  await reaches(server, 'queued', 1);
  connection.hangUp();
  const half = await openConnection(t, server.port);
  half.send(requestBytes(`POST ${chatPath}`, [`Authorization: Bearer ${apiKey}`, asJson, 'Idempotency-Key: half', 'Content-Length: 100'], '{"prompt":'));
  await until('the hang-up to be heard', async () => (await healthOf(server))['queued'] === 1 || undefined);
  half.hangUp();
  await server.release('go');
  assert.equal((await running).status, 200);
  await reaches(server, 'turns', 2);
  const { idempotency_keys: keys } = await healthOf(server);
  assert.equal(keys, 1, 'the half is not held');
  const reply = await ask(server, { prompt: 'hello' }, 'k');
  assert.deepEqual([reply.body['content'], reply.headers.get('idempotency-replayed')], ['you said: hello', 'true']);
  assert.equal((await healthOf(server))['turns'], 2);
});

test('a caller that comes back to a running turn as a stream hears what it has missed, and the rest', async (t) => {
  const server = await startServer(t);
  const first = await begin(t, server, { prompt: 'play think 3000' }, 'k', [`Accept: ${asStream.Accept}`]);
  await first.received('let me think');
  first.hangUp();
  const late = await begin(t, server, { prompt: 'play think 3000' }, 'k', [`Accept: ${asStream.Accept}`]);
  // Before the turn is over.
  await late.received('let me think');
  assert.equal((await healthOf(server))['running'], 1);
  const { headers, body } = await late.answer('the stream');
  const events = eventsOf(body);
  assert.equal(headers.get('idempotency-replayed'), 'true');
  assert.deepEqual(events.map(({ name }) => name), ['session', 'delta', 'delta', 'result']);
  assert.equal(textOf(events), 'let me think. thought through');
  const again = await begin(t, server, { prompt: 'play think 3000' }, 'k', [`Accept: ${asStream.Accept}`]);
  assert.equal((await again.answer('the stream')).body, body);
});

test('files belong to the body and to the answer, and large answers take no more memory than they may', async (t) => {
  const server = await startServer(t);
  const files = [{ name: 'a.txt', data: Buffer.from('what is this?').toString('base64') }];
  const body = { prompt: 'play give big.bin:8000000', files };
  const first = await ask(server, body, 'k');
  const [file] = first.body['files'] as Array<{ name: string; data: string }>;
  assert.deepEqual([file?.name, Buffer.from(file?.data ?? '', 'base64').length], ['big.bin', 8_000_000]);
  assert.deepEqual((await ask(server, body, 'k')).body, first.body);
  const other = [{ name: 'a.txt', data: Buffer.from('what is that?').toString('base64') }];
  assert.equal((await ask(server, { ...body, files: other }, 'k')).body['code'], 'idempotency_conflict');
  for (let i = 0; i < 7; i += 1) assert.equal((await ask(server, body, `k${i}`)).status, 200);
  const { idempotency_keys: keys } = await healthOf(server);
  assert.equal(keys, 6, 'as many as 64 MiB hold');
  assert.equal((await ask(server, body, 'k6')).headers.get('idempotency-replayed'), 'true');
});

test('a 422 that carries a session is kept, any other failure is not', async (t) => {
  const server = await startServer(t, { ...one, CLAUDE_QUEUE_LIMIT: '0' });
  for (const [prompt, user, isKept] of [['play max-turns', 1, true], ['play api long', 2, true], ['play crash', 3, false], ['play api 529', 4, false]] as const) {
    const replies = [await ask(server, { prompt, user_id: user }, 'k'), await ask(server, { prompt, user_id: user }, 'k')];
    assert.ok(replies.every(({ status }) => status >= 400), prompt);
    assert.deepEqual(replies.map(({ headers }) => headers.get('idempotency-replayed')), [null, isKept ? 'true' : null], prompt);
    if (isKept) assert.deepEqual(replies[1]?.body, replies[0]?.body);
    await linesOf(server, 'turn', isKept ? 1 : 2, user);
  }
  const slot = await begin(t, server, { prompt: 'play hold go', user_id: 9 }, 'slot');
  await reaches(server, 'running', 1);
  assert.equal((await ask(server, { prompt: 'hello' }, 'new')).body['code'], 'busy');
  await server.release('go');
  await slot.answer('the answer');
  assert.equal((await ask(server, { prompt: 'hello' }, 'new')).status, 200);
});

test('a failure is told to all who wait for it, and is logged as the turn’s though its caller has gone', async (t) => {
  const server = await startServer(t, { CLAUDE_TIMEOUT_SECONDS: '4' });
  const first = await begin(t, server, { prompt: 'play hang' }, 'k');
  await reaches(server, 'running', 1);
  const others = Array.from({ length: 5 }, () => ask(server, { prompt: 'play hang' }, 'k'));
  const gone = await begin(t, server, { prompt: 'play hang' }, 'k', ['X-Request-Id: gone']);
  first.hangUp();
  gone.hangUp();
  for (const reply of await Promise.all(others)) assert.deepEqual([reply.status, reply.body['code']], [504, 'claude_timeout']);
  assert.deepEqual((await linesOf(server, 'turn', 1)).map((line) => [line['status'], line['cost']]), [[504, 0.25]]);
  assert.equal((await server.logged('replay', (line) => line['request'] === 'gone'))['status'], 499);
  assert.deepEqual((await linesOf(server, 'replay', 6)).map(({ level }) => level), Array(6).fill('info'), 'one failure, one warning');
});

test('a shared turn counts once for the rate limit', async (t) => {
  const server = await startServer(t, { RATE_LIMIT_PER_MINUTE: '1' });
  for (let i = 0; i < 3; i += 1) assert.equal((await ask(server, { prompt: 'hello' }, 'k')).status, 200);
  assert.equal((await ask(server, { prompt: 'hello' }, 'new')).body['code'], 'rate_limited');
  assert.equal((await ask(server, { prompt: 'hello' }, 'k')).status, 200);
});

test('a server that is told to stop finishes a running turn with a key, heard or not, and answers who comes for it', async (t) => {
  const server = await startServer(t);
  const unheard = await begin(t, server, { prompt: 'play hold go', user_id: 1 }, 'k');
  const heard = await begin(t, server, { prompt: 'play hold go', user_id: 2 }, 'k');
  await reaches(server, 'running', 2);
  unheard.hangUp();
  const ended = server.end('SIGTERM');
  await server.logged('draining');
  const late = ask(server, { prompt: 'play hold go', user_id: 2 }, 'k');
  await new Promise((resolve) => setTimeout(resolve, 500)); // for it to arrive
  await server.release('go');
  const { body, headers: lateHeaders } = await late;
  assert.deepEqual([body['content'], lateHeaders.get('idempotency-replayed')], ['held go', 'true']);
  assert.equal((await heard.answer('the answer')).status, 200);
  assert.equal(await ended, 0);
  assert.deepEqual((await linesOf(server, 'turn', 2)).map((line) => [line['status'], line['cost']]), Array(2).fill([200, 0.25]));
});

test('a server that is told to stop drops a waiting turn with a key that nobody hears, and ends one that takes too long', async (t) => {
  const server = await startServer(t, { ...one, SHUTDOWN_SECONDS: '1' });
  const running = await begin(t, server, { prompt: 'play hang' }, 'running');
  await reaches(server, 'running', 1);
  const waiting = await begin(t, server, { prompt: 'hello', user_id: 2 }, 'waiting');
  await reaches(server, 'queued', 1);
  for (const connection of [running, waiting]) connection.hangUp();
  assert.equal(await server.end('SIGTERM'), 0);
  assert.deepEqual((await linesOf(server, 'turn', 2)).map((line) => [line['user'], line['code']]), [[2, 'shutting_down'], [1, 'shutting_down']]);
});

test('a header that is no key is refused by name, together with the fields', async (t) => {
  const stage = await start(t);
  const wrong = ['Idempotency-Key:', 'Idempotency-Key: a b', `Idempotency-Key: ${'x'.repeat(129)}`, 'Idempotency-Key: \xe9', 'Idempotency-Key: a\tb'];
  for (const header of [...wrong.map((line) => [line]), ['Idempotency-Key: a', 'Idempotency-Key: b']]) {
    const { problem } = await assertProblem(stage, chat({ prompt: '', user_id: 1 }, [withKey, asJson, ...header]), 422, 'invalid_request');
    assert.deepEqual((problem['errors'] as Array<{ field: string }>).map(({ field }) => field), ['prompt', 'Idempotency-Key'], header.join());
  }
  // Without end.
  assert.equal((await stage.ask(chat(good, [withKey, asJson, `Idempotency-Key: ${'x'.repeat(17_000)}`]))).status, 431);
  assert.equal(stage.requests.length, 0);
  for (const key of ['"quoted"', '!', 'x'.repeat(128)]) await stage.ask(chat(good, [withKey, asJson, `Idempotency-Key:  ${key} `]));
  assert.deepEqual(stage.requests.map(({ retryKey }) => retryKey?.key), ['"quoted"', '!', 'x'.repeat(128)]);
});

/** Bytes of the heap in use when all that nobody holds has gone. */
function heapBytes(): number {
  setFlagsFromString('--expose-gc');
  (runInNewContext('gc') as () => void)();
  return process.memoryUsage().heapUsed;
}

test('10,000 keys take no more memory than they may, and each has its own answer', async (t) => {
  const noise = randomBytes(4_000).toString('hex');
  const keyed: KeyedChats = new KeyedTurns();
  let turns = 0;
  const stage = await start(t, {
    run: ({ prompt, userId, retryKey }, signal, onEvent) =>
      keyed.run(userId, retryKey ?? assert.fail('no key'), { signal, onEvent }, async () => {
        turns += 1;
        // Not a rope, whose end all of them would share.
        return { ...answer, content: Buffer.from(`${prompt} ${noise}`).toString() };
      }),
  });
  const connection = await stage.connect();
  const answerTo = async (i: number): Promise<string> => {
    connection.send(chat({ prompt: `p${i}`, user_id: (i % 50) + 1 }, [withKey, asJson, `Idempotency-Key: k${i}`]));
    return (JSON.parse((await connection.answer('an answer')).body) as { content: string }).content;
  };
  let before = 0;
  for (let i = 0; i < 10_000; i += 1) {
    assert.ok((await answerTo(i)).startsWith(`p${i} `));
    stage.requests.length = stage.signals.length = 0;
    stage.logText = '';
    if (i === 2_000) before = heapBytes();
  }
  // 8,000 answers of 8 KB would be 64 MB.
  const grownMib = (heapBytes() - before) / 1024 / 1024;
  assert.ok(grownMib < 10, `${Math.round(grownMib)} MiB more`);
  assert.deepEqual([turns, keyed.size], [10_000, 1000]);
  for (const i of [9_000, 9_500, 9_999]) assert.ok((await answerTo(i)).startsWith(`p${i} `));
  assert.equal(turns, 10_000, 'the last thousand are held');
  await answerTo(0);
  assert.equal(turns, 10_001, 'the first are not');
});

test('curl --retry as in README.md, through a proxy that cuts every connection after 1 s, on a turn of 3 s: one turn, and its answer', { skip: needs(['curl', 'openssl'], 'a retry by curl') }, async (t) => {
  const server = await startServer(t);
  const proxy = await startCutter(t, server.port, 1000);
  const reply = await askByCurl(proxy.port, 'play slow 3000');
  assert.equal(reply['content'], 'after 3000');
  assert.ok(proxy.connections() >= 2, `${proxy.connections()} connections`);
  assert.deepEqual((await linesOf(server, 'turn', 1)).map((line) => [line['status'], line['cost']]), [[200, 0.25]]);
});

for (const [program, file] of [['python3', 'ask.py'], [process.execPath, 'ask.mjs']] as const) {
  test(`examples/${file}, as it stands, through such a proxy: one turn, and its answer; and what is wrong is said`, { skip: program === 'python3' && needs(['python3'], 'the client in Python') }, async (t) => {
    const server = await startServer(t);
    const proxy = await startCutter(t, server.port, 1000);
    const run = (prompt: string): Promise<{ stdout: string }> => {
      const env = { PATH: process.env['PATH'], CLAUDE_API_URL: `http://127.0.0.1:${proxy.port}`, CLAUDE_API_KEY: apiKey };
      return within(file, 60_000, promisify(execFile)(program, [join(root, 'examples', file), prompt], { env }));
    };
    assert.equal((await run('play slow 1500')).stdout, 'after 1500\n');
    const tries = proxy.connections();
    assert.ok(tries >= 2, `${tries} connections`);
    assert.deepEqual((await linesOf(server, 'turn', 1)).map((line) => [line['status'], line['cost']]), [[200, 0.25]]);
    const refused = await run(' ').catch((error: { stderr: string }) => ({ stdout: error.stderr }));
    assert.match(refused.stdout, /prompt must not be empty/);
    assert.equal(proxy.connections(), tries + 1, 'a wrong request is not sent again');
  });
}
