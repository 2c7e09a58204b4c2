import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { openConnection, requestBytes } from '../http-client.ts';
import { apiKey, eventsOf, until } from '../running-server.ts';
import { Front, Machine, noHaproxy } from './front.ts';

type Json = Record<string, unknown>;

const largest = Number.MAX_SAFE_INTEGER;
const longPrompt = 'x'.repeat(200_000);

interface Stage {
  readonly front: Front;
  readonly machines: readonly Machine[];
}

async function startStage(t: TestContext): Promise<Stage> {
  const machines = await Promise.all([1, 2, 3].map((number) => Machine.start(t, number, {})));
  return { front: await Front.start(t, machines), machines };
}

function post({ front }: Pick<Stage, 'front'>, body: unknown, headers: Readonly<Record<string, string>> = {}, signal?: AbortSignal): Promise<Response> {
  const text = typeof body === 'string' ? body : JSON.stringify(body);
  const all = { Authorization: `Bearer ${apiKey}`, 'Content-Type': 'application/json', ...headers };
  return fetch(`${front.url}/api/v1/chat`, { method: 'POST', body: text, headers: all, ...(signal && { signal }) });
}

/** An answer of HAProxy's own, in the shape of the server's. */
async function problemOf(response: Response): Promise<Json> {
  assert.equal(response.headers.get('content-type'), 'application/problem+json');
  assert.equal(response.headers.get('cache-control'), 'no-store');
  assert.match(response.headers.get('x-request-id') ?? '', /^[\w.:-]{1,128}$/);
  const problem = (await response.json()) as Json;
  assert.equal(problem['status'], response.status);
  assert.equal(problem['type'], `urn:claude-api:problem:${String(problem['code'])}`);
  for (const name of ['title', 'detail']) assert.equal(typeof problem[name], 'string', name);
  const wait = response.headers.get('retry-after');
  assert.equal(problem['retry_after_seconds'], wait === null ? undefined : Number(wait));
  return problem;
}

async function turn(stage: Stage, body: Json, headers?: Readonly<Record<string, string>>): Promise<Json> {
  const response = await post(stage, body, headers);
  const answer = (await response.json()) as Json;
  assert.equal(response.status, 200, JSON.stringify(answer));
  return answer;
}

const machineOf = ({ machines }: Stage, userId: number): Machine => machines[(userId % 64) % 3] ?? assert.fail();

test('HAProxy takes deploy/haproxy.cfg', { skip: noHaproxy }, async (t) => {
  const stage = await startStage(t);
  const { front } = stage;

  await t.test('each user has their folder on the machine of their bucket, wherever user_id is found', async () => {
    const users = [1, 2, 3, 64, 1_234_567, 1_234_568, 4_294_967_297, largest - 1, largest];
    for (const userId of users) {
      const first = { user_id: userId, prompt: `hello ${userId}` };
      const { session_id } = await turn(stage, first);
      const last = { prompt: 'x'.repeat(10_000), session_id, user_id: userId };
      await turn(stage, last);
      await turn(stage, { user_id: userId, session_id, prompt: longPrompt });
      await turn(stage, { prompt: longPrompt, session_id, user_id: userId }, { 'X-User-Id': String(userId) });
      assert.equal((await turn(stage, { prompt: 'play history', session_id, user_id: userId }))['content'], JSON.stringify([first.prompt, last.prompt, longPrompt, longPrompt, 'play history']));
    }
    for (const machine of stage.machines) {
      assert.deepEqual(await machine.users(), users.filter((userId) => machineOf(stage, userId) === machine));
    }
  });

  await t.test('a user_id behind more than HAProxy sees, or none, is 422, and never another machine', async () => {
    const wrong = [
      { prompt: longPrompt, user_id: 5 }, { prompt: 'x' }, { prompt: 'x', user_id: 0 }, { prompt: 'x', user_id: -7 }, { prompt: 'x', user_id: null },
      { prompt: 'x', user_id: largest + 1 }, { prompt: 'x', nested: { user_id: 7 } }, '{"prompt":"x","user\\u005fid":7}', '[]', '', 'user_id=7',
    ];
    for (const body of wrong) {
      const response = await post(stage, body);
      assert.equal(response.status, 422, JSON.stringify(body).slice(0, 100));
      const problem = await problemOf(response);
      assert.equal(problem['code'], 'invalid_request');
      assert.deepEqual((problem['errors'] as Json[]).map(({ field }) => field), ['user_id']);
    }
    for (const value of ['0', '-7', '07', '7.0', 'x', '', '7,8', '12345678901234567']) {
      assert.equal((await post(stage, { prompt: 'x', user_id: 7 }, { 'X-User-Id': value })).status, 422, value);
    }
  });

  await t.test('what HAProxy reads as another number than the server does is 422 of the server', async () => {
    for (const body of ['{"prompt":"x","user_id":1e3}', '{"user_id":8,"prompt":"x","user_id":9}', '{"prompt":"x","user_id":7.5}', '{"prompt":"x","user_id":"7"}']) {
      const response = await post(stage, body);
      assert.equal(response.status, 422, body);
      assert.equal((await problemOf(response))['code'], 'invalid_request');
    }
    assert.equal((await post(stage, { prompt: 'x', user_id: 7 }, { 'X-User-Id': '8' })).status, 422);
  });

  await t.test('a number that the end of the buffer cuts is not taken for a smaller one', async () => {
    // The server, when it is asked, has only the unknown field to complain of. HAProxy sees some 15 KB; somewhere here the
    // end comes in the midst of the number.
    const seen = new Set<string>();
    for (let length = 14_400; length < 15_400; length += 6) {
      const problem = await problemOf(await post(stage, { prompt: 'x'.repeat(length), oops: 1, user_id: largest }));
      seen.add((problem['errors'] as Json[]).map(({ field }) => field).join());
    }
    assert.deepEqual([...seen], ['oops', 'user_id']);
  });

  await t.test('what is about no user is answered as by one server', async () => {
    const answers = await Promise.all([
      fetch(`${front.url}/`), fetch(`${front.url}/api/v1/chat`), fetch(`${front.url}/api/v1/chat`, { method: 'OPTIONS' }),
      post(stage, { prompt: 'x', user_id: 1 }, { Authorization: 'Bearer wrong' }), post(stage, { prompt: '', user_id: 1 }), post(stage, { prompt: 'x', user_id: 1 }, { 'Content-Type': 'text/plain' }),
    ]);
    assert.deepEqual(answers.map(({ status }) => status), [404, 405, 204, 401, 422, 415]);
    const asked = await post(stage, { prompt: 'x', user_id: 1 }, { 'X-Request-Id': 'mine.1' });
    assert.equal(asked.headers.get('x-request-id'), 'mine.1');
  });

  await t.test('a bucket that the map does not have, or gives to a machine that is not there, is 503', async () => {
    await front.command(`@1 del map ${front.map} 1`);
    await front.command(`@1 set map ${front.map} 2 m9`);
    for (const userId of [1, 2]) {
      const response = await post(stage, { user_id: userId, prompt: 'x' });
      assert.equal(response.status, 503);
      assert.equal((await problemOf(response))['code'], 'busy');
    }
    await front.command(`@1 add map ${front.map} 1 m2`);
    await front.command(`@1 set map ${front.map} 2 m3`);
  });

  await t.test('health of the whole and of each, and HAProxy’s own figures', async () => {
    const whole = await fetch(`${front.url}/health`);
    assert.deepEqual([whole.status, await whole.text()], [200, '{"status":"ok"}']);
    const each = await fetch(`${front.url}/health/m2`, { headers: { Authorization: `Bearer ${apiKey}` } });
    assert.equal(((await each.json()) as Json)['status'], 'ok');
    assert.equal((await fetch(`${front.url}/health/m9`)).status, 503);
    const figures = await (await fetch(`http://127.0.0.1:${front.figuresPort}/metrics`)).text();
    assert.match(figures, /^haproxy_server_status\{proxy="m2",server="m2",state="UP"\} 1$/m);
  });

  await t.test('TLS, and a large body that waits for 100 Continue', async () => {
    const body = JSON.stringify({ user_id: 3, prompt: 'x'.repeat(2_000_000) });
    const options = ['-sS', '--cacert', join(front.folder, 'cert.pem'), '-H', `Authorization: Bearer ${apiKey}`, '-H', 'Content-Type: application/json', '-d', '@-', '-o', '/dev/null', '-w', '%{http_code}'];
    const url = `https://localhost:${front.tlsPort}/api/v1/chat`;
    assert.equal(execFileSync('curl', [...options, '-H', 'Expect: 100-continue', url], { input: body, encoding: 'utf8', timeout: 30_000 }), '200');
  });

  await t.test('a stream comes as it is made, and a caller who hangs up interrupts the turn', async () => {
    const response = await post(stage, { prompt: 'play slow 3000', user_id: 4 }, { Accept: 'text/event-stream' });
    const times: number[] = [];
    for await (const _ of eventsOf(response)) times.push(performance.now());
    assert.ok((times.at(-1) ?? 0) - (times[0] ?? 0) > 1000, 'the first event came long before the last');

    const caller = new AbortController();
    const given = post(stage, { prompt: 'play hang', user_id: 4 }, {}, caller.signal).catch(() => 'hung up');
    const running = (): Promise<string> => usersRunningOn(stage, machineOf(stage, 4));
    await until('the turn to run', async () => ((await running()) === '[4]' ? true : undefined));
    caller.abort();
    assert.equal(await given, 'hung up');
    await until('the turn to be given up', async () => ((await running()) === '[]' ? true : undefined));
  });

  await t.test('a target with a fragment is 400 and reaches no machine, also in an HAProxy that would take it', async () => {
    await writeFile(front.config, (await readFile(front.config, 'utf8')).replace('option httpclose', 'option httpclose\n    option accept-invalid-http-request'));
    front.reload();
    await front.isReloaded();
    const connection = await openConnection(t, front.port);
    const body = '{"user_id":5,"prompt":"x"}';
    await connection.send(requestBytes('POST /api/v1/chat#x', [`Authorization: Bearer ${apiKey}`, 'Content-Type: application/json'], body));
    const { status, body: answer } = await connection.answer('the refusal');
    assert.deepEqual([status, (JSON.parse(answer) as Json)['code']], [400, 'malformed_request']);
  });
});

/** The numbers of the users who have a turn on this machine now, as JSON. */
async function usersRunningOn({ front }: Stage, { name }: Pick<Machine, 'name'>): Promise<string> {
  const health = await fetch(`${front.url}/health/${name}`, { headers: { Authorization: `Bearer ${apiKey}` } });
  return JSON.stringify(((await health.json()) as Json)['users']);
}

test('a machine that is away answers 503 for its users alone, and has their dialogues when it is back', { skip: noHaproxy }, async (t) => {
  const stage = await startStage(t);
  const { front } = stage;
  const [mine, other] = [1, 2];
  const machine = machineOf(stage, mine);
  const { session_id } = await turn(stage, { prompt: 'before', user_id: mine });
  const goOn = (prompt: string, userId = mine): Promise<Response> => post(stage, { prompt, user_id: userId, ...(userId === mine && { session_id }) });
  const assertAway = async (response: Response, code: string): Promise<void> => {
    assert.equal(response.status, 503);
    assert.equal((await problemOf(response))['code'], code);
    assert.ok(Number(response.headers.get('retry-after')) > 0);
  };

  const cut = goOn('play hang');
  const stream = await post(stage, { prompt: 'play hang', user_id: mine + 3 }, { Accept: 'text/event-stream' });
  const events = eventsOf(stream);
  assert.equal((await events.next()).value?.name, 'session');
  await until('both turns to run', async () => ((await front.command('@1 show table buckets')).match(/conn_cur=1/g)?.length === 2 ? true : undefined));
  await machine.server.end('SIGKILL');
  await assertAway(await cut, 'shutting_down');
  // fetch takes the end of such a connection for the end of the body; the last event tells.
  assert.equal((await events.next().catch(() => undefined))?.value, undefined, 'a stream that is cut has neither result nor error');
  // At once, and when the health check has seen it.
  await assertAway(await goOn('is anybody there?'), 'busy');
  assert.equal((await goOn('hello', other)).status, 200);
  await until('the check to see it', async () => ((await fetch(`${front.url}/health`)).status === 503 ? true : undefined));
  await assertAway(await goOn('is anybody there?'), 'busy');
  await assertAway(await fetch(`${front.url}/health/${machine.name}`), 'busy');
  assert.equal((await goOn('hello', other)).status, 200);
  await machine.restart();
  await front.isReady();
  assert.equal(((await (await goOn('play history')).json()) as Json)['content'], JSON.stringify(['before', 'play hang', 'play history']));

  await t.test('a machine that is drained finishes its turns and gets no new ones', async () => {
    const running = goOn('play slow 1000');
    await until('the turn to run', async () => ((await front.command('@1 show table buckets key 1')).includes('conn_cur=1') ? true : undefined));
    await front.command(`@1 set server ${machine.name}/${machine.name} state drain`);
    await assertAway(await goOn('one more'), 'busy');
    assert.equal((await running).status, 200);
    assert.equal((await goOn('hello', other)).status, 200);
    await front.command(`@1 set server ${machine.name}/${machine.name} state ready`);
    assert.equal((await goOn('one more')).status, 200);
  });

  await t.test('a server that is stopped finishes its turns, and its users get 503 meanwhile', async () => {
    const running = goOn('play slow 3000');
    // The machine must know of it: HAProxy counts it before.
    await until('the turn to run', async () => ((await usersRunningOn(stage, machine)) === `[${mine}]` ? true : undefined));
    const ended = machine.server.end('SIGTERM');
    await machine.server.logged('draining');
    const refused = await goOn('one more');
    assert.equal(refused.status, 503);
    assert.ok(Number(refused.headers.get('retry-after')) > 0);
    assert.equal((await running).status, 200);
    assert.equal(await ended, 0);
    await machine.restart();
    await front.isReady();
    assert.equal((await goOn('one more')).status, 200);
  });

  await t.test('an HAProxy that is reloaded finishes its turns; one that was killed knows the map', async () => {
    const running = goOn('play slow 3000');
    await until('the turn to run', async () => ((await front.command('@1 show table buckets key 1')).includes('conn_cur=1') ? true : undefined));
    front.reload();
    await front.isReloaded();
    assert.equal((await goOn('hello', other)).status, 200);
    assert.equal((await running).status, 200);
    await front.end('SIGKILL');
    await front.run();
    assert.equal((await goOn('one more')).status, 200);
  });
});

test('deploy/haproxy.cfg waits longer than a turn may take', async () => {
  const [text, example] = await Promise.all([readFile(new URL('../../deploy/haproxy.cfg', import.meta.url), 'utf8'), readFile(new URL('../../.env.example', import.meta.url), 'utf8')]);
  const setting = (name: string): number => Number(new RegExp(`${name}=(\\d+)`).exec(example)?.[1]);
  const longest = setting('CLAUDE_QUEUE_SECONDS') + setting('CLAUDE_TIMEOUT_SECONDS') + 15;
  for (const name of ['timeout client', 'timeout server', 'hard-stop-after']) assert.ok(Number(new RegExp(`${name} (\\d+)s`).exec(text)?.[1]) > longest, name);
});
