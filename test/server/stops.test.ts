import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { openConnection, requestBytes, type Connection } from '../http-client.ts';
import { apiKey, fakeClaude, makeHome, noneLeft, startServer, until, within, type RunningServer } from '../running-server.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
const chatHead = (length: number): string => {
  const headers = [`Host: test`, `Authorization: Bearer ${apiKey}`, 'Content-Type: application/json', `Content-Length: ${length}`];
  return ['POST /api/v1/chat HTTP/1.1', ...headers, '', ''].join('\r\n');
};

async function counts(server: RunningServer): Promise<Record<string, unknown>> {
  return (await (await server.request('/health')).json()) as Record<string, unknown>;
}

const idleConnections: Readonly<Record<string, (connection: Connection) => Promise<unknown>>> = {
  'one that sent nothing': async () => {},
  'one with half a head': (connection) => connection.send('GET /health HTTP/1.1\r\nHost: te'),
  'one whose body has no end': (connection) => connection.send(`${chatHead(100)}{"prompt":`),
  'one kept alive after its answer': async (connection) => {
    await connection.send(requestBytes('GET /health'));
    await connection.answer('an answer');
  },
  'one kept alive after a turn': async (connection) => {
    const body = '{"prompt":"hello","user_id":1}';
    await connection.send(chatHead(body.length) + body);
    await connection.answer('the turn');
  },
};

for (const [title, open] of Object.entries(idleConnections)) {
  test(`no stop waits for a connection without a request under way: ${title}`, async (t) => {
    const server = await startServer(t);
    await open(await openConnection(t, server.port));
    // Whatever was sent before this on another connection has arrived by the time it is answered.
    await server.request('/health');
    const startedAt = performance.now();
    assert.equal(await server.end('SIGTERM'), 0);
    assert.ok(performance.now() - startedAt < 10_000, `${Math.round(performance.now() - startedAt)} ms`);
  });
}

test('an answer under way at the stop is written to its end, and its connection is closed behind it', async (t) => {
  const server = await startServer(t);
  const connection = await openConnection(t, server.port);
  const body = '{"prompt":"play huge 3000000","user_id":1}';
  await connection.send(chatHead(body.length) + body);
  connection.stopReading();
  await server.logged('turn');
  const ended = server.end('SIGTERM');
  await server.logged('draining');
  connection.readOn();
  const { body: answer } = await connection.answer('the answer');
  assert.equal((JSON.parse(answer) as { content: string }).content.length, 3_000_000);
  const startedAt = performance.now();
  assert.equal(await ended, 0);
  assert.ok(performance.now() - startedAt < 10_000, `${Math.round(performance.now() - startedAt)} ms`);
});

for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
  test(`${signal} lets the running turn finish`, async (t) => {
    const server = await startServer(t);
    const turn = server.chat({ prompt: 'play slow 1000' });
    await until('the turn to run', async () => (await counts(server))['running'] === 1 || undefined);
    const ended = server.end(signal);
    assert.equal((await turn).body['content'], 'after 1000');
    assert.equal(await ended, 0);
  });
}

test('a second signal ends the server at once, with everything it started', async (t) => {
  const server = await startServer(t);
  // Whether an answer still comes out is chance.
  server.chat({ prompt: 'play deaf' }).catch(() => {});
  await until('the turn to run', async () => (await counts(server))['running'] === 1 || undefined);
  const ended = server.end('SIGTERM');
  await server.logged('draining');
  // Those that come with the first are the same stop.
  let isOver = false;
  void ended.finally(() => (isOver = true));
  await until('the second to be heard', () => {
    // It may be gone before its line has come.
    if (isOver || server.lines.some(({ event }) => event === 'quitting')) return true;
    process.kill(server.pid, 'SIGINT');
    return undefined;
  });
  assert.equal(await ended, 1);
  await until('its line', () => server.lines.some(({ event }) => event === 'quitting') || undefined);
  await noneLeft(server.home);
});

test('npm run dev: one Ctrl-C reaches the server once, and a running turn finishes', async (t) => {
  const home = await makeHome(t);
  const env = { PATH: process.env['PATH'], HOME: home, HOST: '127.0.0.1', PORT: '0', CLAUDE_API_KEY: apiKey, CLAUDE_BINARY_PATH: fakeClaude };
  // A group of its own, to which the signal goes as it does from a terminal: to npm, the watcher and the server at once.
  const dev = spawn('npm', ['run', '--silent', 'dev'], { cwd: root, env, detached: true, stdio: ['ignore', 'pipe', 'inherit'] });
  const pid = dev.pid ?? assert.fail('npm cannot be run');
  t.after(() => (dev.exitCode ?? dev.signalCode) !== null || process.kill(-pid, 'SIGKILL'));
  let output = '';
  dev.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
  const [, port] = await until('the server to listen', () => /"event":"listening".*"port":(\d+)/.exec(output) ?? undefined, 20_000);
  const body = JSON.stringify({ prompt: 'play slow 1500', user_id: 1 });
  const headers = { Authorization: `Bearer ${apiKey}`, 'Content-Type': 'application/json' };
  const turn = fetch(`http://127.0.0.1:${port}/api/v1/chat`, { method: 'POST', headers, body });
  await until('the turn to run', async () => {
    const health = await fetch(`http://127.0.0.1:${port}/health`, { headers });
    return ((await health.json()) as { running: number }).running === 1 || undefined;
  });
  const exited = once(dev, 'exit');
  process.kill(-pid, 'SIGINT');
  assert.equal((await turn).status, 200);
  await within('npm run dev to end', 20_000, exited);
  assert.doesNotMatch(output, /quitting/);
});

test('a stop waits for what a user\'s last programs left in tmp to be removed', async (t) => {
  const server = await startServer(t);
  assert.equal((await server.chat({ prompt: 'play sh cd "$TMPDIR" && seq 500 | xargs touch' })).status, 200);
  const tmp = join(server.home, 'state/users/1/tmp');
  assert.equal((await readdir(tmp)).length, 500);
  assert.equal(await server.end('SIGTERM'), 0);
  assert.deepEqual(await readdir(tmp), []);
});
