import { spawn, type ChildProcess, type ChildProcessByStdio } from 'node:child_process';
import { closeSync } from 'node:fs';
import { Readable, type Writable } from 'node:stream';
import type { ProcessGroup } from '../host/cgroups.ts';
import { errorCode } from '../problem.ts';
import type { ProxySocket } from '../sandbox/api-socket.ts';
import type { TurnLimits } from '../sandbox/api-turn.ts';
import { statusFd } from '../sandbox/sandbox.ts';
import type { Boxes } from './boxes.ts';
import { problemOfEnd, sandboxUnavailable } from './outcome.ts';
import { markerName } from './strays.ts';

/** Everything needed to start one CLI process. */
export interface Launch {
  readonly command: string;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  /** An existing folder: a missing one would look like a missing binary (fact 34). */
  readonly cwd: string;
  /** The value of the marker variable, this worker's alone. */
  readonly marker: string;
  /** The session it serves, which the CLI is told by an argument. */
  readonly sessionId: string;
  /** The control group it runs in; undefined where there is none to be had. */
  readonly group?: ProcessGroup | undefined;
  /** Whether the folders it works in are still there. */
  readonly isInPlace: () => boolean;
  /** Told which tools the CLI has, at the beginning of each turn. */
  readonly onTools?: ((names: readonly string[]) => void) | undefined;
  /** Its folders for files, and the path at which it finds the first of them. */
  readonly boxes: Boxes;
  readonly inbox: string;
  /** What a process in a sandbox has besides; undefined = there is none around it. */
  readonly sandbox?: LaunchedSandbox | undefined;
}

/** A sandbox as its worker knows it. */
interface LaunchedSandbox {
  /** A fresh descriptor of the seccomp filter, which the worker closes. Throws the system's error. */
  readonly openFilter: () => number;
  /** The way to the API, open during turns and closed when the process is gone. */
  readonly api: Pick<ProxySocket, 'beginTurn' | 'endTurn' | 'close'>;
  /** What each turn may ask of the API. */
  readonly limits: Omit<TurnLimits, 'onTooManyRefusals'>;
  /** Processes there are without anything that a turn started: bubblewrap twice, the CLI, and what stands beside it. */
  readonly processes: number;
}

/** A started CLI, with its three standard streams. */
export type CliProcess = ChildProcessByStdio<Writable, Readable, Readable>;

/**
 * Starts the process, in a group of its own and with the marker in its environment. What is wrong with the program itself
 * is told by its `error` event. Throws Problem `busy` when the machine has no room for it, and `sandbox_unavailable`.
 */
export function spawnCli({ env, cwd, marker, group, sandbox, ...own }: Launch): CliProcess {
  const { command, args } = group?.enter(own.command, own.args) ?? own;
  const options = { cwd, env: { ...env, [markerName]: marker }, detached: true };
  if (sandbox === undefined) return started(() => spawn(command, args, { ...options, stdio: ['pipe', 'pipe', 'pipe'] }));
  const filter = openFilter(sandbox);
  try {
    // The types of Node know the first three streams only; they are what they are without the other two.
    return started(() => spawn(command, args, { ...options, stdio: ['pipe', 'pipe', 'pipe', filter, 'pipe'] }) as CliProcess);
  } finally {
    closeSync(filter);
  }
}

/** Where bubblewrap says how far it came; undefined for a process without a sandbox. */
export function statusPipeOf(child: ChildProcess): Readable | undefined {
  const stream = child.stdio?.[statusFd];
  return stream instanceof Readable ? stream : undefined;
}

function openFilter({ openFilter }: LaunchedSandbox): number {
  try {
    return openFilter();
  } catch (error) {
    throw sandboxUnavailable().with({ cause: error });
  }
}

function started(spawnIt: () => CliProcess): CliProcess {
  try {
    return spawnIt();
  } catch (error) {
    // Node tells some failures by an event and throws others, such as ENOMEM, at once. Too long settings stay so.
    const spawnError = errorCode(error) ?? '';
    if (spawnError === 'E2BIG') throw error;
    throw problemOfEnd({ code: null, signal: null, spawnError }, false).with({ cause: error });
  }
}
