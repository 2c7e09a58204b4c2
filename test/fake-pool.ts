import { after } from 'node:test';
import { setImmediate as tick } from 'node:timers/promises';
import type { StartSession } from '../src/claude.ts';
import { Problem } from '../src/problem.ts';
import { Pool, type PoolOptions } from '../src/turns/pool.ts';

export const mib = 1024 * 1024;

/** A process of the imagination: it starts and ends when the test says so. */
export class FakeWorker {
  isReusable = true;
  /** What it holds, and what it had at its start. */
  bytes = 0;
  peak = 0;
  isStopAsked = false;
  markStarted = (): void => {};
  /** The process is gone, by its own doing or because it was stopped. */
  die = (): void => {};
  readonly userId: number;
  readonly sessionId: string;
  readonly isNew: boolean;
  readonly started: Promise<void>;
  readonly exited: Promise<void>;
  isAlive = true;
  readonly #diesWhenStopped: boolean;

  constructor({ userId, sessionId, isNew }: StartSession, diesWhenStopped: boolean) {
    this.userId = userId;
    this.sessionId = sessionId;
    this.isNew = isNew;
    this.#diesWhenStopped = diesWhenStopped;
    this.started = new Promise((resolve) => (this.markStarted = resolve));
    this.exited = new Promise((resolve) => {
      this.die = () => {
        this.isAlive = false;
        this.isReusable = false;
        resolve();
      };
    });
  }

  heldBytes(): number {
    return this.isAlive ? this.bytes : 0;
  }

  peakBytes(): number {
    return this.isAlive ? this.peak : 0;
  }

  stop(): Promise<void> {
    this.isStopAsked = true;
    if (this.#diesWhenStopped) this.die();
    return this.exited;
  }
}

type Options = Partial<PoolOptions<FakeWorker>> & {
  readonly diesWhenStopped?: boolean;
  readonly startsAtOnce?: boolean;
  /** How much memory the machine has; without it that is no matter. */
  readonly totalMib?: number;
  /** What each process holds from its start on, and its peak. */
  readonly heldMib?: number;
  readonly peakMib?: number;
};

// A turn that is left waiting has a timer, for which the whole run would wait.
const pools: Array<Pool<FakeWorker>> = [];
after(() => pools.forEach((pool) => void pool.close()));

/** A pool, every process it ever started, and the most that lived at once. */
export function makePool({ diesWhenStopped = true, startsAtOnce = true, totalMib = Infinity, heldMib = 0, peakMib = 0, ...options }: Options = {}) {
  const workers: FakeWorker[] = [];
  const machine = { hogMib: 0 };
  let mostAlive = 0;
  const pool = new Pool<FakeWorker>({
    start: async (session) => {
      const worker = new FakeWorker(session, diesWhenStopped);
      Object.assign(worker, { bytes: heldMib * mib, peak: peakMib * mib });
      workers.push(worker);
      if (startsAtOnce) worker.markStarted();
      mostAlive = Math.max(mostAlive, workers.filter((other) => other.isAlive).length);
      return worker;
    },
    hasSession: () => true,
    memory: { leftBytes: () => (totalMib - machine.hogMib) * mib - workers.reduce((sum, worker) => sum + worker.heldBytes(), 0) },
    maxProcesses: 2,
    queueLimit: 10,
    queueTimeoutMs: 10_000,
    warmMs: 60_000,
    maxStarts: 10,
    ...options,
  });
  pools.push(pool);
  const never = new AbortController().signal;
  return {
    pool,
    workers,
    machine,
    /** The sessions whose processes live, in the order of their starts. */
    alive: (): string[] => workers.filter((worker) => worker.isAlive).map((worker) => worker.sessionId),
    mostAlive: () => mostAlive,
    acquire: (userId: number, sessionId?: string, signal: AbortSignal = never) => watch(pool.acquire(userId, sessionId, signal)),
    /** One whole first turn, after which the process is left warm; gives the session. */
    async begin(userId: number): Promise<string> {
      const lease = await pool.acquire(userId, undefined, never);
      lease.release();
      await settle();
      return lease.sessionId;
    },
  };
}

/** A promise whose state can be asked. */
export function watch<T>(promise: Promise<T>) {
  const watched = { promise, state: 'pending' as 'pending' | 'done' | 'failed', error: undefined as unknown };
  promise.then(
    () => (watched.state = 'done'),
    (error: unknown) => {
      watched.state = 'failed';
      watched.error = error;
    },
  );
  return watched;
}

/** Lets everything that can happen without time passing happen. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 5; i += 1) await tick();
}

export function codeOf(error: unknown): string {
  return error instanceof Problem ? error.code : String(error);
}
