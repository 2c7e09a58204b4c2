import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { test } from 'node:test';
import { amount, isTorture, randomOf, seededRandom } from '../random.ts';
import { apiKey, noneLeft, startServer, until, within, type RunningServer } from '../running-server.ts';
import { Chance } from './chance.ts';
import { AnswerReader, checkAnswer, nameOf, type Answer } from './http-answers.ts';
import { maxBodyBytes, type World } from './http-bodies.ts';
import { allowedOrigin, makeRequest, type Sent } from './http-requests.ts';

const answerMs = 30_000;

/** How the client of one connection behaves: `wait` reads every answer, the others leave before. */
type End = 'wait' | 'fin' | 'reset in mid-request' | 'reset after a while' | 'reset at the first byte';
type Pace = 'at once' | 'in pieces' | 'one by one';

class Client {
  readonly reader = new AnswerReader();
  readonly #socket: Socket;
  #wake = (): void => {};

  constructor(port: number) {
    this.#socket = connect({ port, host: '127.0.0.1', noDelay: true, allowHalfOpen: true });
    this.#socket.on('data', (chunk: Buffer) => {
      this.reader.push(chunk);
      this.#wake();
    });
    this.#socket.on('error', () => {});
    for (const event of ['end', 'close'] as const) {
      this.#socket.on(event, () => {
        this.reader.isEnded = true;
        this.#wake();
      });
    }
  }

  write(bytes: Buffer): void {
    if (this.#socket.writable) this.#socket.write(bytes);
  }

  /** Waits for the next bytes, or for the end. */
  async news(label: string, timeoutMs = answerMs): Promise<void> {
    if (this.reader.isEnded) return;
    await within(label, timeoutMs, new Promise<void>((resolve) => (this.#wake = resolve)));
  }

  /** The next answer; undefined when the connection ended instead. */
  async answer(label: string, isToHead: boolean, timeoutMs = answerMs): Promise<Answer | undefined> {
    for (;;) {
      const answer = this.reader.take(isToHead);
      if (answer !== undefined || this.reader.isEnded) return answer;
      await this.news(label, timeoutMs);
    }
  }

  async ended(label: string): Promise<void> {
    while (!this.reader.isEnded) await this.news(label);
  }

  stopReading(): void {
    this.#socket.pause();
  }

  finish(): void {
    this.#socket.end();
  }

  /** Not after `finish`: Node would leave the socket open for ever. */
  reset(): void {
    this.#socket.resetAndDestroy();
  }

  close(): void {
    this.#socket.destroy();
  }
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Plays one connection with up to `most` requests; counts what was answered. */
async function playConnection(chance: Chance, port: number, world: World, most: number, tally: Map<string, number>): Promise<number> {
  const requests: Sent[] = [];
  do requests.push(makeRequest(chance, world));
  while (requests.length < most && requests.at(-1)?.isUnfinished === false && chance.is(0.65));
  const end: End = chance.is(0.72) ? 'wait' : chance.pick(['fin', 'reset in mid-request', 'reset in mid-request', 'reset after a while', 'reset at the first byte']);
  const pace: Pace = chance.pick(['at once', 'in pieces', 'one by one']);
  const client = new Client(port);
  try {
    if (end === 'reset in mid-request') {
      const bytes = Buffer.concat(requests.map((sent) => sent.bytes));
      await send(client, chance, bytes.subarray(0, chance.int(0, bytes.length)), pace);
      client.reset();
    } else if (end === 'wait' && pace === 'one by one') {
      await playOneByOne(client, requests, tally);
    } else {
      const sending = send(client, chance, Buffer.concat(requests.map((sent) => sent.bytes)), pace);
      if (end === 'wait') await readAll(client, requests, false, tally);
      await sending;
      if (end === 'fin') {
        client.finish();
        return await readAll(client, requests, true, tally).then(() => requests.length);
      }
      if (end === 'reset after a while') await pause(chance.int(0, 60));
      if (end === 'reset at the first byte' && client.reader.unread === '' && requests.every((sent) => !sent.isUnfinished)) await client.news('the first byte');
      client.reset();
    }
  } catch (error) {
    const shown = requests.map((sent) => JSON.stringify(sent.bytes.toString('latin1').replace(/(.{1,5}?)\1{20,}/gs, '$1…').slice(0, 1000))).join('\n');
    throw new Error(`${end}, ${pace}: ${String(error)}\nunread: ${JSON.stringify(client.reader.unread.slice(0, 500))}\n${shown}`, { cause: error });
  } finally {
    client.close();
  }
  return requests.length;
}

async function send(client: Client, chance: Chance, bytes: Buffer, pace: Pace): Promise<void> {
  for (const piece of pace === 'at once' ? [bytes] : chance.pieces(bytes, 12)) {
    client.write(piece);
    if (pace !== 'at once' && chance.is(0.5)) await pause(chance.int(0, 4));
  }
}

/** Sends a request when the one before is answered; a body only when it is asked for, where it waits to be. */
async function playOneByOne(client: Client, requests: readonly Sent[], tally: Map<string, number>): Promise<void> {
  for (const sent of requests) {
    client.write(sent.mayContinue ? sent.bytes.subarray(0, sent.headBytes) : sent.bytes);
    if (sent.mayContinue) {
      await client.news('100 Continue, or a refusal');
      client.write(sent.bytes.subarray(sent.headBytes));
    }
    await readAll(client, [sent], false, tally);
    if (client.reader.isEnded) return;
  }
}

/** Reads the answers to these requests in their order, and checks that nothing else comes. */
async function readAll(client: Client, requests: readonly Sent[], hasLeft: boolean, tally: Map<string, number>): Promise<void> {
  let mayEnd = hasLeft;
  let mustEnd = false;
  let garbage: readonly string[] = [];
  // A server that ends a connection on which more is coming resets it, and with it the answers not yet read (RFC 9112
  // section 9.6). A client that was just writing may take it for an end (measured).
  const mayReset = requests.some((sent, i) => sent.ends !== 'no' && !(sent.isUnheard && i === 0));
  for (const [i, sent] of requests.entries()) {
    if (sent.right.length === 0 && !hasLeft) return;
    const label = `answer ${i + 1} of ${requests.length}`;
    // What answers garbage has a body.
    const isToHead = sent.isHead && garbage.length === 0;
    let answer = await client.answer(label, isToHead);
    while (answer?.status === 100 && sent.mayContinue) answer = await client.answer(label, isToHead);
    if (answer === undefined) {
      assert.ok(mayEnd || mayReset, `the connection ended before ${label}`);
      if (mayReset) return;
      mustEnd = true;
      break;
    }
    if (garbage.includes(nameOf(answer))) return client.ended('the end after garbage');
    // Where its end is the connection's, nobody can tell whether all of it came.
    if (hasLeft && !answer.headers.has('content-length') && !answer.headers.has('transfer-encoding') && answer.status === 200) return;
    // Its right answers are those of a request that arrived in full.
    const name = hasLeft && sent.right.length === 0 ? assert.match(nameOf(answer), /^40[08] /) ?? '' : checkAnswer(sent, answer);
    tally.set(name, (tally.get(name) ?? 0) + 1);
    const isClosing = answer.headers.get('connection') === 'close';
    if (isClosing) assert.ok(hasLeft || requests.slice(i).some(({ ends }) => ends !== 'no'), `${label} ends the connection`);
    if (sent.ends !== 'no') mayEnd = true;
    if (sent.leavesGarbage) garbage = ['400 malformed_request', '431 headers_too_large'];
    if (isClosing || sent.ends === 'yes') {
      mustEnd = true;
      if (isClosing) break;
    }
  }
  if (requests.some(({ isUnfinished }) => isUnfinished) && !mustEnd) return;
  if (!mustEnd && !hasLeft) return assert.equal(client.reader.unread, '', 'more than the answers');
  await client.ended('the server to end the connection');
  if (!hasLeft && garbage.length === 0) assert.equal(client.reader.unread, '', 'more than the answers');
}

async function statusOf(server: RunningServer): Promise<Record<string, unknown>> {
  return (await (await server.request('/health', { headers: { Connection: 'close' } })).json()) as Record<string, unknown>;
}

async function residentMegabytes(server: RunningServer): Promise<number> {
  return (Number((await readFile(`/proc/${server.pid}/statm`, 'latin1')).split(' ')[1]) * 4096) / 1024 / 1024;
}

function openFiles(server: RunningServer): Promise<number> {
  return readdir(`/proc/${server.pid}/fd`).then((names) => names.length);
}

/** Waits until nothing runs and no process is warm; gives the number of open files then. */
async function restOf(server: RunningServer): Promise<number> {
  await until('the server to rest', async () => {
    const { status, running, queued, warm } = await statusOf(server);
    return status === 'ok' && running === 0 && queued === 0 && warm === 0 ? true : undefined;
  }, 60_000);
  return openFiles(server);
}

const total = amount(1000, 100_000);

test(`drawn at random: ${total} requests of every kind over raw sockets each get a right answer, and nothing is left of them`, async (t) => {
  const random = randomOf(t);
  const server = await startServer(t, {
    CLAUDE_MAX_CONCURRENT_REQUESTS: '6', CLAUDE_QUEUE_LIMIT: '1000', CLAUDE_QUEUE_SECONDS: '600', CLAUDE_WARM_SECONDS: '2', CORS_ORIGINS: allowedOrigin, MAX_BODY_BYTES: String(maxBodyBytes),
  });
  const ownerOf = new Map<string, number>();
  for (const userId of [1, 2, 3]) ownerOf.set(String((await server.chat({ prompt: 'hello', user_id: userId })).body['session_id']), userId);
  const openBefore = await restOf(server);
  const tally = new Map<string, number>();
  let sent = 0;
  let connections = 0;
  let megabytesAtQuarter = 0;
  const clients = Array.from({ length: 16 }, async () => {
    while (sent < total) {
      connections += 1;
      const seed = Math.floor(random() * 2 ** 32);
      const played = await playConnection(new Chance(seededRandom(seed)), server.port, { ownerOf }, 8, tally);
      sent += played;
      if (megabytesAtQuarter === 0 && sent > total / 4) megabytesAtQuarter = await residentMegabytes(server);
    }
  });
  await Promise.all(clients);
  t.diagnostic(`${sent} requests on ${connections} connections: ${[...tally].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, count]) => `${name} × ${count}`).join(', ')}`);

  const openAfter = await until('the descriptors to be closed', async () => ((await restOf(server)) <= openBefore ? openFiles(server) : undefined), 30_000);
  const growth = (await residentMegabytes(server)) - megabytesAtQuarter;
  t.diagnostic(`${openAfter} open files, ${openBefore} before; memory grew ${growth.toFixed(1)} MB over the last three quarters`);
  assert.ok(growth < 64, `memory grew ${growth} MB`);
  assert.equal(await (await fetch(`${server.url}/health`)).text(), '{"status":"ok"}');
  assert.equal(server.stderr, '');
  assert.deepEqual(server.lines.filter((line) => line.event === 'bug' || line['level'] === 'error' || line['code'] === 'internal_error'), []);
  assert.doesNotMatch(JSON.stringify(server.lines), /LEAK/);
  assert.equal(await server.end('SIGTERM'), 0);
  await noneLeft(server.home);
});

test('thousands of idle connections are held while /health answers, and let go', async (t) => {
  // Each takes a descriptor here, and one in the server, which has the same limit.
  const limit = Number(/^Max open files +(\d+)/m.exec(await readFile('/proc/self/limits', 'latin1'))?.[1]);
  const count = Math.min(amount(500, 10_000), limit - 200);
  t.diagnostic(`${count} connections; this machine lets a process have ${limit} descriptors`);
  const server = await startServer(t);
  // Not before it knows its CLI's version, which takes a process.
  await until('the CLI to be looked at', async () => (await statusOf(server))['claude_version'] ?? undefined);
  const openBefore = await openFiles(server);
  const clients: Client[] = [];
  t.after(() => clients.forEach((client) => client.close()));
  while (clients.length < count) {
    const batch = Array.from({ length: Math.min(100, count - clients.length) }, () => new Client(server.port));
    clients.push(...batch);
    // Having been answered they may stay idle for longer than one that never asked.
    for (const client of batch) client.write(Buffer.from('GET /health HTTP/1.1\r\nHost: test\r\n\r\n'));
    for (const client of batch) assert.equal((await client.answer('an answer', false))?.body, '{"status":"ok"}');
  }
  let slowestMs = 0;
  for (let i = 0; i < 50; i += 1) {
    const askedAt = performance.now();
    assert.equal((await statusOf(server))['status'], 'ok');
    slowestMs = Math.max(slowestMs, performance.now() - askedAt);
  }
  t.diagnostic(`slowest /health ${slowestMs.toFixed(0)} ms`);
  assert.ok(slowestMs < 10_000, `${slowestMs} ms`);
  assert.deepEqual(clients.filter((client) => client.reader.isEnded), [], 'all of them are still open');
  for (const client of clients) client.close();
  await until('the descriptors to be closed', async () => ((await openFiles(server)) <= openBefore ? true : undefined), 30_000);
  assert.equal(server.stderr, '');
});

// It takes two minutes.
if (isTorture) test('callers who send a byte a second, and those who take no answer, are cut off by the limits a server really has', async (t) => {
  const server = await startServer(t, { CLAUDE_WARM_SECONDS: '0' });
  const chat = (length: number): string => `POST /api/v1/chat HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer ${apiKey}\r\nContent-Length: ${length}\r\n\r\n`;
  await server.chat({ prompt: 'hello' });
  const openBefore = await restOf(server);

  const drips = ['GET /health HTTP/1.1\r\nX: ', chat(5000)].flatMap((begun) => Array.from({ length: 25 }, () => begun));
  const dripping = drips.map(async (begun) => {
    const client = new Client(server.port);
    client.write(Buffer.from(begun));
    const timer = setInterval(() => client.write(Buffer.from(' ')), 1000);
    const answer = await client.answer('408', false, 150_000).finally(() => clearInterval(timer));
    assert.equal(answer && nameOf(answer), '408 request_timeout');
    await client.ended('the end');
    client.close();
  });
  const body = '{"prompt":"play huge 30000000","user_id":1}';
  const deaf = Array.from({ length: 3 }, () => new Client(server.port));
  t.after(() => deaf.forEach((client) => client.close()));
  for (const client of deaf) {
    client.stopReading();
    client.write(Buffer.from(chat(body.length) + body));
  }
  await Promise.all(dripping);
  await until('every connection to be closed', async () => ((await restOf(server)) <= openBefore ? true : undefined), 120_000);
  assert.equal(server.stderr, '');
});
