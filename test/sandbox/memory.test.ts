import assert from 'node:assert/strict';
import { test } from 'node:test';
import { heldBytes } from '../../src/host/processes.ts';
import { needs } from '../needs.ts';
import { anthropicKey } from '../messages-api.ts';
import { startServer, until } from '../running-server.ts';
import { asUserScript, makeSandboxedHome, makeSandboxedUsers, noSandbox, testSandboxed } from '../sandboxed.ts';

const mib = 1024 * 1024;

testSandboxed('what a program inside has started counts as held by the process outside', async (t) => {
  const users = await makeSandboxedUsers(t);
  const program = users.start(['/bin/bash', '-c', `perl -e '$text = "x" x (100 << 20); $| = 1; print "full"; sleep 60' & wait`]);
  await until('a program that holds 100 MiB', () => (program.stdout === 'full' ? true : undefined));
  const held = heldBytes(program.child.pid ?? 0);
  assert.ok(held >= 100 * mib, `${held / mib} MiB`);
});

// As ProtectProc=invisible of the unit has it.
const hidden = ['unshare', '--mount', 'sh', '-c', 'mount -t proc -o hidepid=2 proc /proc && exec "$@"', 'sh'];

test('where the server sees its own processes alone it counts what its sandboxes hold', { skip: noSandbox || needs(['root'], 'hides processes') }, async (t) => {
  const env = { CLAUDE_SANDBOX: 'required', ANTHROPIC_API_KEY: anthropicKey };
  const server = await startServer(t, env, await makeSandboxedHome(t), [...hidden, asUserScript]);
  await until('a server that is ready', async () => ((await server.request('/health')).status === 200 ? true : undefined), 30_000);
  assert.equal((await server.chat({ prompt: 'hello' })).status, 200);
  const { memory } = (await (await server.request('/health')).json()) as { memory: { held: number } };
  await server.end(); // not by SIGKILL while the spare's sandbox is made: what is half made would live on
  // bubblewrap itself has less than one, the CLI that plays some eight.
  assert.ok(memory.held > 4 * mib, `${memory.held / mib} MiB`);
});
