import assert from 'node:assert/strict';
import childProcess, { type ExecFileOptions } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { loginFilePath } from '../../src/host/login.ts';
import { createCredentials } from '../../src/sandbox/credentials.ts';
import { createLoginFile, refreshByCli } from '../../src/sandbox/login-file.ts';
import { ask, fail, messageBody, sayOk, setStage, type Script } from '../api-stage.ts';
import { within } from '../running-server.ts';

const binary = fileURLToPath(new URL('../bin/claude-auth', import.meta.url));
const minute = 60_000;

/** A HOME with a login file, and the program that renews it. */
class Home {
  readonly env: Readonly<Record<string, string>>;
  readonly path: string;

  constructor(folder: string, env: Readonly<Record<string, string>> = {}) {
    this.env = { PATH: process.env['PATH'] ?? '', HOME: folder, RUNS: join(folder, 'runs'), NEXT: join(folder, 'next'), ...env };
    this.path = loginFilePath(this.env);
  }

  /** The login file as it is now. */
  write(accessToken: string, expiresInMs: number, subscriptionType: string | undefined = 'max'): Promise<void> {
    return this.#write(this.path, accessToken, expiresInMs, subscriptionType);
  }

  /** What the program will make of it. */
  willBecome(accessToken: string, expiresInMs: number): Promise<void> {
    return this.#write(String(this.env['NEXT']), accessToken, expiresInMs, 'max');
  }

  /** How often the program ran, and in which folders. */
  async runs(): Promise<string[]> {
    const text = await readFile(String(this.env['RUNS']), 'utf8').catch(() => '');
    return text.split('\n').filter(Boolean);
  }

  get loginFile(): Parameters<typeof createLoginFile> {
    return [this.path, () => refreshByCli(binary, this.env)];
  }

  async #write(path: string, accessToken: string, expiresInMs: number, subscriptionType: string | undefined): Promise<void> {
    const login = { accessToken, refreshToken: 'made-up', expiresAt: Date.now() + expiresInMs, scopes: ['user:inference'], subscriptionType };
    await writeFile(path, JSON.stringify({ claudeAiOauth: login }));
  }
}

async function makeHome(t: TestContext, env?: Readonly<Record<string, string>>): Promise<Home> {
  const folder = await mkdtemp(join(tmpdir(), 'api-proxy-home-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  await mkdir(join(folder, '.claude'));
  return new Home(folder, env);
}

/** Answers 401 to every other token. */
const knowsOnly = (token: string): Script => (res, request) => (request.headers['authorization'] === `Bearer ${token}` ? sayOk : fail(401, 'authentication_error'))(res, request);

test('each kind of login sends its own headers, whatever the client sends, and its own placeholder stands inside', async (t) => {
  const home = await makeHome(t);
  await home.write('file-token', 60 * minute, 'pro');
  const oauth = { CLAUDE_CODE_OAUTH_TOKEN: 'placeholder', CLAUDE_CODE_SUBSCRIPTION_TYPE: 'max' };
  const key = { ANTHROPIC_AUTH_TOKEN: 'placeholder' };
  const kinds: Array<[Record<string, string>, Record<string, string | undefined>, Record<string, string>]> = [
    [{ ANTHROPIC_API_KEY: 'a-key' }, { 'x-api-key': 'a-key' }, key],
    [{ ANTHROPIC_AUTH_TOKEN: 'a-token' }, { authorization: 'Bearer a-token' }, key],
    [{ CLAUDE_CODE_OAUTH_TOKEN: 'a-setup-token' }, { authorization: 'Bearer a-setup-token', 'anthropic-beta': 'oauth-2025-04-20' }, oauth],
    [{ CLAUDE_CODE_OAUTH_TOKEN: ' a-setup-token\n', CLAUDE_CODE_SUBSCRIPTION_TYPE: 'pro' }, { authorization: 'Bearer a-setup-token', 'anthropic-beta': 'oauth-2025-04-20' }, { ...oauth, CLAUDE_CODE_SUBSCRIPTION_TYPE: 'pro' }],
    [{}, { authorization: 'Bearer file-token', 'anthropic-beta': 'oauth-2025-04-20' }, { ...oauth, CLAUDE_CODE_SUBSCRIPTION_TYPE: 'pro' }],
    // The CLI's own order.
    [{ ANTHROPIC_API_KEY: 'a-key', ANTHROPIC_AUTH_TOKEN: 'a-token' }, { 'x-api-key': 'a-key' }, key],
    [{ ANTHROPIC_AUTH_TOKEN: 'a-token', CLAUDE_CODE_OAUTH_TOKEN: 'a-setup-token' }, { authorization: 'Bearer a-token' }, key],
  ];
  for (const [env, expected, inside] of kinds) {
    const stage = await setStage(t, { env, loginFile: home.loginFile });
    const socket = await stage.openInTurn();
    await ask(socket, { headers: { 'x-api-key': 'placeholder', authorization: 'Bearer placeholder' } });
    const sent = stage.recorded[0]?.headers ?? {};
    const login = Object.fromEntries(['x-api-key', 'authorization', 'anthropic-beta'].flatMap((name) => (sent[name] === undefined ? [] : [[name, sent[name]]])));
    assert.deepEqual(login, expected);
    const placeholders = await createCredentials(env, createLoginFile(...home.loginFile)).placeholders();
    assert.deepEqual(placeholders, inside);
    assert.doesNotMatch(JSON.stringify(placeholders), /a-key|a-token|a-setup|file-token/);
    assert.doesNotMatch(stage.logText, /a-key|a-token|a-setup|file-token/);
  }
  assert.deepEqual(await home.runs(), []);
});

test('a login file that appears, changes or goes is heeded at the next request', async (t) => {
  const home = await makeHome(t);
  const stage = await setStage(t, { env: {}, loginFile: home.loginFile });
  const socket = await stage.openInTurn();
  assert.equal((await ask(socket)).status, 401);
  for (const token of ['one', 'two-two']) {
    await home.write(token, 60 * minute);
    assert.equal((await ask(socket)).status, 200);
    assert.equal(stage.recorded.at(-1)?.headers['authorization'], `Bearer ${token}`);
  }
  await writeFile(home.path, '{"claudeAiOauth":{"accessToken":""}}');
  assert.equal((await ask(socket)).status, 401);
  await writeFile(home.path, 'no JSON');
  assert.equal((await ask(socket)).status, 401);
  await rm(home.path);
  const last = await ask(socket);
  assert.equal(last.status, 401);
  assert.equal(last.headers['x-should-retry'], 'false');
  assert.equal(socket.endTurn().tokens.input, 2000, 'what never went out costs nothing');
  assert.equal(stage.recorded.length, 2);
});

test('a login about to end is renewed by the CLI first, once for all who ask', async (t) => {
  const home = await makeHome(t, { EXIT_CODE: '1' });
  await home.write('old', 3 * minute);
  await home.willBecome('new', 60 * minute);
  const stage = await setStage(t, { env: {}, loginFile: home.loginFile, script: knowsOnly('new') });
  const socket = await stage.openInTurn();
  const replies = await Promise.all([1, 2, 3, 4].map(() => ask(socket)));
  assert.deepEqual(replies.map(({ status }) => status), [200, 200, 200, 200]);
  assert.deepEqual(await home.runs(), ['/']);
  assert.equal(stage.recorded.length, 4);
});

test('a login that ends in five minutes is used as it is', async (t) => {
  const home = await makeHome(t);
  await home.write('old', 5 * minute);
  const stage = await setStage(t, { env: {}, loginFile: home.loginFile, script: knowsOnly('old') });
  assert.equal((await ask(await stage.openInTurn())).status, 200);
  assert.deepEqual(await home.runs(), []);
});

test('the CLI is run when a login has four minutes left, and again after a minute where that did not help; not for one without an end', async (t) => {
  const home = await makeHome(t);
  let nowMs = 0;
  const runsAtMs: number[] = [];
  const file = createLoginFile(home.path, async () => void runsAtMs.push(nowMs), () => nowMs);
  for (const [name, expiresAt] of [['endless', 'soon'], ['old', 10 * minute]]) {
    await writeFile(home.path, JSON.stringify({ claudeAiOauth: { accessToken: name, expiresAt } }));
    for (nowMs of [6 * minute - 1, 6 * minute, 7 * minute - 1, 7 * minute]) assert.equal((await file.current())?.accessToken, name);
  }
  assert.deepEqual(runsAtMs, [6 * minute, 7 * minute]);
});

test('a CLI that hangs is ended after 30 s', async (t) => {
  const home = await makeHome(t);
  const deaf = join(home.path, '..', 'deaf');
  await writeFile(deaf, "#!/bin/sh\ntrap '' TERM\nexec sleep 60\n", { mode: 0o755 });
  const real = childProcess.execFile;
  const times: unknown[] = [];
  const inHundredths = (file: string, args: string[], options: ExecFileOptions, done: () => void): unknown => {
    times.push(options.timeout);
    return real(file, args, { ...options, timeout: Math.ceil((options.timeout ?? 0) / 100) }, done);
  };
  t.mock.method(childProcess, 'execFile', inHundredths as typeof real);
  syncBuiltinESMExports();
  t.after(() => (t.mock.restoreAll(), syncBuiltinESMExports()));
  await within('its end', 20_000, refreshByCli(deaf, home.env));
  assert.deepEqual(times, [30_000]);
});

test('a 401 that another login cures is not seen by the client', async (t) => {
  const home = await makeHome(t);
  await home.write('revoked', 60 * minute);
  await home.willBecome('new', 60 * minute);
  const stage = await setStage(t, { env: {}, loginFile: home.loginFile, script: knowsOnly('new') });
  const socket = await stage.openInTurn();
  const large = messageBody({ system: 'x'.repeat(400_000) });
  assert.equal((await ask(socket, { body: large })).status, 200);
  assert.deepEqual(stage.recorded.map(({ body }) => body.length), [large.length, large.length]);
  assert.deepEqual(await home.runs(), ['/']);
  const { tokens, lastFailure, requests } = socket.endTurn();
  assert.equal(tokens.input, 1000);
  assert.equal(lastFailure, undefined);
  assert.equal(requests, 1);
});

test('a 401 that nothing cures comes through, and the CLI is not run again for a while', async (t) => {
  const home = await makeHome(t);
  await home.write('revoked', 60 * minute);
  const stage = await setStage(t, { env: {}, loginFile: home.loginFile, script: knowsOnly('none') });
  const socket = await stage.openInTurn();
  for (const _ of [1, 2, 3]) assert.equal((await ask(socket)).status, 401);
  assert.equal(stage.recorded.length, 3);
  assert.deepEqual(await home.runs(), ['/']);
  assert.deepEqual(socket.endTurn().lastFailure, { status: 401, type: 'authentication_error', retryAfterSeconds: undefined });
});

test('a 401 after another request renewed the login needs no CLI', async (t) => {
  const home = await makeHome(t);
  await home.write('old', 60 * minute);
  const stage = await setStage(t, { env: {}, loginFile: home.loginFile });
  stage.script = (res, request) => {
    const isOld = request.headers['authorization'] === 'Bearer old';
    void (isOld ? home.write('newer', 60 * minute) : Promise.resolve()).then(() => (isOld ? fail(401, 'authentication_error') : sayOk)(res, request));
  };
  assert.equal((await ask(await stage.openInTurn())).status, 200);
  assert.deepEqual(await home.runs(), []);
});

test('a key that the API refuses is told to the client, and no CLI is run for it', async (t) => {
  const home = await makeHome(t);
  await home.write('token', 60 * minute);
  const stage = await setStage(t, { env: { ANTHROPIC_API_KEY: 'wrong' }, loginFile: home.loginFile, script: fail(401, 'authentication_error') });
  assert.equal((await ask(await stage.openInTurn())).status, 401);
  assert.equal(stage.recorded.length, 1);
  assert.deepEqual(await home.runs(), []);
});

test('a CLI that cannot be run leaves the login as it is', async (t) => {
  const home = await makeHome(t);
  await home.write('old', minute);
  const refresh = (): Promise<void> => refreshByCli('/nowhere/claude', home.env);
  const stage = await setStage(t, { env: {}, loginFile: [home.path, refresh], script: knowsOnly('old') });
  assert.equal((await ask(await stage.openInTurn())).status, 200);
});
