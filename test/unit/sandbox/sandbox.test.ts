import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { hasProgramRun, inside, openFilter, rootOptions, sandboxArgv, walkArgv, writeOwnFiles } from '../../../src/sandbox/sandbox.ts';

const machine = { bwrap: '/usr/bin/bwrap', claude: '/h/claude', node: '/h/node', ownFiles: '/s/sandbox', root: ['--ro-bind', '/usr', '/usr'] };
const folders = { home: '/s/users/1/home', work: '/s/users/1/work', tmp: '/s/users/1/tmp', api: '/r/1', inbox: '/s/users/1/turns/1/in', outbox: '/s/users/1/turns/1/out' };
const argv = sandboxArgv(machine, folders, [inside.claude, '--version']);
const options = argv.slice(0, argv.indexOf('--'));

/** How many values each option takes that bubblewrap 0.6.1 knows, of those used (its bwrap(1)). */
const known: Readonly<Record<string, number>> = {
  '--unshare-user': 0, '--unshare-pid': 0, '--unshare-ipc': 0, '--unshare-net': 0, '--die-with-parent': 0, '--new-session': 0, '--cap-drop': 1, '--seccomp': 1,
  '--json-status-fd': 1, '--ro-bind': 2, '--ro-bind-try': 2, '--bind': 2, '--symlink': 2, '--proc': 1, '--dev': 1, '--remount-ro': 1, '--chdir': 1,
};

function parsed(words: readonly string[]): string[][] {
  const calls: string[][] = [];
  for (let at = 0; at < words.length; at += 1 + (known[words[at] ?? ''] ?? 0)) {
    const name = words[at] ?? '';
    assert.ok(name in known, `bubblewrap 0.6.1 does not know ${name}`);
    calls.push(words.slice(at, at + 1 + (known[name] ?? 0)));
  }
  return calls;
}

test('only options that bubblewrap 0.6.1 has are used, each with its values', () => {
  assert.ok(parsed(options).length > 30);
  assert.doesNotThrow(() => parsed(rootOptions()));
});

test('what can be written inside are the folders of this process, and nothing else of the machine', () => {
  const writable = parsed(options).filter(([name]) => name === '--bind').map((call) => call.slice(1));
  assert.deepEqual(writable, [
    [folders.tmp, '/tmp'], [folders.tmp, '/var/tmp'], [folders.tmp, '/dev/shm'], [folders.home, '/home/claude'], [folders.work, '/work'], [folders.outbox, '/outbox'],
  ]);
});

test('a program that walks one folder can write there alone, and sees no other', () => {
  const words = walkArgv(machine, '/s/users/1', ['/usr/bin/du', '/user']);
  const calls = parsed(words.slice(0, words.indexOf('--')));
  assert.deepEqual(calls.filter(([name]) => name === '--bind'), [['--bind', '/s/users/1', '/user']]);
  assert.deepEqual(calls.filter(([name]) => name === '--dev'), [['--dev', '/dev']]);
  assert.deepEqual([calls.at(-1), words.slice(words.indexOf('--'))], [['--remount-ro', '/'], ['--', '/usr/bin/du', '/user']]);
  for (const wall of ['--unshare-user', '--unshare-pid', '--unshare-ipc', '--unshare-net', '--die-with-parent', '--new-session']) assert.ok(words.includes(wall), wall);
});

test('folders a process does not have are not bound', () => {
  const { home, work, tmp } = folders;
  const words = sandboxArgv(machine, { home, work, tmp }, ['/bin/true']);
  for (const path of ['/run/api', '/inbox', '/outbox']) assert.ok(!words.includes(path), path);
});

test('/ and /dev become read-only after the last thing is put into them', () => {
  const calls = parsed(options);
  const last = calls.findLastIndex(([name]) => name === '--bind' || name === '--ro-bind' || name === '--symlink');
  assert.deepEqual(calls.slice(last + 1), [['--remount-ro', '/dev'], ['--remount-ro', '/'], ['--chdir', '/work']]);
});

test('the program comes last, behind limits that count inside', () => {
  assert.deepEqual(argv.slice(argv.indexOf('--')), ['--', '/usr/bin/prlimit', '--nproc=300:300', '--fsize=2147483648:2147483648', '--core=0:0', '/opt/bin/claude', '--version']);
});

test('own accounts and host names, and a filter that each spawn reads from its beginning', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'claude-api-test-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const ownFiles = join(folder, 'sandbox');
  assert.equal(writeOwnFiles(ownFiles, 1234, 5678), true);
  assert.equal(writeOwnFiles(ownFiles, 1234, 5678), true, 'again, over those of an earlier start');
  assert.match(readFileSync(join(ownFiles, 'passwd'), 'utf8'), /^claude:x:1234:5678::\/home\/claude:\/bin\/bash$/m);
  assert.match(readFileSync(join(ownFiles, 'group'), 'utf8'), /^claude:x:5678:$/m);
  assert.match(readFileSync(join(ownFiles, 'hosts'), 'utf8'), /^127\.0\.0\.1 localhost$/m);
  assert.equal(statSync(ownFiles).mode & 0o777, 0o700);
  const first = openFilter({ ownFiles });
  const second = openFilter({ ownFiles });
  assert.ok(readFileSync(first).length > 0);
  assert.deepEqual(readFileSync(second), readFileSync(join(ownFiles, 'seccomp')));
});

test('on an architecture without a filter nothing is written', () => {
  assert.equal(writeOwnFiles('/nowhere', 1, 1, 'riscv64'), false);
});

test('what bubblewrap says of itself: nothing, a first process, a program that ended', () => {
  const begun = '{\n    "child-pid": 4711,\n    "cgroup-namespace": 4026531835\n }\n';
  assert.deepEqual(['', `${begun}{ "exit-c`, begun, `${begun}{ "exit-code": 137 }\n`].map(hasProgramRun), [false, false, false, true]);
});

test('what whoever started the server left open is closed, but for the channel of a parent that is Node', () => {
  const script = `import { readlinkSync } from 'node:fs';
    import { closeInheritedDescriptors } from ${JSON.stringify(new URL('../../../src/sandbox/sandbox.ts', import.meta.url))};
    const leadsOut = (fd) => { try { return readlinkSync('/proc/self/fd/' + fd) === '/'; } catch { return false; } };
    const before = [40, 41].map(leadsOut);
    closeInheritedDescriptors(41);
    console.log(JSON.stringify([before, [40, 41].map(leadsOut)]));`;
  const node = [process.execPath, '--import', import.meta.resolve('tsx'), '--input-type=module', '-e', script];
  // Node itself sees to the low numbers.
  const { stdout } = spawnSync('bash', ['-c', 'exec "$0" "$@" 40</ 41</', ...node], { encoding: 'utf8', timeout: 30_000 });
  assert.deepEqual(JSON.parse(stdout), [[true, true], [false, true]]);
});
