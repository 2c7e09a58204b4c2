import { randomUUID } from 'node:crypto';
import { sessionNotFound } from '../cli/outcome.ts';
import { shuttingDown, toProblem } from '../problem.ts';
import { Queue, type Waiting } from './queue.ts';
import { Processes, type Poolable, type ProcessOptions } from './processes.ts';
import { lazy, type Room } from './room.ts';
import { Slots, type Slot } from './slots.ts';
import { spareAction } from './spare.ts';

/** How many turns may wait and how long, what sessions there are, and all about processes. */
export interface PoolOptions<W extends Poolable> extends ProcessOptions<W> {
  /** Whether this user has such a session on disk. Asked when a turn's time has come, before room is made for it. */
  readonly hasSession: (userId: number, sessionId: string) => boolean;
  /** Turns that may wait. */
  readonly queueLimit: number;
  readonly queueTimeoutMs: number;
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

/** What the pool has and may have, for a dashboard. */
export interface PoolCounts {
  /** Processes that start, or that a turn has. */
  readonly running: number;
  readonly queued: number;
  /** Processes kept for the next turn of their session, the spare among them. */
  readonly warm: number;
  /** Processes there are, and how many more fit now. */
  readonly capacity: number;
  /** Bytes: what the processes held when they were last looked at, and what is left for more. */
  readonly memory: { readonly held: number; readonly left: number };
}

// Memory may run short without any turn asking, and come back.
const watchMs = 100;

/**
 * Lends CLI processes to turns: the session's own warm one, the spare, or a new one while memory has room for its start.
 * Turns that find none, or their session busy, wait in the order they came; while others wait, those of a user who
 * has half of the processes come last. When memory runs short idle processes give way.
 */
export class Pool<W extends Poolable> {
  readonly #options: PoolOptions<W>;
  readonly #queue: Queue<Lease<W>>;
  readonly #slots = new Slots<W>((key, state) => this.#queue.sessionChanged(key, state));
  readonly #processes: Processes<W>;
  readonly #watch: NodeJS.Timeout;
  #wantedUserId: number | undefined;
  #isClosed = false;
  #onEmpty: (() => void) | undefined;

  constructor(options: PoolOptions<W>) {
    this.#options = options;
    this.#queue = new Queue(options.queueLimit, options.queueTimeoutMs);
    this.#processes = new Processes(options, this.#slots, { onChange: () => this.#onChange(), onStop: (slot) => this.#onStop(slot) });
    this.#watch = setInterval(() => this.#look(), watchMs).unref();
  }

  /**
   * A process for one turn of this user: of this session, or of a new one. Rejects with Problem `busy` when the queue is
   * full or the wait too long, `session_not_found`, `shutting_down` when the pool closes, the signal's reason on
   * abort, and with whatever Problem the start gives.
   */
  acquire(userId: number, sessionId: string | undefined, signal: AbortSignal): Promise<Lease<W>> {
    if (this.#isClosed) return Promise.reject(shuttingDown());
    const waiting = this.#queue.enter(userId, sessionId, signal, this.#slots.sessionState(userId, sessionId));
    try {
      this.#dispatch();
    } catch (error) {
      // Left in the queue with nobody listening, it would end the server later.
      waiting.fail(toProblem(error));
    }
    this.#queue.turnAwayIfTooMany(waiting, () => this.counts().capacity - this.counts().running);
    return waiting.granted;
  }

  counts(): PoolCounts {
    const [running, warm] = [this.#slots.count('starting') + this.#slots.count('leased'), this.#slots.count('idle')];
    const memory = { held: this.#slots.bytes(), left: this.#options.memory.leftBytes() };
    return { running, queued: this.#queue.length, warm, capacity: this.#slots.size + this.#processes.room().count, memory };
  }

  /** Stops the idle processes, and those in use after their turn: their login failed, or their folders went away. */
  retireAll(): void {
    this.#wantedUserId = undefined;
    this.#processes.retireAll();
  }

  /** Turns away whoever waits or comes, stops idle processes, and resolves once every process is gone. */
  async close(): Promise<void> {
    this.#isClosed = true;
    clearInterval(this.#watch);
    this.#queue.failAll(shuttingDown());
    this.retireAll();
    if (this.#slots.size > 0) await new Promise<void>((resolve) => (this.#onEmpty = resolve));
  }

  /** Gives processes to as many of the waiting as can have one, first come first served. */
  #dispatch(): void {
    let takesCold = true;
    // Asked for when the first needs it: a turn whose process waits for it needs none.
    const room = lazy(() => this.#processes.room());
    const comesLast = (userId: number): boolean =>
      this.#slots.runningOf(userId) >= Math.max(1, Math.floor((this.#slots.size + room().count) / 2));
    for (const waiting of this.#queue.ready({ takesCold: () => takesCold, comesLast })) {
      takesCold = this.#grantIdle(waiting) ? takesCold : this.#startFor(waiting, room());
    }
    this.#keepSpare();
  }

  /**
   * Starts a process for this turn, or has idle ones give way for it. Gives false when none can be started at the
   * moment, for whomever.
   */
  #startFor(waiting: Waiting<Lease<W>>, room: Room): boolean {
    if (this.#processes.isStartingMany || room.waitsForStart) return false;
    if (!room.fits && !room.canBeMade) return false;
    if (!this.#isKnown(waiting)) return true;
    if (!room.fits) return this.#processes.makeRoom(room);
    room.take();
    // What took the last room is worth more than a spare in its place.
    if (room.count === 0) this.#wantedUserId = undefined;
    this.#grantNew(waiting);
    return true;
  }

  /** Gives the idle process that is this turn's. One that is no longer fit is stopped instead, and the turn waits for that. */
  #grantIdle(waiting: Waiting<Lease<W>>): boolean {
    const { userId, sessionId } = waiting;
    const own = sessionId === undefined ? this.#slots.spare : this.#slots.find(userId, sessionId);
    if (own === undefined || own.state !== 'idle' || own.userId !== userId) return false;
    const isSpare = own === this.#slots.spare;
    // The next spare is put up after this turn: it would take a core from it.
    if (isSpare) this.#wantedUserId = undefined;
    if (own.worker?.isReusable !== true) {
      void this.#processes.stop(own);
      return !isSpare;
    }
    waiting.grant(Promise.resolve(this.#leaseOf(own, own.worker, isSpare ? 'spare' : 'warm')));
    return true;
  }

  #grantNew(waiting: Waiting<Lease<W>>): void {
    const { userId, sessionId } = waiting;
    const slot = this.#processes.add({ userId, sessionId: sessionId ?? randomUUID(), isNew: sessionId === undefined });
    waiting.grant(
      this.#processes.start(slot).then(
        (worker) => this.#leaseOf(slot, worker, 'cold'),
        (error: unknown) => {
          void this.#processes.stop(slot);
          throw error;
        },
      ),
    );
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

  #leaseOf(slot: Slot<W>, worker: W, origin: Lease<W>['origin']): Lease<W> {
    let isReleased = false;
    this.#processes.lease(slot);
    const lease = {
      worker,
      sessionId: slot.sessionId,
      origin,
      renew: async () => void (lease.worker = await this.#processes.start(slot)),
      release: () => {
        if (!isReleased) this.#release(slot);
        isReleased = true;
      },
    };
    return lease;
  }

  #release(slot: Slot<W>): void {
    const isKept = this.#processes.endTurn(slot);
    if (isKept && slot.isNew && slot.turns === 1) this.#wantedUserId = slot.userId;
    this.#dispatch();
  }

  #onChange(): void {
    this.#dispatch();
    if (this.#slots.size === 0) this.#onEmpty?.();
  }

  /** A spare that is not wanted, or does not live, is not put up again. */
  #onStop(slot: Slot<W>): void {
    if (slot === this.#slots.spare && slot.userId === this.#wantedUserId) this.#wantedUserId = undefined;
  }

  /** Looks at the memory although nobody asks. */
  #look(): void {
    if (this.#slots.size > 0) this.#processes.relieve();
    if (this.#queue.length > 0) this.#dispatch();
  }

  #keepSpare(): void {
    if (this.#isClosed || this.#options.warmMs === 0 || this.#wantedUserId === undefined) return;
    const { spare } = this.#slots;
    const isSpareIdle = spare?.state === 'idle';
    const room = lazy(() => this.#processes.room());
    const action = spareAction({
      wantedUserId: this.#wantedUserId,
      spareUserId: spare?.userId,
      isSpareIdle,
      isBusy: this.#queue.length > 0 || this.#processes.isChanging,
      hasRoom: () => room().fits,
      idle: this.#slots.count('idle') - (isSpareIdle ? 1 : 0),
    });
    if (action === 'stop' && spare !== undefined) void this.#processes.stop(spare);
    if (action === 'makeRoom') this.#processes.makeRoom(room());
    if (action === 'start') void this.#startSpare(this.#wantedUserId);
  }

  async #startSpare(userId: number): Promise<void> {
    const slot = this.#processes.add({ userId, sessionId: randomUUID(), isNew: true }, true);
    try {
      await this.#processes.start(slot);
      this.#processes.keepWarm(slot);
      this.#dispatch();
    } catch {
      await this.#processes.stop(slot);
    }
  }
}
