import assert from 'node:assert/strict';
import { chmod, mkdir, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { socketPathProblem } from '../../src/sandbox/api-socket.ts';
import { ask, countPath, events, fail, messageBody, sayOk, setStage, stream, type Script } from '../api-stage.ts';
import { requestBytes } from '../http-client.ts';
import { until, within } from '../running-server.ts';

const tokens = { input: 1000, output: 100, cacheWrite: 20, cacheRead: 3 };

test('a request of a turn reaches the API with the login, and its answer comes back', async (t) => {
  const stage = await setStage(t);
  const socket = await stage.openInTurn();
  const headers = {
    authorization: 'Bearer placeholder', 'x-api-key': 'placeholder', 'accept-encoding': 'gzip, br', 'x-app': 'cli', 'anthropic-version': '2023-06-01',
    'anthropic-beta': 'effort-2025-11-24,files-api-2025-04-14', cookie: 'a=b', 'x-forwarded-for': '1.2.3.4', 'proxy-authorization': 'Basic eDp5',
    'x-stainless-os': 'Linux', 'x-claude-code-session-id': 'one', 'x-another': 'header', connection: 'keep-alive, x-app', host: 'api.anthropic.com',
  };
  const reply = await ask(socket, { headers });

  const sent = stage.recorded[0] ?? assert.fail('nothing reached the API');
  assert.equal(`${sent.method} ${sent.url}`, 'POST /v1/messages?beta=true');
  assert.equal(sent.body.toString(), messageBody());
  const { host, ...sentHeaders } = sent.headers;
  assert.match(String(host), /^127\.0\.0\.1:\d+$/);
  assert.deepEqual(sentHeaders, {
    'accept-encoding': 'identity', 'anthropic-beta': 'effort-2025-11-24', 'anthropic-version': '2023-06-01', connection: 'keep-alive',
    'content-length': String(messageBody().length), 'content-type': 'application/json', 'x-api-key': 'sk-ant-made-up', 'x-app': 'cli',
    'x-claude-code-session-id': 'one', 'x-stainless-os': 'Linux',
  });
  assert.equal(reply.status, 200);
  assert.equal(reply.headers['request-id'], 'req_1');
  assert.equal(reply.headers['set-cookie'], undefined);
  assert.deepEqual(stage.lines.map(({ event, beta }) => [event, beta]), [['api_beta_dropped', 'files-api-2025-04-14']]);
  assert.deepEqual(socket.endTurn(), { tokens, requests: 1, refusals: 0, lastFailure: undefined, isOutOfTokens: false });
});

test('a stream comes piece by piece, and its tokens are counted', async (t) => {
  const stage = await setStage(t);
  let open: Parameters<Script>[0] | undefined;
  stage.script = (res) => {
    open = res;
    res.writeHead(200, { 'content-type': 'text/event-stream' }).flushHeaders();
  };
  const counted: unknown[] = [];
  const socket = await stage.openInTurn({ onTokens: (some) => counted.push(some) });
  const connection = await stage.connect(socket);
  void connection.send(requestBytes('POST /v1/messages', [], messageBody({ stream: true })));
  await connection.received('text/event-stream');
  for (const [i, event] of events.entries()) {
    open?.write(event);
    await connection.received(event);
    assert.equal(counted.length, 0, `nothing is final after event ${i}`);
  }
  open?.end();
  await until('the tokens', () => counted[0]);
  assert.deepEqual(socket.endTurn().tokens, tokens);
});

test('outside its turn every request is turned away with its body unread, on a connection that goes on', async (t) => {
  const stage = await setStage(t);
  const socket = await stage.open();
  const connection = await stage.connect(socket);
  const big = 'x'.repeat(3_000_000);
  for (const round of [1, 2]) {
    await setTimeout(1200); // Node's own limit of idle time, were one set, adds a second
    void connection.send(requestBytes(`POST /v1/messages`, [], big));
    const early = await connection.answer(`the answer before turn ${round}`);
    assert.equal(early.status, 429);
    assert.equal(early.headers.get('x-should-retry'), 'false');
    socket.beginTurn(stage.limits());
    void connection.send(requestBytes('POST /v1/messages', [], messageBody()));
    assert.equal((await connection.answer(`the answer in turn ${round}`)).status, 200);
    assert.equal(socket.endTurn().requests, 1);
  }
  assert.equal(stage.recorded.length, 2);
});

test('a turn that ends ends its requests to the API, and counts what they cost', async (t) => {
  const stage = await setStage(t);
  let closed = 0;
  stage.script = (res, { body }) => {
    res.on('close', () => (closed += 1));
    if (body.includes('stream')) res.writeHead(200, { 'content-type': 'text/event-stream' }).write(events.slice(0, 4).join(''));
  };
  const socket = await stage.openInTurn();
  const silent = ask(socket, { body: messageBody({ system: 'x'.repeat(4000) }) }).then(() => 'answered', () => 'broken');
  const connection = await stage.connect(socket);
  void connection.send(requestBytes('POST /v1/messages', [], messageBody({ stream: true })));
  await connection.received('text_delta');
  await until('both requests', () => (stage.recorded.length === 2 ? true : undefined));
  const report = socket.endTurn();
  assert.equal(await silent, 'broken');
  await connection.ended();
  await until('the API to be left alone', () => (closed === 2 ? true : undefined));
  // Four letters a token where the API told nothing, its own count where it did.
  const { input, output, cacheRead } = report.tokens;
  assert.ok(input >= 2000 && input < 2050 && output >= 2 && output < 20, JSON.stringify(report.tokens));
  assert.equal(cacheRead, 3);
  assert.equal(report.lastFailure, undefined);
});

test('a client that hangs up ends its request to the API and pays for what it had', async (t) => {
  const stage = await setStage(t);
  let closed = 0;
  stage.script = (res) => {
    res.on('close', () => (closed += 1));
    res.writeHead(200, { 'content-type': 'text/event-stream' }).write(events.slice(0, 4).join(''));
  };
  const socket = await stage.openInTurn();
  const connection = await stage.connect(socket);
  void connection.send(requestBytes('POST /v1/messages', [], messageBody({ stream: true })));
  await connection.received('text_delta');
  connection.hangUp();
  await until('the end of the request', () => (closed === 1 ? true : undefined));
  const { tokens: spent, lastFailure } = socket.endTurn();
  assert.equal(spent.input, 1000);
  assert.ok(spent.output >= 2, String(spent.output));
  assert.equal(lastFailure, undefined);
});

test('a client that hangs up before the first word pays for its prompt', async (t) => {
  const stage = await setStage(t);
  let closed = 0;
  for (const hasHead of [false, true]) {
    stage.script = (res) => {
      res.on('close', () => (closed += 1));
      if (hasHead) res.writeHead(200, { 'content-type': 'text/event-stream' }).flushHeaders();
    };
    const socket = await stage.openInTurn();
    const connection = await stage.connect(socket);
    void connection.send(requestBytes('POST /v1/messages', [], messageBody({ stream: true, system: 'x'.repeat(4000) })));
    if (hasHead) await connection.received('text/event-stream');
    else await until('the request', () => stage.recorded[0]);
    connection.hangUp();
    await until('the end of the request', () => (closed > Number(hasHead) ? true : undefined));
    const { tokens: spent, lastFailure } = socket.endTurn();
    assert.ok(spent.input >= 1000 && spent.input < 1050, JSON.stringify(spent));
    assert.equal(lastFailure, undefined);
  }
  // Counting costs nothing.
  stage.script = (res) => res.on('close', () => (closed += 1));
  const socket = await stage.openInTurn();
  const connection = await stage.connect(socket);
  void connection.send(requestBytes(`POST ${countPath}`, [], JSON.stringify({ model: 'claude-sonnet-5-5', messages: [], system: 'x'.repeat(4000) })));
  await until('the third request', () => stage.recorded[2]);
  connection.hangUp();
  await until('the end of the third', () => (closed === 3 ? true : undefined));
  assert.equal(socket.endTurn().tokens.input, 0);
});

test('a turn may end between the last word of a message and the end of its stream', async (t) => {
  const stage = await setStage(t);
  let open: Parameters<Script>[0] | undefined;
  stage.script = (res) => {
    open = res;
    res.writeHead(200, { 'content-type': 'text/event-stream' }).write(events.join(''));
  };
  const socket = await stage.openInTurn();
  const connection = await stage.connect(socket);
  void connection.send(requestBytes('POST /v1/messages', [], messageBody({ stream: true })));
  await connection.received('message_stop"}');
  assert.deepEqual(socket.endTurn().tokens, tokens);
  open?.end();
  assert.equal((await connection.answer('the end of the stream')).status, 200);
  socket.beginTurn(stage.limits());
  stage.script = sayOk;
  void connection.send(requestBytes('POST /v1/messages', [], messageBody()));
  assert.equal((await connection.answer('the next turn')).status, 200);
});

test('at most four requests of a process are under way; the others wait for their turn', async (t) => {
  const waiting: Parameters<Script>[0][] = [];
  const stage = await setStage(t, { script: (res) => waiting.push(res) });
  const socket = await stage.openInTurn();
  const answers = Array.from({ length: 7 }, () => ask(socket));
  await until('four requests', () => (waiting.length === 4 ? true : undefined));
  // Another process is not held up, and its answer shows that nothing of the first slipped through meanwhile.
  const other = ask(await stage.openInTurn());
  await until('the other process', () => (waiting.length === 5 ? true : undefined));
  for (let i = 0; i < 8; i += 1) sayOk(await until(`request ${i}`, () => waiting[i]), stage.recorded[0] ?? assert.fail());
  for (const reply of [...(await Promise.all(answers)), await other]) assert.equal(reply.status, 200);
});

test('a turn has so many requests and no more, and twenty refusals end it once', async (t) => {
  const stage = await setStage(t);
  const socket = await stage.openInTurn({ maxRequests: 3, logFields: { user: 7 } });
  const statuses = [];
  const types = new Set<string | undefined>();
  for (let i = 0; i < 24; i += 1) {
    const { status, body } = await ask(socket);
    statuses.push(status);
    if (status !== 200) types.add((JSON.parse(body) as { error: { type?: string } }).error.type);
  }
  assert.deepEqual([...types], ['invalid_request_error', 'rate_limit_error']);
  assert.deepEqual(statuses, [200, 200, 200, ...Array<number>(20).fill(402), 429]);
  assert.equal(stage.recorded.length, 3);
  assert.equal(stage.refusals.turnsEnded, 1);
  const { level, event, user, what } = stage.lines[0] ?? assert.fail('nothing in the log');
  assert.deepEqual([level, event, user, what], ['warning', 'api_refused', 7, 'more requests than a turn may have']);
  assert.equal(stage.lines.length, 20, 'the log is not flooded');
  const { refusals, requests } = socket.endTurn();
  assert.deepEqual([refusals, requests], [20, 23]);
});

test('a user without tokens left for the day is turned away, counting tokens aside', async (t) => {
  const stage = await setStage(t);
  const socket = await stage.openInTurn({ hasTokensLeft: () => false });
  const reply = await ask(socket);
  assert.equal(reply.status, 429);
  assert.equal(reply.headers['x-should-retry'], 'false');
  assert.equal((await ask(socket, { path: countPath, body: JSON.stringify({ messages: [], model: 'claude-sonnet-5-5' }) })).status, 200);
  const report = socket.endTurn();
  assert.equal(report.isOutOfTokens, true);
  assert.equal(report.refusals, 0);
  assert.equal(report.tokens.input, 0);
});

test('the last failure of a turn keeps the status, the type and the wait that the API told', async (t) => {
  const stage = await setStage(t);
  const cases: Array<[Script, unknown]> = [
    [fail(529, 'overloaded_error'), { status: 529, type: 'overloaded_error', retryAfterSeconds: undefined }],
    [fail(429, 'rate_limit_error', { 'retry-after': '17' }), { status: 429, type: 'rate_limit_error', retryAfterSeconds: 17 }],
    [fail(429, 'rate_limit_error', { 'anthropic-ratelimit-unified-reset': String(Math.ceil(Date.now() / 1000) - 5) }), { status: 429, type: 'rate_limit_error', retryAfterSeconds: 0 }],
    [fail(400, 'invalid_request_error', { 'retry-after': 'soon' }), { status: 400, type: 'invalid_request_error', retryAfterSeconds: undefined }],
    [stream([...events.slice(0, 2), 'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"no"}}\n\n']), { status: 200, type: 'overloaded_error', retryAfterSeconds: undefined }],
    [fail(429, 'rate_limit_error', { 'retry-after': 'Thu, 26 Nov 2026 10:00:00 GMT' }), { status: 429, type: 'rate_limit_error', retryAfterSeconds: 0 }],
    [(res) => res.writeHead(400).end('no'), { status: 400, type: undefined, retryAfterSeconds: undefined }],
    [(res) => res.writeHead(502).end('<html>no</html>'), { status: 502, type: undefined, retryAfterSeconds: undefined }],
  ];
  for (const [script, expected] of cases) {
    stage.script = script;
    const socket = await stage.openInTurn();
    const reply = await ask(socket);
    assert.notEqual(reply.body, '', 'the API is quoted');
    stage.script = sayOk;
    await ask(socket);
    assert.deepEqual(socket.endTurn().lastFailure, expected);
  }
  const socket = await stage.openInTurn();
  stage.script = (res, request) => fail(429, 'rate_limit_error', { 'retry-after': new Date(Date.now() + 90_000).toUTCString() })(res, request);
  await ask(socket);
  const { retryAfterSeconds = 0 } = socket.endTurn().lastFailure ?? {};
  assert.ok(retryAfterSeconds > 30 && retryAfterSeconds <= 90, String(retryAfterSeconds));
});

test("a socket's folder and socket are its user's alone, and gone when it is closed", async (t) => {
  const stage = await setStage(t);
  const socket = await stage.openInTurn();
  assert.equal((await stat(dirname(socket.path))).mode & 0o777, 0o700);
  // One that is there already, and open to others.
  const folder = join(dirname(socket.path), '../open-to-all');
  await mkdir(folder);
  await chmod(folder, 0o755);
  await writeFile(join(folder, 's'), 'what a server that was killed has left');
  const second = await stage.proxy?.open(folder);
  assert.equal((await stat(folder)).mode & 0o777, 0o700);
  await second?.close();
  assert.equal((await stat(socket.path)).mode & 0o777, 0o600);
  stage.script = () => {};
  const pending = ask(socket).then(() => 'answered', () => 'broken');
  await until('the request', () => stage.recorded[0]);
  await socket.close();
  await socket.close();
  assert.equal(await within('the end of the request', 5_000, pending), 'broken');
  await assert.rejects(stat(dirname(socket.path)), { code: 'ENOENT' });
});

test('of the connections of a process 64 stand', async (t) => {
  const stage = await setStage(t);
  const socket = await stage.open();
  const tries = Array.from({ length: 70 }, async () => {
    const connection = await stage.connect(socket);
    void connection.send(requestBytes('GET /'));
    return connection.answer('an answer');
  });
  const stood = (await Promise.allSettled(tries)).filter(({ status }) => status === 'fulfilled');
  assert.equal(stood.length, 64);
});

test('a path that the kernel would cut short is refused', async (t) => {
  const stage = await setStage(t);
  const long = `/tmp/${'ż'.repeat(47)}`;
  assert.match(String(socketPathProblem(long)), /^The path of the API proxy's socket has 101 bytes; 100 are possible\.$/);
  assert.equal(socketPathProblem(`/tmp/${'x'.repeat(93)}`), undefined);
  await assert.rejects(stage.proxy?.open(long) ?? Promise.resolve(), /101 bytes/);
});

test('a turn begins and ends once', async (t) => {
  const socket = await (await setStage(t)).open();
  assert.throws(() => socket.endTurn(), /there is no turn/);
  socket.beginTurn({ maxRequests: 1, onTooManyRefusals: () => {} });
  assert.throws(() => socket.beginTurn({ maxRequests: 1, onTooManyRefusals: () => {} }), /there is a turn already/);
});
