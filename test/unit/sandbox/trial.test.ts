import assert from 'node:assert/strict';
import childProcess from 'node:child_process';
import { EventEmitter } from 'node:events';
import { fstatSync, openSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { test } from 'node:test';
import { explain, trySandbox, type Trial } from '../../../src/sandbox/trial.ts';

// What bubblewrap 0.6.1 to 0.12 and prlimit were seen to say where something of the machine is missing.
const table: ReadonlyArray<readonly [stderr: string, reason: RegExp, isLasting?: boolean]> = [
  ['bwrap: No permissions to create new namespace, likely because the kernel does not allow non-privileged user namespaces.', /user namespaces are off/],
  ['bwrap: No permissions to creating new namespace, likely because the kernel does not allow non-privileged user namespaces.', /user namespaces are off/],
  ['bwrap: Creating new namespace failed: Operation not permitted', /user namespaces are off/],
  ['bwrap: Creating new namespace failed: No space left on device', /user\.max_user_namespaces/],
  ['bwrap: Creating new namespace failed: Resource temporarily unavailable', /no room/, false],
  ['bwrap: Creating new namespace failed: nesting depth or /proc/sys/user/max_*_namespaces exceeded (ENOSPC)', /user\.max_user_namespaces/],
  ["bwrap: Can't mkdir parents for /etc/passwd: No space left on device", /no room/, false],
  ["bwrap: Can't open /proc/self/ns/user: Too many open files", /no room/, false],
  ['bwrap: setting up uid map: Permission denied', /AppArmor/],
  ['bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted', /AppArmor/],
  ['bwrap: loopback: Failed to create NETLINK_ROUTE socket: Address family not supported by protocol', /AF_NETLINK/],
  ["bwrap: Can't read /proc/sys/kernel/overflowuid: No such file or directory", /ProcSubset=pid/],
  ["bwrap: Can't mount proc on /newroot/proc: Operation not permitted", /ProtectKernelTunables=/],
  ["bwrap: Can't mount proc on /proc: Operation not permitted", /systempaths=unconfined/],
  ['bwrap: Failed to make / slave: Operation not permitted', /SystemCallFilter=/],
  ['bwrap: pivot_root: Operation not permitted', /SystemCallFilter=/],
  ...['Failed to make / slave', 'pivot_root', 'Failed to mount tmpfs', 'capset failed'].map((what) => [`bwrap: ${what}: Permission denied`, /SystemCallFilter=/] as const),
  ["bwrap: Can't open source /usr: Function not implemented", /RestrictSUIDSGID=/],
  ["bwrap: Can't find source path /srv/state/sandbox/passwd: No such file or directory", /missing or cannot be read/],
  ["bwrap: Can't find source path /root/claude: Permission denied", /missing or cannot be read/],
  ["bwrap: Can't open source path /srv/state: Permission denied", /missing or cannot be read/],
  ['bwrap: execvp /usr/bin/prlimit: No such file or directory', /util-linux/],
  ['prlimit: failed to execute /opt/bin/claude: No such file or directory', /CLAUDE_BINARY_PATH/],
  ['prlimit: failed to execute /opt/bin/claude: Exec format error', /CLAUDE_BINARY_PATH/],
  ['bwrap: Unknown option --json-status-fd', /0\.6\.1/],
  ['bwrap: prctl(PR_SET_SECCOMP): Invalid argument', /seccomp/],
  ['bwrap: Something new about /srv/secret/place', /^bubblewrap fails: bwrap: Something new about <path>$/],
  ['TypeError: undefined is not a function', /does not answer/],
  ['', /does not answer/],
];

test('what bubblewrap says becomes a sentence that says what to do, without a path of the machine', () => {
  for (const [stderr, expected, isLasting = true] of table) {
    const trial = explain(`${stderr}\n`);
    assert.ok(!trial.works);
    assert.match(trial.reason, expected, stderr);
    assert.equal(trial.isLasting, isLasting, stderr);
    assert.doesNotMatch(trial.reason, /srv|root\//, stderr);
  }
});

test('each reason has a row among the cures in docs/operations.md', async () => {
  const text = await readFile(new URL('../../../docs/operations.md', import.meta.url), 'utf8');
  const named = [...text.matchAll(/^\| … (.+?) \|/gm)].flatMap(([, cell = '']) => [...cell.matchAll(/`(.+?)`/g)].map(([, words = '']) => words));
  for (const [stderr] of table) {
    const trial = explain(stderr);
    assert.ok(!trial.works && named.some((words) => trial.reason.includes(words)), trial.works ? '' : trial.reason);
  }
});

test('the line that counts is bubblewrap\'s, whatever the loader says before it', () => {
  const trial = explain('ERROR: ld.so: object x cannot be preloaded: ignored.\nbwrap: setting up uid map: Permission denied\n');
  assert.match(trial.works ? '' : trial.reason, /AppArmor/);
});

/** What a trial says of a shell script in the place of bubblewrap. */
async function tried(script: string, timeoutMs = 20_000, command = '/bin/sh'): Promise<Trial> {
  const filter = openSync('/dev/null', 'r');
  const trial = await trySandbox({ command, args: ['-c', script], env: {}, filter }, timeoutMs);
  assert.throws(() => fstatSync(filter), { code: 'EBADF' }, 'the filter is closed');
  return trial;
}
const works = async (script: string): Promise<string | false> => {
  const trial = await tried(script);
  return trial.works && trial.version;
};

test('it works where the program ends well and begins with a version', async () => {
  assert.equal(await works('printf 12.; printf "34.56 (Claude Code)"'), '12.34.56');
  for (const script of ['echo 2.1.331; exit 1', 'echo v2.1.331', 'echo 2x1.331', 'echo 2.1', 'exit 0']) assert.equal(await works(script), false, script);
  assert.deepEqual(await tried('echo "bwrap: Unknown option" >&2; exit 1'), explain('bwrap: Unknown option'));
  // Nobody's last words have so many bytes.
  assert.deepEqual(await tried('head -c 1000000 /dev/zero | tr "\\0" "\\n" >&2; echo "bwrap: Unknown option" >&2; exit 1'), explain(''));
});

test('what takes too long is ended with all it started, and need not last', async () => {
  assert.deepEqual(await tried('sleep 100; true', 300), { works: false, reason: 'the trial took more than 0.3 s.', isLasting: false });
});

test('a bubblewrap that is not there, or cannot be started, is told; a shortage need not last', async (t) => {
  assert.deepEqual(await tried('', 20_000, '/nowhere/bwrap'), { works: false, reason: 'bubblewrap is not installed (apt install bubblewrap).', isLasting: true });
  for (const [code, isLasting] of [['EAGAIN', false], ['ENOMEM', false], ['EMFILE', false], ['ENFILE', false], ['EACCES', true]] as const) {
    const child = new EventEmitter();
    t.mock.method(childProcess, 'spawn', () => (setImmediate(() => child.emit('error', Object.assign(new Error('x'), { code }))), child));
    syncBuiltinESMExports();
    const trial = await tried('').finally(() => (t.mock.restoreAll(), syncBuiltinESMExports()));
    assert.deepEqual(trial, { works: false, reason: `bubblewrap cannot be started (${code}).`, isLasting });
  }
});
