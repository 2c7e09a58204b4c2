import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { chmod, copyFile, mkdir, readFile, realpath, rm, stat, symlink, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { promisify } from 'node:util';
import { openConnection, requestBytes } from '../http-client.ts';
import { needs } from '../needs.ts';
import { apiKey, fakeClaude, makeHome, noneLeft, processesOf, startServer, until, type Reply, type RunningServer } from '../running-server.ts';

const turnCostUsd = 0.25;
// One process a turn, so that a test knows which processes there are.
const withoutWarm = { CLAUDE_WARM_SECONDS: '0' };

function idOf(reply: Reply): string {
  assert.equal(typeof reply.body['session_id'], 'string', JSON.stringify(reply.body));
  return String(reply.body['session_id']);
}

function assertAnswer(reply: Reply, content: string): void {
  assert.deepEqual([reply.status, reply.body['content']], [200, content], JSON.stringify(reply.body));
}

function assertProblem(reply: Reply, status: number, code: string): void {
  assert.deepEqual([reply.status, reply.body['code']], [status, code], JSON.stringify(reply.body));
  assert.equal(reply.headers.get('content-type'), 'application/problem+json');
}

/** Where the CLI keeps a dialogue. */
function transcriptOf(server: RunningServer, userId: number, sessionId: string): string {
  return join(server.home, `state/users/${userId}/home/projects/work/${sessionId}.jsonl`);
}

/** What the fake CLI noted of its starts. */
async function startsOf(server: RunningServer): Promise<Array<{ argv: string[]; env: Record<string, string>; cwd: string }>> {
  const text = await readFile(join(server.home, 'starts'), 'utf8');
  return text.trim().split('\n').map((line) => JSON.parse(line));
}

async function healthOf(server: RunningServer): Promise<Record<string, unknown>> {
  return (await (await server.request('/health')).json()) as Record<string, unknown>;
}

async function startLogged(t: TestContext, env: Record<string, string> = {}): Promise<RunningServer> {
  const home = await makeHome(t);
  return startServer(t, { CLAUDE_CODE_FAKE_LOG: join(home, 'starts'), ...env }, home);
}

test('a dialogue goes on under one id, and each turn costs its own money', async (t) => {
  const server = await startServer(t);
  const first = await server.chat({ prompt: 'hello' });
  assertAnswer(first, 'you said: hello');
  const second = await server.chat({ prompt: 'play history', session_id: idOf(first) });
  assertAnswer(second, JSON.stringify(['hello', 'play history']));
  assert.equal(idOf(second), idOf(first));
  assert.deepEqual([first.body['cost'], second.body['cost']], [turnCostUsd, turnCostUsd]);
  assert.ok(Number.isInteger(first.body['duration_ms']));
  assert.deepEqual(Object.keys(first.body).sort(), ['content', 'cost', 'duration_ms', 'session_id']);
});

test("cost is the turn's alone after a restart of the server", async (t) => {
  const home = await makeHome(t);
  const before = await startServer(t, {}, home);
  const first = await before.chat({ prompt: 'one' });
  await before.chat({ prompt: 'two', session_id: idOf(first) });
  await before.end('SIGKILL');
  const after = await startServer(t, {}, home);
  const third = await after.chat({ prompt: 'play history', session_id: idOf(first) });
  assertAnswer(third, JSON.stringify(['one', 'two', 'play history']));
  assert.equal(third.body['cost'], turnCostUsd);
});

test("another user's session and an unknown one get the same 404, and no process", async (t) => {
  // With more there would be a spare, which is a start of its own.
  const server = await startLogged(t, { CLAUDE_MAX_CONCURRENT_REQUESTS: '1' });
  const mine = await server.chat({ prompt: 'secret', user_id: 1 });
  const foreign = await server.chat({ prompt: 'play history', user_id: 2, session_id: idOf(mine) });
  const unknown = await server.chat({ prompt: 'play history', user_id: 2, session_id: 'ffffffff-0000-4000-8000-000000000000' });
  assertProblem(foreign, 404, 'session_not_found');
  assert.deepEqual(foreign.body, unknown.body);
  assert.equal((await startsOf(server)).length, 1);
});

test('a session the CLI has forgotten is a 404, not a new dialogue', async (t) => {
  const server = await startServer(t, withoutWarm);
  const first = await server.chat({ prompt: 'hello' });
  await rm(transcriptOf(server, 1, idOf(first)));
  assertProblem(await server.chat({ prompt: 'on', session_id: idOf(first) }), 404, 'session_not_found');
});

test("what another user plants under a session's id finds nothing of it, while it is idle, running or waited for", async (t) => {
  const server = await startLogged(t);
  const first = await server.chat({ prompt: 'secret', user_id: 1 });
  const id = idOf(first);
  await server.chat({ prompt: 'hello', user_id: 2 });
  const own = transcriptOf(server, 1, id);
  const planted = transcriptOf(server, 2, id);
  const plants: Record<string, () => Promise<unknown>> = {
    nothing: async () => {},
    link: () => symlink(own, planted),
    folder: () => mkdir(planted),
    FIFO: () => promisify(execFile)('mkfifo', [planted]),
  };
  const running = server.chat({ prompt: 'play slow 1500', user_id: 1, session_id: id });
  const queued = server.chat({ prompt: 'play history', user_id: 1, session_id: id });
  await server.chat({ prompt: 'so that the others are under way', user_id: 3 });
  for (const [what, plant] of Object.entries(plants)) {
    await plant();
    assertProblem(await server.chat({ prompt: 'play history', user_id: 2, session_id: id }), 404, 'session_not_found');
    await rm(planted, { recursive: true, force: true });
    assert.ok(await stat(own), what);
  }
  // Their own words under that id are theirs.
  await writeFile(planted, JSON.stringify({ prompts: ['planted'] }));
  assertAnswer(await server.chat({ prompt: 'play history', user_id: 2, session_id: id }), JSON.stringify(['planted', 'play history']));
  assertAnswer(await running, 'after 1500');
  assertAnswer(await queued, JSON.stringify(['secret', 'play slow 1500', 'play history']));
  const idle = await server.chat({ prompt: 'play history', user_id: 1, session_id: id });
  assertAnswer(idle, JSON.stringify(['secret', 'play slow 1500', 'play history', 'play history']));
  assert.equal((await startsOf(server)).filter(({ argv }) => argv.some((argument) => argument.endsWith(`=${id}`))).length, 2, 'the process stayed the one it was');
});

test('a folder that is removed or replaced while its dialogue is warm counts as it is then', async (t) => {
  const server = await startServer(t);
  const seven = await server.chat({ prompt: 'seven', user_id: 7 });
  const eight = await server.chat({ prompt: 'eight', user_id: 8 });
  const users = join(server.home, 'state/users');
  await rm(join(users, '7'), { recursive: true });
  assertProblem(await server.chat({ prompt: 'on', user_id: 7, session_id: idOf(seven) }), 404, 'session_not_found');
  await rm(join(users, '7'), { recursive: true, force: true });
  await promisify(execFile)('cp', ['-a', join(users, '8'), join(users, '7')]);
  assertAnswer(await server.chat({ prompt: 'play history', user_id: 7, session_id: idOf(eight) }), JSON.stringify(['eight', 'play history']));
  assertAnswer(await server.chat({ prompt: 'play history', user_id: 8, session_id: idOf(eight) }), JSON.stringify(['eight', 'play history']));
  await rm(join(users, '8/work'), { recursive: true });
  assertAnswer(await server.chat({ prompt: 'still there?', user_id: 8, session_id: idOf(eight) }), 'you said: still there?');
  assert.ok((await stat(join(users, '8/work'))).isDirectory());
});

for (const forgery of ['another-init', 'another-result', 'no-session', 'cost-negative', 'cost-huge', 'cost-text', 'cost-nan']) {
  test(`a CLI that claims ${forgery} fails its own turn, and nobody else's`, async (t) => {
    const server = await startServer(t);
    const other = await server.chat({ prompt: 'other', user_id: 2 });
    const first = await server.chat({ prompt: 'play pid' });
    assertProblem(await server.chat({ prompt: `play forge ${forgery}`, session_id: idOf(first) }), 502, 'claude_failed');
    await until('its process to end', async () => !(await processesOf(server.home)).some((line) => line.startsWith(`${first.body['content']} `)) || undefined);
    const next = await server.chat({ prompt: 'on', session_id: idOf(first) });
    assertAnswer(next, 'you said: on');
    assert.equal(next.body['cost'], turnCostUsd);
    assertAnswer(await server.chat({ prompt: 'on', user_id: 2, session_id: idOf(other) }), 'you said: on');
  });
}

test('a dialogue older than CLAUDE_KEEP_DAYS is gone after a start, and a younger one is not', async (t) => {
  const home = await makeHome(t);
  const transcripts = join(home, 'state/users/1/home/projects/work');
  const old = join(transcripts, '00000001-0000-4000-8000-000000000000.jsonl');
  const young = join(transcripts, '00000002-0000-4000-8000-000000000000.jsonl');
  await mkdir(transcripts, { recursive: true });
  for (const [path, days] of [[old, 2.1], [young, 1.9]] as const) {
    await writeFile(path, '{}');
    await utimes(path, new Date(), new Date(Date.now() - days * 24 * 60 * 60 * 1000));
  }
  await startServer(t, { CLAUDE_KEEP_DAYS: '2' }, home);
  await until('the old one to go', () => !existsSync(old) || undefined);
  assert.ok(existsSync(young));
});

test('what lies in tmp goes with the last process of its user, and not before', async (t) => {
  const home = await makeHome(t);
  const binary = join(home, 'claude');
  const server = await startServer(t, { ...withoutWarm, CLAUDE_BINARY_PATH: binary }, home);
  assertProblem(await server.chat({ prompt: 'a start that fails is none' }), 503, 'claude_not_found');
  await copyFile(fakeClaude, binary);
  await chmod(binary, 0o755);
  await server.chat({ prompt: 'hello' });
  await noneLeft(home, server.pid);
  const running = server.chat({ prompt: 'play hold go' });
  await until('the CLI to run', async () => (await server.leftovers()).length === 1 || undefined);
  const file = join(home, 'state/users/1/tmp/file');
  await writeFile(file, '');
  await server.chat({ prompt: 'beside it' });
  await until('the second one to be gone', async () => (await server.leftovers()).length === 1 || undefined);
  assert.ok(existsSync(file), 'while one is left');
  await server.release('go');
  assertAnswer(await running, 'held go');
  await until('tmp to be empty', () => !existsSync(file) || undefined);
});

test('a process that says something between two turns is not used again', async (t) => {
  const server = await startServer(t);
  const first = await server.chat({ prompt: 'play forge late-init' });
  assertAnswer(first, 'before the init');
  assertAnswer(await server.chat({ prompt: 'on', session_id: idOf(first) }), 'you said: on');
});

test('a CLI that is too old is refused in words, before anything is spent', async (t) => {
  const server = await startLogged(t, { CLAUDE_CODE_FAKE_VERSION: '2.1.325' });
  await server.logged('claude_unavailable');
  const sick = await server.request('/health');
  assert.equal(sick.status, 503);
  assert.match(String(((await sick.json()) as Record<string, unknown>)['detail']), /^The Claude CLI 2\.1\.325 is too old, 2\.1\.\d+ or newer is needed: update it with "npm install/);
  assertProblem(await server.chat({ prompt: 'hello' }), 503, 'claude_too_old');
  await assert.rejects(startsOf(server), { code: 'ENOENT' });
});

test('twenty turns of one session sent at once are answered in order', async (t) => {
  const server = await startServer(t);
  const first = await server.chat({ prompt: 'start' });
  const prompts = Array.from({ length: 20 }, (_, i) => `turn ${i}`);
  const connection = await openConnection(t, server.port);
  const headers = [`Authorization: Bearer ${apiKey}`, 'Content-Type: application/json'];
  const requests = prompts.map((prompt) => requestBytes('POST /api/v1/chat', headers, JSON.stringify({ prompt, user_id: 1, session_id: idOf(first) })));
  // On one connection, so that they certainly arrive in this order.
  await connection.send(Buffer.concat(requests));
  for (const prompt of prompts) {
    const { status, body } = await connection.answer(prompt);
    assert.deepEqual([status, (JSON.parse(body) as Record<string, unknown>)['content']], [200, `you said: ${prompt}`]);
  }
  const history = await server.chat({ prompt: 'play history', session_id: idOf(first) });
  assertAnswer(history, JSON.stringify(['start', ...prompts, 'play history']));
});

test('the CLI gets the prompt on stdin, single-token options, a built environment and a folder of the user', async (t) => {
  const server = await startLogged(t, { CLAUDE_MODEL: 'sonnet', CLAUDE_ALLOWED_TOOLS: 'WebFetch', ANTHROPIC_API_KEY: 'made-up', OTHER_SECRET: 'hidden', CLAUDECODE: '1' });
  const reply = await server.chat({ prompt: '--version', user_id: 77 });
  assertAnswer(reply, 'you said: --version');
  const [start] = await startsOf(server);
  assert.ok(start);
  const turns = join(server.home, 'state/users/77/turns/1');
  const systemPrompt = start.argv.find((argument) => argument.startsWith('--append-system-prompt=')) ?? '';
  for (const folder of ['in', 'out']) assert.match(systemPrompt, new RegExp(`${turns}/${folder}\\b`));
  assert.deepEqual(start.argv, [
    '-p', '--input-format=stream-json', '--output-format=stream-json', '--verbose', '--include-partial-messages',
    '--tools=Read,Write,Edit,Glob,Grep', '--permission-mode=acceptEdits', '--setting-sources=', '--strict-mcp-config',
    '--disable-slash-commands', '--settings={"cleanupPeriodDays":30}', '--max-turns=50', `--add-dir=${turns}/in`, `--add-dir=${turns}/out`, systemPrompt,
    '--model=sonnet', '--allowedTools=WebFetch',
    `--session-id=${idOf(reply)}`,
  ]);
  const folder = join(await realpath(server.home), 'state/users/77');
  assert.equal(start.cwd, join(folder, 'work'));
  assert.deepEqual(['CLAUDE_CONFIG_DIR', 'CLAUDE_CODE_PROJECT_DIR_NAME', 'TMPDIR', 'CLAUDE_SECURESTORAGE_CONFIG_DIR'].map((name) => start.env[name]), [
    join(folder, 'home'), 'work', join(folder, 'tmp'), join(server.home, '.claude'),
  ]);
  assert.equal(start.env['ANTHROPIC_API_KEY'], 'made-up');
  assert.equal(start.env['CLAUDE_CODE_DISABLE_ATTACHMENTS'], '1');
  for (const name of ['CLAUDE_API_KEY', 'OTHER_SECRET', 'CLAUDECODE', 'PORT', 'CLAUDE_STATE_DIR']) assert.equal(start.env[name], undefined, name);
});

test('a prompt that begins with / reaches the CLI as text', async (t) => {
  const server = await startServer(t);
  assertAnswer(await server.chat({ prompt: '/clear' }), 'you said:  /clear');
});

const outcomes: ReadonlyArray<readonly [scenario: string, status: number, codeOrContent: string]> = [
  ['api no-login', 503, 'claude_not_authenticated'],
  ['api 401', 503, 'claude_not_authenticated'],
  ['api 403', 503, 'claude_not_authenticated'],
  ['api 404', 502, 'claude_api_error'],
  ['api 413', 422, 'prompt_too_long'],
  ['api 429', 429, 'claude_rate_limited'],
  ['api 500', 502, 'claude_api_error'],
  ['api 529', 503, 'claude_overloaded'],
  ['api refused', 502, 'claude_api_error'],
  ['api credit', 502, 'claude_api_error'],
  ['api long', 422, 'prompt_too_long'],
  ['max-turns', 422, 'max_turns_reached'],
  ['crash', 502, 'claude_failed'],
  ['killed', 502, 'claude_failed'],
  ['silent', 502, 'claude_failed'],
  ['truncated', 502, 'claude_failed'],
  ['garbage', 502, 'claude_failed'],
  ['no-result', 502, 'claude_failed'],
  ['exit-1', 200, 'good all the same'],
  ['noise', 200, 'heard through the noise'],
  ['crlf', 200, 'over\r\n'],
  ['u2028', 200, 'one\u2028two\u2029three'],
  ['split-utf8', 200, 'naïve 🙂 日本'],
  ['flood-stderr', 200, 'dry again'],
  ['tool', 200, 'found it'],
  ['die-idle', 200, 'farewell'],
  ['unasked', 200, 'asked'],
];

test('every end a turn can have gets its own answer, and the session goes on', async (t) => {
  const server = await startServer(t);
  for (const [scenario, status, expected] of outcomes) {
    await t.test(`${scenario} → ${status} ${expected}`, async () => {
      const reply = await server.chat({ prompt: `play ${scenario}` });
      if (status === 200) assertAnswer(reply, expected);
      else assertProblem(reply, status, expected);
      assertAnswer(await server.chat({ prompt: 'still there?', session_id: idOf(reply) }), 'you said: still there?');
    });
  }
  assert.equal(server.stderr, '');
});

test('/health counts every turn asked for once, however it ends', async (t) => {
  const server = await startServer(t, { CLAUDE_TIMEOUT_SECONDS: '4' });
  const caller = new AbortController();
  for (const prompt of ['hello', 'play crash', 'play api 429', 'play hang']) await server.chat({ prompt });
  await server.chat({ prompt: 'hello', session_id: 'unknown' });
  const running = server.chat({ prompt: 'play slow 30000' }, { signal: caller.signal });
  await until('the turn to run', async () => (await healthOf(server))['running'] === 1 || undefined);
  caller.abort();
  await assert.rejects(running);
  await server.logged('turn', (line) => line['status'] === 499);
  const { turns, failures } = await healthOf(server);
  assert.deepEqual({ turns, failures }, { turns: 6, failures: 2 });
});

test('what the caller must know comes with the problem', async (t) => {
  const server = await startServer(t);
  const limit = await server.chat({ prompt: 'play limit 90' });
  assert.ok(Math.abs(Number(limit.headers.get('retry-after')) - 90) <= 2, String(limit.headers.get('retry-after')));
  const long = await server.chat({ prompt: 'play wait-429 30' });
  assert.deepEqual([long.status, long.body['code'], long.headers.get('retry-after')], [429, 'claude_rate_limited', '30']);
  assert.equal(long.body['cost'], turnCostUsd);
  const next = await server.chat({ prompt: 'on', session_id: idOf(long) });
  assertAnswer(next, 'you said: on');
  assert.equal(next.body['cost'], turnCostUsd);
  const maxTurns = await server.chat({ prompt: 'play max-turns' });
  assert.equal(maxTurns.body['cost'], turnCostUsd);
  assert.ok(Number.isInteger(maxTurns.body['duration_ms']));
  const credit = await server.chat({ prompt: 'play api credit' });
  assert.equal(credit.body['detail'], 'Credit balance is too low');
  const login = await server.chat({ prompt: 'play api no-login' });
  assert.match(String(login.body['detail']), /^Claude CLI is not authenticated: .*ANTHROPIC_API_KEY.*CLAUDE_CODE_OAUTH_TOKEN.*log in/);
});

test('an answer of 32 MiB arrives whole, also after processes that ended in the middle of one', async (t) => {
  const server = await startServer(t);
  for (let i = 0; i < 3; i += 1) assertProblem(await server.chat({ prompt: `play truncated ${40 * 1024 * 1024}` }), 502, 'claude_failed');
  const reply = await server.chat({ prompt: `play huge ${32 * 1024 * 1024 - 1024}` });
  assert.equal(reply.status, 200);
  assert.equal(String(reply.body['content']).length, 32 * 1024 * 1024 - 1024);
});

for (const [start, code] of [['garbage', 'claude_failed'], ['silent', 'claude_failed'], ['crash', 'claude_failed']] as const) {
  test(`a CLI that starts with ${start} gives ${code}, without its own words`, async (t) => {
    const server = await startServer(t, { CLAUDE_CODE_FAKE_START: start });
    const reply = await server.chat({ prompt: 'hello' });
    assertProblem(reply, 502, code);
    assert.doesNotMatch(JSON.stringify(reply.body), /TypeError|opt\/claude|oops/);
  });
}

test('a megabyte on stderr at the start stops nothing', async (t) => {
  const server = await startServer(t, { CLAUDE_CODE_FAKE_START: 'flood' });
  assertAnswer(await server.chat({ prompt: 'hello' }), 'you said: hello');
});

test('a crash leaves a line in the log that says why, without paths', async (t) => {
  const server = await startServer(t, { CLAUDE_CODE_FAKE_START: 'crash' });
  await server.chat({ prompt: 'hello' });
  const line = await server.logged('turn');
  assert.equal(line['cause'], 'TypeError: undefined is not a function');
});

for (const scenario of ['hang', 'deaf', 'grandchild', 'clean-child']) {
  test(`a turn that plays ${scenario} ends with 504 and leaves no process`, async (t) => {
    const server = await startServer(t, { CLAUDE_TIMEOUT_SECONDS: '1' });
    const reply = await server.chat({ prompt: `play ${scenario}` });
    assertProblem(reply, 504, 'claude_timeout');
    await noneLeft(server.home, server.pid);
    assertAnswer(await server.chat({ prompt: 'on', session_id: idOf(reply) }), 'you said: on');
  });
}

test('a caller who hangs up interrupts the turn, and the session goes on', async (t) => {
  const server = await startServer(t, withoutWarm);
  const first = await server.chat({ prompt: 'hello' });
  const caller = new AbortController();
  const running = server.chat({ prompt: 'play hang', session_id: idOf(first) }, { signal: caller.signal });
  await until('the turn to run', async () => (await healthOf(server))['running'] === 1 || undefined);
  caller.abort();
  await assert.rejects(running);
  await noneLeft(server.home, server.pid);
  assert.equal((await server.logged('turn', (line) => line['status'] === 499))['code'], 'caller_gone');
  assertAnswer(await server.chat({ prompt: 'on', session_id: idOf(first) }), 'you said: on');
});

test('a server killed in mid-turn takes its CLI with it, and the dialogue goes on after the restart', { skip: needs(['setpriv'], 'ends the CLI of a killed server') }, async (t) => {
  const home = await makeHome(t);
  const before = await startServer(t, {}, home);
  const first = await before.chat({ prompt: 'hello' });
  before.chat({ prompt: 'play hang', session_id: idOf(first) }).catch(() => {});
  await until('the turn to run', async () => (await healthOf(before))['running'] === 1 || undefined);
  await before.end('SIGKILL');
  await noneLeft(home);
  const after = await startServer(t, {}, home);
  assertAnswer(await after.chat({ prompt: 'on', session_id: idOf(first) }), 'you said: on');
});

test('without a CLI a chat says how to get one, health tells the truth, and both recover by themselves', async (t) => {
  const home = await makeHome(t);
  const binary = join(home, 'claude');
  const server = await startServer(t, { CLAUDE_BINARY_PATH: binary }, home);
  await server.logged('claude_unavailable');
  const sick = await server.request('/health');
  assert.equal(sick.status, 503);
  assert.match(await sick.text(), /^\{"status":"unavailable","detail":"There is no Claude CLI: install it/);
  const reply = await server.chat({ prompt: 'hello' });
  assertProblem(reply, 503, 'claude_not_found');
  assert.match(String(reply.body['detail']), /npm install -g --allow-scripts=\S+ @anthropic-ai\/claude-code/);
  await copyFile(fakeClaude, binary);
  await chmod(binary, 0o755);
  assertAnswer(await server.chat({ prompt: 'hello' }), 'you said: hello');
  const well = await fetch(`${server.url}/health`);
  assert.deepEqual([well.status, await well.text()], [200, '{"status":"ok"}']);
});

for (const [what, text, mode] of [
  ['not executable', '#!/bin/sh\n', 0o644],
  ['a script without its interpreter', '#!/no/such/interpreter\n', 0o755],
  ['not a program', '\u007fELF nothing', 0o755],
] as const) {
  test(`a CLI that is ${what} is claude_not_found`, async (t) => {
    const home = await makeHome(t);
    await writeFile(join(home, 'claude'), text, { mode });
    const server = await startServer(t, { CLAUDE_BINARY_PATH: join(home, 'claude') }, home);
    assertProblem(await server.chat({ prompt: 'hello' }), 503, 'claude_not_found');
    assert.equal((await server.request('/health')).status, 503);
  });
}

test('a stream tells the session, the text as it comes, tools, and ends with the answer', async (t) => {
  const server = await startServer(t);
  const response = await server.request('/api/v1/chat', {
    method: 'POST',
    body: JSON.stringify({ prompt: 'play tool', user_id: 1 }),
    headers: { Accept: 'text/event-stream' },
  });
  assert.equal(response.headers.get('content-type'), 'text/event-stream; charset=utf-8');
  const events = (await response.text()).trim().split('\n\n').map((event) => {
    const [, name, data = ''] = /^event: (\w+)\ndata: (.*)$/.exec(event) ?? [];
    return [name, JSON.parse(data)] as const;
  });
  assert.deepEqual(events.map(([name]) => name), ['session', 'delta', 'tool', 'delta', 'result']);
  assert.deepEqual(events.slice(1, 4).map(([, data]) => data), [{ text: 'let me look. ' }, { name: 'Read' }, { text: 'found it' }]);
  assert.equal(events.at(-1)?.[1].session_id, events[0]?.[1].session_id);
});
