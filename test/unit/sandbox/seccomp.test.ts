import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seccompFilter } from '../../../src/sandbox/seccomp.ts';

const auditArch = { x64: 0xc000003e, arm64: 0xc00000b7 };
type Arch = keyof typeof auditArch;

/** What the kernel would do with this call: the program is played as classic BPF (linux/filter.h). */
function outcome(arch: Arch, nr: number, args: readonly bigint[] = [], callArch = auditArch[arch]): string {
  const program = seccompFilter(arch) ?? assert.fail('there is a filter');
  const call = Buffer.alloc(64); // struct seccomp_data
  call.writeUInt32LE(nr, 0);
  call.writeUInt32LE(callArch, 4);
  for (const [i, value] of args.entries()) call.writeBigUInt64LE(value, 16 + i * 8);
  let accumulator = 0;
  for (let at = 0; at * 8 < program.length; at += 1) {
    const code = program.readUInt16LE(at * 8);
    const [jumpIfTrue, jumpIfFalse] = [program.readUInt8(at * 8 + 2), program.readUInt8(at * 8 + 3)];
    const value = program.readUInt32LE(at * 8 + 4);
    if (code === 0x06) return answers.get(value) ?? `0x${value.toString(16)}`;
    if (code === 0x20) accumulator = call.readUInt32LE(value);
    else if (code === 0x15) at += accumulator === value ? jumpIfTrue : jumpIfFalse;
    else if (code === 0x35) at += accumulator >= value ? jumpIfTrue : jumpIfFalse;
    else if (code === 0x45) at += (accumulator & value) !== 0 ? jumpIfTrue : jumpIfFalse;
    else assert.fail(`an instruction that is not known: ${code}`);
  }
  return assert.fail('the program runs out of itself');
}

const answers = new Map([
  [0x7fff0000, 'allowed'],
  [0x80000000, 'killed'],
  [0x00050001, 'EPERM'],
  [0x00050026, 'ENOSYS'],
]);

// Written down from the headers of linux-libc-dev on each architecture, apart from the table in the source.
const calls: ReadonlyArray<readonly [name: string, x64: number, arm64: number, expected: string, args?: readonly bigint[]]> = [
  ['read', 0, 63, 'allowed'],
  ['write', 1, 64, 'allowed'],
  ['mmap', 9, 222, 'allowed'],
  ['openat', 257, 56, 'allowed'],
  ['socket', 41, 198, 'allowed'],
  ['connect', 42, 203, 'allowed'],
  ['execve', 59, 221, 'allowed'],
  ['futex', 202, 98, 'allowed'],
  ['kill', 62, 129, 'allowed'],
  ['wait4', 61, 260, 'allowed'],
  ['seccomp', 317, 277, 'allowed'],
  ['prctl', 157, 167, 'allowed'],
  ['prlimit64', 302, 261, 'allowed'],
  ['memfd_create', 319, 279, 'allowed'],
  ['pidfd_open', 434, 434, 'allowed'],
  ['landlock_create_ruleset', 444, 444, 'allowed'],
  ['ptrace', 101, 117, 'EPERM'],
  ['process_vm_readv', 310, 270, 'EPERM'],
  ['process_vm_writev', 311, 271, 'EPERM'],
  ['process_madvise', 440, 440, 'EPERM'],
  ['pidfd_getfd', 438, 438, 'EPERM'],
  ['kcmp', 312, 272, 'EPERM'],
  ['add_key', 248, 217, 'EPERM'],
  ['request_key', 249, 218, 'EPERM'],
  ['keyctl', 250, 219, 'EPERM'],
  ['bpf', 321, 280, 'EPERM'],
  ['perf_event_open', 298, 241, 'EPERM'],
  ['userfaultfd', 323, 282, 'EPERM'],
  ['io_uring_setup', 425, 425, 'EPERM'],
  ['io_uring_enter', 426, 426, 'EPERM'],
  ['io_uring_register', 427, 427, 'EPERM'],
  ['mount', 165, 40, 'EPERM'],
  ['umount2', 166, 39, 'EPERM'],
  ['pivot_root', 155, 41, 'EPERM'],
  ['setns', 308, 268, 'EPERM'],
  ['open_tree', 428, 428, 'EPERM'],
  ['move_mount', 429, 429, 'EPERM'],
  ['fsopen', 430, 430, 'EPERM'],
  ['fsconfig', 431, 431, 'EPERM'],
  ['fsmount', 432, 432, 'EPERM'],
  ['fspick', 433, 433, 'EPERM'],
  ['mount_setattr', 442, 442, 'EPERM'],
  ['open_by_handle_at', 304, 265, 'EPERM'],
  ['quotactl', 179, 60, 'EPERM'],
  ['quotactl_fd', 443, 443, 'EPERM'],
  ['vmsplice', 278, 75, 'EPERM'],
  ['syslog', 103, 116, 'EPERM'],
  ['kexec_load', 246, 104, 'EPERM'],
  ['kexec_file_load', 320, 294, 'EPERM'],
  ['init_module', 175, 105, 'EPERM'],
  ['finit_module', 313, 273, 'EPERM'],
  ['delete_module', 176, 106, 'EPERM'],
  ['clone3, whatever it asks for', 435, 435, 'ENOSYS', [0n, 88n]],
  ['clone, a thread', 56, 220, 'allowed', [0x3d0f00n]],
  ['clone, a child in a user namespace', 56, 220, 'EPERM', [0x10000011n]],
  ['clone, a child in a user and a mount namespace', 56, 220, 'EPERM', [0x10020011n]],
  ['clone, with bits above the flags', 56, 220, 'EPERM', [0xffffffff_10000011n]],
  ['unshare, files', 272, 97, 'allowed', [0x400n]],
  ['unshare, a user namespace', 272, 97, 'EPERM', [0x10000000n]],
  ['ioctl, size of the window', 16, 29, 'allowed', [0n, 0x5413n]],
  ['ioctl, TIOCSTI', 16, 29, 'EPERM', [0n, 0x5412n]],
  ['ioctl, TIOCSTI with bits above', 16, 29, 'EPERM', [0n, 0xffffffff_00005412n]],
  ['ioctl, TIOCLINUX', 16, 29, 'EPERM', [0n, 0x541cn]],
];

test('each call is allowed or refused on both architectures as the table says', () => {
  for (const [name, x64, arm64, expected, args] of calls) {
    assert.equal(outcome('x64', x64, args), expected, `x64: ${name}`);
    assert.equal(outcome('arm64', arm64, args), expected, `arm64: ${name}`);
  }
});

test('no other call is refused: a number that none of the table has passes', () => {
  for (const [arch, column] of [['x64', 1], ['arm64', 2]] as const) {
    const known = new Set(calls.map((call) => call[column]));
    for (let nr = 0; nr < 600; nr += 1) if (!known.has(nr)) assert.equal(outcome(arch, nr), 'allowed', `${arch}: ${nr}`);
  }
});

test('a call of another architecture ends the process, and x32 does not exist', () => {
  assert.equal(outcome('x64', 0, [], 0x40000003), 'killed', 'i386 on x64');
  assert.equal(outcome('arm64', 0, [], 0x40000028), 'killed', 'arm on arm64');
  assert.equal(outcome('arm64', 63, [], auditArch.x64), 'killed');
  assert.equal(outcome('x64', 0x40000000), 'ENOSYS');
  assert.equal(outcome('x64', 0x40000000 + 101), 'ENOSYS');
  assert.equal(outcome('x64', 0xffffffff), 'ENOSYS');
});

test('where the numbers are not known there is no filter', () => {
  assert.equal(seccompFilter('riscv64'), undefined);
});
