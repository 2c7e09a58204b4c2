import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, request } from 'node:http';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { ProxySocket } from '../../src/sandbox/api-socket.ts';
import { ask, countPath, messageBody, messagesPath, model, sayOk, setStage, type ApiStage } from '../api-stage.ts';
import { chunked, requestBytes } from '../http-client.ts';
import { until, within } from '../running-server.ts';

const smuggled = 'POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n';

test('only the exact request lines of the list reach the API', async (t) => {
  const stage = await setStage(t);
  const lines = [
    'GET /v1/messages', 'GET /v1/messages?beta=true', 'HEAD /v1/messages', 'PUT /v1/messages', 'DELETE /v1/messages', 'OPTIONS *', 'POST *',
    'POST /', 'POST /v1/files', 'POST /v1/files?beta=true', 'GET /v1/organizations', 'GET /v1/models', 'POST /v1/messages/batches', 'POST /v1/complete',
    'POST /v1/messages/', 'POST //v1/messages', 'POST /v1//messages', 'POST /v1/./messages', 'POST /v1/x/../messages', 'POST /../v1/messages',
    'POST /v1/messages/../files', 'POST /v1/messages/%2e%2e/files', 'POST /v1/messages%2f..%2ffiles', 'POST /v1/%6dessages', 'POST /V1/messages',
    'POST /v1/messages?beta=true&x=1', 'POST /v1/messages?beta=false', 'POST /v1/messages?', 'POST /v1/messages;x', 'POST /v1/messages%00',
    'POST /v1/messages#x', 'POST /v1/messages\\..\\files', 'POST /v1/messages/count_tokens/x', 'POST /v1/messages?beta=true#', 'post /v1/messages',
    'POST http://api.anthropic.com/v1/messages', 'POST http://evil.example/v1/messages?beta=true', 'POST https://evil.example/v1/messages',
    'POST @evil.example/v1/messages', 'POST evil.example:443', 'POST ?beta=true', 'PATCH /v1/messages', 'PROPFIND /v1/messages', 'QUERY /v1/messages',
  ];
  for (const line of lines) {
    const connection = await stage.connect(await stage.openInTurn());
    void connection.send(requestBytes(line, [], messageBody()));
    const reply = await connection.answer(line, line.startsWith('HEAD'));
    // What is no request line at all is the parser's to refuse.
    assert.ok([400, 402].includes(reply.status), `${line}: ${reply.status}`);
    connection.hangUp();
  }
  assert.deepEqual(stage.recorded, []);
  assert.deepEqual(new Set(stage.refused), new Set(['another address of the API']));
});

test('requests with two meanings are refused by the parser, and nothing behind them is heard', async (t) => {
  const stage = await setStage(t);
  const body = messageBody();
  const length = `Content-Length: ${body.length}`;
  const cases: Record<string, Buffer> = {
    'two lengths': requestBytes('POST /v1/messages', [length, `Content-Length: ${body.length + smuggled.length}`], body + smuggled),
    'two equal lengths': requestBytes('POST /v1/messages', [length, length], body),
    'a length and chunks': requestBytes('POST /v1/messages', ['Content-Length: 5', 'Transfer-Encoding: chunked'], chunked(body)),
    'chunks and a length': requestBytes('POST /v1/messages', ['Transfer-Encoding: chunked', length], chunked(body) + smuggled),
    'a list of lengths': requestBytes('POST /v1/messages', [`Content-Length: ${body.length}, ${body.length}`], body),
    'a signed length': requestBytes('POST /v1/messages', [`Content-Length: +${body.length}`], body),
    'chunks in disguise': requestBytes('POST /v1/messages', ['Transfer-Encoding: xchunked'], chunked(body)),
    'chunks twice': requestBytes('POST /v1/messages', ['Transfer-Encoding: chunked, identity'], chunked(body)),
    'a blank before the colon': requestBytes('POST /v1/messages', [`Content-Length : ${body.length}`], body),
    'a folded header': requestBytes('POST /v1/messages', ['X-App: cli\r\n x-api-key: sk-mine', length], body),
    'a header of 40 KB': requestBytes('POST /v1/messages', [`X-App: ${'x'.repeat(40_000)}`, length], body),
    'CONNECT': requestBytes('CONNECT api.anthropic.com:443'),
    'a bare CR': Buffer.from(`POST /v1/messages HTTP/1.1\rHost: x\r${length}\r\r${body}`),
    'TLS': Buffer.from([0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0]),
  };
  for (const [name, bytes] of Object.entries(cases)) {
    const connection = await stage.connect(await stage.openInTurn());
    void connection.send(bytes);
    // A first request that is whole may be answered, once; then the connection ends or the second is refused.
    const rest = await within(name, 10_000, connection.ended());
    assert.doesNotMatch(rest, /HTTP\/1\.1 200/, name);
  }
  assert.deepEqual(stage.recorded, []);
});

test('a second request behind the first is checked like the first', async (t) => {
  const stage = await setStage(t);
  const connection = await stage.connect(await stage.openInTurn());
  const good = requestBytes('POST /v1/messages', [], messageBody());
  void connection.send(Buffer.concat([good, requestBytes('POST /v1/files', [], messageBody()), good, Buffer.from(smuggled)]));
  const statuses = [];
  for (const which of ['first', 'second', 'third', 'fourth']) statuses.push((await connection.answer(which)).status);
  assert.deepEqual(statuses, [200, 402, 200, 402]);
  assert.deepEqual(stage.recorded.map(({ url }) => url), [messagesPath, messagesPath]);
});

test('whoever leaves with requests waiting behind each other keeps no place', async (t) => {
  const stage = await setStage(t);
  const socket = await stage.openInTurn();
  const good = requestBytes('POST /v1/messages', [], messageBody());
  for (const _ of [1, 2, 3, 4]) {
    const connection = await stage.connect(socket);
    let isSecond = false;
    stage.script = (res, request) => (isSecond ? sayOk(res, request) : (isSecond = true)); // the first is never answered
    const before = stage.recorded.length;
    void connection.send(Buffer.concat([good, good]));
    await until('both to be there', () => (stage.recorded.length === before + 2 ? true : undefined));
    connection.hangUp();
  }
  stage.script = sayOk;
  assert.equal((await within('an answer', 10_000, ask(socket))).status, 200);
  assert.deepEqual(stage.lines, []);
});

test('an upgrade is an ordinary request without it', async (t) => {
  const stage = await setStage(t);
  const reply = await ask(await stage.openInTurn(), { headers: { connection: 'Upgrade', upgrade: 'websocket', 'sec-websocket-key': 'x', expect: '100-continue' } });
  assert.equal(reply.status, 200);
  assert.equal(stage.recorded[0]?.headers['upgrade'], undefined);
});

test('the client cannot name the login, the host or another hop', async (t) => {
  const stage = await setStage(t, { env: { ANTHROPIC_AUTH_TOKEN: 'the-operators' } });
  const headers = {
    Authorization: ['Bearer mine', 'Bearer other'].join(', '), 'X-Api-Key': 'mine', 'x-api-key ': 'mine', Host: 'evil.example', Connection: 'authorization, close',
    'X-Forwarded-Host': 'evil.example', Forwarded: 'for=1', Via: 'x', 'Proxy-Connection': 'x', TE: 'trailers', Cookie: 'x', 'Anthropic-Organization': 'x', 'X-HTTP-Method-Override': 'GET',
  };
  const { 'x-api-key ': _invalid, ...valid } = headers;
  assert.equal((await ask(await stage.openInTurn(), { headers: valid })).status, 200);
  const { host, ...sent } = stage.recorded[0]?.headers ?? {};
  assert.match(String(host), /^127\.0\.0\.1/);
  assert.deepEqual(Object.keys(sent).sort(), ['accept-encoding', 'authorization', 'connection', 'content-length', 'content-type']);
  assert.equal(sent['authorization'], 'Bearer the-operators');
});

test('a body in which a name stands twice is refused, whichever value would be harmless', async (t) => {
  const stage = await setStage(t);
  const socket = await stage.openInTurn();
  const source = (members: string): string => messageBody({ system: 'SOURCE' }).replace('"SOURCE"', `[{"type":"document","source":{${members}}}]`);
  const bodies = [
    messageBody().replace('{', '{"model":"claude-dear",'),
    messageBody().replace('{', `{"model":"${model}",`),
    messageBody().replace('{', '{"mod\\u0065l":"claude-dear",'),
    source('"type":"url","url":"http://evil.example","type":"text","data":"x"'),
    source('"type":"text","data":"x","type":"url","url":"http://evil.example"'),
    messageBody({ messages: [{ role: 'assistant', content: [{ type: 'tool_use', input: 'INPUT' }] }] }).replace('"INPUT"', '{"__proto__":1,"__proto__":2}'),
  ];
  for (const body of bodies) assert.equal((await ask(socket, { body })).status, 402, body);
  assert.equal((await ask(socket, { body: source('"type":"text","data":"{\\"type\\":1,\\"type\\":2}"') })).status, 200);
  assert.equal(stage.recorded.length, 1);
});

test('a body that is not plain JSON is refused', async (t) => {
  const stage = await setStage(t);
  const bodies = ['', 'null', '[]', '"x"', '1', '{', `${messageBody()}x`, `\ufeff${messageBody()}`, '['.repeat(200_000), `${'['.repeat(50_000)}${']'.repeat(50_000)}`, Buffer.from([0x22, 0xc0, 0xa2, 0x22])];
  for (const body of bodies) {
    const socket = await stage.openInTurn();
    assert.equal((await ask(socket, { body })).status, 402, body.toString().slice(0, 20));
    assert.equal((await ask(socket, { path: countPath, body })).status, 402, body.toString().slice(0, 20));
  }
  const zipped = await ask(await stage.openInTurn(), { headers: { 'content-encoding': 'gzip' } });
  assert.equal(zipped.status, 402);
  assert.deepEqual(stage.recorded, []);
});

/** Sends `size` bytes of a body whose texts hold `piece`, without holding them; with chunks instead of a length when asked. */
async function pour({ path }: ProxySocket, size: number, piece: string, isChunked = false): Promise<number | string | undefined> {
  const [head, tail] = [`{"model":"${model}","max_tokens":1,"messages":[{"role":"user","content":`, '}]}'];
  const unit = Buffer.from(piece.repeat(5_000));
  const headers = isChunked ? {} : { 'content-length': size };
  const sent = request({ socketPath: path, method: 'POST', path: '/v1/messages', agent: false, headers });
  const answered = new Promise<number | string | undefined>((resolve) => {
    sent.on('error', ({ message }) => resolve(message));
    sent.on('response', (res) => {
      res.resume();
      resolve(res.statusCode);
    });
  });
  let isAnswered = false;
  void answered.then(() => (isAnswered = true));
  sent.write(`${head}"`);
  let left = size - head.length - 1 - tail.length - 1;
  while (left > 0 && !isAnswered) {
    const part = left < unit.length ? Buffer.alloc(left, 'x') : unit; // no letter is cut in two
    left -= part.length;
    if (!sent.write(part)) await Promise.race([once(sent, 'drain'), answered]);
  }
  sent.end(`"${tail}`);
  return within('an answer to a large body', 60_000, answered);
}

const mib = 1024 * 1024;

/** A stage whose stand-in for the API counts the bytes of bodies and keeps none. */
async function setCountingStage(t: Parameters<typeof setStage>[0]): Promise<{ stage: ApiStage; received: number[] }> {
  const received: number[] = [];
  const server = createServer((req, res) => {
    let bytes = 0;
    req.on('data', (chunk: Buffer) => (bytes += chunk.length));
    req.on('end', () => {
      received.push(bytes);
      sayOk(res, { method: req.method, url: req.url, headers: req.headers, body: Buffer.alloc(0) });
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return { stage: await setStage(t, { upstreamUrl: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }), received };
}

test('a body of 32 MiB goes through; one of more is refused, whether it says so or not', async (t) => {
  const { stage, received } = await setCountingStage(t);
  assert.equal(await pour(await stage.openInTurn(), 32 * mib, 'words and '), 200);
  assert.deepEqual(received, [32 * mib]);
  assert.equal(await pour(await stage.openInTurn(), 33 * mib, 'x'), 402);
  assert.equal(await pour(await stage.openInTurn(), 33 * mib, 'x', true), 402);
  assert.equal(await pour(await stage.openInTurn(), 40 * mib, 'x'), 402);
  assert.deepEqual(received, [32 * mib]);
  assert.deepEqual(new Set(stage.refused), new Set(['a body of more than 32 MiB']));
});

test('four bodies of 32 MiB at once are read one by one, and small ones go by meanwhile', async (t) => {
  const { stage, received } = await setCountingStage(t);
  const before = process.memoryUsage().rss;
  let peak = before;
  const watch = setInterval(() => (peak = Math.max(peak, process.memoryUsage().rss)), 10);
  t.after(() => clearInterval(watch));
  // Half of the letters need two bytes each in memory, so that the texts are as large as they can be.
  const sockets = await Promise.all([1, 2, 3, 4].map(() => stage.openInTurn()));
  let arePouring = true;
  const large = Promise.all(sockets.map((socket) => pour(socket, 32 * mib, 'я and words'))).finally(() => (arePouring = false));
  const small = await stage.openInTurn({ maxRequests: 1_000_000 });
  const waits: number[] = [];
  while (arePouring) {
    const startedAt = performance.now();
    assert.equal((await ask(small)).status, 200);
    waits.push(performance.now() - startedAt);
  }
  for (const status of await large) assert.equal(status, 200, String(stage.refused));
  assert.equal(received.filter((bytes) => bytes > mib).length, 4);
  const grownMib = Math.round((peak - before) / mib);
  t.diagnostic(`memory grew by ${grownMib} MiB; ${waits.length} small requests meanwhile, the slowest in ${Math.round(Math.max(...waits))} ms`);
  assert.ok(grownMib < 400, `${grownMib} MiB`);
  assert.ok(waits.length >= 5);
});

test('a body is let go when its answer begins, however long that streams', async (t) => {
  const server = createServer((req, res) => {
    req.resume();
    req.on('end', () => res.writeHead(200, { 'content-type': 'text/event-stream' }).write(': hello\n\n'));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  const stage = await setStage(t, { upstreamUrl: `http://127.0.0.1:${(server.address() as AddressInfo).port}` });
  for (const _ of [1, 2, 3, 4]) assert.equal(await pour(await stage.openInTurn(), 30 * mib, 'words and '), 200);
  await until('the bodies to be gone', () => (liveBytes(), process.memoryUsage().arrayBuffers < 25 * mib ? true : undefined));
});

test('a body made to fill the memory of its reader is refused before it is read, and the next one is read', async (t) => {
  const { stage, received } = await setCountingStage(t);
  const socket = await stage.openInTurn();
  const filled = (text: string): string => messageBody({ system: 'HERE' }).replace('"HERE"', text);
  const bodies = [filled(`[${'{},[],'.repeat(5_000_000)}1]`), filled('['.repeat(31 * mib)), ','.repeat(31 * mib)];
  for (const body of bodies) assert.equal((await ask(socket, { body })).status, 402);
  assert.deepEqual(stage.refused, Array(3).fill('a body of too many values'));
  assert.equal(await pour(socket, mib, 'x'), 200);
  assert.deepEqual(received, [mib]);
});

test('a body that drips is refused in time, and does not hold up the small ones of others', async (t) => {
  const stage = await setStage(t);
  const connection = await stage.connect(await stage.openInTurn());
  void connection.send(requestBytes('POST /v1/messages', ['Content-Length: 1000'], '{"model"'));
  assert.equal((await ask(await stage.openInTurn())).status, 200);
  assert.equal((await connection.answer('the end of patience')).status, 402);
  assert.deepEqual(stage.refused, ['a body that does not arrive']);
});

/** The heap without its garbage. */
function liveBytes(): number {
  setFlagsFromString('--expose-gc');
  const collect: () => void = runInNewContext('gc');
  collect();
  return process.memoryUsage().heapUsed;
}

/** The same when all has ended that ends a moment later: what one collection finds unused Node 24 gives back at the next. */
async function settledBytes(): Promise<number> {
  for (let i = 0; i < 2; i += 1) {
    liveBytes();
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return liveBytes();
}

test('a process with large bodies that drip leaves memory for those of others', async (t) => {
  const { stage } = await setCountingStage(t);
  const hostile = await stage.openInTurn();
  const drips = await Promise.all([1, 2, 3].map(() => stage.connect(hostile)));
  for (const connection of drips) void connection.send(requestBytes('POST /v1/messages', [`Content-Length: ${16 * mib}`], '{'));
  await until('the first to hold its memory', () => (process.memoryUsage().arrayBuffers > 16 * mib ? true : undefined));
  assert.equal(await within('an answer meanwhile', 15_000, pour(await stage.openInTurn(), 10 * mib, 'x')), 200);
  for (const connection of drips) connection.hangUp();
});

test('ten thousand requests leave nothing behind', async (t) => {
  const stage = await setStage(t);
  const socket = await stage.openInTurn({ maxRequests: 20_000 });
  const connections = await Promise.all([1, 2, 3, 4].map(() => stage.connect(socket)));
  const bytes = requestBytes('POST /v1/messages', [], messageBody());
  const round = async (count: number): Promise<void> => {
    await Promise.all(
      connections.map(async (connection) => {
        for (let i = 0; i < count / 4; i += 1) {
          void connection.send(bytes);
          assert.equal((await connection.answer('an answer')).status, 200);
        }
      }),
    );
    stage.recorded.length = 0;
  };
  await round(2_000);
  const before = await settledBytes();
  await round(8_000);
  const grownKb = Math.round(((await settledBytes()) - before) / 1024);
  t.diagnostic(`the heap grew by ${grownKb} KB`);
  assert.ok(grownKb < 1_000, `${grownKb} KB`);
  assert.equal(socket.endTurn().tokens.input, 10_000_000);
  assert.ok(stage.connections <= 4, `${stage.connections} connections to the API`);
});
