// The system calls that no program in the sandbox needs and that reach the kernel's rarely used corners, other
// processes, or what all sandboxes of one user account share.

/** `AUDIT_ARCH_…` of linux/audit.h and where in the tables below the architecture's numbers stand. */
const architectures = {
  x64: { auditArch: 0xc000003e, column: 0 },
  arm64: { auditArch: 0xc00000b7, column: 1 },
} as const;

/** Numbers on x64 (asm/unistd_64.h) and on arm64 (asm-generic/unistd.h). */
type CallNumbers = readonly [x64: number, arm64: number];

// Each is answered with EPERM.
const refusedCalls: Readonly<Record<string, CallNumbers>> = {
  // Into another process: a tool has the CLI's own account, and could take its pipes and speak in its name.
  ptrace: [101, 117],
  process_vm_readv: [310, 270],
  process_vm_writev: [311, 271],
  process_madvise: [440, 440],
  pidfd_getfd: [438, 438],
  kcmp: [312, 272],
  // The session keyring is the server's, and so common to all users (fact 47).
  add_key: [248, 217],
  request_key: [249, 218],
  keyctl: [250, 219],
  // Mounts and namespaces; unshare and clone are below.
  mount: [165, 40],
  umount2: [166, 39],
  pivot_root: [155, 41],
  setns: [308, 268],
  open_tree: [428, 428],
  move_mount: [429, 429],
  fsopen: [430, 430],
  fsconfig: [431, 431],
  fsmount: [432, 432],
  fspick: [433, 433],
  mount_setattr: [442, 442],
  open_by_handle_at: [304, 265],
  quotactl: [179, 60],
  quotactl_fd: [443, 443],
  // Large and rarely used: much of what was ever found in the kernel was found here.
  bpf: [321, 280],
  perf_event_open: [298, 241],
  userfaultfd: [323, 282],
  io_uring_setup: [425, 425],
  io_uring_enter: [426, 426],
  io_uring_register: [427, 427],
  vmsplice: [278, 75],
  // The machine's own.
  syslog: [103, 116],
  kexec_load: [246, 104],
  kexec_file_load: [320, 294],
  init_module: [175, 105],
  finit_module: [313, 273],
  delete_module: [176, 106],
};

// Refused with one bit of their first argument (clone(2), unshare(2)): a user namespace gives every capability in it.
const namespaceCalls: Readonly<Record<string, CallNumbers>> = { unshare: [272, 97], clone: [56, 220] };
const cloneNewUser = 0x10000000;
// Its flags lie in memory, where a filter cannot look; after ENOSYS the C library takes clone.
const clone3: CallNumbers = [435, 435];
const ioctl: CallNumbers = [16, 29];
// Both put what they are given into a terminal, as if somebody had typed it (ioctl_tty(2)).
const terminalInputs = [0x5412, 0x541c];

const errnoEperm = 1;
const errnoEnosys = 38;

// Where seccomp_data has them (seccomp(2)); of an argument the low half, which both architectures have first.
const offsetOfNumber = 0;
const offsetOfArchitecture = 4;
const offsetOfFirstArgument = 16;
const offsetOfSecondArgument = 24;

/** One instruction of classic BPF; the jumps count the instructions that are left out. */
type Instruction = readonly [code: number, jumpIfTrue: number, jumpIfFalse: number, value: number];

const load = (offset: number): Instruction => [0x20, 0, 0, offset];
const answer = (value: number): Instruction => [0x06, 0, 0, value];
const skipUnlessEqual = (value: number, count: number): Instruction => [0x15, 0, count, value];
const skipUnlessAtLeast = (value: number, count: number): Instruction => [0x35, 0, count, value];
const skipUnlessBits = (value: number, count: number): Instruction => [0x45, 0, count, value];
const allow = answer(0x7fff0000);
const killProcess = answer(0x80000000);
const fail = (errno: number): Instruction => answer(0x00050000 | errno);

/**
 * The program for bubblewrap's `--seccomp`, in bytes: for Node's name of an architecture, or undefined where the numbers
 * are not known. Calls of another architecture end the process, those of x32 do not exist.
 */
export function seccompFilter(arch: string): Buffer | undefined {
  if (arch !== 'x64' && arch !== 'arm64') return undefined;
  const { auditArch, column } = architectures[arch];
  const refuseBits = (calls: CallNumbers): Instruction[] => [
    skipUnlessEqual(calls[column], 4),
    load(offsetOfFirstArgument),
    skipUnlessBits(cloneNewUser, 1),
    fail(errnoEperm),
    allow,
  ];
  return encode([
    load(offsetOfArchitecture),
    [0x15, 1, 0, auditArch],
    killProcess,
    load(offsetOfNumber),
    // x32 has the same calls of x64 once more, from this number on; arm64 has none there.
    skipUnlessAtLeast(0x40000000, 1),
    fail(errnoEnosys),
    skipUnlessEqual(clone3[column], 1),
    fail(errnoEnosys),
    ...Object.values(refusedCalls).flatMap((call) => [skipUnlessEqual(call[column], 1), fail(errnoEperm)]),
    ...Object.values(namespaceCalls).flatMap(refuseBits),
    skipUnlessEqual(ioctl[column], 1 + 2 * terminalInputs.length),
    load(offsetOfSecondArgument),
    ...terminalInputs.flatMap((request) => [skipUnlessEqual(request, 1), fail(errnoEperm)]),
    allow,
  ]);
}

/** As `struct sock_filter` of linux/filter.h; both architectures are little-endian. */
function encode(program: readonly Instruction[]): Buffer {
  const bytes = Buffer.alloc(program.length * 8);
  for (const [i, [code, jumpIfTrue, jumpIfFalse, value]] of program.entries()) {
    bytes.writeUInt16LE(code, i * 8);
    bytes.writeUInt8(jumpIfTrue, i * 8 + 2);
    bytes.writeUInt8(jumpIfFalse, i * 8 + 3);
    bytes.writeUInt32LE(value >>> 0, i * 8 + 4);
  }
  return bytes;
}
