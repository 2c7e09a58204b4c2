/** One caller that a turn is told to. */
export interface Listener<E> {
  /** Aborts when the caller has gone; its reason is a Problem. */
  readonly signal: AbortSignal;
  readonly onEvent: (event: E) => void;
}

/** Who listens to a turn. The turn goes on as long as one of them does. */
export class Listeners<E> {
  readonly #present = new Set<Listener<E>>();
  readonly #allGone = new AbortController();

  constructor(first: Listener<E>) {
    this.add(first);
  }

  /** Aborts when the last listener has gone, with the reason of its own signal. */
  get signal(): AbortSignal {
    return this.#allGone.signal;
  }

  /** Adds one; who has gone already leaves at once. */
  add(listener: Listener<E>): void {
    const { signal } = listener;
    const leave = (): void => {
      this.#present.delete(listener);
      if (this.#present.size === 0) this.#allGone.abort(signal.reason);
    };
    this.#present.add(listener);
    if (signal.aborted) leave();
    else signal.addEventListener('abort', leave, { once: true });
  }

  /** Tells all that are there. */
  tell(event: E): void {
    for (const { onEvent } of this.#present) onEvent(event);
  }
}
