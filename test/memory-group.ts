import { spawn, type ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { errorCode } from '../src/problem.ts';
import { needsToRun } from './needs.ts';
import { until } from './running-server.ts';

const mib = 1024 * 1024;
// Where the kernel has both versions, memory is limited in one of them (cgroups(7)).
const names = existsSync('/sys/fs/cgroup/memory')
  ? {
      top: '/sys/fs/cgroup/memory', limit: 'memory.limit_in_bytes', events: 'memory.oom_control',
      // Memory and swap together.
      swap: 'memory.memsw.limit_in_bytes', swapFor: (limitMib: number) => limitMib,
    }
  : { top: '/sys/fs/cgroup', limit: 'memory.max', events: 'memory.events', swap: 'memory.swap.max', swapFor: () => 0 };

const tried = join(names.top, `claude-api-try-${process.pid}`);
/** Why no group with a limit on memory can be made here, or false. */
export const noMemoryGroup = needsToRun(
  ['sh', '-c', 'mkdir "$0" && test -e "$0/$1"; made=$?; rmdir "$0" && exit $made', tried, names.limit],
  'leave to make control groups',
  'machines with little memory',
);

/** A control group, with a limit on the memory of all in it and below it if one is given. It has no swap then. */
export class MemoryGroup {
  readonly #folder: string;

  private constructor(folder: string) {
    this.#folder = folder;
  }

  /** Throws the kernel's reason where none can be made. */
  static async make(name: string, limitMib?: number, parent?: MemoryGroup): Promise<MemoryGroup> {
    if (parent !== undefined && names.limit === 'memory.max') await writeFile(join(parent.#folder, 'cgroup.subtree_control'), '+memory');
    const folder = join(parent === undefined ? names.top : parent.#folder, name);
    await mkdir(folder);
    if (limitMib !== undefined) {
      await writeFile(join(folder, names.limit), String(limitMib * mib));
      const swap = join(folder, names.swap);
      if (existsSync(swap)) await writeFile(swap, String(names.swapFor(limitMib) * mib));
    }
    return new MemoryGroup(folder);
  }

  /** What runs the command that follows in this group. */
  get into(): readonly string[] {
    return ['sh', '-c', 'echo $$ >"$0" && exec "$@"', join(this.#folder, 'cgroup.procs')];
  }

  spawn(...command: readonly string[]): ChildProcess {
    const [program = '', ...args] = [...this.into, ...command];
    return spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit'] });
  }

  /** A process that takes so much memory, step by step within so many seconds, holds it for a while, and ends. */
  hog(takenMib: number, seconds: number, heldSeconds: number): ChildProcess {
    return this.spawn(process.execPath, '--eval', hogScript, String(takenMib), String(seconds), String(heldSeconds));
  }

  /** Processes that the kernel ended in it for want of memory. */
  async killed(): Promise<number> {
    return Number(/^oom_kill (\d+)/m.exec(await readFile(join(this.#folder, names.events), 'latin1'))?.[1]);
  }

  /** Page faults so far that had to wait for a disk, where programs were read again. */
  async majorFaults(): Promise<number> {
    const text = await readFile(join(this.#folder, 'memory.stat'), 'latin1');
    // Version 1 has both: with those of the groups below, and without.
    return Number((/^total_pgmajfault (\d+)/m.exec(text) ?? /^pgmajfault (\d+)/m.exec(text))?.[1]);
  }

  /** To be called when what ran in it has been ended. */
  async remove(): Promise<void> {
    await until('an empty control group', async () => {
      try {
        await rmdir(this.#folder);
        return true;
      } catch (error) {
        if (errorCode(error) === 'EBUSY') return undefined;
        throw error;
      }
    });
  }
}

const hogScript = `
const [takenMib, seconds, heldSeconds] = process.argv.slice(1).map(Number);
const parts = [];
const timer = setInterval(() => {
  parts.push(Buffer.alloc(5 << 20, 1));
  if (parts.length * 5 < takenMib) return;
  clearInterval(timer);
  setTimeout(() => process.exit(0), heldSeconds * 1000);
}, (seconds * 1000) / (takenMib / 5));`;
