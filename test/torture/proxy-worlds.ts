import { once } from 'node:events';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import type { TestContext } from 'node:test';
import type { Tokens } from '../../src/sandbox/usage.ts';
import { events, usage } from '../api-stage.ts';
import type { Chance } from './chance.ts';

/** One request byte by byte, as it came. */
export interface RawRequest {
  readonly line: string;
  readonly headers: ReadonlyMap<string, string>;
  readonly body: Buffer;
}

/** A stand-in for the API that takes apart what it gets without mercy. */
export class RawApi {
  /** What no proxy of ours may send. */
  readonly wrong: string[] = [];
  readonly sockets = new Set<Socket>();
  answer: (socket: Socket, request: RawRequest) => void = (socket) => socket.write(ok.bytes);
  /** Asked when the first bytes of a request are there; true = answered already, the rest is of no interest. */
  answerEarly: (socket: Socket, begun: Buffer) => boolean = () => false;
  readonly #server = createServer((socket) => this.#serve(socket));

  async start(t: TestContext): Promise<string> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    t.after(() => this.close());
    return `http://${this.host}`;
  }

  get host(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  close(): void {
    this.#server.close();
    for (const socket of this.sockets) socket.destroy();
  }

  #serve(socket: Socket): void {
    let [pieces, have, want]: [Buffer[], number, number] = [[], 0, 0];
    this.sockets.add(socket);
    socket.setNoDelay(true).on('error', () => {}).once('close', () => this.sockets.delete(socket));
    socket.on('data', (chunk: Buffer) => {
      if (socket.writableEnded) return; // what comes now is told by the end that nobody has heard it
      if (have === 0 && this.answerEarly(socket, chunk)) return void socket.removeAllListeners('data').resume();
      pieces.push(chunk);
      have += chunk.length;
      if (have < want) return;
      const unread = Buffer.concat(pieces);
      const headEnd = unread.indexOf('\r\n\r\n');
      if (headEnd === -1) return;
      const [line = '', ...lines] = unread.toString('latin1', 0, headEnd).split('\r\n');
      const pairs = lines.map((each) => /^([A-Za-z0-9-]+): ([^\r\n\0]*)$/.exec(each)?.slice(1, 3).map((part, i) => (i === 0 ? part.toLowerCase() : part)) ?? ['', each]) as Array<[string, string]>;
      const headers = new Map(pairs);
      const end = headEnd + 4 + Number(headers.get('content-length'));
      if (headers.size < pairs.length || headers.has('') || headers.has('transfer-encoding') || !/^\d+$/.test(headers.get('content-length') ?? '')) this.wrong.push(`a head that is not plain: ${line} ${lines.join(' | ')}`);
      want = end;
      if (have < end) return;
      if (unread.length > end) this.wrong.push(`bytes behind a request: ${unread.toString('latin1', end, end + 100)}`);
      const body = unread.subarray(headEnd + 4, end);
      [pieces, have, want] = [[], 0, 0];
      this.answer(socket, { line, headers, body });
    });
  }
}

/** A right answer of the API, and what of it counts at each byte. */
export class Wire {
  readonly bytes: Buffer;
  /** The bytes of the head. */
  readonly headBytes: number;
  readonly status: number;
  readonly payload: Buffer;
  readonly isStream: boolean;
  /** How its end is told. */
  readonly coding: 'length' | 'chunks' | 'close';
  readonly #payloadAt: number[] = [];

  constructor(status: number, pieces: readonly string[], coding: Wire['coding'], isStream: boolean, headers = '') {
    [this.status, this.coding, this.isStream] = [status, coding, isStream];
    this.payload = Buffer.from(pieces.join(''));
    const told = { length: `Content-Length: ${this.payload.length}\r\n`, chunks: 'Transfer-Encoding: chunked\r\n', close: 'Connection: close\r\n' }[coding];
    const head = `HTTP/1.1 ${status} X\r\nContent-Type: ${isStream ? 'text/event-stream' : 'application/json'}\r\nrequest-id: r1\r\nSet-Cookie: a=b\r\n${headers}${told}\r\n`;
    const parts: Array<readonly [text: string, isPayload: boolean]> = [[head, false]];
    for (const piece of pieces) parts.push(...(coding === 'chunks' ? [[`${Buffer.byteLength(piece).toString(16)}\r\n`, false], [piece, true], ['\r\n', false]] as const : [[piece, true]] as const));
    if (coding === 'chunks') parts.push(['0\r\n\r\n', false]);
    this.bytes = Buffer.from(parts.map(([text]) => text).join(''));
    this.headBytes = head.length;
    let payload = 0;
    for (const [text, isPayload] of parts) for (let i = Buffer.byteLength(text); i > 0; i -= 1) this.#payloadAt.push((payload += isPayload ? 1 : 0));
  }

  /** How many bytes of the payload are among the first `count` of the answer. */
  payloadIn(count: number): number {
    return count === 0 ? 0 : (this.#payloadAt[count - 1] ?? 0);
  }

  /** Whether this byte belongs to the payload. */
  isPayload(at: number): boolean {
    return this.payloadIn(at + 1) > this.payloadIn(at);
  }

  /** The tokens to be counted of the first `count` bytes; of output at least and at most. */
  tokensIn(count: number): Tokens & { readonly mostOutput: number } {
    const told = this.payload.toString('latin1', 0, this.payloadIn(count));
    const none = { input: 0, output: 0, cacheWrite: 0, cacheRead: 0, mostOutput: 0 };
    if (this.status >= 400) return none;
    const all = { input: usage.input_tokens, output: 100, cacheWrite: usage.cache_creation_input_tokens, cacheRead: usage.cache_read_input_tokens, mostOutput: 100 };
    if (!this.isStream) return this.payloadIn(count) === this.payload.length ? all : none;
    const lines = told.split('\n').slice(0, -1);
    const has = (type: string): boolean => lines.some((line) => line.startsWith(`data: {"type":"${type}"`));
    if (!has('message_start')) return none;
    return has('message_delta') ? all : { ...all, output: has('content_block_delta') ? 2 : 1, mostOutput: has('content_block_delta') ? 40 : 1 };
  }
}

const message = JSON.stringify({ type: 'message', content: [{ type: 'text', text: 'żółć' }], usage });
const failure = (type: string): string[] => [JSON.stringify({ type: 'error', error: { type, message: 'no' } })];

export const ok = new Wire(200, [message], 'length', false);

/** The answers that the API gives, in the ways it may send them. */
export const wires: readonly Wire[] = [
  ok, new Wire(200, [message.slice(0, 30), message.slice(30)], 'chunks', false), new Wire(200, [message], 'close', false),
  new Wire(200, events, 'chunks', true), new Wire(200, events, 'length', true), new Wire(200, events, 'close', true),
  new Wire(400, failure('invalid_request_error'), 'length', false), new Wire(401, failure('authentication_error'), 'length', false), new Wire(404, failure('not_found_error'), 'chunks', false),
  new Wire(429, failure('rate_limit_error'), 'length', false, 'Retry-After: 7\r\nanthropic-ratelimit-unified-reset: 1\r\n'), new Wire(500, failure('api_error'), 'chunks', false), new Wire(529, failure('overloaded_error'), 'length', false, 'x-should-retry: true\r\n'),
];

/** Addresses of the internet; who is at those of the first list answers. */
export const [answering, deaf] = [['93.184.215.14', '8.8.8.8', '2606:2800:220:1:248:1893:25c8:1946', '192.0.1.1', '172.32.0.1', '2001:200::1', '223.255.255.255'], ['93.184.215.15', '2606:4700::1', '100.128.0.1', '1.0.0.1']];
/** What is on the internet and belongs to names that no list has. */
const foreign = '151.101.1.1';
/** The network this machine is in; the rest are not of the internet. */
export const own = ['93.184.216.7/24', '2606:5000:1::7/64'];
const local = [
  '127.0.0.1', '127.255.0.9', '0.0.0.0', '0.1.2.3', '10.0.0.1', '172.16.0.1', '172.31.255.255', '192.168.1.1', '169.254.169.254', '100.64.0.1', '100.127.255.255', '192.0.0.8', '192.0.2.1', '198.18.0.1', '198.51.100.1', '203.0.113.1', '192.88.99.1', '224.0.0.1', '240.0.0.1', '255.255.255.255', '93.184.216.1', '93.184.216.255',
  '::1', '::', '0:0:0:0:0:0:0:1', '::ffff:93.184.215.14', '::ffff:7f00:1', '::ffff:127.0.0.1', '::127.0.0.1', '::93.184.215.14', '64:ff9b::5db8:d70e', '64:ff9b::127.0.0.1', '64:ff9b:1::1', '2002:7f00:1::', '2002:5db8:d70e::1', '2001::1', '2001:0:5db8:d70e::', '2001:db8::1', '2001:10::1', '3fff::1', 'fc00::1', 'fd12::1', 'fe80::1', 'fe80::1%lo', 'fec0::1', 'ff02::1', '100::1', '4000::1',
  '2606:5000:1::1', '2606:5000:1:0:ffff::', '::ffff:0:127.0.0.1', 'FE80::1', '2606:2800:220:1:248:1893:25c8:1946%lo',
];
/** Other words for an address, which are none to node:net. */
const spelled = ['127.1', '2130706433', '0x7f000001', '0x7f.0.0.1', '0177.0.0.1', '127.0.0.1.', '127.000.000.001', '93.184.215.014', '93.184.55054', '1572394766', '0x5db8d70e', 'localhost', 'localhost.', 'LOCALHOST', 'ip6-localhost', '93.184.215.14.', '127.0.0.1.nip.io', '.', '-', '_', 'a..b', '.a'];
const broken = [
  'X:80', 'X:0443', 'X:+443', 'X: 443', 'X:443x', 'X:65979', 'X:4430', 'X:', 'X', 'X:443:443', 'u@X:443', 'u:p@X:443', 'https://X:443', '//X:443', 'X:443/', 'X:443?', 'X:443#', 'X#:443', 'X%00.evil:443', 'X%2e:443', 'X\0:443', 'X\t:443', 'X,evil:443', '[X]:443', '[::1]X:443', 'X:443\\', '[::1:443', '::1:443', '[::1%lo]:443', '[::1]:443@X:443', '[X:443', '[::1]',
  '*:443', ':443', '', '/', '*', '\xe2\x92\x9c:443', 'b\xfccher.example:443', 'allowed\xe3\x80\x82example:443', `${'a.'.repeat(130)}X:443`, `${'a.'.repeat(9000)}X:443`, '[::ffff:127.0.0.1]:80',
];

/** A target of CONNECT, and what must become of it. */
export interface Target {
  readonly text: string;
  /** What the name's lookup gives. */
  readonly found: readonly string[];
  /** Whether the name may be looked up, or the address be connected to. */
  readonly isAllowed: boolean;
  /** 200, 403 or 502; undefined for what may be refused in any way. */
  readonly status: 200 | 403 | 502 | undefined;
}

export const hosts = ['allowed.example', '*.below.example', 'xn--bcher-kva.example'];

/** A target of any kind. `isListed`: only `hosts` may be reached, else the whole internet. `mark`: a label that makes its name the only one. */
export function drawTarget(chance: Chance, isListed: boolean, mark: string): Target {
  const cased = (name: string): string => (chance.is(0.3) ? name.replace(/[a-z]/g, (letter) => (chance.is(0.5) ? letter.toUpperCase() : letter)) : name);
  const kind = chance.int(1, 20);
  if (kind <= 4) {
    const address = chance.pick([...answering, ...deaf, ...local]);
    const isGood = !isListed && !local.includes(address);
    return { text: `${address.includes(':') ? `[${chance.pick(spellings(address))}]` : address}:443`, found: [], isAllowed: isGood, status: address.includes('%') ? undefined : !isGood ? 403 : answering.includes(address) ? 200 : 502 };
  }
  if (kind <= 6) return { text: `${chance.pick(spelled)}:443`, found: [chance.pick(local)], isAllowed: !isListed, status: isListed ? 403 : undefined };
  if (kind <= 9) return { text: chance.pick(broken).replace('X', `${mark}.below.example`), found: [foreign], isAllowed: false, status: undefined };
  const others = [`${mark}allowed.example`, `allowed.example.${mark}.com`, `${mark}below.example`, `${mark}.belowXexample`, `${mark}.below.example..`, `${mark}.below.example.com`, `xn--${mark}.example`, `${mark}.allowed.example`, `${mark}.xn--bcher-kva.example`, `${mark}.com`];
  if (kind <= 12 && isListed) return { text: `${cased(chance.pick(others))}:443`, found: [foreign], isAllowed: false, status: 403 };
  const found = Array.from({ length: chance.int(0, 7) }, () => chance.pick(chance.pick([answering, deaf, local, ['', 'localhost', '127.1', '0x7f.1', 'evil.example']])));
  const tried = found.filter((address) => [...answering, ...deaf].includes(address)).slice(0, 4);
  const status = tried.some((address) => answering.includes(address)) ? 200 : tried.length === 0 && found.length > 0 ? 403 : 502;
  const name = chance.pick([`${mark}.below.example`, `a.${mark}.b.below.example`, `_${mark}.below.example`, `${mark}.below.example.`, `${`${mark}.`.repeat(8)}below.example`]);
  return { text: `${cased(isListed ? name : chance.pick([name, ...others.slice(0, 3)]))}:443`, found, isAllowed: true, status };
}

/** The same IPv6 address in other letters. */
export function spellings(address: string): string[] {
  if (address.includes('.') || address.includes('%')) return [address];
  const [before = '', after] = address.split('::').map((half) => half.split(':').filter(Boolean).join(':'));
  const count = (half: string): number => (half === '' ? 0 : half.split(':').length);
  const full = after === undefined ? before : [before, Array(8 - count(before) - count(after)).fill('0').join(':'), after].filter(Boolean).join(':');
  return [address, address.toUpperCase(), full, full.split(':').map((group) => group.padStart(4, '0')).join(':')];
}

/** An address as all its spellings have it. */
export function canonical(address: string): string {
  return address.includes(':') ? new URL(`http://[${address}]/`).hostname.slice(1, -1) : address;
}
