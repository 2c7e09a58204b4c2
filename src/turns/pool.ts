import { Problem, toProblem } from '../problem.ts';

/** What the pool needs of a process; `Worker` has it. */
interface Poolable {
  /** Alive, idle, and nothing went wrong so far. */
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
  /** Starts a process for a user, resuming the session where one is named. Throws a Problem when it cannot. */
  readonly start: (userId: number, sessionId: string | undefined) => Promise<W>;
  /** Running and idle processes together. */
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
  /** Where the process came from: the session's last turn, the spare, or a start just now. */
  readonly origin: 'warm' | 'spare' | 'cold';
  /** Names the session of a new dialogue, so that its next turn waits for this one. */
  bind(sessionId: string): void;
  /** Puts a fresh process in the place of one that turned out dead. Throws what the start throws. */
  renew(): Promise<void>;
  /** Gives the place back, exactly once; the process stays warm when it is fit. */
  release(): void;
}

interface PoolCounts {
  readonly running: number;
  readonly queued: number;
  readonly warm: number;
  readonly capacity: number;
}

/** One of `capacity` places for a process, in use by a turn or idle. */
interface Place<W> {
  readonly userId: number;
  /** Undefined for the spare, and for a new dialogue the CLI has not named yet. */
  sessionId: string | undefined;
  /** Whether the turn in it has begun a dialogue. */
  hasBegun: boolean;
  worker: W | undefined;
  /** The session whose process is still leaving to make room here. */
  leavingSessionId: string | undefined;
  isIdle: boolean;
  idleTimer: NodeJS.Timeout | undefined;
  turns: number;
  /** Counts the calls of `retireAll` before the process was started. */
  readonly generation: number;
}

interface Waiting<W> {
  readonly userId: number;
  readonly sessionId: string | undefined;
  readonly grant: (place: Place<W>, origin: Lease<W>['origin']) => void;
  readonly fail: (problem: Problem) => void;
}

// A process grows by about 1 MB a turn (measured), and after a prompt of megabytes at once.
const maxTurnsPerWorker = 100;
const maxResidentBytes = 400 * 1024 * 1024;
// A CLI that hangs at its start (it happens) must not keep the others from theirs; one that starts takes a second.
const maxStartMs = 10_000;

/**
 * Lends CLI processes to turns: the session's own warm one, the spare, or a new one, never more than the capacity.
 * Turns that find no place, or their session busy, wait in the order they came.
 */
export class Pool<W extends Poolable> {
  readonly #options: PoolOptions<W>;
  readonly #places = new Set<Place<W>>();
  #queue: Array<Waiting<W>> = [];
  #starting = 0;
  #generation = 0;
  #spareUserId: number | undefined;
  #isClosed = false;
  #onEmpty: (() => void) | undefined;

  constructor(options: PoolOptions<W>) {
    this.#options = options;
  }

  /**
   * A process for one turn of this user, in this session where one is named. Rejects with Problem `busy` when the queue
   * is full or the wait too long, `shutting_down` when the pool closes, the signal's reason on abort, and with
   * whatever Problem the start gives.
   */
  acquire(userId: number, sessionId: string | undefined, signal: AbortSignal): Promise<Lease<W>> {
    if (this.#isClosed) return Promise.reject(shuttingDown());
    if (signal.aborted) return Promise.reject(toProblem(signal.reason));
    return new Promise((resolve, reject) => {
      const settled = (): void => {
        clearTimeout(timer);
        signal.removeEventListener('abort', giveUp);
        this.#queue = this.#queue.filter((other) => other !== waiting);
      };
      const waiting: Waiting<W> = {
        userId,
        sessionId,
        grant: (place, origin) => {
          settled();
          this.#occupy(place, origin).then(resolve, reject);
        },
        fail: (problem) => {
          settled();
          reject(problem);
        },
      };
      const giveUp = (): void => waiting.fail(toProblem(signal.reason));
      const timer = setTimeout(() => waiting.fail(this.#busy('The server is busy and the turn waited too long; try again in a while.')), this.#options.queueTimeoutMs);
      signal.addEventListener('abort', giveUp);
      this.#queue.push(waiting);
      this.#dispatch();
      if (this.#queue.includes(waiting) && this.#isQueueTooLong()) {
        waiting.fail(this.#busy('The server is busy and its queue is full; try again in a while.'));
      }
    });
  }

  /** Numbers for a dashboard. */
  counts(): PoolCounts {
    const warm = [...this.#places].filter((place) => place.isIdle).length;
    return { running: this.#places.size - warm, queued: this.#queue.length, warm, capacity: this.#options.capacity };
  }

  /** Stops the idle processes, and those in use after their turn: their login failed, or their folders went away. */
  retireAll(): void {
    this.#generation += 1;
    this.#spareUserId = undefined;
    for (const place of this.#places) if (place.isIdle) void this.#stop(place);
  }

  /** Turns away whoever waits or comes, stops idle processes, and resolves once every process is gone. */
  async close(): Promise<void> {
    this.#isClosed = true;
    for (const waiting of this.#queue) waiting.fail(shuttingDown());
    this.retireAll();
    if (this.#places.size > 0) await new Promise<void>((resolve) => (this.#onEmpty = resolve));
  }

  #busy(detail: string): Problem {
    return new Problem('busy', detail, { retryAfterSeconds: 5 });
  }

  /** Gives places to as many of the waiting as can have one, first come first served. */
  #dispatch(): void {
    const busy = this.#busySessions();
    for (const waiting of [...this.#queue]) {
      if (busy.has(waiting.sessionId)) continue;
      const idle = this.#idlePlaceFor(waiting);
      const origin = idle === undefined ? 'cold' : originOf(idle);
      if (origin === 'cold' && this.#starting >= this.#options.maxStarts) continue;
      if (idle !== undefined) this.#wake(idle);
      const place = idle ?? this.#placeForStart(waiting);
      if (place === undefined) continue;
      for (const sessionId of [place.sessionId, place.leavingSessionId]) if (sessionId !== undefined) busy.add(sessionId);
      waiting.grant(place, origin);
    }
    this.#keepSpare();
  }

  /** A turn that has a place, and only waits for other starts, is none of the queue. */
  #isQueueTooLong(): boolean {
    const busy = this.#busySessions();
    let blocked = 0;
    for (const { sessionId } of this.#queue) {
      if (busy.has(sessionId)) blocked += 1;
      else if (sessionId !== undefined) busy.add(sessionId);
    }
    const { running, capacity } = this.counts();
    return blocked + Math.max(0, this.#queue.length - blocked - (capacity - running)) > this.#options.queueLimit;
  }

  /** The sessions whose next turn must wait: one is running, or its process is still leaving. */
  #busySessions(): Set<string | undefined> {
    const ids = [...this.#places].flatMap(({ sessionId, isIdle, leavingSessionId }) => [isIdle ? undefined : sessionId, leavingSessionId]);
    return new Set(ids.filter((id) => id !== undefined));
  }

  #idlePlaceFor({ userId, sessionId }: Waiting<W>): Place<W> | undefined {
    return [...this.#places].find((place) => place.isIdle && place.sessionId === sessionId && (sessionId !== undefined || place.userId === userId));
  }

  /** A free place, or the one whose process can best be spared: the spare, then the longest idle. */
  #placeForStart({ userId, sessionId }: Waiting<W>): Place<W> | undefined {
    if (this.#places.size < this.#options.capacity) return this.#addPlace(userId, sessionId);
    const idle = [...this.#places].filter((place) => place.isIdle);
    const victim = idle.find((place) => place.sessionId === undefined) ?? idle[0];
    if (victim === undefined) return undefined;
    // The new place stands for the old one at once, so that nobody else takes it; its start waits for the other to be gone.
    const place = this.#addPlace(userId, sessionId);
    this.#wake(victim);
    this.#places.delete(victim);
    place.worker = victim.worker;
    place.leavingSessionId = victim.sessionId;
    return place;
  }

  #addPlace(userId: number, sessionId: string | undefined): Place<W> {
    const place: Place<W> = { userId, sessionId, hasBegun: false, worker: undefined, leavingSessionId: undefined, isIdle: false, idleTimer: undefined, turns: 0, generation: this.#generation };
    this.#places.add(place);
    return place;
  }

  async #occupy(place: Place<W>, origin: Lease<W>['origin']): Promise<Lease<W>> {
    let isReleased = false;
    const release = (): void => {
      if (isReleased) return;
      isReleased = true;
      this.#release(place);
    };
    try {
      const worker = origin !== 'cold' && place.worker !== undefined ? place.worker : await this.#startIn(place);
      const bind = (sessionId: string): void => {
        place.hasBegun ||= place.sessionId === undefined;
        place.sessionId = sessionId;
      };
      const lease = {
        worker,
        origin,
        bind,
        renew: async () => {
          lease.worker = await this.#startIn(place);
        },
        release,
      };
      return lease;
    } catch (error) {
      release();
      throw error;
    }
  }

  /** Starts a process in a place once the one before it is gone, so that there is never one too many. */
  async #startIn(place: Place<W>): Promise<W> {
    this.#starting += 1;
    let timer: NodeJS.Timeout | undefined;
    let isStarting = true;
    const started = (): void => {
      clearTimeout(timer);
      if (!isStarting) return;
      isStarting = false;
      this.#starting -= 1;
      this.#dispatch();
    };
    try {
      await place.worker?.stop();
      place.worker = undefined;
      if (place.leavingSessionId !== undefined) {
        place.leavingSessionId = undefined;
        this.#dispatch();
      }
      const worker = await this.#options.start(place.userId, place.sessionId);
      place.worker = worker;
      place.turns = 0;
      timer = setTimeout(started, maxStartMs).unref();
      void worker.started.then(started);
      void worker.exited.then(() => {
        if (place.isIdle && place.worker === worker) void this.#stop(place);
      });
      return worker;
    } catch (error) {
      started();
      throw error;
    }
  }

  #release(place: Place<W>): void {
    const { worker } = place;
    place.turns += 1;
    const isFit =
      worker?.isReusable === true &&
      place.sessionId !== undefined &&
      place.turns < maxTurnsPerWorker &&
      worker.residentBytes() < maxResidentBytes;
    // Whoever began a dialogue is likely to begin another.
    if (isFit && place.hasBegun) this.#spareUserId = place.userId;
    place.hasBegun = false;
    if (isFit && this.#options.warmMs > 0) this.#rest(place);
    else void this.#stop(place);
  }

  /** Makes a place idle, the last one to be given up; one that was retired meanwhile is stopped. */
  #rest(place: Place<W>): void {
    if (place.generation !== this.#generation) {
      void this.#stop(place);
      return;
    }
    this.#places.delete(place);
    this.#places.add(place);
    place.isIdle = true;
    place.idleTimer = setTimeout(() => void this.#stop(place), this.#options.warmMs).unref();
    this.#dispatch();
  }

  #wake(place: Place<W>): void {
    place.isIdle = false;
    clearTimeout(place.idleTimer);
  }

  /** Ends a place's process; the place is free, and its session too, only when the process is gone. */
  async #stop(place: Place<W>): Promise<void> {
    this.#wake(place);
    // A spare that is not wanted, or does not live, is not put up again.
    if (place.sessionId === undefined && place.userId === this.#spareUserId) this.#spareUserId = undefined;
    await place.worker?.stop();
    this.#places.delete(place);
    this.#dispatch();
    if (this.#places.size === 0) this.#onEmpty?.();
  }

  /** With room to spare, keeps one process started for the user who last began a dialogue. */
  #keepSpare(): void {
    const userId = this.#spareUserId;
    if (this.#isClosed || userId === undefined || this.#options.warmMs === 0 || this.#queue.length > 0) return;
    const spare = [...this.#places].find((place) => place.sessionId === undefined && place.isIdle);
    const isAnyStarting = this.#starting > 0 || [...this.#places].some((place) => place.sessionId === undefined && !place.isIdle);
    if (spare?.userId === userId || isAnyStarting) return;
    if (spare !== undefined) {
      void this.#stop(spare);
      return;
    }
    if (this.#places.size >= this.#options.capacity) return;
    const place = this.#addPlace(userId, undefined);
    this.#startIn(place).then(
      () => this.#rest(place),
      () => void this.#stop(place),
    );
  }
}

/** Where an idle place's process came from; one that is no longer fit is replaced by a cold one. */
function originOf<W extends Poolable>({ worker, sessionId }: Place<W>): Lease<W>['origin'] {
  if (worker?.isReusable !== true) return 'cold';
  return sessionId === undefined ? 'spare' : 'warm';
}

function shuttingDown(): Problem {
  return new Problem('shutting_down', 'The server is stopping; try again in a while.', { retryAfterSeconds: 10 });
}
