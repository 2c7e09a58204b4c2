import {
  closeSync, lstatSync, mkdirSync, openSync, readdirSync, readFileSync, readlinkSync, renameSync, writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { seccompFilter } from './seccomp.ts';

/** Where things are inside: the same for every user, so that a dialogue's text never names a folder of the host. */
export const inside = {
  home: '/home/claude',
  work: '/work',
  tmp: '/tmp',
  inbox: '/inbox',
  outbox: '/outbox',
  /** The folder of the API proxy's socket. A bound socket file would be dead after the proxy's next start (fact 49). */
  api: '/run/api',
  claude: '/opt/bin/claude',
  node: '/opt/bin/node',
  path: '/opt/bin:/usr/local/bin:/usr/bin:/bin',
} as const;

/** What of this machine is shown inside, found once at the start. All paths are absolute. */
export interface Machine {
  readonly bwrap: string;
  /** The CLI's program, links resolved: this one file is bound. */
  readonly claude: string;
  /** The server's own Node, for what has `node` in its first line; a folder of Node's need not be in /usr. */
  readonly node: string;
  /** The folder `writeOwnFiles` filled. */
  readonly ownFiles: string;
  /** What `rootOptions` gave. */
  readonly root: readonly string[];
}

/** The folders of one process, on the host. Nobody but the server may write to the folders they lie in. */
export interface Folders {
  readonly home: string;
  readonly work: string;
  readonly tmp: string;
  readonly api?: string;
  readonly inbox?: string;
  readonly outbox?: string;
}

// Not /etc/ssl as a whole: the service user may be in the group that reads its private keys. No resolv.conf: no network.
const systemFiles = [
  'ld.so.cache', 'alternatives', 'nsswitch.conf', 'ssl/certs', 'ssl/openssl.cnf', 'localtime', 'mime.types', 'protocols', 'services',
];

// Threads count as processes. The file size leaves room for transcripts; a crash writes no core.
const limits = ['--nproc=300:300', '--fsize=2147483648:2147483648', '--core=0:0'];

const walls = [
  // Also as an ordinary user's own choice: it is what makes the other namespaces possible without root.
  '--unshare-user', '--unshare-pid', '--unshare-ipc', '--unshare-net',
  '--die-with-parent', '--new-session', '--cap-drop', 'ALL',
];

/** The descriptor of the seccomp filter in the process that becomes bubblewrap. */
export const filterFd = 3;
/** The descriptor on which bubblewrap says how far it came; nothing inside has it. */
export const statusFd = 4;

/**
 * The arguments for `machine.bwrap` that run `program` in a sandbox. To be spawned with the environment it is to have
 * inside (bubblewrap's own can be read there), `openFilter` at `filterFd` and a pipe at `statusFd`. Only options of
 * bubblewrap 0.6.1. Every end user can read these arguments (/proc/1/cmdline): nothing secret may be in them.
 */
export function sandboxArgv(machine: Machine, folders: Folders, program: readonly string[]): string[] {
  return [
    ...walls,
    '--seccomp', String(filterFd), '--json-status-fd', String(statusFd),
    ...machine.root,
    ...systemFiles.flatMap((name) => ['--ro-bind-try', `/etc/${name}`, `/etc/${name}`]),
    ...ownFileNames.flatMap((name) => ['--ro-bind', join(machine.ownFiles, name), `/etc/${name}`]),
    '--proc', '/proc', '--dev', '/dev',
    // Who writes there takes from the first process what makes it end with its parent, and its marker.
    ...['/proc/1/mem', '/proc/1/task/1/mem'].flatMap((path) => ['--ro-bind', '/dev/null', path]),
    // All three on the user's disk: a tmpfs would be the machine's memory.
    ...[inside.tmp, '/var/tmp', '/dev/shm'].flatMap((path) => ['--bind', folders.tmp, path]),
    '--bind', folders.home, inside.home,
    '--bind', folders.work, inside.work,
    ...(folders.api === undefined ? [] : ['--ro-bind', folders.api, inside.api]),
    ...(folders.inbox === undefined ? [] : ['--ro-bind', folders.inbox, inside.inbox]),
    ...(folders.outbox === undefined ? [] : ['--bind', folders.outbox, inside.outbox]),
    '--ro-bind', machine.claude, inside.claude,
    '--ro-bind', machine.node, inside.node,
    // Last: without these / and /dev are writable, and in memory (fact 50).
    '--remount-ro', '/dev', '--remount-ro', '/',
    '--chdir', inside.work,
    // Inside, where the count of processes is this sandbox's own (getrlimit(2), user namespaces from Linux 5.14 on).
    '--', '/usr/bin/prlimit', ...limits, ...program,
  ];
}

/** The path at which `walkArgv` shows its folder. */
export const walkedFolder = '/user';

/** The arguments for `machine.bwrap` that run a program of the system's over one folder: links lead to nothing else. */
export function walkArgv(machine: Pick<Machine, 'root'>, folder: string, program: readonly string[]): string[] {
  const own = ['--ro-bind-try', '/etc/alternatives', '/etc/alternatives', '--dev', '/dev', '--bind', folder, walkedFolder];
  return [...walls, ...machine.root, ...own, '--remount-ro', '/', '--', ...program];
}

/**
 * The options that show the system's programs: /usr, and what of /bin, /sbin and /lib… is there, each as it is on this
 * machine, a link into /usr or a folder of its own. Throws when /usr cannot be looked at.
 */
export function rootOptions(): string[] {
  const names = ['bin', 'sbin', 'lib', 'lib32', 'lib64', 'libx32'];
  return ['--ro-bind', '/usr', '/usr', ...names.flatMap((name) => rootOption(`/${name}`))];
}

function rootOption(path: string): string[] {
  const entry = lstatSync(path, { throwIfNoEntry: false });
  if (entry?.isSymbolicLink()) return ['--symlink', readlinkSync(path), path];
  return entry?.isDirectory() ? ['--ro-bind', path, path] : [];
}

const systemAccounts = 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n';
const ownFileNames = ['passwd', 'group', 'hosts'];
const filterName = 'seccomp';

/**
 * Writes what is not the machine's own inside (accounts, host names) and the seccomp filter into `folder`, which is
 * made where it is missing. `uid` and `gid` are the server's. Gives false where there is no filter for this
 * architecture; throws the system's error when the folder cannot be written.
 */
export function writeOwnFiles(folder: string, uid: number, gid: number, arch: string = process.arch): boolean {
  const filter = seccompFilter(arch);
  if (filter === undefined) return false;
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const files: Readonly<Record<string, string | Buffer>> = {
    passwd: `${systemAccounts}claude:x:${uid}:${gid}::${inside.home}:/bin/bash\n`,
    group: `root:x:0:\nnogroup:x:65534:\nclaude:x:${gid}:\n`,
    hosts: '127.0.0.1 localhost\n::1 localhost\n',
    [filterName]: filter,
  };
  for (const [name, content] of Object.entries(files)) {
    // Whole or not at all: a sandbox that starts meanwhile must not find half of it.
    writeFileSync(join(folder, `${name}.new`), content, { mode: 0o400 });
    renameSync(join(folder, `${name}.new`), join(folder, name));
  }
  return true;
}

/**
 * The filter's descriptor for one spawn, to be closed after it: bubblewrap reads it to its end, and whoever shares it
 * finds nothing more (fact 51). Throws the system's error when the file is gone.
 */
export function openFilter(machine: Pick<Machine, 'ownFiles'>): number {
  return openSync(join(machine.ownFiles, filterName), 'r');
}

/**
 * Whether the program ran and ended, by all that bubblewrap said on `statusFd` (bwrap(1), --json-status-fd). One that ended
 * by itself without it could not make the sandbox. Told by the process outside, so that nobody inside can say so in its
 * place.
 */
export function hasProgramRun(status: string): boolean {
  return /"exit-code": \d+/.test(status);
}

/**
 * Closes what whoever started this server left open in it besides the three standard streams: Node keeps the high
 * numbers of those for its children too (fact 52), and through a folder among them one could walk out of a sandbox.
 * `channel` stays: what a parent that is Node itself speaks through (NODE_CHANNEL_FD).
 */
export function closeInheritedDescriptors(channel = -1): void {
  for (const fd of readdirSync('/proc/self/fd').map(Number)) {
    if (fd > 2 && fd !== channel && isInherited(fd)) closeSync(fd);
  }
}

/** Whether children get it (open(2), O_CLOEXEC): Node opens none of its own so. */
function isInherited(fd: number): boolean {
  try {
    const flags = /^flags:\s+([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))?.[1];
    return flags !== undefined && (Number.parseInt(flags, 8) & 0o2000000) === 0;
  } catch {
    return false; // it was the listing's own
  }
}
