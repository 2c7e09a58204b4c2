import { Problem, toProblem } from '../problem.ts';
import { OrderedList } from './order.ts';

/** What becomes of a session's next turn: another one runs, an idle process waits for it, or it needs a new process. */
export type SessionState = 'busy' | 'idle' | 'none';

/** A turn that waits. */
export interface Waiting<T> {
  readonly userId: number;
  /** Undefined for a new dialogue. */
  readonly sessionId: string | undefined;
  /** What it waits for. Rejects with Problem `busy` when that takes too long, and with the signal's reason on abort. */
  readonly granted: Promise<T>;
  /** Ends the wait; to be called once. */
  readonly grant: (granted: Promise<T>) => void;
  /** Ends the wait with a problem; does nothing when it is over. */
  readonly fail: (problem: Problem) => void;
}

interface Entry<T> extends Waiting<T> {
  /** Counts up with every turn that enters. */
  readonly order: number;
  readonly user: User<T>;
  readonly line: Line<T> | undefined;
}

/** The waiting turns of one session; only the first can be the next to run. */
interface Line<T> {
  readonly key: string;
  state: SessionState;
  readonly entries: OrderedList<Entry<T>>;
}

/** The waiting turns of one user, and those of them that could run now. */
interface User<T> {
  readonly userId: number;
  readonly all: OrderedList<Entry<T>>;
  readonly ready: Readonly<Record<Kind, OrderedList<Entry<T>>>>;
}

/** `warm`: an idle process of its session waits for it. `cold`: it needs a new process. */
type Kind = 'warm' | 'cold';

/** Who looks for turns that can run says which come into question. */
export interface Choice {
  /** Whether those that need a new process do; asked for each turn anew. */
  takesCold(): boolean;
  /** Whether this user's turns come after those of all others. */
  comesLast(userId: number): boolean;
}

/** One name for a session everywhere: an id alone may stand in two users' folders. */
export function sessionKey(userId: number, sessionId: string): string {
  return `${userId}/${sessionId}`;
}

/**
 * Turns that wait, in the order they came, each for a limited time. Knows which of them could run now. One user can fill
 * it only as long as nobody else wants to wait: then the newest turns of whoever has more than half of it give way.
 * Nothing here looks at all of them.
 */
export class Queue<T> {
  readonly #limit: number;
  readonly #timeoutMs: number;
  readonly #lines = new Map<string, Line<T>>();
  readonly #users = new Map<number, User<T>>();
  /** The first turn of each user of those that could run now: the order of users. */
  readonly #heads: Readonly<Record<Kind, OrderedList<Entry<T>>>> = { warm: new OrderedList(), cold: new OrderedList() };
  #crowd: User<T> | undefined;
  #readyCount = 0;
  #entered = 0;
  #length = 0;

  constructor(limit: number, timeoutMs: number) {
    this.#limit = limit;
    this.#timeoutMs = timeoutMs;
  }

  get length(): number {
    return this.#length;
  }

  /** Puts a turn at the end; `state` is its session's, and of no account for a new dialogue. */
  enter(userId: number, sessionId: string | undefined, signal: AbortSignal, state: SessionState): Waiting<T> {
    let settle = (_granted: Promise<T>): void => {};
    const granted = new Promise<T>((resolve) => (settle = resolve));
    let hasLeft = false;
    const leave = (): void => {
      hasLeft = true;
      clearTimeout(timer);
      signal.removeEventListener('abort', giveUp);
      this.#leave(entry);
    };
    const grant = (outcome: Promise<T>): void => {
      leave();
      settle(outcome);
    };
    const fail = (problem: Problem): void => {
      if (!hasLeft) grant(Promise.reject(problem));
    };
    const giveUp = (): void => fail(toProblem(signal.reason));
    const timer = setTimeout(() => fail(busy('The server is busy and the turn waited too long; try again in a while.')), this.#timeoutMs);
    const line = sessionId === undefined ? undefined : this.#lineOf(sessionKey(userId, sessionId), state);
    const entry: Entry<T> = { userId, sessionId, granted, grant, fail, order: this.#entered, user: this.#userOf(userId), line };
    this.#enter(entry);
    signal.addEventListener('abort', giveUp);
    if (signal.aborted) giveUp();
    return entry;
  }

  /**
   * The turns that could run now, first come first, each once. Users who come last have their turn only when no other
   * one is left waiting that could run.
   */
  *ready({ takesCold, comesLast }: Choice): Generator<Waiting<T>> {
    const passedOver: Entry<T>[] = [];
    try {
      for (;;) {
        const isFair = ({ userId }: Entry<T>): boolean => this.#users.size === 1 || !comesLast(userId);
        const fair = this.#next(takesCold(), isFair);
        const isLeft = fair === undefined && (passedOver.some(isFair) || (!takesCold() && find(this.#heads.cold, isFair) !== undefined));
        const next = fair ?? (isLeft ? undefined : this.#next(takesCold(), () => true));
        if (next === undefined) return;
        this.#unlist(next);
        passedOver.push(next);
        yield next;
        if (!next.user.all.has(next)) passedOver.pop();
      }
    } finally {
      for (const entry of passedOver) if (entry.user.all.has(entry)) this.#list(entry);
    }
  }

  /** Says what a session's next turn finds from now on. */
  sessionChanged(key: string, state: SessionState): void {
    const line = this.#lines.get(key);
    if (line === undefined || line.state === state) return;
    const { first } = line.entries;
    if (first !== undefined) this.#unlist(first);
    line.state = state;
    if (first !== undefined) this.#list(first);
  }

  /**
   * Turns one away with Problem `busy` when this one still waits and more do than may: those behind a turn of their own
   * session, and those beyond the `room` there is. Who has room, and only waits for others to start, is not counted.
   */
  turnAwayIfTooMany(waiting: Waiting<T>, room: () => number): void {
    if (this.#length <= this.#limit || this.#length - Math.min(this.#readyCount, room()) <= this.#limit) return;
    const isCrowd = this.#crowd === undefined || this.#crowd.userId === waiting.userId;
    const last = isCrowd ? waiting : (this.#crowd?.all.last ?? waiting);
    last.fail(busy('The server is busy and its queue is full; try again in a while.'));
  }

  /** Turns all of them away. */
  failAll(problem: Problem): void {
    for (const { all } of [...this.#users.values()]) for (const entry of [...all]) entry.fail(problem);
  }

  #userOf(userId: number): User<T> {
    const user = this.#users.get(userId) ?? { userId, all: new OrderedList(), ready: { warm: new OrderedList(), cold: new OrderedList() } };
    this.#users.set(userId, user);
    return user;
  }

  #lineOf(key: string, state: SessionState): Line<T> {
    const line = this.#lines.get(key) ?? { key, state, entries: new OrderedList() };
    this.#lines.set(key, line);
    return line;
  }

  #enter(entry: Entry<T>): void {
    const { user, line } = entry;
    this.#entered += 1;
    this.#length += 1;
    user.all.add(entry);
    if (user.all.length > this.#limit / 2) this.#crowd = user;
    line?.entries.add(entry);
    if (line === undefined || line.entries.first === entry) this.#list(entry);
  }

  #leave(entry: Entry<T>): void {
    const { user, line } = entry;
    this.#length -= 1;
    this.#unlist(entry);
    user.all.remove(entry);
    if (user === this.#crowd && user.all.length <= this.#limit / 2) this.#crowd = undefined;
    if (user.all.length === 0) this.#users.delete(user.userId);
    if (line === undefined) return;
    line.entries.remove(entry);
    if (line.entries.first === undefined) this.#lines.delete(line.key);
    else this.#list(line.entries.first);
  }

  /** The first of the turns that could run now that is as wanted. */
  #next(takesCold: boolean, isWanted: (entry: Entry<T>) => boolean): Entry<T> | undefined {
    const warm = find(this.#heads.warm, isWanted);
    const cold = takesCold ? find(this.#heads.cold, isWanted) : undefined;
    return warm !== undefined && (cold === undefined || warm.order < cold.order) ? warm : cold;
  }

  /** Puts a turn that is the first of its session where those that could run now are; one whose session is busy could not. */
  #list(entry: Entry<T>): void {
    const kind = kindOf(entry);
    if (kind === undefined) return;
    this.#change(entry, kind, (ready) => ready.add(entry));
  }

  #unlist(entry: Entry<T>): void {
    for (const kind of ['warm', 'cold'] as const) this.#change(entry, kind, (ready) => ready.remove(entry));
  }

  #change({ user }: Entry<T>, kind: Kind, change: (ready: OrderedList<Entry<T>>) => void): void {
    const ready = user.ready[kind];
    const [before, count] = [ready.first, ready.length];
    change(ready);
    this.#readyCount += ready.length - count;
    if (ready.first === before) return;
    if (before !== undefined) this.#heads[kind].remove(before);
    if (ready.first !== undefined) this.#heads[kind].add(ready.first);
  }
}

function kindOf<T>({ line }: Entry<T>): Kind | undefined {
  if (line === undefined || line.state === 'none') return 'cold';
  return line.state === 'idle' ? 'warm' : undefined;
}

function find<T>(items: Iterable<T>, isWanted: (item: T) => boolean): T | undefined {
  for (const item of items) if (isWanted(item)) return item;
  return undefined;
}

function busy(detail: string): Problem {
  return new Problem('busy', detail, { retryAfterSeconds: 5 });
}
