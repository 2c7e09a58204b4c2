import { connect, type Socket } from 'node:net';
import type { TestContext } from 'node:test';
import { within } from './running-server.ts';

/** One answer as it came over the wire, its body put together. */
export interface WireAnswer {
  readonly status: number;
  readonly headers: Headers;
  readonly body: string;
}

/** A request in bytes, with a Host header; Content-Length is added where there is a body and no other length. */
export function requestBytes(line: string, headers: readonly string[] = [], body: string | Buffer = ''): Buffer {
  const bytes = Buffer.from(body);
  const isSized = headers.some((header) => /^(content-length|transfer-encoding):/i.test(header));
  const all = ['Host: test', ...headers, ...(bytes.length > 0 && !isSized ? [`Content-Length: ${bytes.length}`] : [])];
  return Buffer.concat([Buffer.from(`${line} HTTP/1.1\r\n${all.join('\r\n')}\r\n\r\n`, 'latin1'), bytes]);
}

/** The body cut into chunks of the chunked transfer coding, its end included. */
export function chunked(body: string, chunkLength = 7): string {
  const chunks = body.match(new RegExp(`[^]{1,${chunkLength}}`, 'gu')) ?? [];
  return [...chunks.map((chunk) => `${Buffer.byteLength(chunk).toString(16)}\r\n${chunk}\r\n`), '0\r\n\r\n'].join('');
}

/** A TCP connection that shows exactly what a server sends, and lets a test send anything. */
export class Connection {
  /** Whether the server refused what was sent last, because it has closed the connection for good. */
  isReset = false;
  readonly #socket: Socket;
  #unread = Buffer.alloc(0);
  #isEnded = false;
  #wake = (): void => {};

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', (chunk: Buffer) => {
      this.#unread = Buffer.concat([this.#unread, chunk]);
      this.#wake();
    });
    for (const event of ['end', 'close'] as const) {
      socket.on(event, () => {
        this.#isEnded = true;
        this.#wake();
      });
    }
    // A server that is stopped at the end of a test resets what is still open.
    socket.on('error', () => (this.isReset = true));
  }

  /** Resolves when the bytes have left, or can leave no more; a test that sends little need not wait. */
  send(bytes: string | Buffer): Promise<void> {
    return new Promise((resolve) => this.#socket.write(bytes, () => resolve()));
  }

  /** Takes nothing more; what the server sends stays in its hands once the buffers between are full. */
  stopReading(): void {
    this.#socket.pause();
  }

  /** Sends nothing more, but would still read; the connection must have been opened with `allowHalfOpen`. */
  endSide(): void {
    this.#socket.end();
  }

  /** Takes what comes again. */
  readOn(): void {
    this.#socket.resume();
  }

  /** Leaves without a word, as a killed program does. */
  hangUp(): void {
    this.#socket.destroy();
  }

  /** Leaves with a reset, as a program that crashes with answers unread does. */
  reset(): void {
    this.#socket.resetAndDestroy();
  }

  /** The next answer, interim ones included; `isToHead` when it answers a HEAD request and so has no body. */
  async answer(label: string, isToHead = false): Promise<WireAnswer> {
    for (;;) {
      const answer = this.#takeAnswer(isToHead);
      if (answer !== undefined) return answer;
      if (this.#isEnded) throw new Error(`the connection ended before ${label}: ${this.#unread.toString('latin1')}`);
      await this.#news(label);
    }
  }

  /** Waits until these bytes have come, and leaves them unread. */
  received(text: string): Promise<void> {
    const label = JSON.stringify(text.slice(0, 100));
    const come = async (): Promise<void> => {
      while (!this.#unread.includes(text)) {
        if (this.#isEnded) throw new Error(`the connection ended before ${label}`);
        await this.#news(label);
      }
    };
    // What else comes without end is no reason to wait on.
    return within(label, 20_000, come());
  }

  /** Waits until the server ends the connection; gives what it sent that nobody read. */
  async ended(): Promise<string> {
    while (!this.#isEnded) await this.#news('the server to end the connection');
    return this.#unread.toString();
  }

  #news(label: string): Promise<void> {
    return within(label, 10_000, new Promise<void>((resolve) => (this.#wake = resolve)));
  }

  #takeAnswer(isToHead: boolean): WireAnswer | undefined {
    const headEnd = this.#unread.indexOf('\r\n\r\n');
    if (headEnd === -1) return undefined;
    const [statusLine = '', ...lines] = this.#unread.subarray(0, headEnd).toString('latin1').split('\r\n');
    const [, digits] = /^HTTP\/1\.1 (\d{3}) /.exec(statusLine) ?? [];
    if (digits === undefined) throw new Error(`not an answer: ${statusLine}`);
    const status = Number(digits);
    const headers = new Headers(lines.map((line): [string, string] => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 1)]));
    const rest = this.#unread.subarray(headEnd + 4);
    const isEmpty = isToHead || status < 200 || status === 204;
    const body = isEmpty ? { text: '', length: 0 } : headers.has('transfer-encoding') ? unchunk(rest) : sized(rest, Number(headers.get('content-length')));
    if (body === undefined) return undefined;
    this.#unread = rest.subarray(body.length);
    return { status, headers, body: body.text };
  }
}

/** An open connection to a port of this machine; closed at the end of the test. */
export async function openConnection(t: TestContext, port: number, options: { readonly allowHalfOpen?: boolean } = {}): Promise<Connection> {
  const socket = connect({ port, host: '127.0.0.1', noDelay: true, ...options });
  const connection = new Connection(socket);
  t.after(() => connection.hangUp());
  await within('a connection', 10_000, new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject)));
  return connection;
}

type Taken = { readonly text: string; readonly length: number };

function sized(bytes: Buffer, length: number): Taken | undefined {
  return bytes.length < length ? undefined : { text: bytes.subarray(0, length).toString(), length };
}

function unchunk(bytes: Buffer): Taken | undefined {
  const parts: Buffer[] = [];
  for (let at = 0; ; ) {
    const lineEnd = bytes.indexOf('\r\n', at);
    if (lineEnd === -1) return undefined;
    const length = Number.parseInt(bytes.subarray(at, lineEnd).toString('latin1'), 16);
    const end = lineEnd + 2 + length;
    if (bytes.length < end + 2) return undefined;
    if (length === 0) return { text: Buffer.concat(parts).toString(), length: end + 2 };
    parts.push(bytes.subarray(lineEnd + 2, end));
    at = end + 2;
  }
}
