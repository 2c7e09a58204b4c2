import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type IncomingMessage } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { fakeClaude, within } from '../running-server.ts';

const askFile = fileURLToPath(new URL('../../src/ask.ts', import.meta.url));
const key = '9f2c41d07be85a36c0d1e7f4a8b95263';

interface Question {
  readonly args: readonly string[];
  readonly envFile?: string;
  readonly env?: Readonly<Record<string, string>>;
  readonly stdin?: string;
}

/** What ask.ts answers in a folder with this .env. */
async function ask(t: TestContext, { args, envFile, env = {}, stdin = '' }: Question): Promise<{ status: number; stdout: string; stderr: string }> {
  const cwd = await mkdtemp(join(tmpdir(), 'claude-api-ask-'));
  t.after(() => rm(cwd, { recursive: true }));
  if (envFile !== undefined) await writeFile(join(cwd, '.env'), envFile);
  const child = spawn(process.execPath, ['--import', import.meta.resolve('tsx'), askFile, ...args], { cwd, env: { HOME: cwd, ...env } });
  t.after(() => child.kill('SIGKILL'));
  child.stdin.on('error', () => {}).end(stdin);
  const [stdout, stderr, [status]] = await within('the answer', 20_000, Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')]));
  return { status: Number(status), stdout, stderr };
}

/** A server whose /health answers this; gives its port and the requests it had. */
async function healthServer(t: TestContext, status: number, body: string): Promise<{ port: number; requests: IncomingMessage[] }> {
  const requests: IncomingMessage[] = [];
  const server = createServer((req, res) => {
    requests.push(req);
    res.writeHead(status).end(body);
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  t.after(() => server.close());
  const address = server.address();
  return { port: typeof address === 'object' && address !== null ? address.port : 0, requests };
}

const healthy = JSON.stringify({ status: 'ok', claude_version: '2.1.331', login: 'credentials file', sandbox: 'on' });

test('settings: where the server listens, by its own rules for .env', async (t) => {
  const file = await ask(t, { args: ['settings'], envFile: `\uFEFFexport CLAUDE_API_KEY="9f2c41d07be8#5a36c0d1e7f4a8b95263"\r\nPORT = '9100' # mine\r\n` });
  assert.deepEqual(file, { status: 0, stdout: '0.0.0.0 9100\n', stderr: '' });
});

test('settings: a file of the operator\'s that is missing is one of the reasons not to start', async (t) => {
  const { status, stdout, stderr } = await ask(t, { args: ['settings'], envFile: `CLAUDE_API_KEY=${key}\nCLAUDE_MCP_CONFIG=/nowhere/mcp.json\n` });
  assert.deepEqual([status, stdout], [78, '']);
  assert.match(stderr, /CLAUDE_MCP_CONFIG: the file cannot be read \(ENOENT\)/);
});

test('settings: the environment wins over .env, and what stdin has of it over both', async (t) => {
  const environ = 'HOME=/\0CLAUDE_CODE_X=a=b\nc\0PORT=9300\0';
  const envFile = `CLAUDE_API_KEY=${key}\nHOST=::1\nPORT=9100\n`;
  assert.equal((await ask(t, { args: ['settings'], envFile, env: { PORT: '9200' }, stdin: environ })).stdout, '::1 9200\n');
  assert.equal((await ask(t, { args: ['settings', '-'], envFile, env: { PORT: '9200' }, stdin: environ })).stdout, '::1 9300\n');
});

test('settings: all that keeps the server from starting is named, without values, with exit status 78', async (t) => {
  const wrong = await ask(t, { args: ['settings'], envFile: `CLAUDE_API_KEY=${key}\nPORT=80a\nHOST=256.1.1.1\n` });
  assert.deepEqual([wrong.status, wrong.stdout], [78, '']);
  assert.match(wrong.stderr, /^PORT: expected [^\n]+\nHOST: expected [^\n]+\n$/);
  assert.deepEqual(await ask(t, { args: ['settings'], envFile: `A=b\nCLAUDE_API_KEY="${key}\n` }), { status: 78, stdout: '', stderr: '.env line 2: expected a closing "\n' });
});

test('settings: what is doubtful is told on stderr, whether the server would start or not', async (t) => {
  const envFile = `PRT=9100\nCLAUDE_API_KEY=${key}\n`;
  const doubtful = await ask(t, { args: ['settings'], envFile });
  assert.deepEqual([doubtful.status, doubtful.stdout], [0, '0.0.0.0 8001\n']);
  assert.match(doubtful.stderr, /^warning: PRT [^\n]+\n$/);
  assert.match((await ask(t, { args: ['settings'], envFile: `${envFile}PORT=80a\n` })).stderr, /^warning: PRT [^\n]+\nPORT: expected [^\n]+\n$/);
});

test('settings: a missing key is a problem, since an installed server needs a lasting one; a fresh one is offered', async (t) => {
  const [first, second] = await Promise.all([ask(t, { args: ['settings'], envFile: 'PORT=9100\n' }), ask(t, { args: ['settings'] })]);
  for (const { status, stderr } of [first, second]) {
    assert.equal(status, 78);
    assert.match(stderr, /^CLAUDE_API_KEY: missing; add the line CLAUDE_API_KEY=[0-9a-f]{64}\n$/);
  }
  assert.notEqual(first.stderr, second.stderr);
});

test('sandbox: off where the settings say so; else the reason why there is none, with exit status 1', async (t) => {
  assert.deepEqual(await ask(t, { args: ['sandbox'], envFile: 'CLAUDE_SANDBOX=off\n' }), { status: 0, stdout: 'off\n', stderr: '' });
  const none = await ask(t, { args: ['sandbox'], env: { PATH: '/nowhere', CLAUDE_BINARY_PATH: fakeClaude } });
  assert.deepEqual([none.status, none.stdout], [1, '']);
  assert.match(none.stderr, process.getuid?.() === 0 ? /^a server that runs as root has none/ : /^bubblewrap is not installed/);
});

test('health: the URL, the sandbox and the login of a server that answers, asked with the key', async (t) => {
  const { port, requests } = await healthServer(t, 200, healthy);
  const envFile = `CLAUDE_API_KEY=${key}\nHOST=0.0.0.0\nPORT=${port}\n`;
  assert.deepEqual(await ask(t, { args: ['health'], envFile }), { status: 0, stdout: `http://127.0.0.1:${port} on credentials file\n`, stderr: '' });
  assert.deepEqual(requests.map(({ url, headers }) => [url, headers.authorization]), [['/health', `Bearer ${key}`]]);
});

test('health: off and none where the server has found no login, or tells nobody for want of a key', async (t) => {
  for (const [body, env] of [[JSON.stringify({ status: 'ok', claude_version: '2.1.331', login: null, sandbox: 'CLAUDE_SANDBOX is off.' }), { CLAUDE_API_KEY: key }], ['{"status":"ok"}', {}]] as const) {
    const { port, requests } = await healthServer(t, 200, body);
    assert.equal((await ask(t, { args: ['health'], env: { ...env, PORT: String(port) } })).stdout, `http://127.0.0.1:${port} off none\n`);
    assert.equal(requests[0]?.headers.authorization, 'CLAUDE_API_KEY' in env ? `Bearer ${key}` : undefined);
  }
});

const unwell: readonly (readonly [string, number, string, RegExp])[] = [
  ['a server that cannot serve', 503, '{"status":"unavailable","detail":"The Claude CLI cannot be run."}', /^The Claude CLI cannot be run\.\n$/],
  ['a server that is stopping', 503, '{"status":"draining"}', /^\/health answers 503\n$/],
  ['a server that has not found its CLI yet', 200, '{"status":"ok","claude_version":null,"login":null}', /^the Claude CLI has not answered yet\n$/],
  ['another program', 200, '<html>', /^what answers at http:\/\/127\.0\.0\.1:\d+ is not claude-api\n$/],
  ['another program that speaks JSON', 200, '["ok"]', /^what answers at http:\/\/127\.0\.0\.1:\d+ is not claude-api\n$/],
];

for (const [name, status, body, sentence] of unwell) {
  test(`health: ${name} is told by exit status 1 and a sentence`, async (t) => {
    const { port } = await healthServer(t, status, body);
    const answer = await ask(t, { args: ['health'], env: { CLAUDE_API_KEY: key, PORT: String(port), HOST: '127.0.0.1' } });
    assert.deepEqual([answer.status, answer.stdout], [1, '']);
    assert.match(answer.stderr, sentence);
  });
}

test('health: nothing that listens, and one that never answers, are told within seconds', async (t) => {
  const silent = createServer(() => {});
  await once(silent.listen(0, '127.0.0.1'), 'listening');
  t.after(() => {
    silent.closeAllConnections();
    silent.close();
  });
  const address = silent.address();
  const port = typeof address === 'object' && address !== null ? address.port : 0;
  for (const env of [{ PORT: '1' }, { PORT: String(port) }]) {
    const answer = await ask(t, { args: ['health'], env: { CLAUDE_API_KEY: key, HOST: '127.0.0.1', ...env } });
    assert.deepEqual([answer.status, answer.stdout, answer.stderr], [1, '', `nothing answers at http://127.0.0.1:${env.PORT}\n`]);
  }
});

test('another question is answered by the usage', async (t) => {
  for (const args of [[], ['login'], ['health', 'x'], ['health', '-', 'x']]) {
    const { status, stdout, stderr } = await ask(t, { args });
    assert.deepEqual([status, stdout, stderr.startsWith('usage: ')], [64, '', true], args.join(' '));
  }
});
