import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { openCgroups, type Cgroups } from '../../../src/host/cgroups.ts';
import { until } from '../../running-server.ts';

const mib = 1024 * 1024;
const service = 'sys/fs/cgroup/system.slice/claude-api.service';

/** A machine of files: what the kernel would show to a service with Delegate=yes, but for what `files` says. */
function machine(t: TestContext, files: Readonly<Record<string, string>> = {}): string {
  const root = mkdtempSync(join(tmpdir(), 'claude-api-cgroups-'));
  t.after(() => rmSync(root, { recursive: true }));
  const usual = {
    'proc/meminfo': 'MemTotal: 1048576 kB\nMemAvailable: 900000 kB\n',
    'proc/self/cgroup': '0::/system.slice/claude-api.service\n',
    'proc/self/mountinfo': '30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n',
    [`${service}/cgroup.controllers`]: 'cpuset cpu io memory pids\n',
    [`${service}/cgroup.kill`]: '',
    [`${service}/cgroup.procs`]: `${process.pid}\n`,
    [`${service}/memory.max`]: `${800 * mib}\n`,
    [`${service}/memory.current`]: '1\n',
  };
  for (const [name, text] of Object.entries({ ...usual, ...files })) {
    mkdirSync(dirname(join(root, name)), { recursive: true });
    writeFileSync(join(root, name), text);
  }
  return root;
}

function opened(root: string): Cgroups {
  const groups = openCgroups(root);
  return 'open' in groups ? groups : assert.fail(groups.refusal);
}

const textsIn = (folder: string): Record<string, string> =>
  Object.fromEntries(readdirSync(folder, { withFileTypes: true }).filter((entry) => entry.isFile()).map(({ name }) => [name, readFileSync(join(folder, name), 'utf8')]));

test('the server has a group of its own, above all users, and below the service controllers are on', (t) => {
  const root = machine(t);
  opened(root);
  assert.deepEqual(textsIn(join(root, service, 'server')), { 'cgroup.procs': String(process.pid), 'cpu.weight': '1000' });
  assert.equal(textsIn(join(root, service))['cgroup.subtree_control'], '+cpu +memory +pids');
});

test('each user has a group, and each process one in it with half of the memory, which the kernel ends as a whole', (t) => {
  const root = machine(t);
  const groups = opened(root);
  groups.open(7, 1);
  assert.equal(readFileSync(join(root, service, 'u7/pids.max'), 'utf8'), '512');
  groups.open(7, 2);
  const user = join(root, service, 'u7');
  assert.deepEqual(textsIn(user), { 'cpu.weight': '50', 'pids.max': '832', 'cgroup.subtree_control': '+cpu +memory' });
  for (const name of ['1', '2']) assert.deepEqual(textsIn(join(user, name)), { 'memory.max': String(400 * mib), 'memory.oom.group': '1' });
});

test('a command enters its group before it is anything else, its arguments as they are', (t) => {
  const root = machine(t);
  const { command, args } = opened(root).open(7, 1).enter('/usr/bin/printf', ['%s,', 'a b', '$HOME', '']);
  assert.equal(execFileSync(command, args, { encoding: 'utf8' }), 'a b,$HOME,,');
  assert.equal(readFileSync(join(root, service, 'u7/1/cgroup.procs'), 'utf8'), '0\n');
});

test('what a process holds is its group’s memory without what the kernel gives back', (t) => {
  const root = machine(t);
  const group = opened(root).open(7, 1);
  assert.equal(group.heldBytes(), 0, 'it has gone');
  const folder = join(root, service, 'u7/1');
  writeFileSync(join(folder, 'memory.current'), `${300 * mib}\n`);
  writeFileSync(join(folder, 'memory.stat'), `anon 9\nfile 9\ninactive_file ${50 * mib}\nactive_file ${30 * mib}\nslab_reclaimable ${20 * mib}\n`);
  assert.equal(group.heldBytes(), 200 * mib);
});

/** Does what the kernel does when a group is removed: its files go with it. */
async function killed(folder: string): Promise<void> {
  await until('a kill', () => (existsSync(join(folder, 'cgroup.kill')) ? true : undefined));
  for (const name of Object.keys(textsIn(folder))) rmSync(join(folder, name));
}

test('a group that is ended is killed and removed once it is empty, and the user’s with the last', async (t) => {
  const root = machine(t);
  const groups = opened(root);
  const user = join(root, service, 'u7');
  const [first, second] = [groups.open(7, 1), groups.open(7, 2)];
  await Promise.all([first.end(), killed(join(user, '1'))]);
  assert.deepEqual(readdirSync(user).sort(), ['2', 'cgroup.subtree_control', 'cpu.weight', 'pids.max']);
  for (const name of Object.keys(textsIn(user))) rmSync(join(user, name));
  await Promise.all([second.end(), killed(join(user, '2'))]);
  assert.equal(existsSync(user), false);
  await first.end();
});

test('what an earlier server left is killed', (t) => {
  const root = machine(t, { [`${service}/u7/1/cgroup.procs`]: '12\n', [`${service}/other/cgroup.procs`]: '13\n' });
  opened(root);
  assert.equal(textsIn(join(root, service, 'u7'))['cgroup.kill'], '1');
  assert.equal(textsIn(join(root, service, 'other'))['cgroup.kill'], undefined);
});

const v1Only = { 'proc/self/cgroup': '4:memory:/x\n', 'proc/self/mountinfo': '30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n' };
const refusals: ReadonlyArray<readonly [what: string, files: Readonly<Record<string, string>>, refusal: RegExp]> = [
  ['only groups of version 1', v1Only, /no control groups of version 2/],
  ['no controllers', { [`${service}/cgroup.controllers`]: 'cpu pids\n' }, /has not: memory$/],
  ['a shell in the same group', { [`${service}/cgroup.procs`]: `${process.pid}\n1\n` }, /others are in its own/],
  ['a group that cannot be written', { [`${service}/server`]: 'a file in the place of a folder' }, /cannot be divided \(EEXIST\): Delegate=yes/],
];
for (const [what, files, refusal] of refusals) {
  test(`with ${what} there is nothing to divide, and nothing is changed`, (t) => {
    const root = machine(t, files);
    const groups = openCgroups(root);
    assert.match('refusal' in groups ? groups.refusal : '', refusal);
    assert.equal(existsSync(join(root, service, 'cgroup.subtree_control')), false);
  });
}

test('where a group cannot be killed as a whole, as before Linux 5.14, there is nothing to divide, and nothing is changed', (t) => {
  const root = machine(t);
  rmSync(join(root, service, 'cgroup.kill'));
  const groups = openCgroups(root);
  assert.match('refusal' in groups ? groups.refusal : '', /has no cgroup\.kill/);
  assert.equal(existsSync(join(root, service, 'cgroup.subtree_control')), false);
});
