import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import { existsSync } from 'node:fs';
import { mkdir, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { openConnection, requestBytes } from '../http-client.ts';
import { needs } from '../needs.ts';
import { fakeClaude, mainFile, makeHome, noneLeft, processesOf, RunningServer, startServer, until } from '../running-server.ts';

test('wrong settings end the server with 78, all of them named, none shown', async (t) => {
  const home = await makeHome(t);
  await writeFile(join(home, '.env'), 'CLAUDE_MAX_TURNS=many-secret\nCLAUDE_QUEUE_LIMIT=-5\n');
  const server = new RunningServer(home, { PORT: '80a' });
  assert.equal(await server.ended(), 78);
  assert.match(server.stderr, /PORT: expected .*\n.*CLAUDE_MAX_TURNS: expected .*\n.*CLAUDE_QUEUE_LIMIT: expected /);
  assert.doesNotMatch(server.stderr, /many-secret|80a|-5/);
});

test('what .env warns of is said also when the server does not start: it may be the reason', async (t) => {
  const home = await makeHome(t);
  await writeFile(join(home, '.env'), 'CLAUDE_API_KEY=abc#def0123456789012345\nPRT=1\n');
  const server = new RunningServer(home, { CLAUDE_API_KEY: undefined });
  assert.equal(await server.ended(), 78);
  const [cut, unknown, short, ...others] = server.stderr.split('\n');
  assert.equal(cut, 'claude-api: warning: .env line 1: the value of CLAUDE_API_KEY ends before a #; quote it if the # belongs to it');
  assert.equal(unknown, 'claude-api: warning: PRT in .env is neither a setting nor passed on to the CLI: it has no effect');
  assert.match(short ?? '', /^claude-api: CLAUDE_API_KEY: expected 16 characters or more/);
  assert.deepEqual(others, ['']);
});

test('settings that are for the sandbox are said to do nothing without one', async (t) => {
  const server = await startServer(t, { CLAUDE_NETWORK: 'public', CLAUDE_USER_TOKENS_PER_DAY: '1' });
  const messages = await until('both lines of the log', () => {
    const lines = server.lines.filter(({ event }) => event === 'config').map(({ message }) => String(message));
    return lines.length < 2 ? undefined : lines;
  });
  assert.deepEqual(messages.map((message) => message.replace(/:.*/, '')), ['CLAUDE_USER_TOKENS_PER_DAY limits nothing', 'CLAUDE_NETWORK opens nothing']);
});

test('a tool that the CLI does not name is warned of', async (t) => {
  const server = await startServer(t, { CLAUDE_SANDBOX: 'off', CLAUDE_TOOLS: 'Read,Raed' });
  await server.chat({ prompt: 'one' });
  const warned = server.lines.filter(({ event, message }) => event === 'config' && /no tool of the name Raed$/.test(String(message)));
  assert.equal(warned.length, 1);
});

test('.env that is no .env ends the server with 78 and the number of the line', async (t) => {
  const home = await makeHome(t);
  await writeFile(join(home, '.env'), '# fine\nCLAUDE_MODEL="open\n');
  const server = new RunningServer(home, {});
  assert.equal(await server.ended(), 78);
  assert.equal(server.stderr, 'claude-api: .env line 2: expected a closing "\n');
});

test('.env is read from the working directory, and a name that nobody reads is warned about', async (t) => {
  const home = await makeHome(t);
  await writeFile(join(home, '.env'), 'CLAUDE_TIMEOUT=3\nRATE_LIMIT_PER_MINUTE=1\n');
  const server = await startServer(t, {}, home);
  assert.match(String((await server.logged('config'))['message']), /^CLAUDE_TIMEOUT in .env is neither a setting nor passed on to the CLI/);
  // What never became a turn does not count.
  assert.equal((await server.chat({ prompt: 'none', session_id: 'unknown' })).status, 404);
  assert.deepEqual([(await server.chat({ prompt: 'one' })).status, (await server.chat({ prompt: 'two' })).status], [200, 429]);
});

test('a CLI that hangs when asked for its version keeps nothing from working, and does not outlive the server', async (t) => {
  const home = await makeHome(t);
  const binary = join(home, 'claude');
  await writeFile(binary, `#!/bin/sh\n[ "$1" = --version ] || exec "${fakeClaude}" "$@"\ntrap "" TERM\nsleep 100\n`, { mode: 0o755 });
  const folder = join(home, 'state/users/1/home/projects/work');
  const old = join(folder, 'f1b19141-9e1d-4e8d-a902-a05c85145ac0.jsonl');
  await mkdir(folder, { recursive: true });
  await writeFile(old, '{}');
  await utimes(old, 0, 0);
  const server = await startServer(t, { CLAUDE_BINARY_PATH: binary }, home);
  await until('the old transcript to be swept', () => !existsSync(old) || undefined);
  assert.equal((await server.chat({ prompt: 'hello' })).status, 200);
  assert.equal(await server.end(), 0);
  await noneLeft(home);
});

test('settings too long for any process to be started with are said, and end nothing', async (t) => {
  const home = await makeHome(t);
  await writeFile(join(home, '.env'), `ANTHROPIC_CUSTOM_HEADERS=${'x'.repeat(140_000)}\n`);
  const server = await startServer(t, {}, home);
  await server.logged('claude_unavailable');
  assert.equal((await server.request('/health')).status, 503);
  assert.deepEqual(server.lines.filter(({ event }) => event === 'bug'), []);
});

test('where a sandbox does not let setpriv work, the CLI is started without it', async (t) => {
  const home = await makeHome(t);
  await writeFile(join(home, 'setpriv'), '#!/bin/sh\necho "setpriv: activate capabilities: Operation not permitted" >&2\nexit 127\n', { mode: 0o755 });
  const server = await startServer(t, { PATH: `${home}:${process.env['PATH']}` }, home);
  assert.equal((await server.chat({ prompt: 'hello' })).status, 200);
});

test('a taken port ends the server with 1 and says what to do', async (t) => {
  const other = createServer().listen(0, '127.0.0.1');
  await once(other, 'listening');
  t.after(() => other.close());
  const { port } = other.address() as AddressInfo;
  const server = new RunningServer(await makeHome(t), { PORT: String(port) });
  assert.equal(await server.ended(), 1);
  assert.equal(server.stderr, `claude-api: port ${port} is taken by another program: set another PORT, or stop the other one\n`);
});

test('a state folder that cannot be made ends the server with 1 and says so, without a stack', async (t) => {
  const home = await makeHome(t);
  await writeFile(join(home, 'state'), 'a file');
  const server = new RunningServer(home, {});
  assert.equal(await server.ended(), 1);
  assert.match(server.stderr, /^claude-api: CLAUDE_STATE_DIR cannot be used \(\w+\): .*\n$/);
});

test('without a key the server listens on loopback, and shows the key on no pipe', async (t) => {
  const server = await startServer(t, { CLAUDE_API_KEY: undefined, HOST: undefined });
  assert.equal((await server.logged('listening'))['host'], '127.0.0.1');
  await server.logged('config', (line) => String(line['message']).includes('a key was made for this run'));
  assert.doesNotMatch(JSON.stringify(server.lines) + server.stderr, /[0-9a-f]{64}/);
  assert.equal((await server.chat({ prompt: 'hello' })).status, 401);
});

test('without a key a person at a terminal gets a curl line that works', { skip: needs(['script'], 'gives the server a terminal') }, async (t) => {
  const home = await makeHome(t);
  // script(1) gives the server a terminal.
  const command = [process.execPath, '--import', import.meta.resolve('tsx'), mainFile].join(' ');
  const terminal = spawn('script', ['-qec', command, '/dev/null'], {
    cwd: home,
    env: { PATH: process.env['PATH'], HOME: home, PORT: '0', CLAUDE_BINARY_PATH: fakeClaude },
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  let screen = '';
  terminal.stdout.setEncoding('utf8').on('data', (text: string) => (screen += text));
  t.after(() => terminal.kill('SIGTERM'));
  const shown = await until('the curl line', () => /curl (http:\S+) [^]*'Authorization: (Bearer [0-9a-f]{64})'[^]*-d '(.*)'/.exec(screen) ?? undefined);
  const [, url = '', authorization = '', body = ''] = shown;
  const response = await fetch(url, { method: 'POST', body, headers: { authorization, 'content-type': 'application/json' } });
  assert.deepEqual([response.status, ((await response.json()) as { content: string }).content], [200, 'you said: Hello']);
  assert.match(screen, /^\d\d:\d\d:\d\d {2}listening {2}host=127\.0\.0\.1/m);
  const ended = once(terminal, 'exit');
  for (const line of await processesOf(home)) if (line.includes('main.ts')) process.kill(Number.parseInt(line, 10), 'SIGTERM');
  await ended;
});

test('a log whose reader has gone disturbs no turn', async (t) => {
  const server = await startServer(t);
  server.closeLog();
  for (const prompt of ['one', 'two']) assert.equal((await server.chat({ prompt })).status, 200);
  assert.equal(await server.end(), 0);
  assert.equal(server.stderr, '');
});

test('a log that nobody reads stops no turn and takes no more memory than it may; what was dropped is counted', async (t) => {
  const server = await startServer(t);
  await server.logged('login');
  server.readLog(false);
  const connection = await openConnection(t, server.port);
  const requests = 10_000;
  const request = requestBytes('GET /nowhere', [`X-Request-Id: ${'x'.repeat(128)}`]);
  void connection.send(Buffer.concat(Array.from({ length: requests }, () => request)));
  for (let n = 0; n < requests; n += 1) assert.equal((await connection.answer('an answer')).status, 404);
  assert.equal((await server.chat({ prompt: 'hello' })).status, 200);
  server.readLog(true);
  // The log is full until it has flowed; the first line after that says so.
  const dropped = await until('the dropped lines', async () => {
    await server.request('/nowhere');
    return server.lines.find(({ event }) => event === 'log_dropped');
  });
  const before = server.lines.slice(0, server.lines.indexOf(dropped));
  assert.ok(Number(dropped['lines']) > requests / 10, `${String(dropped['lines'])} dropped`);
  const bytes = before.reduce((sum, line) => sum + JSON.stringify(line).length, 0);
  assert.ok(bytes < 2 * 1024 * 1024, `${bytes} bytes kept`);
});

test('/health says that there is no login, and how to log in, until there is one', async (t) => {
  const server = await startServer(t, { CLAUDE_CODE_USE_BEDROCK: '0' });
  const health = async (): Promise<Record<string, unknown>> => (await (await server.request('/health')).json()) as Record<string, unknown>;
  const without = await health();
  assert.equal(without['login'], null);
  assert.match(String(without['warnings']), /^Claude CLI is not authenticated: /);
  assert.equal((await server.logged('login'))['level'], 'warning');
  await mkdir(join(server.home, '.claude'));
  await writeFile(join(server.home, '.claude/.credentials.json'), '{}');
  const { login, warnings } = await health();
  assert.deepEqual([login, warnings], ['credentials file', undefined]);
});
