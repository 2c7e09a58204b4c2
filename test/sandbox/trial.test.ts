import assert from 'node:assert/strict';
import { chmod, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { endMarked, markerName } from '../../src/cli/strays.ts';
import { openFilter, sandboxArgv } from '../../src/sandbox/sandbox.ts';
import { trialProgram, trySandbox, type Trial } from '../../src/sandbox/trial.ts';
import { testWithRealClis } from '../running-server.ts';
import { asOrdinaryUser, insideEnv, makeSandboxedUsers, noSandbox, testSandboxed, unlike, type SandboxedUsers } from '../sandboxed.ts';

function attempt(users: SandboxedUsers, changes: { bwrap?: string; claude?: string; timeoutMs?: number; before?: readonly string[] } = {}): Promise<Trial> {
  const machine = { ...users.machine, ...(changes.claude !== undefined && { claude: changes.claude }) };
  const { home, work, tmp } = users.folders(1);
  const argv = sandboxArgv(machine, { home, work, tmp }, trialProgram);
  const [command, ...args] = asOrdinaryUser(...(changes.before ?? []), changes.bwrap ?? machine.bwrap, ...argv);
  const env = { ...insideEnv, [markerName]: `${users.markerPrefix}0.` };
  return trySandbox({ command, args, env, filter: openFilter(machine) }, changes.timeoutMs ?? 20_000);
}

/** In front of a command: runs this first, in a shell that becomes the command. */
const shell = (script: string): string[] => ['bash', '-c', `set -e; ${script}; exec "$@"`, 'bash'];
const namespaced = (script: string): string[] => ['unshare', '--user', '--map-root-user', '--mount', '--', ...shell(script)];

async function program(t: TestContext, users: SandboxedUsers, text: string): Promise<string> {
  const path = join(users.stateDir, '../programs/odd-claude');
  await writeFile(path, text);
  await chmod(path, 0o755);
  t.after(() => rm(path, { force: true }));
  return path;
}

testSandboxed('the trial says that the sandbox works, and which CLI answers in it', async (t) => {
  const trial = await attempt(await makeSandboxedUsers(t));
  assert.ok(trial.works, JSON.stringify(trial));
  assert.match(trial.version, /^\d+\.\d+\.\d+$/);
  assert.ok(trial.durationMs > 5 && trial.durationMs < 20_000);
});

if (noSandbox === false) testWithRealClis('the real CLI answers in the trial', async (t, binary, version) => {
  const trial = await attempt(await makeSandboxedUsers(t, binary));
  assert.ok(trial.works, JSON.stringify(trial));
  assert.ok(version.startsWith(trial.version));
});

testSandboxed('each way in which the sandbox does not work has its reason', async (t) => {
  const users = await makeSandboxedUsers(t);
  const crashing = await program(t, users, '#!/bin/sh\necho oops >&2\nexit 3\n');
  const outside = join(users.stateDir, '../programs/outside');
  await writeFile(outside, `#!${join(users.stateDir, 'interpreter')}\n`, { mode: 0o755 });
  const cases: ReadonlyArray<readonly [Parameters<typeof attempt>[1], RegExp, boolean]> = [
    [{ claude: crashing }, /does not answer with a version/, true],
    [{ claude: outside }, /CLAUDE_BINARY_PATH does not run inside/, true],
    [{ claude: '/nowhere/claude' }, /missing or cannot be read/, true],
    // Made so for this process alone: no process left, no user namespaces, a masked /proc as in a container.
    [{ before: shell('ulimit -u 1') }, /no room/, false],
    [{ before: namespaced('echo 0 >/proc/sys/user/max_user_namespaces') }, /user namespaces are off/, true],
    [{ before: namespaced('mount -t tmpfs tmpfs /proc/sys') }, /parts of \/proc are hidden/, true],
    [{ before: namespaced('mount -t tmpfs tmpfs /proc/bus') }, /parts of \/proc are masked/, true],
  ];
  for (const [changes, expected, isLasting] of cases) {
    const trial = await attempt(users, changes);
    assert.match(trial.works ? 'works' : trial.reason, expected, JSON.stringify(changes));
    assert.equal(!trial.works && trial.isLasting, isLasting);
  }
});

testSandboxed('a bubblewrap that is not there is told from one that fails', async (t) => {
  const users = await makeSandboxedUsers(t);
  const filter = openFilter(users.machine);
  const trial = await trySandbox({ command: '/nowhere/bwrap', args: [], env: insideEnv, filter }, 5000);
  assert.deepEqual(trial, { works: false, reason: 'bubblewrap is not installed (apt install bubblewrap).', isLasting: true });
});

testSandboxed('a trial that takes too long is ended, and does not count as lasting', async (t) => {
  const users = await makeSandboxedUsers(t);
  const claude = await program(t, users, `#!/bin/sh\nexec sleep ${unlike(4)}\n`);
  const trial = await attempt(users, { claude, timeoutMs: 500 });
  assert.deepEqual(trial, { works: false, reason: 'the trial took more than 0.5 s.', isLasting: false });
  assert.equal(await endMarked(users.markerPrefix), 0, 'the kernel ended all of it');
});
