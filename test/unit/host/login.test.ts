import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { findLogin, howToLogIn } from '../../../src/host/login.ts';

/** A HOME with a credentials file in each of these folders. */
async function homeWithCredentials(t: TestContext, ...folders: readonly string[]): Promise<string> {
  const home = await mkdtemp(join(tmpdir(), 'claude-api-login-'));
  t.after(() => rm(home, { recursive: true, force: true }));
  for (const folder of folders) {
    await mkdir(join(home, folder), { recursive: true });
    await writeFile(join(home, folder, '.credentials.json'), '{"token":"SECRET"}', { mode: 0o600 });
  }
  return home;
}

// The order in which they win, the first one first.
const variables = [
  'ANTHROPIC_API_KEY',
  'ANTHROPIC_AUTH_TOKEN',
  'CLAUDE_CODE_OAUTH_TOKEN',
  'CLAUDE_CODE_USE_BEDROCK',
  'CLAUDE_CODE_USE_VERTEX',
];

const set = (name: string): string => (name.startsWith('CLAUDE_CODE_USE_') ? '1' : 'SECRET');

for (const [i, name] of variables.entries()) {
  test(`${name} wins over what comes after it and over the credentials file`, async (t) => {
    const HOME = await homeWithCredentials(t, '.claude');
    const env = Object.fromEntries(variables.slice(i).reverse().map((later): [string, string] => [later, set(later)]));
    assert.equal(await findLogin({ ...env, HOME }), name);
  });
}

test('an empty variable is no login', async (t) => {
  const HOME = await homeWithCredentials(t);
  assert.equal(await findLogin({ HOME, ANTHROPIC_API_KEY: '', CLAUDE_CODE_OAUTH_TOKEN: '' }), undefined);
  assert.equal(await findLogin({ HOME, ANTHROPIC_API_KEY: '', CLAUDE_CODE_OAUTH_TOKEN: 'SECRET' }), 'CLAUDE_CODE_OAUTH_TOKEN');
});

test('a provider that is switched off is no login, in the words the CLI knows', async (t) => {
  const HOME = await homeWithCredentials(t);
  for (const off of ['0', 'false', 'no', 'off', '', ' ', '2']) assert.equal(await findLogin({ HOME, CLAUDE_CODE_USE_BEDROCK: off }), undefined, off);
  for (const on of ['1', 'true', 'YES', ' on ']) assert.equal(await findLogin({ HOME, CLAUDE_CODE_USE_BEDROCK: on }), 'CLAUDE_CODE_USE_BEDROCK', on);
});

test('the credentials file of the service user is found', async (t) => {
  const HOME = await homeWithCredentials(t, '.claude');
  assert.equal(await findLogin({ HOME }), 'credentials file');
});

test('CLAUDE_CONFIG_DIR moves the credentials file', async (t) => {
  const HOME = await homeWithCredentials(t, 'elsewhere');
  assert.equal(await findLogin({ HOME }), undefined);
  assert.equal(await findLogin({ HOME, CLAUDE_CONFIG_DIR: join(HOME, 'elsewhere') }), 'credentials file');
  assert.equal(await findLogin({ HOME, CLAUDE_CONFIG_DIR: join(HOME, 'nowhere') }), undefined);
});

test('CLAUDE_SECURESTORAGE_CONFIG_DIR moves it again', async (t) => {
  const HOME = await homeWithCredentials(t, 'store', 'config');
  const CLAUDE_CONFIG_DIR = join(HOME, 'config');
  assert.equal(await findLogin({ HOME, CLAUDE_CONFIG_DIR, CLAUDE_SECURESTORAGE_CONFIG_DIR: join(HOME, 'store') }), 'credentials file');
  assert.equal(await findLogin({ HOME, CLAUDE_CONFIG_DIR, CLAUDE_SECURESTORAGE_CONFIG_DIR: join(HOME, 'nowhere') }), undefined);
});

test('none found is undefined, also without a HOME', async (t) => {
  assert.equal(await findLogin({ HOME: await homeWithCredentials(t) }), undefined);
  assert.equal(await findLogin({ HOME: join(tmpdir(), 'claude-api-no-such-home') }), undefined);
  await assert.doesNotReject(findLogin({}));
});

test('a login that appears later is found without a restart', async (t) => {
  const HOME = await homeWithCredentials(t);
  assert.equal(await findLogin({ HOME }), undefined);
  await mkdir(join(HOME, '.claude'));
  await writeFile(join(HOME, '.claude', '.credentials.json'), '{}');
  assert.equal(await findLogin({ HOME }), 'credentials file');
});

test('the credentials file is left as it was, and nothing is put beside it', async (t) => {
  const HOME = await homeWithCredentials(t, '.claude');
  const file = join(HOME, '.claude', '.credentials.json');
  const before = await stat(file);
  await findLogin({ HOME });
  const after = await stat(file);
  assert.deepEqual([after.mtimeMs, after.ino, after.mode], [before.mtimeMs, before.ino, before.mode]);
  assert.equal(await readFile(file, 'utf8'), '{"token":"SECRET"}');
  assert.deepEqual(await readdir(join(HOME, '.claude')), ['.credentials.json']);
});

test('the advice begins as callers know it and names the three ways to log in', () => {
  assert.match(howToLogIn, /^Claude CLI is not authenticated/);
  for (const way of ['ANTHROPIC_API_KEY', 'CLAUDE_CODE_OAUTH_TOKEN', 'run "claude"']) assert.ok(howToLogIn.includes(way), way);
});
