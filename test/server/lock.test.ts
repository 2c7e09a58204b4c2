import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdir, stat, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { findProgram, needs, needsToRun } from '../needs.ts';
import { makeHome, RunningServer, startServer, until, type Reply } from '../running-server.ts';
import { asUserScript, makeSandboxedHome } from '../sandboxed.ts';

/** A server with a turn that runs, and how that turn ends. */
async function serverAtWork(t: TestContext): Promise<{ server: RunningServer; turn: Promise<Reply> }> {
  const server = await startServer(t);
  const turn = server.chat({ prompt: 'play slow 3000' });
  await until('the turn to run', async () => ((await (await server.request('/health')).json()) as { running: number }).running === 1 || undefined);
  return { server, turn };
}

/** Whatever starts beside a server on the same folder: it is refused, and the turn of the first goes on. */
async function isRefused(t: TestContext, env: Readonly<Record<string, string>> = {}, wrapper: readonly string[] = []): Promise<void> {
  const { server, turn } = await serverAtWork(t);
  const folder = join(server.home, 'elsewhere');
  await mkdir(folder);
  const second = new RunningServer(server.home, env, wrapper.map((word) => word.replaceAll('HOME', server.home)));
  assert.equal(await second.ended(), 1, second.stderr);
  assert.equal(second.stderr, 'claude-api: another claude-api runs with this CLAUDE_STATE_DIR: stop it, or give this one another\n');
  assert.equal((await turn).body['content'], 'after 3000');
  // Whoever can open it can hold it.
  assert.equal((await stat(join(server.home, 'state/lock'))).mode & 0o777, 0o600);
}

const unshares = needsToRun(['unshare', '--mount', '--net', 'true'], 'root, unshare', 'namespaces of their own for two servers');

test('a second server on the same state folder does not start, and harms nothing', (t) => isRefused(t));

test('nor does one in another network namespace, as in another container', { skip: unshares }, (t) => isRefused(t, {}, ['unshare', '--net']));

test('nor does one that knows the folder by another mount', { skip: unshares }, (t) => {
  return isRefused(t, {}, ['unshare', '--mount', 'sh', '-c', 'mount --bind HOME/state HOME/elsewhere && CLAUDE_STATE_DIR=HOME/elsewhere exec "$@"', 'sh']);
});

test('nor does one of another user', { skip: needs(['root', 'setpriv', 'unshare'], 'a second user') }, async (t) => {
  const home = await makeSandboxedHome(t);
  const server = await startServer(t, {}, home, [asUserScript]);
  const second = new RunningServer(home, {});
  assert.equal(await second.ended(), 1);
  assert.match(second.stderr, /another claude-api runs with this CLAUDE_STATE_DIR/);
  assert.equal(await server.end(), 0);
});

test('the lock is one that every program of the machine sees, whatever its Node', async (t) => {
  const server = await startServer(t);
  const lock = (): number | null => spawnSync('flock', ['-n', join(server.home, 'state/lock'), 'true'], { timeout: 10_000 }).status;
  assert.equal(lock(), 1);
  assert.equal(await server.end(), 0);
  assert.equal(lock(), 0);
});

test('after SIGKILL the next server takes the folder at once', { skip: needs(['setpriv'], 'ends the CLI of a killed server') }, async (t) => {
  const { server, turn } = await serverAtWork(t);
  turn.catch(() => {});
  await server.end('SIGKILL');
  const next = await startServer(t, {}, server.home);
  assert.equal((await next.chat({ prompt: 'hello' })).body['content'], 'you said: hello');
});

test('a machine without flock is told which package has it', async (t) => {
  const home = await makeHome(t);
  await mkdir(join(home, 'bin'));
  await symlink(findProgram('setpriv') ?? '/', join(home, 'bin/setpriv'));
  const server = new RunningServer(home, { PATH: join(home, 'bin') });
  assert.equal(await server.ended(), 1);
  assert.match(server.stderr, /^claude-api: flock is not on PATH, [^\n]* install the package util-linux\n$/);
});
