import type { ServerResponse } from 'node:http';

/** How long a stream may be silent, in milliseconds. */
export interface StreamTimes {
  /** Until its head goes out, where nothing has happened: below what proxies wait for a first byte (nginx: 60 s). */
  readonly headAfterMs: number;
  /** From one comment line to the next. */
  readonly heartbeatMs: number;
}

/** Events for one caller, as server-sent events (WHATWG HTML, section 9.2). */
export class EventStream {
  readonly #res: ServerResponse;
  readonly #heartbeatMs: number;
  readonly #headTimer: NodeJS.Timeout;
  #heartbeat: NodeJS.Timeout | undefined;
  #state: 'waiting' | 'open' | 'over' = 'waiting';
  #unsent: Array<{ name: string; data: object }> = [];
  #isBlocked = false;

  /** Sends nothing yet. Once the caller has gone (`caller` aborts) it does nothing more. */
  constructor(res: ServerResponse, { headAfterMs, heartbeatMs }: StreamTimes, caller: AbortSignal) {
    this.#res = res;
    this.#heartbeatMs = heartbeatMs;
    this.#headTimer = setTimeout(() => this.open(), headAfterMs);
    res.on('drain', () => this.#flush());
    res.on('close', () => this.#stop());
    // An answer that waits behind another one on its connection never closes.
    caller.addEventListener('abort', () => this.#stop());
  }

  /** Whether the head is out, so that an error can only be an event. */
  get isOpen(): boolean {
    return this.#state === 'open';
  }

  /** Sends the status and headers, then a comment line now and then, so that no proxy takes the stream for dead. */
  open(): void {
    if (this.#state !== 'waiting' || this.#res.headersSent) return;
    this.#state = 'open';
    clearTimeout(this.#headTimer);
    this.#res.writeHead(200, {
      'Content-Type': 'text/event-stream; charset=utf-8',
      'Cache-Control': 'no-cache',
      'X-Accel-Buffering': 'no',
    });
    this.#res.flushHeaders();
    this.#heartbeat = setInterval(() => this.#isBlocked || this.#res.write(': still working\n\n'), this.#heartbeatMs);
  }

  /**
   * Sends one event. While a slow reader has not taken the last ones, further text is joined into one waiting event:
   * the turn never waits for its reader, and what waits is never more than the answer itself.
   */
  send(name: string, data: object): void {
    this.open();
    if (!this.isOpen) return;
    const last = this.#unsent.at(-1);
    if (last?.name === 'delta' && name === 'delta' && 'text' in last.data && 'text' in data) {
      last.data = { text: `${last.data.text}${data.text}` };
    } else {
      this.#unsent.push({ name, data });
    }
    if (!this.#isBlocked) this.#flush();
  }

  /** Sends the last event and ends the stream. */
  end(name: string, data: object): void {
    this.open();
    if (!this.isOpen) return;
    this.#stop();
    this.#unsent.push({ name, data });
    this.#flush();
    this.#res.end();
  }

  #stop(): void {
    this.#state = 'over';
    clearTimeout(this.#headTimer);
    clearInterval(this.#heartbeat);
  }

  #flush(): void {
    const text = this.#unsent.map(({ name, data }) => `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`).join('');
    this.#unsent = [];
    this.#isBlocked = text !== '' && !this.#res.write(text);
  }
}
