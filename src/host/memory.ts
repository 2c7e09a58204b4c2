import { freemem, totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import { Problem } from '../problem.ts';
import { read } from './processes.ts';

/** How much memory there is, from the kernel, asked anew at each call, which takes microseconds. Nothing here throws. */
export interface Memory {
  /**
   * Bytes that may still be used: the least of what the machine has available and of what each limit leaves. Caches that
   * the kernel gives back when asked count as left. Swap does not: a process in it answers in seconds.
   */
  leftBytes(): number;
  /** Bytes there are in all: the machine's, or the least limit. */
  totalBytes(): number;
}

/** A limit on a control group and all below it, and the files that say what of it is used. */
interface Limit {
  readonly limits: readonly string[];
  readonly usage: string;
  readonly stat: string;
  /** What of the use the kernel gives back, as `MemAvailable` has it for the whole machine (proc(5), cgroup-v2.rst). */
  readonly reclaimable: RegExp;
}

const v2Reclaimable = /^(?:active_file|inactive_file|slab_reclaimable) (\d+)$/gm;
const v1Reclaimable = /^(?:total_active_file|total_inactive_file) (\d+)$/gm;

/**
 * The memory of this process's machine, container or service: `MemAvailable`, and the limits of its control group and all
 * its parents, of either version (cgroups(7)). `root` is where `/proc` and the folders of control groups are found. The
 * groups are those it is in now; what they allow is read at each call, since `systemctl set-property` changes it.
 */
export function openMemory(root = '/'): Memory {
  const limits = findLimits(root);
  const meminfo = join(root, 'proc/meminfo');
  return {
    leftBytes: () => Math.max(0, Math.min(fieldOf(meminfo, /^MemAvailable:\s+(\d+)/m) ?? freemem(), ...limits.map(leftOf))),
    totalBytes: () => Math.min(fieldOf(meminfo, /^MemTotal:\s+(\d+)/m) ?? totalmem(), ...limits.map(limitOf)),
  };
}

function leftOf(limit: Limit): number {
  const bytes = limitOf(limit);
  // The usual case, and the cheap one: `memory.stat` is the only file here that the kernel has work with.
  if (bytes === Infinity) return Infinity;
  return bytes - Number(read(limit.usage)) + reclaimableBytes(limit.stat, limit.reclaimable);
}

/** What of its use the kernel takes back from a group when asked, by the group's `memory.stat`. */
export function reclaimableBytes(statFile: string, fields = v2Reclaimable): number {
  return [...read(statFile).matchAll(fields)].reduce((sum, [, count]) => sum + Number(count), 0);
}

function limitOf({ limits }: Limit): number {
  return Math.min(...limits.map((path) => {
    const text = read(path).trim();
    // "max" in version 2, about 2^63 in version 1; no file where there is no such limit, or the group has gone.
    return text === '' || text === 'max' || Number(text) > 2 ** 60 ? Infinity : Number(text);
  }));
}

function findLimits(root: string): Limit[] {
  const groups = read(join(root, 'proc/self/cgroup')).split('\n').map((line) => line.split(':'));
  return read(join(root, 'proc/self/mountinfo')).split('\n').flatMap((line) => {
    const [left = '', right = ''] = line.split(' - ');
    const [, , , mountRoot = '', mountPoint = ''] = left.split(' ');
    const [type, , options = ''] = right.split(' ');
    const isV2 = type === 'cgroup2';
    if (!isV2 && !(type === 'cgroup' && options.split(',').includes('memory'))) return [];
    const group = groups.find(([id, controllers = '']) => (isV2 ? id === '0' : controllers.split(',').includes('memory')));
    const folders = parents(join(root, unescape(mountPoint)), below(mountRoot, group?.slice(2).join(':') ?? '/'));
    return folders.flatMap(isV2 ? limitsV2 : limitsV1).filter(({ usage }) => read(usage) !== '');
  });
}

/** In a container the group's path may count from the machine's root, while the mount begins at the container's own group. */
function below(mountRoot: string, path: string): string {
  if (mountRoot === '/') return path.startsWith('/..') ? '/' : path;
  return path.startsWith(`${mountRoot}/`) ? path.slice(mountRoot.length) : '/';
}

/** The folder of the group and of each parent, down to the mount point. */
function parents(mountPoint: string, path: string): string[] {
  return path === '/' ? [mountPoint] : [join(mountPoint, path), ...parents(mountPoint, dirname(path))];
}

function limitsV2(folder: string): Limit[] {
  const limits = [join(folder, 'memory.max'), join(folder, 'memory.high')];
  return [{ limits, usage: join(folder, 'memory.current'), stat: join(folder, 'memory.stat'), reclaimable: v2Reclaimable }];
}

/** The second kind counts memory and swap together: with a limit as high as the first one's there is no swap to be had. */
function limitsV1(folder: string): Limit[] {
  return ['memory', 'memory.memsw'].map((kind) => ({
    limits: [join(folder, `${kind}.limit_in_bytes`)],
    usage: join(folder, `${kind}.usage_in_bytes`),
    stat: join(folder, 'memory.stat'),
    reclaimable: v1Reclaimable,
  }));
}

/** A field of /proc/meminfo in bytes. */
function fieldOf(path: string, pattern: RegExp): number | undefined {
  const kibibytes = pattern.exec(read(path))?.[1];
  return kibibytes === undefined ? undefined : Number(kibibytes) * 1024;
}

/** The octal escapes of mountinfo (proc(5)). */
function unescape(path: string): string {
  return path.replace(/\\(\d{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}

/** The problem of a machine that has no process, descriptor or memory left to start a CLI. */
export function machineExhausted(): Problem {
  return new Problem('busy', 'The machine has no room to start the Claude CLI at the moment; try again.', { retryAfterSeconds: 5 });
}
