import { existsSync, mkdirSync, readdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { errorCode } from '../problem.ts';
import { openMemory, reclaimableBytes } from './memory.ts';
import { read } from './processes.ts';

/** The part of the machine's control groups that the service divides by itself (systemd.resource-control(5), Delegate=). */
export interface Cgroups {
  /** A group for one process of this user, below the user's own, and made with it. Throws the system's error. */
  open(userId: number, number: number): ProcessGroup;
}

/** A control group that holds one process and all it starts, wherever these go. */
export interface ProcessGroup {
  /** The command that starts this one in the group. */
  enter(command: string, args: readonly string[]): { readonly command: string; readonly args: readonly string[] };
  /** Bytes of memory that would come back if all in it ended now; caches are not theirs alone. */
  heldBytes(): number;
  /** Ends all in it and removes it, and the user's with the last. Takes 2 s at most; never rejects. */
  end(): Promise<void>;
}

const controllers = ['cpu', 'memory', 'pids'];
// Of the processor the server gets what it asks for, whatever twenty users do.
const serverWeight = 1000;
const userWeight = 50;
// For each process what its sandbox may have (300), and what is outside that. Without a thread to be had Node hangs at its
// start for good, so that neither the dialogues that are warm nor their tools may take those of the next one.
const [userPids, processPids] = [192, 320];
const endsWithinMs = 2000;

/**
 * Divides the group this process is in: the server moves to `server`, users get `u<id>`. To be called before anything is
 * started. What an earlier server left there is ended. `refusal` says why there is nothing to divide. Throws nothing.
 * `root` is where `/proc` and the groups are found.
 */
export function openCgroups(root = '/'): Cgroups | { readonly refusal: string } {
  const folder = findOwn(root);
  if (folder === undefined) return { refusal: 'there are no control groups of version 2' };
  const has = read(join(folder, 'cgroup.controllers')).split(/\s/);
  const missing = controllers.filter((name) => !has.includes(name));
  if (missing.length > 0) return { refusal: `its own has not: ${missing.join(', ')}` };
  if (!existsSync(join(folder, 'cgroup.kill'))) return { refusal: 'its own has no cgroup.kill (Linux 5.14)' };
  // A shell beside it, say: nobody may be in a group that has others below it, and they are not ours to move.
  if (read(join(folder, 'cgroup.procs')).trim() !== String(process.pid)) return { refusal: 'others are in its own' };
  try {
    divide(folder);
  } catch (error) {
    return { refusal: `its own cannot be divided (${errorCode(error)}): Delegate=yes is missing, or ProtectControlGroups=yes is too much` };
  }
  const mostBytes = Math.floor(openMemory(root).totalBytes() / 2);
  return { open: (userId, number) => openGroup(join(folder, `u${userId}`), number, mostBytes) };
}

/** The folder of the group this process is in. */
function findOwn(root: string): string | undefined {
  const path = /^0::(\/.*)$/m.exec(read(join(root, 'proc/self/cgroup')))?.[1];
  const mount = /^\S+ \S+ \S+ \/ (\S+) .* - cgroup2 /m.exec(read(join(root, 'proc/self/mountinfo')))?.[1];
  return path === undefined || mount === undefined ? undefined : join(root, mount, path);
}

function divide(folder: string): void {
  for (const name of readdirSync(folder)) if (/^u\d+$/.test(name)) removeAll(join(folder, name));
  const server = join(folder, 'server');
  mkdirSync(server, { recursive: true });
  writeFileSync(join(server, 'cgroup.procs'), String(process.pid));
  writeFileSync(join(folder, 'cgroup.subtree_control'), controllers.map((name) => `+${name}`).join(' '));
  writeFileSync(join(server, 'cpu.weight'), String(serverWeight));
}

/** Without waiting: what is still leaving is removed when the user comes back, or stays empty. */
function removeAll(user: string): void {
  writeFileSync(join(user, 'cgroup.kill'), '1');
  for (const entry of readdirSync(user, { withFileTypes: true })) if (entry.isDirectory()) isRemoved(join(user, entry.name));
  isRemoved(user);
}

function openGroup(user: string, number: number, mostBytes: number): ProcessGroup {
  const folder = join(user, String(number));
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(user, 'cpu.weight'), String(userWeight));
  const processes = readdirSync(user, { withFileTypes: true }).filter((entry) => entry.isDirectory()).length;
  writeFileSync(join(user, 'pids.max'), String(userPids + processes * processPids));
  // A process that starts beside a busy one of the same user must not take minutes: it holds up the starts of others.
  writeFileSync(join(user, 'cgroup.subtree_control'), '+cpu +memory');
  writeFileSync(join(folder, 'memory.max'), String(mostBytes));
  // The kernel ends the whole turn, not the CLI alone or one of its tools.
  writeFileSync(join(folder, 'memory.oom.group'), '1');
  return {
    // Before it is anything else: what it starts is born where it is.
    enter: (command, args) => ({ command: '/bin/sh', args: ['-c', 'echo 0 >"$0/cgroup.procs" && exec "$@"', folder, command, ...args] }),

    heldBytes() {
      return Math.max(0, Number(read(join(folder, 'memory.current'))) - reclaimableBytes(join(folder, 'memory.stat')));
    },

    async end() {
      const endsAt = performance.now() + endsWithinMs;
      try {
        writeFileSync(join(folder, 'cgroup.kill'), '1');
      } catch {
        return; // It is gone.
      }
      while (!isRemoved(folder) && performance.now() < endsAt) await sleep(10);
      isRemoved(user);
    },
  };
}

/** Whether there is no such group any more: one with a process in it, or a group below it, stays. */
function isRemoved(folder: string): boolean {
  try {
    rmdirSync(folder);
    return true;
  } catch (error) {
    return errorCode(error) === 'ENOENT';
  }
}
