/** The memory one request's body takes. */
export interface BodyHold {
  /** Whether there are so many bytes more; then they are taken. */
  take(bytes: number): boolean;
  /** Gives all of them back; none can be taken any more. */
  end(): void;
}

/** Holds of `maxBytes` together: a burst of large bodies is refused, where it would end the server for want of memory. */
export function createBodyMemory(maxBytes: number): () => BodyHold {
  let leftBytes = maxBytes;
  return () => {
    let heldBytes = 0;
    let isOver = false;
    return {
      take(bytes) {
        if (isOver || bytes > leftBytes) return false;
        leftBytes -= bytes;
        heldBytes += bytes;
        return true;
      },
      end() {
        isOver = true;
        leftBytes += heldBytes;
        heldBytes = 0;
      },
    };
  };
}
