import { Problem } from '../problem.ts';
import { unlessAborted } from '../waiting.ts';
import { Listeners, type Listener } from './listeners.ts';

/** What makes a request the retry of another one of its user: the same key and, so that no key is used twice, the same body. */
export interface RequestKey {
  readonly key: string;
  /** The same for equal bodies only. */
  readonly fingerprint: string;
}

/** Told before all else to a caller whose turn another request has begun. */
export type Replayed = { readonly type: 'replayed' };

/** How many keys are held, how many bytes with them, and how long after the turn's end. */
interface KeyLimits {
  readonly maxKeys: number;
  readonly maxBytes: number;
  readonly keepMs: number;
}

type Start<A, E> = (listeners: Listeners<E>) => Promise<A>;

interface KeyedTurn<A, E> extends RequestKey {
  readonly userId: number;
  readonly answer: Promise<A>;
  /** Undefined once it is over. */
  listeners: Listeners<E> | undefined;
  /** What a listener who comes late has missed. */
  said: E[];
  bytes: number;
  expiry: NodeJS.Timeout | undefined;
}

// The key, its fingerprint and what holds them.
const bytesOfKey = 1024;
const bytesOfEvent = 100;

const tooMany = 'Too many turns with an Idempotency-Key are under way; try again in a few seconds.';

/**
 * Turns that a retry finds again by its key, while they run and for a while after, in memory only. They go on without
 * a caller. Each user has keys of their own.
 */
export class KeyedTurns<A, E extends { readonly type: string }> {
  readonly #limits: KeyLimits;
  /** Those that are over stand in the order of their ends. */
  readonly #turns = new Map<string, KeyedTurn<A, E>>();
  #bytes = 0;

  constructor(limits: KeyLimits = { maxKeys: 1000, maxBytes: 64 * 1024 * 1024, keepMs: 600_000 }) {
    this.#limits = limits;
  }

  /** How many keys are held. */
  get size(): number {
    return this.#turns.size;
  }

  /**
   * The answer of the turn that has this key: begun now, or by an earlier request, and then told from its beginning.
   * Rejects with what the turn does, with Problem `idempotency_conflict` when the key belongs to another body, and
   * `busy` when turns that run have all the keys there may be. On abort only who came later is let go, with the
   * signal's reason. Answers are kept, and the 422s with a session; any other failure is forgotten at once.
   */
  run(userId: number, key: RequestKey, listener: Listener<E | Replayed>, start: Start<A, E>): Promise<A> {
    const turn = this.#turns.get(idOf({ userId, ...key }));
    if (turn === undefined) return this.#begin({ userId, ...key }, listener, start);
    if (turn.fingerprint !== key.fingerprint) {
      const detail = 'This Idempotency-Key came with another body before; a new request needs a new key.';
      return Promise.reject(new Problem('idempotency_conflict', detail));
    }
    listener.onEvent({ type: 'replayed' });
    for (const event of turn.said) listener.onEvent(event);
    turn.listeners?.add(listener);
    return unlessAborted(turn.answer, listener.signal);
  }

  #begin(owned: RequestKey & { readonly userId: number }, first: Listener<E>, start: Start<A, E>): Promise<A> {
    if (!this.#hasRoom()) return Promise.reject(new Problem('busy', tooMany, { retryAfterSeconds: 5 }));
    // A listener who never leaves, so that the turn goes on.
    const listeners = new Listeners<E>({ signal: new AbortController().signal, onEvent: (event) => this.#record(turn, event) });
    listeners.add(first);
    const answer = Promise.resolve(listeners).then(start);
    const turn: KeyedTurn<A, E> = { ...owned, answer, listeners, said: [], bytes: 0, expiry: undefined };
    this.#turns.set(idOf(turn), turn);
    this.#grow(turn, bytesOfKey);
    answer.then(
      (value) => this.#keep(turn, bytesOf(value)),
      (error: unknown) => (isKept(error) ? this.#keep(turn, 0) : this.#forget(turn)),
    );
    return answer;
  }

  #record(turn: KeyedTurn<A, E>, event: E): void {
    turn.said.push(event);
    this.#grow(turn, bytesOfEvent + bytesOf(event));
  }

  #keep(turn: KeyedTurn<A, E>, bytes: number): void {
    turn.listeners = undefined;
    turn.expiry = setTimeout(() => this.#forget(turn), this.#limits.keepMs).unref();
    this.#turns.delete(idOf(turn));
    this.#turns.set(idOf(turn), turn);
    this.#grow(turn, bytes);
  }

  #forget(turn: KeyedTurn<A, E>): void {
    clearTimeout(turn.expiry);
    this.#turns.delete(idOf(turn));
    this.#bytes -= turn.bytes;
  }

  /** Whether there is room for one more key, where need be in the place of the oldest of the user who has most that are over. */
  #hasRoom(): boolean {
    if (this.#turns.size < this.#limits.maxKeys) return true;
    const [oldest] = ofUserWithMost([...this.#turns.values()].filter(isOver), () => 1);
    if (oldest !== undefined) this.#forget(oldest);
    return oldest !== undefined;
  }

  #grow(turn: KeyedTurn<A, E>, bytes: number): void {
    turn.bytes += bytes;
    this.#bytes += bytes;
    while (this.#bytes > this.#limits.maxBytes && this.#relieve());
  }

  /**
   * The user who holds most bytes loses the oldest answer or, where only turns run, what these have said so far. Gives
   * false when there was nothing.
   */
  #relieve(): boolean {
    const turns = ofUserWithMost([...this.#turns.values()], ({ bytes }) => bytes);
    const oldest = turns.find(isOver);
    if (oldest !== undefined) {
      this.#forget(oldest);
      return true;
    }
    const before = this.#bytes;
    for (const turn of turns) {
      turn.said = turn.said.filter(({ type }) => type !== 'delta' && type !== 'tool');
      const bytes = turn.said.reduce((sum, event) => sum + bytesOfEvent + bytesOf(event), bytesOfKey);
      this.#bytes -= turn.bytes - bytes;
      turn.bytes = bytes;
    }
    return this.#bytes < before;
  }
}

function idOf({ userId, key }: { readonly userId: number; readonly key: string }): string {
  return `${userId} ${key}`;
}

function isOver({ listeners }: { readonly listeners: unknown }): boolean {
  return listeners === undefined;
}

function isKept(error: unknown): boolean {
  return error instanceof Problem && error.status === 422 && error.extras.sessionId !== undefined;
}

function ofUserWithMost<T extends { readonly userId: number }>(turns: readonly T[], weightOf: (turn: T) => number): T[] {
  const weights = new Map<number, number>();
  for (const turn of turns) weights.set(turn.userId, (weights.get(turn.userId) ?? 0) + weightOf(turn));
  const most = Math.max(...weights.values());
  return turns.filter(({ userId }) => weights.get(userId) === most);
}

function bytesOf(value: unknown): number {
  return Buffer.byteLength(JSON.stringify(value));
}
