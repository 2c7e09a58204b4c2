import { apiKey } from '../running-server.ts';
import { Chance } from './chance.ts';
import { makeBody, maxBodyBytes, verdictOf, type World } from './http-bodies.ts';

/** One request as it goes over the wire, and what the server may do about it. */
export interface Sent {
  readonly bytes: Buffer;
  /** Where its body begins. */
  readonly headBytes: number;
  /** The right answers, each a status and the code of its problem, as in "401 invalid_api_key"; any of them. */
  readonly right: readonly string[];
  readonly isHead: boolean;
  /** Whether the connection ends with it: it must, it may, it must not. */
  readonly ends: 'yes' | 'maybe' | 'no';
  /** Whether it never becomes a request, so that the server reads on until the answer has been taken. */
  readonly isUnheard: boolean;
  /** Whether the server waits for more, so that nobody else can follow on the connection. */
  readonly isUnfinished: boolean;
  /** Whether what follows its answer is garbage to the server, which it may say once. */
  readonly leavesGarbage: boolean;
  readonly mayContinue: boolean;
  readonly streams: boolean;
  readonly content: RegExp | undefined;
  readonly requestId: string | undefined;
  readonly allowOrigin: string | undefined;
  readonly isKeyed: boolean;
  readonly route: Route;
}

export type Route = 'chat' | 'health' | 'all' | 'none';

export const allowedOrigin = 'https://a.test';
const malformed = '400 malformed_request';
const withKey = `Authorization: Bearer ${apiKey}`;

const targets: Readonly<Record<Route, readonly string[]>> = {
  chat: ['/api/v1/chat', '/api/v1/chat', '/api/v1/chat', '/api/v1/chat?x=1', 'http://test/api/v1/chat', 'HTTPS://test:8001/api/v1/chat?a=/b', '/api/v1/chat#x'],
  health: ['/health', '/health', '/health', '/health?x', 'http://test/health', 'http://u:p@test/health', 'http://[::1]:80/health?y', '/health?a?b#c', '/health?%00%0d%0a'],
  all: ['*'],
  none: [
    '/', '//', '//health', '/health/', '/health//', '/./health', '/api/../health', '/api/v1/chat/', '//api/v1/chat', '/API/v1/chat', '/%61pi/v1/chat', '/health%00', '/health%2f', '/health%0d%0aX:%20y',
    '/api/v1/chat;x', '/%', '/%zz', '/..%2f..%2fetc/passwd', '/../../etc/passwd', '/__proto__', '/constructor', 'http://test', 'http://test/', 'http://test//health', 'ftp://test/health', '/http://test/health', '*/health', `/${'x'.repeat(5000)}`,
    '/"<>^`{|}\\', '/health&', '/.env', '/hasOwnProperty',
  ],
};

const methods = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'TRACE', 'PROPFIND', 'PURGE', 'M-SEARCH', 'LINK'];

/** First lines that no HTTP/1.1 parser may take; a space stands for the rest of the line. */
const brokenLines: ReadonlyArray<(target: string) => string> = [
  () => 'hello there', () => '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03', () => '\0', () => '\xff\xfe', () => 'PRI * HTTP/2.0', () => '{"prompt":"LEAK"}',
  (target) => `FOO ${target} HTTP/1.1`, (target) => `get ${target} HTTP/1.1`, (target) => `GET\t${target} HTTP/1.1`, (target) => `GET ${target} http/1.1`, (target) => `GET ${target} HTTP/1.2`, (target) => `GET ${target} HTTP/9.9`,
  (target) => `GET ${target} HTTP/1.10`, (target) => `GET ${target} HTTP/1.1 x`, (target) => `GET ${target} HTTPS/1.1`, (target) => `GET ${target}\0 HTTP/1.1`, (target) => `GET ${target}\x01 HTTP/1.1`, (target) => `GET ${target}\x7f HTTP/1.1`,
  (target) => `GET ${target} x HTTP/1.1`, () => 'GET health HTTP/1.1', () => 'GET ?x HTTP/1.1', () => 'GET test:80 HTTP/1.1', () => 'GET http://a^b/health HTTP/1.1', () => 'GET  HTTP/1.1', (target) => ` GET ${target} HTTP/1.1`,
];

/** First lines that a parser may be kind about. */
const oddLines: ReadonlyArray<(method: string, target: string) => string> = [
  (method, target) => `\r\n${method} ${target} HTTP/1.1`, (method, target) => `\n\n${method} ${target} HTTP/1.1`, (method, target) => `${method}  ${target} HTTP/1.1`, (method, target) => `${method} ${target}  HTTP/1.1`,
  (method, target) => `${method} ${target} HTTP/1.1 `, (method, target) => `${method} ${target} HTTP/2.0`, (method, target) => `${method} ${target} HTTP/0.9`, (method, target) => `${method} ${target} RTSP/1.0`,
  (method, target) => `${method} ${target}\xe9 HTTP/1.1`, (method, target) => `${method} ${target}\t HTTP/1.1`,
];

const brokenHeaders = [
  'broken', ': x', ' : x', 'X : y', 'X\0: y', 'X: a\0b', 'X: a\x01b', 'X: a\x7fb', 'X: a\rY: b', 'X: a\r\r\nY: b', 'X(: y', 'X\xe9: y', '"X": y', 'X\x01Y: z', 'X: \x1b[31m', 'X-Request-Id: a\rSet-Cookie: b',
  'Content-Length: x', 'Content-Length: -1', 'Content-Length: +1', 'Content-Length: 1e3', 'Content-Length: 0x5', 'Content-Length: 5a', 'Content-Length: 5 5', 'Content-Length: 5, 5', 'Content-Length:', 'Content-Length: 18446744073709551616',
  'Content-Length: 5\r\nContent-Length: 6', 'Content-Length: 5\r\nContent-Length: 5', 'Content-Length: 5\r\nTransfer-Encoding: chunked', 'Transfer-Encoding: chunked\r\nContent-Length: 5',
  'Transfer-Encoding: chunked, identity', 'Transfer-Encoding: chunked, chunked', 'Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked', 'Transfer-Encoding: \x0bchunked',
];

/** Refused only behind the head, when the request may have been answered already. */
const brokenCodings = ['identity', 'xchunked', 'chunked;q=1', 'chunked, gzip'];

const oddHeaders = ['X: a\r\n b', 'X: a\r\n\tb', 'X: a\nY: b', 'X: a\n'];

const harmlessHeaders = [
  'User-Agent: x', 'Accept-Encoding: gzip, br', 'Cookie: a=b', 'TE: trailers', 'Trailer: X', 'Range: bytes=0-1', 'If-None-Match: *', 'Upgrade: websocket\r\nConnection: Upgrade', 'Upgrade: h2c', 'Connection: keep-alive', 'Connection: x, y',
  'Keep-Alive: timeout=9999', 'Max-Forwards: 0', '__proto__: x', 'constructor: x', 'hasOwnProperty: x', 'X:', 'X: \x80\xff', 'X:\ta\tb\t', 'X-Content-Length: 7', 'Content_Length: 7', 'X-HTTP-Method-Override: DELETE', 'X-Forwarded-Host: evil.test',
  `Y: ${'y'.repeat(3000)}`, 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==', 'Date: never', 'Via: 1.1 x', 'Proxy-Connection: keep-alive',
];

const wrongKeys = [
  [], ['Authorization:'], ['Authorization: Bearer'], [`Authorization: ${apiKey}`], [`Authorization: Bearer ${apiKey}x`], [`Authorization: Bearer ${apiKey.slice(1)}`], [`Authorization: Basic ${apiKey}`], [withKey, withKey], [withKey, 'authorization: Bearer x'],
  [`Authorization: Bearer ${apiKey} ${apiKey}`], [`Authorization: Bearer "${apiKey}"`], [`Authorization: Bearer ${'x'.repeat(8000)}`], [`Authorization: Bearer ${apiKey.toUpperCase()}`], [`X-Authorization: Bearer ${apiKey}`], ['Authorization: Bearer \xff\xfe'],
];

const takenTypes = ['Content-Type: application/json', 'Content-Type: application/json', 'Content-Type: application/json; charset=utf-8', 'Content-Type: Application/JSON;charset="UTF-8"', 'Content-Type: application/x+json', 'X: no type'];
const refusedTypes = ['Content-Type: text/plain', 'Content-Type:', 'Content-Type: application/json; charset=latin1', 'Content-Type: application/x-www-form-urlencoded', 'Content-Encoding: gzip', 'Content-Encoding: br, identity', 'Content-Type: text/plain\r\nContent-Type: application/json'];

const otherOrigins = ['null', 'https://evil.test', `${allowedOrigin}.evil.test`, `${allowedOrigin}%0d%0aX-Evil: 1`, `${allowedOrigin}, ${allowedOrigin}`, '*', ''];
const saneIds = ['r-1', 'a', 'x'.repeat(128), 'A.b_c:d-9'];
const otherIds = ['', 'x'.repeat(129), 'a b', 'a%0d%0aSet-Cookie:%20x', '<script>', '\xe9', 'a,b', '"a"', 'a\tb'];

type Flaw = 'none' | 'line' | 'odd line' | 'header' | 'odd header' | 'size' | 'host' | 'chunks' | 'short' | 'long' | 'connect' | 'many';

/** What a request will be made of. At most one thing is wrong with it as HTTP, so that one answer is right. */
interface Draft {
  readonly route: Route;
  readonly target: string;
  readonly method: string;
  readonly flaw: Flaw;
  readonly version: '1.0' | '1.1';
  readonly body: Buffer;
  readonly isChunked: boolean;
  /** The Content-Length, where it has one. */
  readonly length: number | undefined;
  readonly key: readonly string[];
  readonly isTyped: boolean;
  readonly isExpecting: boolean;
  readonly isClosing: boolean;
  readonly streams: boolean;
  readonly requestId: string | undefined;
  readonly allowOrigin: string | undefined;
}

/** A request of any kind, and what the server may do about it. */
export function makeRequest(chance: Chance, world: World): Sent {
  const draft = makeDraft(chance, world);
  const { flaw, body, isChunked, length } = draft;
  const headers = makeHeaders(chance, draft);
  const head = Buffer.from(`${makeLine(chance, draft)}\r\n${headers.join('\r\n')}\r\n\r\n`, 'latin1');
  const sentBody = flaw === 'chunks' ? brokenChunks(chance, body) : isChunked ? chunks(chance, body) : length !== undefined || flaw === 'header' ? body : Buffer.alloc(0);
  const isCut = length !== undefined && length < body.length;
  const isUpgrading = headers.some((header) => header.startsWith('Upgrade:'));
  const isRefused = ['line', 'header', 'size', 'chunks', 'connect'].includes(flaw);
  const mayBeRefused = flaw.startsWith('odd') || flaw === 'long' || draft.isExpecting || isUpgrading || draft.version === '1.0';
  return {
    ...draft,
    ...rightAnswers(draft, world),
    bytes: Buffer.concat([head, sentBody]),
    headBytes: head.length,
    isHead: draft.method === 'HEAD',
    ends: isRefused || isCut || draft.isClosing ? 'yes' : mayBeRefused ? 'maybe' : 'no',
    isUnheard: flaw === 'line' || flaw === 'size' || flaw === 'connect',
    isUnfinished: flaw === 'long',
    leavesGarbage: flaw === 'chunks' || isCut,
    mayContinue: draft.isExpecting,
    isKeyed: isRightKey(draft.key),
  };
}

function makeDraft(chance: Chance, world: World): Draft {
  const route = chance.pick<Route>(['chat', 'chat', 'chat', 'chat', 'chat', 'health', 'health', 'health', 'none', 'none', chance.pick(['all', 'none'])]);
  const usual = { chat: 'POST', health: chance.pick(['GET', 'GET', 'HEAD']), all: 'OPTIONS', none: 'GET' }[route];
  const method = chance.is(0.06) ? 'OPTIONS' : chance.is(0.8) ? usual : chance.pick(methods);
  const drawn = chance.is(0.72) ? 'none' : chance.pick<Flaw>(['line', 'odd line', 'header', 'header', 'odd header', 'size', 'host', 'chunks', 'chunks', 'short', 'long', 'connect', 'many']);
  // Whether the answer to a broken HEAD has a body depends on how far the parser came.
  const flaw = method === 'HEAD' && !['host', 'short', 'long', 'many'].includes(drawn) ? 'none' : drawn;
  const version = flaw !== 'host' && chance.is(0.04) ? '1.0' : '1.1';
  const body = route === 'chat' || chance.is(0.15) ? makeBody(chance, world) : Buffer.alloc(0);
  const isChunked = flaw === 'chunks' || (chance.is(0.3) && version === '1.1' && !['short', 'long', 'header'].includes(flaw));
  const isSized = !isChunked && flaw !== 'header' && (body.length > 0 || flaw === 'long' || chance.is(0.1));
  const wrongBy = flaw === 'long' ? chance.int(1, 5000) : flaw === 'short' && body.length > 0 ? -chance.int(1, body.length) : 0;
  return {
    route, method, flaw, version, body, isChunked,
    target: chance.pick(targets[route]),
    length: isSized ? body.length + wrongBy : undefined,
    key: chance.is(0.8) ? [withKey.replace('Bearer', chance.pick(['Bearer', 'bearer', 'BEARER']))] : chance.pick(wrongKeys),
    isTyped: chance.is(0.9),
    isExpecting: chance.is(0.04) && flaw === 'none' && version === '1.1',
    isClosing: chance.is(0.03),
    streams: chance.is(0.3),
    requestId: chance.is(0.3) ? chance.pick(saneIds) : undefined,
    allowOrigin: chance.is(0.1) ? allowedOrigin : undefined,
  };
}

function makeLine(chance: Chance, { flaw, method, target, version }: Draft): string {
  if (flaw === 'line') return chance.pick(brokenLines)(target);
  if (flaw === 'odd line') return chance.pick(oddLines)(method, target);
  if (flaw === 'connect') return `CONNECT ${chance.pick(['example.org:443', '/health', '*'])} HTTP/1.1`;
  if (flaw === 'size' && chance.is(0.3)) return `${method} /${'x'.repeat(17_000)} HTTP/1.1`;
  return `${method} ${target} HTTP/${version}`;
}

function makeHeaders(chance: Chance, { flaw, version, isChunked, length, key, isTyped, isExpecting, isClosing, streams, requestId, allowOrigin }: Draft): string[] {
  const hosts = ['test', 'test:8001', '', 'evil.test', 'a b', '[::1]', '\xe9'].map((host) => [`Host: ${host}`]);
  const codings = flaw === 'chunks' && chance.is(0.2) ? brokenCodings : ['chunked', 'chunked', 'Chunked', ' chunked '];
  // Node hears of no broken body behind an Upgrade, and waits for the rest; a second Connection would be heard, too.
  const unfit = flaw === 'chunks' ? /^Upgrade:/ : isClosing ? /Connection:/ : /^$/;
  const headers = [
    ...(flaw === 'host' ? chance.pick([[], ['Host: a', 'Host: b'], ['Host: a', 'host: a']]) : chance.pick(version === '1.0' ? [...hosts, []] : hosts)),
    ...key,
    ...(isChunked ? [`Transfer-Encoding: ${chance.pick(codings)}`] : []),
    ...(length === undefined ? [] : [`Content-Length: ${chance.pick(['', '', '', '00'])}${length}`]),
    chance.pick(isTyped ? takenTypes : refusedTypes),
    ...(streams ? ['Accept: text/event-stream'] : chance.pick([[], ['Accept: */*']])),
    ...(isExpecting ? [`Expect: ${chance.pick(['100-continue', '100-continue', '100-Continue', 'tea', '100-continue, tea'])}`] : []),
    ...(isClosing ? ['Connection: close'] : []),
    ...(requestId === undefined ? chance.pick([[], [], [], [`X-Request-Id: ${chance.pick(otherIds)}`], ['X-Request-Id: a', 'X-Request-Id: a']]) : [`X-Request-Id: ${requestId}`]),
    ...(allowOrigin === undefined ? chance.pick([[], [], [], [`Origin: ${chance.pick(otherOrigins)}`]]) : [`Origin: ${allowOrigin}`]),
    ...Array.from({ length: chance.int(0, 3) }, () => chance.pick(harmlessHeaders)).filter((header) => !unfit.test(header)),
    ...(flaw === 'header' ? [chance.pick(brokenHeaders)] : []),
    ...(flaw === 'odd header' ? [chance.pick(oddHeaders)] : []),
    ...(flaw === 'size' ? [`X-Big: ${'x'.repeat(chance.pick([16_400, 17_000, 40_000, 70_000, 300_000]))}`] : []),
  ];
  return [...(flaw === 'many' ? Array<string>(1200).fill('a:') : []), ...shuffled(chance, headers)];
}

function rightAnswers(draft: Draft, world: World): { right: readonly string[]; content: RegExp | undefined } {
  const { flaw, body, isChunked, length } = draft;
  const onHead = rightOnHead(draft);
  // The declared length decides before the bytes do.
  const onBody = length !== undefined && length > maxBodyBytes ? { right: ['413 body_too_large'] } : verdictOf(isChunked || length !== undefined ? body.subarray(0, length) : Buffer.alloc(0), world);
  const usual = onHead === undefined ? onBody.right : [onHead];
  const isTooLarge = usual[0] === '413 body_too_large';
  const right: Readonly<Record<Flaw, readonly string[]>> = {
    none: usual, many: usual, host: usual, short: usual,
    line: [malformed], header: [malformed],
    'odd line': [...usual, malformed, '404 not_found'], 'odd header': [...usual, malformed],
    size: ['431 headers_too_large'],
    // Whether the flaw is met before the answer is chance.
    chunks: [...(onHead !== undefined || isTooLarge ? usual : []), malformed, '431 headers_too_large'],
    long: onHead !== undefined || isTooLarge ? usual : [],
    connect: ['404 not_found', malformed],
  };
  return { right: right[flaw], content: onHead === undefined ? onBody.content : undefined };
}

function isRightKey(key: readonly string[]): boolean {
  const [header = '', ...others] = key;
  return others.length === 0 && /^authorization: bearer /i.test(header) && header.slice('Authorization: Bearer '.length) === apiKey;
}

/** The answer that is right whatever the body, if there is one. */
function rightOnHead({ flaw, method, route, key, isTyped }: Draft): string | undefined {
  if (flaw === 'host') return malformed;
  if (method === 'OPTIONS') return route === 'none' ? '404 not_found' : '204';
  if (route === 'none' || route === 'all') return '404 not_found';
  const isWithoutKey = !key.some((header) => /^authorization:/i.test(header));
  if (route === 'health') {
    if (method !== 'GET' && method !== 'HEAD') return '405 method_not_allowed';
    return isWithoutKey || isRightKey(key) ? '200' : '401 invalid_api_key';
  }
  if (method !== 'POST') return '405 method_not_allowed';
  if (isWithoutKey) return '401 missing_api_key';
  if (!isRightKey(key)) return '401 invalid_api_key';
  return isTyped ? undefined : '415 unsupported_media_type';
}

function shuffled<T>(chance: Chance, list: readonly T[]): T[] {
  return list.map((item) => ({ item, at: chance.int(0, 1e9) })).sort((a, b) => a.at - b.at).map(({ item }) => item);
}

const extensions = ['', '', ';a', ';a=b', ';a="b c"', `;a=${'x'.repeat(2000)}`];
const trailers = ['', '', 'X: y\r\n', `Authorization: Bearer ${apiKey}\r\nHost: evil.test\r\n`, 'X-Request-Id: trailer\r\n'];

/** A body in the chunked coding, with all that it allows besides: extensions, trailers, odd numbers. */
export function chunks(chance: Chance, body: Buffer): Buffer {
  const parts = chance.pieces(body, 5).map((piece) => {
    const size = piece.length.toString(16);
    return Buffer.concat([Buffer.from(`${chance.pick(['', '000'])}${chance.pick([size, size.toUpperCase()])}${chance.pick(extensions)}\r\n`), piece, Buffer.from('\r\n')]);
  });
  return Buffer.concat([...parts, Buffer.from(`0${chance.pick(extensions)}\r\n${chance.pick(trailers)}\r\n`)]);
}

/** A chunked body that breaks off in nonsense, at its beginning or behind some good chunks. */
export function brokenChunks(chance: Chance, body: Buffer): Buffer {
  const good = Buffer.concat(chance.pieces(body, 3).map((piece) => Buffer.concat([Buffer.from(`${piece.length.toString(16)}\r\n`), piece, Buffer.from('\r\n')])));
  const nonsense = [
    'zz\r\nhello\r\n', '-5\r\nhello\r\n', '0x5\r\nhello\r\n', 'fffffffffffffffff\r\nhello\r\n', '4\r\nhello\r\n', '5\nhello\n', ' 5\r\nhello\r\n', '5\r\nhelloXX\r\n', '\r\n\r\n', '5;a=\x01\r\nhello\r\n', '5;a\nhello\r\n', '0\r\nbroken\r\n\r\n',
    '0\r\nX: \0\r\n\r\n', '0\r\nContent-Length: 5\r\n\r\n', `0\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`, `5;${'x'.repeat(20_000)}\r\nhello\r\n`, 'GET /health HTTP/1.1\r\n\r\n', '\0\0\0\0',
  ];
  return Buffer.concat([chance.is(0.5) ? good : Buffer.alloc(0), Buffer.from(chance.pick(nonsense), 'latin1')]);
}
