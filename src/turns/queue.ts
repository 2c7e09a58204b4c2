import { Problem, toProblem } from '../problem.ts';

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
  readonly line: Line<T> | undefined;
}

/** The waiting turns of one session; only the first can be the next to run. */
interface Line<T> {
  readonly key: string;
  state: SessionState;
  readonly entries: Entry<T>[];
}

/** One name for a session everywhere: an id alone may stand in two users' folders. */
export function sessionKey(userId: number, sessionId: string): string {
  return `${userId}/${sessionId}`;
}

/**
 * Turns that wait, in the order they came, each for a limited time. Knows which of them could run now: those with an
 * idle process of their session (`warm`), and those that need a new process (`cold`). Nothing here looks at all of them.
 */
export class Queue<T> {
  readonly #limit: number;
  readonly #timeoutMs: number;
  readonly #lines = new Map<string, Line<T>>();
  readonly #warm: Entry<T>[] = [];
  readonly #cold: Entry<T>[] = [];
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
    const entry: Entry<T> = { userId, sessionId, granted, grant, fail, order: this.#entered, line };
    this.#entered += 1;
    this.#length += 1;
    line?.entries.push(entry);
    if (line === undefined) insert(this.#cold, entry);
    else if (line.entries.length === 1) this.#list(line);
    signal.addEventListener('abort', giveUp);
    if (signal.aborted) giveUp();
    return entry;
  }

  /** The turns that could run now, first come first; without the cold ones from the moment `takesCold` says no. */
  *ready(takesCold: () => boolean): Generator<Waiting<T>> {
    for (let last = -1; ; ) {
      const warm = after(this.#warm, last);
      const cold = takesCold() ? after(this.#cold, last) : undefined;
      const next = warm !== undefined && (cold === undefined || warm.order < cold.order) ? warm : cold;
      if (next === undefined) return;
      last = next.order;
      yield next;
    }
  }

  /** Says what a session's next turn finds from now on. */
  sessionChanged(key: string, state: SessionState): void {
    const line = this.#lines.get(key);
    if (line === undefined || line.state === state) return;
    this.#unlist(line);
    line.state = state;
    this.#list(line);
  }

  /**
   * Turns this one away with Problem `busy` when it still waits and more do than may: those behind a turn of their own
   * session, and those beyond the `room` there is. Who has room, and only waits for others to start, is not counted.
   */
  turnAwayIfTooMany(waiting: Waiting<T>, room: number): void {
    const ready = this.#warm.length + this.#cold.length;
    if (this.#length - ready + Math.max(0, ready - room) <= this.#limit) return;
    waiting.fail(busy('The server is busy and its queue is full; try again in a while.'));
  }

  /** Turns all of them away. */
  failAll(problem: Problem): void {
    for (const { entries } of [...this.#lines.values()]) for (const entry of [...entries]) entry.fail(problem);
    for (const entry of [...this.#cold]) entry.fail(problem);
  }

  #lineOf(key: string, state: SessionState): Line<T> {
    const line = this.#lines.get(key) ?? { key, state, entries: [] };
    this.#lines.set(key, line);
    return line;
  }

  #leave(entry: Entry<T>): void {
    this.#length -= 1;
    const { line } = entry;
    if (line === undefined) {
      remove(this.#cold, entry);
      return;
    }
    if (line.entries[0] === entry) {
      this.#unlist(line);
      line.entries.shift();
      this.#list(line);
    } else {
      line.entries.splice(line.entries.indexOf(entry), 1);
    }
    if (line.entries.length === 0) this.#lines.delete(line.key);
  }

  /** Where the first turn of a session stands, by the session's state. */
  #listOf(state: SessionState): Entry<T>[] | undefined {
    if (state === 'busy') return undefined;
    return state === 'idle' ? this.#warm : this.#cold;
  }

  #list({ state, entries: [first] }: Line<T>): void {
    const list = this.#listOf(state);
    if (list !== undefined && first !== undefined) insert(list, first);
  }

  #unlist({ state, entries: [first] }: Line<T>): void {
    const list = this.#listOf(state);
    if (list !== undefined && first !== undefined) remove(list, first);
  }
}

function insert<T>(list: Entry<T>[], entry: Entry<T>): void {
  list.splice(indexAfter(list, entry.order), 0, entry);
}

function remove<T>(list: Entry<T>[], entry: Entry<T>): void {
  const index = indexAfter(list, entry.order) - 1;
  if (list[index] === entry) list.splice(index, 1);
}

function after<T>(list: readonly Entry<T>[], order: number): Entry<T> | undefined {
  return list[indexAfter(list, order)];
}

/** Where the first one behind `order` stands in a list that is in order. */
function indexAfter<T>(list: readonly Entry<T>[], order: number): number {
  let low = 0;
  let high = list.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((list[middle]?.order ?? Infinity) <= order) low = middle + 1;
    else high = middle;
  }
  return low;
}

function busy(detail: string): Problem {
  return new Problem('busy', detail, { retryAfterSeconds: 5 });
}
