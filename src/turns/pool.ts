import { randomUUID } from 'node:crypto';
import type { StartSession } from '../claude.ts';
import { sessionNotFound } from '../cli/outcome.ts';
import { Problem, toProblem } from '../problem.ts';
import { Queue, type Waiting } from './queue.ts';
import { Slots, type Slot } from './slots.ts';
import { spareAction } from './spare.ts';

/** What the pool needs of a process; `Worker` has it. */
interface Poolable {
  /** Alive, idle, in the folders it was started in, and nothing went wrong so far. */
  readonly isReusable: boolean;
  /** Resolves once the start-up is over, one way or the other. */
  readonly started: Promise<void>;
  /** Resolves once the process is gone. */
  readonly exited: Promise<void>;
  /** Bytes of memory it holds now. */
  residentBytes(): number;
  /** Resolves once it and all it started are gone; never rejects. */
  stop(): Promise<void>;
}

/** How many processes there may be, how long they wait and stay, and how one is started. */
export interface PoolOptions<W extends Poolable> {
  /** Starts a process for one session. Throws a Problem when it cannot. */
  readonly start: (session: StartSession) => Promise<W>;
  /** Whether this user has such a session on disk. Asked when a turn's time has come, before room is made for it. */
  readonly hasSession: (userId: number, sessionId: string) => boolean;
  /** Process slots: running and idle processes together. */
  readonly capacity: number;
  /** Turns that may wait. */
  readonly queueLimit: number;
  readonly queueTimeoutMs: number;
  /** How long an idle process is kept; 0 keeps none. */
  readonly warmMs: number;
  /** Processes that may be starting at once: each takes a whole core for about a second. */
  readonly maxStarts: number;
}

/** A process lent for one turn; no other turn of its session runs meanwhile. */
export interface Lease<W> {
  readonly worker: W;
  /** The session the turn is of: the one asked for, or the one chosen for a new dialogue. */
  readonly sessionId: string;
  /** Where the process came from: the session's last turn, the spare, or a start just now. */
  readonly origin: 'warm' | 'spare' | 'cold';
  /** Puts a fresh process in the place of one that turned out dead. Throws what the start throws. */
  renew(): Promise<void>;
  /** Gives the slot back, exactly once; the process stays warm when it is fit. */
  release(): void;
}

interface PoolCounts {
  /** Processes that start, or that a turn has. */
  readonly running: number;
  readonly queued: number;
  /** Processes kept for the next turn of their session, the spare among them. */
  readonly warm: number;
  readonly capacity: number;
}

// A process grows by about 1 MB a turn (fact 33), and after a prompt of megabytes at once.
const maxTurnsPerWorker = 100;
const maxResidentBytes = 400 * 1024 * 1024;
// A CLI that hangs at its start (it happens) must not keep the others from theirs; one that starts takes a second.
const maxStartMs = 10_000;

/**
 * Lends CLI processes to turns: the session's own warm one, the spare, or a new one, never more than the capacity.
 * Turns that find no slot, or their session busy, wait in the order they came.
 */
export class Pool<W extends Poolable> {
  readonly #options: PoolOptions<W>;
  readonly #queue: Queue<Lease<W>>;
  readonly #slots = new Slots<W>((key, state) => this.#queue.sessionChanged(key, state));
  #starting = 0;
  #generation = 0;
  #spare: Slot<W> | undefined;
  #wantedUserId: number | undefined;
  #isClosed = false;
  #onEmpty: (() => void) | undefined;

  constructor(options: PoolOptions<W>) {
    this.#options = options;
    this.#queue = new Queue(options.queueLimit, options.queueTimeoutMs);
  }

  /**
   * A process for one turn of this user: of this session, or of a new one. Rejects with Problem `busy` when the queue is
   * full or the wait too long, `session_not_found`, `shutting_down` when the pool closes, the signal's reason on
   * abort, and with whatever Problem the start gives.
   */
  acquire(userId: number, sessionId: string | undefined, signal: AbortSignal): Promise<Lease<W>> {
    if (this.#isClosed) return Promise.reject(shuttingDown());
    const waiting = this.#queue.enter(userId, sessionId, signal, this.#slots.sessionState(userId, sessionId));
    this.#dispatch();
    this.#queue.turnAwayIfTooMany(waiting, this.#options.capacity - this.counts().running);
    return waiting.granted;
  }

  /** Numbers for a dashboard. */
  counts(): PoolCounts {
    const running = this.#slots.count('starting') + this.#slots.count('leased');
    return { running, queued: this.#queue.length, warm: this.#slots.count('idle'), capacity: this.#options.capacity };
  }

  /** Stops the idle processes, and those in use after their turn: their login failed, or their folders went away. */
  retireAll(): void {
    this.#generation += 1;
    this.#wantedUserId = undefined;
    for (const slot of [...this.#slots.idle()]) void this.#stop(slot);
  }

  /** Turns away whoever waits or comes, stops idle processes, and resolves once every process is gone. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#queue.failAll(shuttingDown());
    this.retireAll();
    if (this.#slots.size > 0) await new Promise<void>((resolve) => (this.#onEmpty = resolve));
  }

  /** Gives slots to as many of the waiting as can have one, first come first served. */
  #dispatch(): void {
    // Each slot that is being emptied is for one of those who need a new process, the first ones.
    let slotsToCome = this.#slots.count('stopping');
    let takesCold = true;
    for (const waiting of this.#queue.ready(() => takesCold)) {
      if (this.#grantIdle(waiting)) continue;
      if (this.#starting >= this.#options.maxStarts) takesCold = false;
      else if (this.#slots.size < this.#options.capacity) this.#grantNew(waiting);
      else if (slotsToCome > 0) slotsToCome -= 1;
      else takesCold = this.#makeRoomFor(waiting);
    }
    this.#keepSpare();
  }

  /** Gives the idle process that is this turn's. One that is no longer fit is stopped instead, and the turn waits for that. */
  #grantIdle(waiting: Waiting<Lease<W>>): boolean {
    const { userId, sessionId } = waiting;
    const own = sessionId === undefined ? this.#spare : this.#slots.find(userId, sessionId);
    if (own === undefined || own.state !== 'idle' || own.userId !== userId) return false;
    const isSpare = own === this.#spare;
    // The next spare is put up after this turn: it would take a core from it.
    if (isSpare) this.#spare = this.#wantedUserId = undefined;
    if (own.worker?.isReusable !== true) {
      void this.#stop(own);
      return !isSpare;
    }
    this.#lease(own);
    waiting.grant(Promise.resolve(this.#leaseOf(own, own.worker, isSpare ? 'spare' : 'warm')));
    return true;
  }

  #grantNew(waiting: Waiting<Lease<W>>): void {
    if (!this.#isKnown(waiting)) return;
    const { userId, sessionId } = waiting;
    const slot = this.#addSlot({ userId, sessionId: sessionId ?? randomUUID(), isNew: sessionId === undefined });
    waiting.grant(
      this.#startIn(slot).then(
        (worker) => this.#leaseOf(slot, worker, 'cold'),
        (error: unknown) => {
          void this.#stop(slot);
          throw error;
        },
      ),
    );
  }

  /** Stops the process that can best be spared: the spare, then the longest idle. Gives false when there is none. */
  #makeRoomFor(waiting: Waiting<Lease<W>>): boolean {
    const [longestIdle] = this.#slots.idle();
    const victim = this.#spare?.state === 'idle' ? this.#spare : longestIdle;
    if (victim === undefined) return false;
    if (this.#isKnown(waiting)) void this.#stop(victim);
    return true;
  }

  /** Whether there is something to start a process for; if not, the turn has failed. */
  #isKnown({ userId, sessionId, fail }: Waiting<Lease<W>>): boolean {
    try {
      if (sessionId === undefined || this.#options.hasSession(userId, sessionId)) return true;
      throw sessionNotFound();
    } catch (error) {
      fail(toProblem(error));
      return false;
    }
  }

  #addSlot(session: StartSession): Slot<W> {
    return this.#slots.add({ ...session, generation: this.#generation });
  }

  #lease(slot: Slot<W>): void {
    clearTimeout(slot.idleTimer);
    this.#slots.move(slot, 'leased');
  }

  #leaseOf(slot: Slot<W>, worker: W, origin: Lease<W>['origin']): Lease<W> {
    let isReleased = false;
    this.#lease(slot);
    const lease = {
      worker,
      sessionId: slot.sessionId,
      origin,
      renew: async () => {
        lease.worker = await this.#startIn(slot);
      },
      release: () => {
        if (!isReleased) this.#release(slot);
        isReleased = true;
      },
    };
    return lease;
  }

  /** Starts a process in a slot, once one that was there before is gone. */
  async #startIn(slot: Slot<W>): Promise<W> {
    this.#starting += 1;
    const started = (): void => {
      this.#starting -= 1;
      this.#dispatch();
    };
    try {
      await slot.worker?.stop();
      slot.worker = undefined;
      const { userId, sessionId } = slot;
      const worker = await this.#options.start({ userId, sessionId, isNew: slot.isNew && slot.turns === 0 });
      slot.worker = worker;
      const tooLong = new Promise<void>((resolve) => setTimeout(resolve, maxStartMs).unref());
      void Promise.race([worker.started, tooLong]).then(started);
      void worker.exited.then(() => {
        if (slot.state === 'idle' && slot.worker === worker) void this.#stop(slot);
      });
      return worker;
    } catch (error) {
      started();
      throw error;
    }
  }

  #release(slot: Slot<W>): void {
    const { worker } = slot;
    slot.turns += 1;
    const isFit = worker?.isReusable === true && slot.turns < maxTurnsPerWorker && worker.residentBytes() < maxResidentBytes;
    if (isFit && slot.isNew && slot.turns === 1) this.#wantedUserId = slot.userId;
    if (isFit) this.#keepWarm(slot);
    else void this.#stop(slot);
  }

  /** Makes a slot idle, the last one to be given up; one that was retired meanwhile is stopped. */
  #keepWarm(slot: Slot<W>): void {
    if (slot.generation !== this.#generation || this.#options.warmMs === 0) {
      void this.#stop(slot);
      return;
    }
    this.#slots.move(slot, 'idle');
    slot.idleTimer = setTimeout(() => void this.#stop(slot), this.#options.warmMs).unref();
    this.#dispatch();
  }

  /** Ends a slot's process; the slot is free, and its session too, only when the process is gone. */
  async #stop(slot: Slot<W>): Promise<void> {
    clearTimeout(slot.idleTimer);
    this.#slots.move(slot, 'stopping');
    if (slot === this.#spare) {
      this.#spare = undefined;
      // A spare that is not wanted, or does not live, is not put up again.
      if (slot.userId === this.#wantedUserId) this.#wantedUserId = undefined;
    }
    await slot.worker?.stop();
    this.#slots.remove(slot);
    this.#dispatch();
    if (this.#slots.size === 0) this.#onEmpty?.();
  }

  #keepSpare(): void {
    if (this.#isClosed || this.#options.warmMs === 0) return;
    const action = spareAction({
      wantedUserId: this.#wantedUserId,
      spareUserId: this.#spare?.userId,
      isSpareIdle: this.#spare?.state === 'idle',
      isBusy: this.#queue.length > 0 || this.#starting > 0,
      hasRoom: this.#slots.size < this.#options.capacity,
    });
    if (action === 'stop' && this.#spare !== undefined) void this.#stop(this.#spare);
    if (action === 'start' && this.#wantedUserId !== undefined) this.#startSpare(this.#wantedUserId);
  }

  #startSpare(userId: number): void {
    const slot = this.#addSlot({ userId, sessionId: randomUUID(), isNew: true });
    this.#spare = slot;
    this.#startIn(slot).then(
      () => this.#keepWarm(slot),
      () => void this.#stop(slot),
    );
  }
}

function shuttingDown(): Problem {
  return new Problem('shutting_down', 'The server is stopping; try again in a while.', { retryAfterSeconds: 10 });
}
