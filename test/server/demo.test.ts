import assert from 'node:assert/strict';
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readdir } from 'node:fs/promises';
import { createServer } from 'node:net';
import { before, test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { makeHome, noneLeft, until, within } from '../running-server.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
before(() => execFileSync('npm', ['run', '--silent', 'build'], { cwd: root, timeout: 60_000 }));

/** `npm run demo` with a folder of its own for temporary files, and what it prints. */
async function startDemo(t: TestContext, port: number): Promise<{ demo: ChildProcess; home: string; screen: () => string }> {
  const home = await makeHome(t);
  const env = { PATH: process.env['PATH'], HOME: home, TMPDIR: home, PORT: String(port) };
  const demo = spawn('npm', ['run', '--silent', 'demo'], { cwd: root, env, stdio: ['ignore', 'pipe', 'pipe'] });
  let screen = '';
  for (const stream of [demo.stdout, demo.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (screen += text));
  return { demo, home, screen: () => screen };
}

const leftFolders = async (home: string): Promise<string[]> => (await readdir(home)).filter((name) => name.startsWith('claude-api-demo-'));

for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  test(`npm run demo answers with the lines it prints, and ${signal} leaves no process and no folder of it`, async (t) => {
    const { demo, home, screen } = await startDemo(t, 0);
    const [, port] = await until('the demo to listen', () => /listening.*?port"?[=:](\d+)/.exec(screen()) ?? undefined);
    const [, key] = /Authorization: (Bearer demo-\w+)'/.exec(screen()) ?? [];
    const headers = { Authorization: key ?? '', 'Content-Type': 'application/json' };
    const [, body = ''] = /-d '(.*)'/.exec(screen()) ?? [];
    const response = await fetch(`http://127.0.0.1:${port}/api/v1/chat`, { method: 'POST', headers, body });
    assert.match(((await response.json()) as { content: string }).content, /^This is an echo, not Claude/);
    assert.equal((await leftFolders(home)).length, 1);
    const exited = once(demo, 'exit');
    demo.kill(signal);
    await within('the demo to end', 10_000, exited);
    await noneLeft(home);
    assert.deepEqual(await leftFolders(home), []);
  });
}

test('npm run demo says what to do when its port is taken', async (t) => {
  const other = createServer().listen(0, '127.0.0.1');
  await once(other, 'listening');
  t.after(() => other.close());
  const address = other.address();
  const { demo, home, screen } = await startDemo(t, typeof address === 'object' && address !== null ? address.port : 0);
  if (demo.exitCode === null) await within('the demo to end', 10_000, once(demo, 'exit'));
  assert.match(screen(), /is taken by another program[^\n]*\nAnother port: PORT=8002 npm run demo\n$/);
  assert.deepEqual(await leftFolders(home), []);
});
