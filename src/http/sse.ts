import type { ServerResponse } from 'node:http';

/** Events for one caller, as server-sent events (WHATWG HTML, section 9.2). */
export class EventStream {
  readonly #res: ServerResponse;
  readonly #heartbeat: NodeJS.Timeout;
  #unsent: Array<{ name: string; data: object }> = [];
  #isBlocked = false;

  /** Sends the status and headers at once, then a comment line every `heartbeatMs` so that no proxy takes it for dead. */
  constructor(res: ServerResponse, heartbeatMs: number) {
    this.#res = res;
    res.writeHead(200, {
      'Content-Type': 'text/event-stream; charset=utf-8',
      'Cache-Control': 'no-cache',
      'X-Accel-Buffering': 'no',
    });
    res.flushHeaders();
    res.on('drain', () => this.#flush());
    this.#heartbeat = setInterval(() => this.#isBlocked || res.write(': still working\n\n'), heartbeatMs);
    res.on('close', () => clearInterval(this.#heartbeat));
  }

  /**
   * Sends one event. While a slow reader has not taken the last ones, further text is joined into one waiting event:
   * the turn never waits for its reader, and what waits is never more than the answer itself.
   */
  send(name: string, data: object): void {
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
    clearInterval(this.#heartbeat);
    this.#unsent.push({ name, data });
    this.#flush();
    this.#res.end();
  }

  #flush(): void {
    const text = this.#unsent.map(({ name, data }) => `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`).join('');
    this.#unsent = [];
    this.#isBlocked = text !== '' && !this.#res.write(text);
  }
}
