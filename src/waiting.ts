/** What comes within the time, else `late`. The promise must not reject. */
export function inTime<T>(coming: Promise<T>, timeoutMs: number, late: T): Promise<T> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, timeoutMs, late);
    void coming.then(resolve).finally(() => clearTimeout(timer));
  });
}

/** Waits for this, but rejects with the signal's reason as soon as that aborts. */
export async function unlessAborted<T>(coming: Promise<T>, signal: AbortSignal): Promise<T> {
  let leave = (): void => {};
  const aborted = new Promise<never>((_resolve, reject) => (leave = () => reject(signal.reason)));
  if (signal.aborted) leave();
  signal.addEventListener('abort', leave);
  return Promise.race([aborted, coming]).finally(() => signal.removeEventListener('abort', leave));
}
