/** Something limited that several take parts of, such as memory for bodies: first come, first served. */
export interface Share {
  /**
   * Waits until `amount` is free and takes it; the function it gives returns it, once. Rejects with the signal's reason
   * where that comes first; then nothing is taken. An amount above the whole never comes.
   */
  take(amount: number, signal: AbortSignal): Promise<() => void>;
}

/** A share of `total` units, none of them taken. */
export function createShare(total: number): Share {
  let free = total;
  const waiting = new Set<{ readonly amount: number; readonly grant: () => void }>();

  function takeNow(amount: number): () => void {
    free -= amount;
    let isTaken = true;
    return () => {
      if (!isTaken) return;
      isTaken = false;
      free += amount;
      serve();
    };
  }

  function serve(): void {
    for (const waiter of waiting) {
      // Nobody overtakes: a large amount would else wait for ever behind small ones.
      if (waiter.amount > free) return;
      waiting.delete(waiter);
      waiter.grant();
    }
  }

  return {
    take: (amount, signal) =>
      new Promise((resolve, reject) => {
        signal.throwIfAborted();
        const onAbort = (): void => {
          waiting.delete(waiter);
          reject(signal.reason);
          serve();
        };
        const grant = (): void => {
          signal.removeEventListener('abort', onAbort);
          resolve(takeNow(amount));
        };
        const waiter = { amount, grant };
        signal.addEventListener('abort', onAbort);
        waiting.add(waiter);
        serve();
      }),
  };
}
