import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { loadConfig } from '../../../src/env.ts';
import { Boxes } from '../../../src/cli/boxes.ts';
import { createOutside, outsideEnv } from '../../../src/cli/outside.ts';
import type { UserFolders } from '../../../src/cli/users.ts';
import type { Way } from '../../../src/cli/way.ts';

const folders: UserFolders = { home: '/u/home', work: '/u/work', tmp: '/u/tmp', boxes: new Boxes('/u/turns/1'), isUnchanged: () => true };

/** Shell scripts in the place of the programs on PATH; `say` writes another one. */
function programs(t: TestContext, scripts: Readonly<Record<string, string>>): { path: string; say(name: string, script: string): void } {
  const path = mkdtempSync(join(tmpdir(), 'claude-api-outside-'));
  t.after(() => rmSync(path, { recursive: true }));
  mkdirSync(join(path, 'bin'));
  const say = (name: string, script: string): void => writeFileSync(join(path, 'bin', name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  for (const [name, script] of Object.entries(scripts)) say(name, script);
  return { path: join(path, 'bin'), say };
}

function wayOn(PATH: string): Promise<Way> {
  return createOutside({ ...loadConfig({ PATH, HOME: PATH, CLAUDE_SANDBOX: 'off' }), systemPrompt: '', mcpServers: {} }, `outside-test-${process.pid}.`, () => {});
}

test('the environment is the operator\'s over the defaults, and over both where this user\'s files are', () => {
  const own = { CLAUDE_CONFIG_DIR: '/u/home', CLAUDE_CODE_PROJECT_DIR_NAME: 'work', CLAUDE_CODE_TMPDIR: '/u/tmp', TMPDIR: '/u/tmp' };
  const defaults = {
    CLAUDE_CODE_DISABLE_ATTACHMENTS: '1', CLAUDE_CODE_EAGER_FLUSH: '1', CLAUDE_CODE_DISABLE_AUTO_MEMORY: '1', CLAUDE_CODE_DISABLE_GIT_INSTRUCTIONS: '1',
    CLAUDE_CODE_DISABLE_BACKGROUND_TASKS: '1', CLAUDE_CODE_DISABLE_CRON: '1', CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1', DISABLE_AUTOUPDATER: '1',
    CLAUDE_CODE_MAX_RETRIES: '2', BUN_JSC_useBaselineJIT: '0', MIMALLOC_PURGE_DELAY: '0',
  };
  assert.deepEqual(outsideEnv({ HOME: '/op' }, folders), { ...defaults, HOME: '/op', ...own, CLAUDE_SECURESTORAGE_CONFIG_DIR: '/op/.claude' });
  const operators = { HOME: '/op', TMPDIR: '/t', CLAUDE_CONFIG_DIR: '/c', CLAUDE_CODE_TMPDIR: '/t', CLAUDE_CODE_PROJECT_DIR_NAME: 'x', CLAUDE_CODE_MAX_RETRIES: '9' };
  assert.deepEqual(outsideEnv(operators, folders), { ...defaults, HOME: '/op', CLAUDE_CODE_MAX_RETRIES: '9', ...own, CLAUDE_SECURESTORAGE_CONFIG_DIR: '/c' });
});

test('the CLI is started by a setpriv that works, which ends it with the server', async (t) => {
  const { path, say } = programs(t, { claude: 'echo 9.9.9' });
  const commandOf = async (): Promise<readonly string[]> => {
    const { command, args, cwd, inbox } = await (await wayOn(path)).launch(['--of-the-session'], folders, 1);
    assert.deepEqual([cwd, inbox, args.at(-1)], ['/u/work', '/u/turns/1/in', '--of-the-session']);
    return [command, ...args.slice(0, args.indexOf('-p'))];
  };
  assert.deepEqual(await commandOf(), [join(path, 'claude')]);
  say('setpriv', 'exit 1');
  assert.deepEqual(await commandOf(), [join(path, 'claude')]);
  say('setpriv', `[ "$*" = "--pdeathsig KILL -- ${path}/setpriv --version" ]`);
  assert.deepEqual(await commandOf(), [join(path, 'setpriv'), '--pdeathsig', 'KILL', '--', join(path, 'claude')]);
});

test('a CLI that is not there or too old runs no turn, until a newer one was found', async (t) => {
  const { path, say } = programs(t, {});
  const way = await wayOn(path);
  await assert.rejects(way.launch([], folders, 1), { code: 'claude_not_found' });
  say('claude', 'exit 3');
  await assert.rejects(way.probeVersion(), { code: 'claude_not_found' });
  await way.launch([], folders, 1);
  say('claude', 'echo 1.0.0');
  await assert.rejects(way.probeVersion(), { code: 'claude_too_old' });
  await assert.rejects(way.launch([], folders, 1), { code: 'claude_too_old' });
  say('claude', '[ "$DISABLE_AUTOUPDATER" = 1 ] && echo 9.9.9');
  assert.equal(await way.probeVersion(), '9.9.9');
  await way.launch([], folders, 1);
  assert.deepEqual(way.walk('/u', (folder) => ['du', folder]), ['du', '/u']);
});
