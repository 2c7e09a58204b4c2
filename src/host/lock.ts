import { spawn, type StdioOptions } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { errorCode } from '../problem.ts';

/** A state folder that this process has for itself, until it is released or the process ends. */
export interface Lock {
  release(): void;
}

/**
 * Locks the file `lock` in the state folder by flock(2), which holds across users, containers, namespaces and bind mounts.
 * Node has no such call, so util-linux's flock makes it, on a descriptor of ours that it shares: the lock is this
 * process's from then on, and the kernel ends it with the process, however that ends. No process is left to hold it,
 * and none inherits it. `refusal` says why there is no lock. Throws a system error when the file cannot be opened.
 */
export async function lockStateFolder(stateDir: string, pathVariable: string): Promise<Lock | { readonly refusal: string }> {
  const descriptor = openSync(join(stateDir, 'lock'), 'a', 0o600);
  // busybox's flock knows the short option only.
  const stdio: StdioOptions = ['ignore', 'ignore', 'ignore', descriptor];
  const child = spawn('flock', ['-n', '3'], { env: { PATH: pathVariable }, stdio });
  const status: unknown = await once(child, 'exit').then(([code]) => code, errorCode);
  if (status === 0) return { release: () => closeSync(descriptor) };
  closeSync(descriptor);
  const unknown = `CLAUDE_STATE_DIR cannot be locked (flock: ${String(status)}): its file system must know locks`;
  return { refusal: refusals.get(status) ?? unknown };
}

const refusals = new Map<unknown, string>([
  [1, 'another claude-api runs with this CLAUDE_STATE_DIR: stop it, or give this one another'],
  ['ENOENT', 'flock is not on PATH, which keeps two servers from one CLAUDE_STATE_DIR: install the package util-linux'],
]);
