import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { createApp, StartError, type App } from '../../src/app.ts';
import { loadConfig, type Config } from '../../src/env.ts';
import { apiKey, fakeClaude, makeHome, noneLeft, within, type LogLine } from '../running-server.ts';

const settings = { HOST: '127.0.0.1', PORT: '0', CLAUDE_API_KEY: apiKey, CLAUDE_BINARY_PATH: fakeClaude, CLAUDE_SANDBOX: 'off' };

function configOf(home: string): Config {
  return loadConfig({ PATH: process.env['PATH'], HOME: home, CLAUDE_STATE_DIR: join(home, 'state'), ...settings });
}

/** A server inside this process, and what it logs; stopped at the end of the test. */
async function startApp(t: TestContext, home: string): Promise<{ app: App; port: number; lines: LogLine[] }> {
  const lines: LogLine[] = [];
  const app = await createApp(configOf(home), { log: (level, event, fields) => void lines.push({ level, event, ...fields }), onRefusal: assert.ifError });
  t.after(() => app.stop(0));
  return { app, port: await app.listen(), lines };
}

async function chat(port: number, prompt: string): Promise<{ status: number; body: Record<string, unknown> }> {
  const headers = { Authorization: `Bearer ${apiKey}`, 'Content-Type': 'application/json', Connection: 'close' };
  const init = { method: 'POST', headers, body: JSON.stringify({ prompt, user_id: 1 }) };
  const response = await fetch(`http://127.0.0.1:${port}/api/v1/chat`, init);
  return { status: response.status, body: (await response.json()) as Record<string, unknown> };
}

test('the whole server starts and stops inside a process, leaves nothing running, and the folder to the next', async (t) => {
  const home = await makeHome(t);
  const { app, port, lines } = await startApp(t, home);
  assert.equal((await chat(port, 'hello')).body['content'], 'you said: hello');
  await within('the stop', 10_000, app.stop(0));
  await noneLeft(home);
  await assert.rejects(chat(port, 'hello'));
  await startApp(t, home);
  const events = lines.map(({ event }) => event).filter((event) => event !== 'no_cgroups');
  assert.deepEqual(events.slice(0, 3), ['sandbox', 'listening', 'login']);
});

test('a stop lets the running turn finish in the time it has, and then interrupts it', async (t) => {
  const home = await makeHome(t);
  const { app, port } = await startApp(t, home);
  const running = chat(port, 'play hang');
  await within('the turn to run', 10_000, turnRuns(port));
  await within('the stop', 10_000, app.stop(300));
  assert.deepEqual([(await running).status, (await running).body['code']], [503, 'shutting_down']);
  await noneLeft(home);
});

test('a port that is taken is a StartError that says what to do', async (t) => {
  const { port } = await startApp(t, await makeHome(t));
  const home = await makeHome(t);
  const app = await createApp({ ...configOf(home), port }, { log: () => {}, onRefusal: assert.ifError });
  t.after(() => app.stop(0));
  await assert.rejects(app.listen(), (error) => error instanceof StartError && error.message.startsWith(`port ${port} is taken`));
});

async function turnRuns(port: number): Promise<void> {
  for (;;) {
    const response = await fetch(`http://127.0.0.1:${port}/health`, { headers: { Authorization: `Bearer ${apiKey}`, Connection: 'close' } });
    if (((await response.json()) as Record<string, unknown>)['running'] === 1) return;
  }
}
