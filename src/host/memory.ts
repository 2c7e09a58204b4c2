import { totalmem } from 'node:os';
import { Problem } from '../problem.ts';

/** The memory this process may use, in bytes: the container's or service's limit where there is one. */
export function availableMemoryBytes(): number {
  const limit = process.constrainedMemory();
  return limit === undefined || limit === 0 ? totalmem() : Math.min(limit, totalmem());
}

/** How many CLI processes this much memory carries: one per 400 MB after the first 256 MB, at least one. */
export function defaultCapacity(memoryBytes: number): number {
  return Math.max(1, Math.floor((memoryBytes / 1024 / 1024 - 256) / 400));
}

/** The problem of a machine that has no process, descriptor or memory left to start a CLI. */
export function noRoom(): Problem {
  return new Problem('busy', 'The machine has no room to start the Claude CLI at the moment; try again.', { retryAfterSeconds: 5 });
}
