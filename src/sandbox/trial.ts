import { spawn } from 'node:child_process';
import { closeSync } from 'node:fs';
import type { Readable } from 'node:stream';
import { killGroup } from '../host/processes.ts';
import { describeBug, errorCode } from '../problem.ts';
import { filterFd, inside, statusFd } from './sandbox.ts';

/** Whether the sandbox works. `reason` says what to do; `isLasting`: it will not be otherwise at the next start. */
export type Trial =
  | { readonly works: true; readonly version: string; readonly durationMs: number }
  | { readonly works: false; readonly reason: string; readonly isLasting: boolean };

/** What a trial starts: the command line around `trialProgram`, with the environment it has inside. */
interface TrialLaunch {
  readonly command: string;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  /** A fresh descriptor of the filter; the trial closes it. */
  readonly filter: number;
}

/** The program of a trial: it shows that the CLI runs inside, and costs nothing. */
export const trialProgram = [inside.claude, '--version'] as const;

// bubblewrap and prlimit say one line; a CLI that crashes may print its own source.
const maxHeardBytes = 64 * 1024;

/**
 * Runs the launch once. Takes at most `timeoutMs`, then ends it by force; what carries its marker is the caller's to
 * sweep. Never throws.
 */
export async function trySandbox({ command, args, env, filter }: TrialLaunch, timeoutMs: number): Promise<Trial> {
  const startedAt = performance.now();
  const stdio = ['ignore', 'pipe', 'pipe', filter, 'pipe'] as const satisfies { [filterFd]: number; [statusFd]: 'pipe' };
  const end = await new Promise<End>((resolve) => {
    const child = spawn(command, args, { cwd: '/', env, detached: true, stdio: [...stdio] });
    const [stdout, stderr] = [hear(child.stdout), hear(child.stderr)];
    let isLate = false;
    const timer = setTimeout(() => {
      isLate = true;
      killGroup(child.pid);
    }, timeoutMs);
    const finish = (code: number | null, spawnError?: string): void => {
      clearTimeout(timer);
      resolve({ code, spawnError, isLate, stdout: stdout(), stderr: stderr() });
    };
    child.on('error', (error) => finish(null, errorCode(error) ?? ''));
    child.on('close', (code) => finish(code));
  });
  closeSync(filter);
  return judge(end, timeoutMs, performance.now() - startedAt);
}

interface End {
  readonly code: number | null;
  readonly spawnError: string | undefined;
  readonly isLate: boolean;
  readonly stdout: string;
  readonly stderr: string;
}

function hear(stream: Readable | null): () => string {
  let text = '';
  stream?.setEncoding('utf8').on('data', (chunk: string) => {
    if (text.length < maxHeardBytes) text += chunk;
  });
  stream?.on('error', () => {});
  return () => text;
}

function judge({ code, spawnError, isLate, stdout, stderr }: End, timeoutMs: number, durationMs: number): Trial {
  if (spawnError === 'ENOENT') return failure('bubblewrap is not installed (apt install bubblewrap).');
  if (spawnError !== undefined) return failure(`bubblewrap cannot be started (${spawnError}).`, !isShortage(spawnError));
  if (isLate) return failure(`the trial took more than ${timeoutMs / 1000} s.`, false);
  const version = /^\d+\.\d+\.\d+/.exec(stdout)?.[0];
  if (code === 0 && version !== undefined) return { works: true, version, durationMs };
  return explain(stderr);
}

function isShortage(code: string): boolean {
  return /^(?:EAGAIN|ENOMEM|EMFILE|ENFILE)$/.test(code);
}

function failure(reason: string, isLasting = true): Trial {
  return { works: false, reason, isLasting };
}

// What bubblewrap and prlimit print, each seen on a machine that lacks the thing, and what to do about it.
const causes: ReadonlyArray<readonly [pattern: RegExp, reason: string, isLasting?: boolean]> = [
  [
    /Resource temporarily unavailable|Cannot allocate memory|(?<!namespace failed: )No space left on device|Too many open files/,
    'this machine has no room for another process or file.',
    false,
  ],
  [
    /setting up uid map: Permission denied|RTM_NEWADDR: Operation not permitted/,
    'AppArmor does not let bubblewrap work: load its profile bwrap-userns-restrict (package apparmor-profiles), as install.sh does.',
  ],
  [
    /No permissions to creat\w* (?:a )?new namespace|Creating new namespace failed/, // also ENOSPC: too many of them, or none allowed
    'user namespaces are off: look at the sysctls kernel.unprivileged_userns_clone and user.max_user_namespaces, ' +
      "at RestrictNamespaces= of the systemd unit, or at the container's seccomp profile.",
  ],
  [/NETLINK_ROUTE socket/, 'a socket it needs is refused: add AF_NETLINK to RestrictAddressFamilies= of the systemd unit.'],
  [/proc\/sys\/kernel\/overflow/, 'parts of /proc are hidden: take ProcSubset=pid out of the systemd unit.'],
  [
    /mount proc on/,
    'parts of /proc are masked: take ProtectKernelTunables=, ProtectKernelLogs= and ProtectHostname= out of the systemd unit, ' +
      'or run the container with systempaths=unconfined.',
  ],
  [/Function not implemented/, 'a system call it needs is refused: take RestrictSUIDSGID= out of the systemd unit.'],
  [
    /make \/ slave|pivot_root|to mount tmpfs|Operation not permitted|capset/,
    'mounting is refused: add capset mount umount2 pivot_root to SystemCallFilter= of the systemd unit, ' +
      "or look at the container's seccomp profile.",
  ],
  [/SECCOMP|system call filtering/, 'this kernel takes no seccomp filter (CONFIG_SECCOMP_FILTER).'],
  [/Unknown option/, 'this bubblewrap is too old: 0.6.1 or later is needed.'],
  [/execvp \/usr\/bin\/prlimit/, 'there is no /usr/bin/prlimit (package util-linux).'],
  [/find source path|open source/, 'a file or folder that belongs inside is missing or cannot be read by the service user.'],
  [
    /(?:failed to execute|execvp?) \/opt\/bin\/claude/,
    'the program of CLAUDE_BINARY_PATH does not run inside: it needs something outside of /usr, or its own folder.',
  ],
];

/** The reason that the first line of these last words names. */
export function explain(stderr: string): Trial {
  const line = stderr.split('\n').find((text) => /^(?:bwrap|prlimit): /.test(text));
  if (line === undefined) return failure('"claude --version" does not answer with a version inside.');
  const [, reason, isLasting] = causes.find(([pattern]) => pattern.test(line)) ?? [];
  return failure(reason ?? `bubblewrap fails: ${describeBug(line)}`, isLasting);
}
