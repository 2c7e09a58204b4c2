import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, rmdirSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { endMarked, markerName } from '../../src/cli/strays.ts';
import { openFilter, sandboxArgv } from '../../src/sandbox/sandbox.ts';
import { until, within } from '../running-server.ts';
import { asOrdinaryUser, insideEnv, makeSandboxedUsers, parentOf, runningWith, testSandboxed, unlike } from '../sandboxed.ts';

// Leaves behind what a turn may leave: out of the process group, out of the session, without our marker, deaf.
const leaveBehind = (seconds: string): string =>
  `nohup sleep ${seconds} >/dev/null 2>&1 & setsid -f sleep ${seconds}; setsid -f env -i sleep ${seconds}; ` +
  `(trap "" INT TERM HUP; exec setsid -f env -i sleep ${seconds}); until [ "$(pgrep -c -f "sleep ${seconds}")" -ge 4 ]; do :; done; echo left`;

async function noneRuns(text: string): Promise<void> {
  await until(`no ${text}`, async () => ((await runningWith(text)).length === 0 ? true : undefined));
}

testSandboxed('what a program left running ends with it', async (t) => {
  const users = await makeSandboxedUsers(t);
  const { code, stdout, hasRun } = await users.run(leaveBehind(unlike(11)));
  assert.equal(stdout, 'left\n');
  assert.equal(code, 0);
  assert.ok(hasRun);
  await noneRuns(`sleep ${unlike(11)}`);
});

testSandboxed('SIGKILL of bubblewrap ends everything inside', async (t) => {
  const users = await makeSandboxedUsers(t);
  const inside = users.start(['/bin/bash', '-c', `${leaveBehind(unlike(12))}; sleep ${unlike(12)}`]);
  await until('all to be left', () => (inside.stdout === 'left\n' ? true : undefined));
  process.kill(inside.child.pid ?? 0, 'SIGKILL');
  const { signal, hasRun } = await inside.ended();
  assert.equal(signal, 'SIGKILL');
  assert.equal(hasRun, false);
  await noneRuns(`sleep ${unlike(12)}`);
});

testSandboxed('the end of the server ends everything inside', async (t) => {
  const users = await makeSandboxedUsers(t);
  const argv = sandboxArgv(users.machine, users.folders(1), ['/bin/bash', '-c', `${leaveBehind(unlike(13))}; sleep ${unlike(13)}`]);
  const [command, ...args] = asOrdinaryUser(users.machine.bwrap, ...argv);
  const filter = openFilter(users.machine);
  // A process between the test and bubblewrap: the server that is killed.
  const script = 'require("child_process").spawn(process.argv[1], process.argv.slice(2), { stdio: [0, 1, 2, 3, "pipe"], detached: true }); setInterval(() => {}, 1e3)';
  const server = spawn(process.execPath, ['-e', script, command, ...args], {
    env: { ...insideEnv, [markerName]: `${users.markerPrefix}1.` },
    stdio: ['ignore', 'pipe', 'inherit', filter],
  });
  closeSync(filter);
  await once(server.stdout ?? assert.fail('a pipe'), 'data');
  server.kill('SIGKILL');
  await noneRuns(`sleep ${unlike(13)}`);
});

testSandboxed('a sandbox that is killed while it is made leaves nothing that the sweep does not find', async (t) => {
  const users = await makeSandboxedUsers(t);
  for (let i = 0; i < 30; i += 1) {
    const { child } = users.start(['/bin/sleep', unlike(14)]);
    const exited = once(child, 'exit'); // not its pipes' end: what is left may hold them
    await delay(i); // the moment is the subject
    process.kill(child.pid ?? 0, 'SIGKILL');
    await within('bubblewrap to end', 5000, exited);
  }
  await endMarked(users.markerPrefix);
  await noneRuns(unlike(14));
});

testSandboxed('how the program ended is told: its code, its signal, and that it was never there', async (t) => {
  const users = await makeSandboxedUsers(t);
  const fine = await users.run('exit 7');
  assert.deepEqual([fine.code, fine.signal, fine.hasRun], [7, null, true]);
  const killed = await users.run('kill -KILL $$');
  assert.deepEqual([killed.code, killed.signal, killed.hasRun], [128 + 9, null, true]);
  rmdirSync(users.folders(1).work);
  const none = await users.run('exit 7');
  assert.deepEqual([none.code, none.signal, none.stdout, none.hasRun], [1, null, '', false]);
  assert.match(none.stderr, /^bwrap: Can't find source path/);
  mkdirSync(users.folders(1).work);
  const noProgram = await users.start(['/nowhere']).ended();
  assert.notEqual(noProgram.code, 0);
});

testSandboxed('nobody inside can say in the place of bubblewrap that there was no sandbox', async (t) => {
  const users = await makeSandboxedUsers(t);
  const { code, stderr, hasRun } = await users.run('echo "bwrap: setting up uid map: Permission denied" >&2; exit 1');
  assert.deepEqual([code, hasRun], [1, true]);
  assert.match(stderr, /^bwrap: /);
});

testSandboxed('the program is the child of the process that bubblewrap names', async (t) => {
  const users = await makeSandboxedUsers(t);
  const running = users.start(['/bin/sleep', unlike(15)]);
  const line = await until('the program', async () => (await runningWith(unlike(15))).find((each) => each.startsWith('/bin/sleep')));
  assert.ok(line);
  const pid = Number(execFileSync('pgrep', ['-f', `^/bin/sleep ${unlike(15)}`], { encoding: 'utf8' }));
  assert.equal(parentOf(pid), running.pid);
  assert.equal(parentOf(running.pid), running.child.pid);
});
