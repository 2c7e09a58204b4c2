import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { openMemory } from '../../../src/host/memory.ts';

const mib = 1024 * 1024;
const v2Mount = '30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate';

/** A machine of files: `/proc` and the folders of control groups, as the kernel would show them. */
function machine(t: TestContext, files: Readonly<Record<string, string>>): string {
  const root = mkdtempSync(join(tmpdir(), 'claude-api-memory-'));
  t.after(() => rmSync(root, { recursive: true }));
  const always = { 'proc/meminfo': 'MemTotal:        4194304 kB\nMemFree:          100 kB\nMemAvailable:    3145728 kB\nSwapFree:  8388608 kB\n' };
  for (const [name, text] of Object.entries({ ...always, ...files })) put(root, name, text);
  return root;
}

function put(root: string, name: string, text: string): void {
  mkdirSync(dirname(join(root, name)), { recursive: true });
  writeFileSync(join(root, name), text);
}

function groupV2(folder: string, max: string, currentMib: number, cacheMib = 0): Record<string, string> {
  const stat = `anon 5\nfile 9\nfile_mapped 7\ninactive_anon 3\nactive_anon 3\ninactive_file ${(cacheMib / 2) * mib}\nactive_file ${(cacheMib / 4) * mib}\nslab_reclaimable ${(cacheMib / 4) * mib}\nslab_unreclaimable 11\n`;
  return { [`${folder}/memory.max`]: `${max}\n`, [`${folder}/memory.high`]: 'max\n', [`${folder}/memory.current`]: `${currentMib * mib}\n`, [`${folder}/memory.stat`]: stat };
}

function groupV1(folder: string, limit: number | string, usageMib: number, cacheMib = 0, swapLimit: number | string = '9223372036854771712', withSwapMib = usageMib): Record<string, string> {
  return {
    [`${folder}/memory.limit_in_bytes`]: `${limit}\n`,
    [`${folder}/memory.usage_in_bytes`]: `${usageMib * mib}\n`,
    [`${folder}/memory.memsw.limit_in_bytes`]: `${swapLimit}\n`,
    [`${folder}/memory.memsw.usage_in_bytes`]: `${withSwapMib * mib}\n`,
    [`${folder}/memory.stat`]: `cache 7\ninactive_file 1\nactive_file 1\ntotal_inactive_file ${(cacheMib / 2) * mib}\ntotal_active_file ${(cacheMib / 2) * mib}\n`,
  };
}

/** What is left and what there is in all, in MiB. */
function figures(root: string): { left: number; total: number } {
  const memory = openMemory(root);
  return { left: memory.leftBytes() / mib, total: memory.totalBytes() / mib };
}

test('without any limit there is what the machine has available; swap is no room', (t) => {
  assert.deepEqual(figures(machine(t, {})), { left: 3072, total: 4096 });
});

test("a unit's MemoryMax limits, and what its group only caches is left", (t) => {
  const unit = { 'proc/self/cgroup': '0::/system.slice/claude-api.service\n', 'proc/self/mountinfo': `${v2Mount}\n` };
  const groups = { ...groupV2('sys/fs/cgroup/system.slice', 'max', 900), ...groupV2('sys/fs/cgroup/system.slice/claude-api.service', String(850 * mib), 500, 100) };
  assert.deepEqual(figures(machine(t, { ...unit, ...groups })), { left: 450, total: 850 });
});

test('the limit of a parent counts, with all that its other children use', (t) => {
  const unit = { 'proc/self/cgroup': '0::/a/b/c\n', 'proc/self/mountinfo': `${v2Mount}\n` };
  const groups = { ...groupV2('sys/fs/cgroup/a', String(1000 * mib), 950), ...groupV2('sys/fs/cgroup/a/b', 'max', 300), ...groupV2('sys/fs/cgroup/a/b/c', String(600 * mib), 200) };
  assert.deepEqual(figures(machine(t, { ...unit, ...groups })), { left: 50, total: 600 });
});

test('memory.high is a limit too, from which on the kernel makes everything slow', (t) => {
  const unit = { 'proc/self/cgroup': '0::/a\n', 'proc/self/mountinfo': `${v2Mount}\n` };
  const groups = { ...groupV2('sys/fs/cgroup/a', String(1000 * mib), 100), 'sys/fs/cgroup/a/memory.high': `${700 * mib}\n` };
  assert.deepEqual(figures(machine(t, { ...unit, ...groups })), { left: 600, total: 700 });
});

test('a machine with less available than its limits leave has just that; none is never below zero', (t) => {
  const unit = { 'proc/self/cgroup': '0::/a\n', 'proc/self/mountinfo': `${v2Mount}\n` };
  assert.equal(figures(machine(t, { ...unit, ...groupV2('sys/fs/cgroup/a', String(8000 * mib), 10) })).left, 3072);
  assert.equal(figures(machine(t, { ...unit, ...groupV2('sys/fs/cgroup/a', String(100 * mib), 110) })).left, 0);
});

test('a limit that changes is the one that counts from then on, and a group that goes limits no longer', (t) => {
  const root = machine(t, { 'proc/self/cgroup': '0::/a\n', 'proc/self/mountinfo': `${v2Mount}\n`, ...groupV2('sys/fs/cgroup/a', 'max', 10) });
  const memory = openMemory(root);
  assert.equal(memory.leftBytes() / mib, 3072);
  put(root, 'sys/fs/cgroup/a/memory.max', `${110 * mib}\n`);
  assert.equal(memory.leftBytes() / mib, 100);
  rmSync(join(root, 'sys'), { recursive: true });
  assert.equal(memory.leftBytes() / mib, 3072);
});

test('in a container of version 2 the group is the root of what it sees', (t) => {
  const container = { 'proc/self/cgroup': '0::/\n', 'proc/self/mountinfo': `${v2Mount}\n`, ...groupV2('sys/fs/cgroup', String(512 * mib), 100, 20) };
  assert.deepEqual(figures(machine(t, container)), { left: 432, total: 512 });
  // Moved there from outside of what it sees.
  assert.deepEqual(figures(machine(t, { ...container, 'proc/self/cgroup': '0::/../other\n' })), { left: 432, total: 512 });
});

test("in a container of version 1 the group's path is the machine's, and the mount begins at the group", (t) => {
  const container = { 'proc/self/cgroup': '5:cpu,cpuacct:/docker/f00\n4:memory:/docker/f00\n0::/\n', 'proc/self/mountinfo': '35 31 0:32 /docker/f00 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n' };
  assert.deepEqual(figures(machine(t, { ...container, ...groupV1('sys/fs/cgroup/memory', 512 * mib, 100, 20) })), { left: 432, total: 512 });
});

test('version 1: each parent counts, no limit is a number near 2^63, and swap without room beside memory limits too', (t) => {
  const host = { 'proc/self/cgroup': '4:memory:/a/b\n', 'proc/self/mountinfo': '35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n' };
  const parents = { ...groupV1('sys/fs/cgroup/memory', '9223372036854771712', 2000), ...groupV1('sys/fs/cgroup/memory/a', 1000 * mib, 300) };
  assert.deepEqual(figures(machine(t, { ...host, ...parents, ...groupV1('sys/fs/cgroup/memory/a/b', '9223372036854771712', 100) })), { left: 700, total: 1000 });
  const swapping = groupV1('sys/fs/cgroup/memory/a/b', 600 * mib, 200, 0, 600 * mib, 350);
  assert.deepEqual(figures(machine(t, { ...host, ...parents, ...swapping })), { left: 250, total: 600 });
});

test('on a machine with both versions the one that has the memory controller counts', (t) => {
  const both = {
    'proc/self/cgroup': '9:name=systemd:/x\n4:memory:/claude\n1:cpu:/\n0::/x\n',
    'proc/self/mountinfo': `35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n`,
    'sys/fs/cgroup/unified/x/cgroup.procs': '',
  };
  assert.deepEqual(figures(machine(t, { ...both, ...groupV1('sys/fs/cgroup/memory/claude', 800 * mib, 300) })), { left: 500, total: 800 });
});

test('a mount point with a blank in its name is found', (t) => {
  const files = { 'proc/self/cgroup': '0::/a:b\n', 'proc/self/mountinfo': '30 23 0:26 / /sys/my\\040groups rw - cgroup2 cgroup2 rw\n' };
  assert.equal(figures(machine(t, { ...files, ...groupV2('sys/my groups/a:b', String(300 * mib), 100) })).left, 200);
});

test('on this machine, whatever it is, there is some memory and not more than there is', () => {
  const memory = openMemory();
  assert.ok(memory.leftBytes() > 0 && memory.leftBytes() <= memory.totalBytes(), `${memory.leftBytes()} of ${memory.totalBytes()}`);
});
