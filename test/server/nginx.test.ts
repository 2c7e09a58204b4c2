import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { findProgram, freePort, needs } from '../needs.ts';
import { apiKey, startServer, until, type RunningServer } from '../running-server.ts';

const nginx = findProgram('nginx');
const skip = needs(['nginx'], "README.md's lines for it");

/** nginx with docs/operations.md's own lines in front of the server; gives its address. */
async function startNginx(t: TestContext, server: RunningServer): Promise<string> {
  const text = await readFile(new URL('../../docs/operations.md', import.meta.url), 'utf8');
  const block = /```nginx\n([^]*?)```/.exec(text)?.[1] ?? assert.fail('docs/operations.md has no nginx block');
  const port = await freePort();
  const folder = await mkdtemp(join(tmpdir(), 'claude-api-nginx-'));
  await mkdir(join(folder, 'temp'));
  const places = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${folder}/temp/${name};`).join('\n');
  const site = block.replace(/listen \d+;/, `listen 127.0.0.1:${port};`).replace('127.0.0.1:8001', `127.0.0.1:${server.port}`);
  const config = join(folder, 'nginx.conf');
  // As another user its workers could not write into this folder.
  const user = process.getuid?.() === 0 ? 'user root;' : '';
  await writeFile(config, `${user}\ndaemon off;\npid ${folder}/pid;\nerror_log ${folder}/error.log;\nevents {}\nhttp {\naccess_log off;\n${places}\n${site}\n}\n`);
  const child = spawn(nginx ?? '', ['-c', config, '-p', folder, '-e', join(folder, 'error.log')], { stdio: ['ignore', 'ignore', 'pipe'] });
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  t.after(async () => {
    const gone = once(child, 'exit');
    if (child.exitCode === null && child.kill('SIGTERM')) await gone;
    await rm(folder, { recursive: true, force: true });
  });
  const url = `http://127.0.0.1:${port}`;
  await until('nginx', async () => {
    assert.equal(child.exitCode, null, stderr);
    return fetch(`${url}/health`).then((response) => (response.ok ? true : undefined), () => undefined);
  });
  return url;
}

const post = (url: string, prompt: string, init: RequestInit = {}): Promise<Response> =>
  fetch(`${url}/api/v1/chat`, {
    method: 'POST',
    body: JSON.stringify({ prompt, user_id: 1 }),
    ...init,
    headers: { Authorization: `Bearer ${apiKey}`, 'Content-Type': 'application/json', ...(init.headers as Record<string, string>) },
  });

test("behind the documented nginx: answers, streams as they come, long prompts, and hang-ups", { skip }, async (t) => {
  const server = await startServer(t);
  const url = await startNginx(t, server);
  assert.equal(await (await fetch(`${url}/health`)).text(), '{"status":"ok"}');
  assert.equal((await post(url, 'hello')).status, 200);
  assert.equal((await fetch(`${url}/api/v1/chat`, { method: 'POST' })).status, 401, 'nginx on the same machine lets nobody in');

  const response = await post(url, 'play slow 3000', { headers: { Accept: 'text/event-stream' } });
  const startedAt = performance.now();
  let text = '';
  let firstMs = Infinity;
  for await (const part of response.body?.pipeThrough(new TextDecoderStream()) ?? []) {
    firstMs = Math.min(firstMs, performance.now() - startedAt);
    text += part;
  }
  assert.match(text, /^event: session\n[^]*event: result\n/);
  assert.ok(performance.now() - startedAt - firstMs > 1000, 'the first event came long before the last');

  const long = await post(url, `say ${'x'.repeat(9_000_000)}`);
  assert.equal(long.status, 200);
  const tooLong = await post(url, `say ${'x'.repeat(17_000_000)}`);
  assert.equal(tooLong.status, 413);

  const caller = new AbortController();
  const given = post(url, 'play hang', { signal: caller.signal }).catch(() => 'hung up');
  const running = async (): Promise<unknown> => ((await (await server.request('/health')).json()) as Record<string, unknown>)['running'];
  await until('the turn to run', async () => ((await running()) === 1 ? true : undefined));
  caller.abort();
  assert.equal(await given, 'hung up');
  await until('the turn to be given up', async () => ((await running()) === 0 ? true : undefined));
});

test("the documented nginx waits longer than a turn may take", async () => {
  const text = await readFile(new URL('../../docs/operations.md', import.meta.url), 'utf8');
  const example = await readFile(new URL('../../.env.example', import.meta.url), 'utf8');
  const setting = (name: string): number => Number(new RegExp(`${name}=(\\d+)`).exec(example)?.[1]);
  assert.ok(Number(/proxy_read_timeout (\d+)s/.exec(text)?.[1]) > setting('CLAUDE_QUEUE_SECONDS') + setting('CLAUDE_TIMEOUT_SECONDS'));
});
