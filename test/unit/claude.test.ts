import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { createClaude, type Claude } from '../../src/claude.ts';
import { endMarked } from '../../src/cli/strays.ts';
import { loadConfig } from '../../src/env.ts';
import { until, within } from '../running-server.ts';

const sessionId = 'f1b19141-9e1d-4e8d-a902-a05c85145ac0';

/** The CLI as this shell script, without a sandbox, on a state folder of the test's own. */
async function claudeOf(t: TestContext, script: string): Promise<{ claude: Claude; folder: string }> {
  const folder = await mkdtemp(join(tmpdir(), 'claude-api-test-'));
  const binary = join(folder, 'claude');
  await writeFile(binary, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  const stateDir = join(folder, 'state');
  const env = { PATH: process.env['PATH'], HOME: folder, CLAUDE_STATE_DIR: stateDir, CLAUDE_BINARY_PATH: binary, CLAUDE_SANDBOX: 'off' };
  const claude = await createClaude({ ...loadConfig(env), systemPrompt: '', mcpServers: {} }, () => {}, assert.ifError);
  t.after(async () => {
    await endMarked(claude.markerPrefix);
    await rm(folder, { recursive: true, force: true });
  });
  return { claude, folder };
}

test('a user\'s tmp is emptied once all is gone that a process left running', async (t) => {
  const { claude, folder } = await claudeOf(t, '(while :; do : >"$TMPDIR/again"; sleep 0.01; done) >/dev/null 2>&1 </dev/null &\nsleep 0.2');
  const tidy = claude.users.tidy.bind(claude.users);
  let isTidied = false;
  t.mock.method(claude.users, 'tidy', (userId: number) => tidy(userId).finally(() => (isTidied = true)));
  const worker = await claude.start({ userId: 1, sessionId, isNew: true });
  const user = join(folder, 'state/users/1');
  await until('the program that is left', () => existsSync(join(user, 'tmp/again')) || undefined);
  await worker.exited;
  await until('what belongs to the process to be gone', () => (isTidied ? true : undefined));
  assert.deepEqual([await endMarked(claude.markerPrefix), await readdir(join(user, 'tmp'))], [0, []]);
});

test('a start does not wait long for what its user\'s last programs left', async (t) => {
  const { claude } = await claudeOf(t, 'exit 0');
  let tidied: (() => void) | undefined;
  t.mock.method(claude.users, 'tidy', () => new Promise<void>((resolve) => (tidied = resolve)), { times: 1 });
  const worker = await claude.start({ userId: 1, sessionId, isNew: true });
  await worker.stop();
  const end = await until('the removal', () => tidied);
  const refused = assert.rejects(claude.start({ userId: 1, sessionId, isNew: true }), { code: 'busy', extras: { retryAfterSeconds: 5 } });
  await within('the refusal', 10_000, refused);
  await (await within('another user\'s start', 10_000, claude.start({ userId: 2, sessionId, isNew: true }))).stop();
  end();
  await (await within('the start afterwards', 10_000, claude.start({ userId: 1, sessionId, isNew: true }))).stop();
});

test('what a CLI that does not say its version left running is ended', async (t) => {
  const { claude, folder } = await claudeOf(t, 'setsid sh -c \': >"$HOME/left"; sleep 300\' >/dev/null 2>&1 </dev/null &\nwhile ! [ -e "$HOME/left" ]; do sleep 0.01; done; exit 1');
  await assert.rejects(claude.probeVersion(), { code: 'claude_not_found' });
  assert.ok(existsSync(join(folder, 'left')), 'it was started');
  assert.equal(await endMarked(claude.markerPrefix), 0);
});
