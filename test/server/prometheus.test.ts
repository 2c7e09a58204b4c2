import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { findProgram, freePort, needs } from '../needs.ts';
import { apiKey, startServer, until, type RunningServer } from '../running-server.ts';

const skip = needs(['prometheus'], 'scrapes /health');

/** Prometheus with docs/operations.md's own lines, four times a second; gives its address. */
async function startPrometheus(t: TestContext, server: RunningServer): Promise<string> {
  const text = await readFile(new URL('../../docs/operations.md', import.meta.url), 'utf8');
  const block = /```yaml\n(scrape_configs:[^]*?)```/.exec(text)?.[1] ?? assert.fail('docs/operations.md has no such lines');
  const folder = await mkdtemp(join(tmpdir(), 'claude-api-prometheus-'));
  const keyFile = join(folder, 'key');
  const lines = block.replace('/etc/prometheus/claude-api.key', keyFile).replace('127.0.0.1:8001', `127.0.0.1:${server.port}`);
  await writeFile(keyFile, `${apiKey}\n`);
  await writeFile(join(folder, 'prometheus.yml'), `global: { scrape_interval: 250ms, scrape_timeout: 250ms }\n${lines}`);
  const address = `127.0.0.1:${await freePort()}`;
  const options = [`--config.file=${folder}/prometheus.yml`, `--storage.tsdb.path=${folder}/data`, `--web.listen-address=${address}`];
  const child = spawn(findProgram('prometheus') ?? '', options, { stdio: ['ignore', 'ignore', 'pipe'] });
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (piece: string) => (stderr += piece));
  t.after(async () => {
    const gone = once(child, 'exit');
    if (child.exitCode === null && child.kill('SIGTERM')) await gone;
    await rm(folder, { recursive: true, force: true });
  });
  await until('Prometheus', async () => {
    assert.equal(child.exitCode, null, stderr);
    return fetch(`http://${address}/-/ready`).then(({ ok }) => ok || undefined, () => undefined);
  });
  return `http://${address}`;
}

type Answer = { readonly data: { readonly result: ReadonlyArray<{ readonly value: readonly [number, string] }> } };

/** Waits until Prometheus gives this number for an expression. */
async function expectFigure(prometheus: string, expression: string, expected: string): Promise<void> {
  let last: string | undefined;
  await until(expression, async () => {
    const response = await fetch(`${prometheus}/api/v1/query?query=${encodeURIComponent(expression)}`);
    last = ((await response.json()) as Answer).data.result[0]?.value[1];
    return last === expected || undefined;
  }).catch((error: unknown) => assert.fail(`${String(error)}: it was ${last}, not ${expected}`));
}

test('Prometheus scrapes /health: the figures are right after 20 turns, and the server is told to be down while it drains', { skip }, async (t) => {
  const server = await startServer(t, { CLAUDE_MAX_CONCURRENT_REQUESTS: '2', CLAUDE_WARM_SECONDS: '60' });
  const prometheus = await startPrometheus(t, server);
  const first = await server.chat({ prompt: 'hello' });
  for (let i = 0; i < 15; i += 1) await server.chat({ prompt: 'hello', session_id: first.body['session_id'] });
  for (let i = 0; i < 4; i += 1) await server.chat({ prompt: 'play api credit', user_id: 2 });
  await server.chat({ prompt: 'hello', user_id: 3, session_id: '8e6f3b54-6a06-4f7c-9a0e-0c9f9d2f5c11' });
  const figures = {
    'up{job="claude-api"}': '1',
    claude_api_up: '1',
    'claude_api_turns_total{outcome="answered"}': '16',
    'claude_api_turns_total{outcome="failed"}': '5',
    'claude_api_turn_problems_total{code="claude_api_error"}': '4',
    'claude_api_turn_problems_total{code="session_not_found"}': '1',
    'claude_api_turn_starts_total{process="warm"}': '15',
    'sum(claude_api_turn_starts_total)': '20',
    'claude_api_turn_wait_seconds_count': '20',
    'claude_api_turn_duration_seconds_count{outcome="answered"}': '16',
    'claude_api_log_events_total{event="turn"}': '21',
    'count(claude_api_info{login=""})': '1',
  };
  for (const [expression, expected] of Object.entries(figures)) await expectFigure(prometheus, expression, expected);

  const caller = new AbortController();
  const hanging = server.chat({ prompt: 'play hang', user_id: 4 }, { signal: caller.signal });
  await expectFigure(prometheus, 'claude_api_processes{state="running"}', '1');
  const ended = server.end();
  await expectFigure(prometheus, 'claude_api_up', '0');
  caller.abort();
  await assert.rejects(hanging);
  assert.equal(await ended, 0);
});
