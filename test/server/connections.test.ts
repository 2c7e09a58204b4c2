import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ProblemCode } from '../../src/problem.ts';
import { chunked, requestBytes } from '../http-client.ts';
import { answer, answerJson, asJson, assertProblem, chat, chatPath, eventsOf, good, latch, problemIn, start, untilAborted, withKey, type Stage } from '../http-stage.ts';
import { until } from '../running-server.ts';

test('a request without Host, or with two, is malformed', async (t) => {
  const stage = await start(t);
  const { problem } = await assertProblem(stage, 'GET /health HTTP/1.1\r\n\r\n', 400, 'malformed_request');
  assert.match(String(problem['detail']), /Host/);
  await assertProblem(stage, 'GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n', 400, 'malformed_request');
});

const garbage: Readonly<Record<string, string | Buffer>> = {
  words: 'hello there\r\n\r\n',
  'a TLS hello': Buffer.from('160301020001000001fc0303', 'hex'),
  'the start of HTTP/2': 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
  'an unknown version': 'GET /health HTTP/9.9\r\nHost: test\r\n\r\n',
  'a header without a colon': 'GET /health HTTP/1.1\r\nHost: test\r\nbroken\r\n\r\n',
  'a NUL in a header': 'GET /health HTTP/1.1\r\nHost: test\r\nX: a\0b\r\n\r\n',
  'two lengths': `POST ${chatPath} HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello`,
  'a length and chunks': `POST ${chatPath} HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`,
  'a length that is no number': `POST ${chatPath} HTTP/1.1\r\nHost: test\r\nContent-Length: 1e3\r\n\r\n`,
};

for (const [title, bytes] of Object.entries(garbage)) {
  test(`garbage: ${title} is answered with a problem, and the connection ends`, async (t) => {
    const stage = await start(t);
    const connection = await stage.connect();
    connection.send(bytes);
    const reply = await connection.answer('400');
    assert.deepEqual([reply.status, JSON.parse(reply.body).code, reply.headers.get('connection')], [400, 'malformed_request', 'close']);
    assert.equal(reply.headers.get('content-type'), 'application/problem+json');
    assert.match(reply.headers.get('x-request-id') ?? '', /^[0-9a-f-]{36}$/);
    assert.equal(await connection.ended(), '');
    assert.deepEqual(stage.lines.map(({ request, remote }) => [request, remote]), [[reply.headers.get('x-request-id'), '127.0.0.1']]);
    assert.equal((await fetch(`${stage.url}/health`)).status, 200);
  });
}

test('garbage: a caller who keeps its side open is cut off all the same', async (t) => {
  const stage = await start(t, { timeouts: { headersMs: 100, requestMs: 100, checkEveryMs: 20 } });
  const connection = await stage.connect({ allowHalfOpen: true });
  connection.send('hello there\r\n\r\n');
  await connection.answer('400');
  await connection.ended();
  // A socket that is closed for good answers what comes late with a reset; a forgotten one swallows it for ever.
  await until('the server to forget the connection', () => {
    connection.send('x');
    return connection.isReset ? true : undefined;
  });
});

const connectBytes = 'CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n';

test('a CONNECT request gets no tunnel, but a problem, and the connection ends', async (t) => {
  const stage = await start(t);
  const connection = await stage.connect();
  connection.send(`${connectBytes}${'x'.repeat(100_000)}`);
  const reply = await connection.answer('the refusal');
  assert.deepEqual([reply.status, JSON.parse(reply.body).code, reply.headers.get('connection')], [404, 'not_found', 'close']);
  assert.equal(await connection.ended(), '');
  assert.deepEqual(stage.lines.map(({ event, code, remote }) => [event, code, remote]), [['request', 'not_found', '127.0.0.1']]);
  await until('the server to have heard that the caller is gone', () => (stage.connections === 0 ? true : undefined));
});

test('a CONNECT behind a request that runs is refused when that one has its answer', async (t) => {
  const turn = latch();
  const stage = await start(t, { run: () => turn.opened.then(() => answer) });
  const connection = await stage.connect();
  connection.send(Buffer.concat([chat(), Buffer.from(connectBytes)]));
  await until('the turn', () => stage.signals[0]);
  turn.open();
  assert.equal((await connection.answer('the answer')).status, 200);
  assert.equal((await connection.answer('the refusal')).status, 404);
  await connection.ended();
});

test('a caller of CONNECT who leaves before its answer, or never ends its side, is forgotten', async (t) => {
  const stage = await start(t, { timeouts: { headersMs: 100 }, run: untilAborted });
  const [gone, lasting] = [await stage.connect(), await stage.connect({ allowHalfOpen: true })];
  gone.send(Buffer.concat([chat(), Buffer.from(connectBytes)]));
  const signal = await until('the turn', () => stage.signals[0]);
  gone.reset();
  await until('the abort', () => (signal.aborted ? true : undefined));
  lasting.send(connectBytes);
  await lasting.answer('the refusal');
  await until('both connections to be closed', () => (stage.connections === 0 ? true : undefined));
});

test('none of very many headers is overlooked', async (t) => {
  const stage = await start(t);
  const many = Array<string>(1500).fill('x:');
  assert.equal((await stage.ask(chat(good, [...many, withKey, asJson]))).status, 200);
  await assertProblem(stage, chat(good, [withKey, ...many, withKey]), 401, 'invalid_api_key');
});

test('headers over 16 KiB are refused', async (t) => {
  const stage = await start(t);
  const connection = await stage.connect();
  connection.send(requestBytes('GET /health', [`X-Big: ${'x'.repeat(17 * 1024)}`]));
  const reply = await connection.answer('431');
  assert.deepEqual([reply.status, JSON.parse(reply.body).code, reply.headers.get('connection')], [431, 'headers_too_large', 'close']);
});

const hurried = { timeouts: { headersMs: 300, requestMs: 300, checkEveryMs: 20 } } as const;

test('headers that do not arrive in time are 408, and the connection ends', async (t) => {
  const stage = await start(t, { timeouts: { headersMs: 200, requestMs: 60_000, checkEveryMs: 20 } });
  for (const bytes of ['GET /health HTTP/1.1\r\nHost: te', requestBytes('GET /health').subarray(0, -1)]) {
    const connection = await stage.connect();
    connection.send(bytes);
    const reply = await connection.answer('408');
    assert.deepEqual([reply.status, JSON.parse(reply.body).code, reply.headers.get('connection')], [408, 'request_timeout', 'close']);
    assert.equal(await connection.ended(), '');
  }
});

test('a body that does not arrive in time is 408, logged once, and the connection ends', async (t) => {
  const stage = await start(t, hurried);
  const connection = await stage.connect();
  connection.send(chat().subarray(0, -5));
  const reply = await connection.answer('408');
  assert.deepEqual([reply.status, problemIn(reply)['code'], reply.headers.get('connection')], [408, 'request_timeout', 'close']);
  assert.equal(await connection.ended(), '');
  await stage.ask(requestBytes('GET /health'));
  assert.deepEqual(stage.lines.map((line) => [line.event, line['status']]), [['request', 408]]);
  assert.deepEqual(stage.requests, []);
});

test('a caller who sends a byte now and then is cut off all the same', async (t) => {
  const stage = await start(t, hurried);
  for (const begun of ['GET /health HTTP/1.1\r\nX: ', chat('{', [withKey, asJson, 'Content-Length: 1999'])]) {
    const connection = await stage.connect();
    connection.send(begun);
    const dripping = setInterval(() => connection.send(' '), 20);
    t.after(() => clearInterval(dripping));
    assert.match(await connection.ended(), /^HTTP\/1\.1 408 /);
    clearInterval(dripping);
  }
});

for (const leaving of ['hangUp', 'reset'] as const) {
  test(`a caller who leaves in mid-body (${leaving}) is logged once, and nothing runs`, async (t) => {
    const stage = await start(t);
    const connection = await stage.connect();
    connection.send(chat().subarray(0, -5));
    // The server has the first bytes for sure once it has answered somebody who came later.
    await stage.ask(requestBytes('GET /health'));
    connection[leaving]();
    await until('the log line', () => (stage.lines.length > 0 ? true : undefined));
    await stage.ask(requestBytes('GET /health'));
    assert.deepEqual(stage.lines.map((line) => [line['level'], line['status']]), [['info', 408]]);
    assert.deepEqual(stage.requests, []);
  });
}

/** Waits until the time for requests is over for everything sent before: one that began later is given up on. */
async function limitsPass(stage: Stage): Promise<void> {
  const later = await stage.connect();
  later.send('GET /health HT');
  assert.equal((await later.answer('408')).status, 408);
}

test('a turn may take longer than a request may take to arrive', async (t) => {
  const turn = latch();
  const stage = await start(t, { ...hurried, run: () => turn.opened.then(() => answer) });
  const connection = await stage.connect();
  connection.send(chat());
  await until('the turn', () => stage.signals[0]);
  await limitsPass(stage);
  turn.open();
  assert.equal((await connection.answer('the answer')).status, 200);
});

test('a next request that comes too slowly does not cost the running one its answer', async (t) => {
  const turn = latch();
  const stage = await start(t, { ...hurried, run: () => turn.opened.then(() => answer) });
  const connection = await stage.connect();
  connection.send(Buffer.concat([chat(), Buffer.from('GET /health HT')]));
  await until('the turn', () => stage.signals[0]);
  await limitsPass(stage);
  turn.open();
  const reply = await connection.answer('the answer to the first request');
  assert.deepEqual([reply.status, JSON.parse(reply.body)], [200, answerJson]);
  await connection.ended();
  assert.equal(stage.signals[0]?.aborted, false);
});

test('a body that is not what its headers say is answered with a problem', async (t) => {
  const stage = await start(t);
  const connection = await stage.connect();
  connection.send(chat('zz\r\nhello\r\n', [withKey, asJson, 'Transfer-Encoding: chunked']));
  const reply = await connection.answer('400');
  assert.deepEqual([reply.status, problemIn(reply)['code'], reply.headers.get('connection')], [400, 'malformed_request', 'close']);
  assert.equal(await connection.ended(), '');
  await stage.ask(requestBytes('GET /health'));
  assert.equal(stage.lines.length, 1);
});

test('a request refused by its head, with a body that is garbage, costs the ones before it nothing, and is logged once', async (t) => {
  const turn = latch();
  const stage = await start(t, { run: () => turn.opened.then(() => answer) });
  const connection = await stage.connect();
  connection.send(Buffer.concat([chat(), chat('zz\r\n', [asJson, 'Transfer-Encoding: chunked', 'X-Request-Id: r-2'])]));
  await until('the turn', () => stage.signals[0]);
  await stage.ask(requestBytes('GET /health'));
  turn.open();
  assert.equal((await connection.answer('the answer to the first request')).status, 200);
  const reply = await connection.answer('the refusal');
  assert.deepEqual([reply.status, reply.headers.get('connection')], [400, 'close']);
  assert.equal(await connection.ended(), '');
  assert.equal(stage.lines.filter((line) => line['request'] === 'r-2').length, 1);
});

test('what comes behind garbage does not cost the requests before it their answers', async (t) => {
  for (const broken of ['zz\r\n', chunked('{}')]) {
    const turn = latch();
    const stage = await start(t, { run: () => turn.opened.then(() => answer) });
    const connection = await stage.connect();
    connection.send(chat());
    await until('the turn', () => stage.signals[0]);
    // Refused while it comes, in the other case before the garbage does.
    connection.send(chat(broken, [asJson, 'Transfer-Encoding: chunked']));
    for (let i = 0; i < 3; i += 1) {
      await stage.ask(requestBytes('GET /health'));
      connection.send('garbage\r\n\r\n');
    }
    await stage.ask(requestBytes('GET /health'));
    assert.equal(stage.signals[0]?.aborted, false);
    turn.open();
    assert.equal((await connection.answer('the answer to the first request')).status, 200);
    assert.equal((await connection.answer('the refusal')).status, broken.startsWith('zz') ? 400 : 401);
    await connection.ended();
  }
});

test('a caller who still sends while it is refused gets the refusal, not a reset', async (t) => {
  const stage = await start(t);
  const connection = await stage.connect({ allowHalfOpen: true });
  connection.send(`GET /health HTTP/1.1\r\nHost: test\r\nX-Big: ${'x'.repeat(17 * 1024)}`);
  await connection.received('headers_too_large');
  for (let i = 0; i < 5; i += 1) {
    await connection.send('x'.repeat(10_000));
    await stage.ask(requestBytes('GET /health'));
  }
  assert.equal((await connection.answer('431')).status, 431);
  assert.equal(connection.isReset, false);
  assert.equal(stage.lines.length, 1);
});

test('a caller who counted characters for bytes gets its answer, and the connection ends', async (t) => {
  const stage = await start(t);
  const connection = await stage.connect();
  const body = JSON.stringify({ prompt: 'żółć gęślą jaźń', user_id: 1 });
  connection.send(chat(body, [withKey, asJson, `Content-Length: ${body.length}`]));
  const reply = await connection.answer('the answer to the cut body');
  assert.deepEqual([reply.status, problemIn(reply)['code']], [400, 'malformed_json']);
  await connection.ended();
});

test('garbage behind a whole request: that one is still answered, and the connection ends', async (t) => {
  const turn = latch();
  const stage = await start(t, { run: () => turn.opened.then(() => answer) });
  const connection = await stage.connect();
  connection.send(Buffer.concat([chat(), Buffer.from('garbage\r\n\r\n')]));
  await until('the turn', () => stage.signals[0]);
  await stage.ask(requestBytes('GET /health'));
  turn.open();
  const reply = await connection.answer('the answer to the first request');
  assert.deepEqual([reply.status, JSON.parse(reply.body)], [200, answerJson]);
  assert.doesNotMatch(await connection.ended(), /^HTTP\/1\.1 200/);
});

test('garbage behind a request that asked for the end of the connection is nobody’s', async (t) => {
  const stage = await start(t);
  const connection = await stage.connect();
  connection.send(Buffer.concat([chat(good, [withKey, asJson, 'Connection: close']), Buffer.from('garbage\r\n\r\n')]));
  assert.equal((await connection.answer('the answer')).status, 200);
  assert.equal(await connection.ended(), '');
  await stage.ask(requestBytes('GET /health'));
  assert.deepEqual(stage.lines.map(({ event }) => event), ['turn']);
});

test('a caller who sends garbage without end behind a request that runs costs no memory', async (t) => {
  const warnings: string[] = [];
  const onWarning = ({ name }: Error): unknown => warnings.push(name);
  process.on('warning', onWarning);
  t.after(() => process.off('warning', onWarning));
  const turn = latch();
  const stage = await start(t, { run: () => turn.opened.then(() => answer) });
  const connection = await stage.connect();
  connection.send(chat());
  await until('the turn', () => stage.signals[0]);
  for (let i = 0; i < 20; i += 1) {
    connection.send('garbage\r\n\r\n');
    await stage.ask(requestBytes('GET /health'));
  }
  turn.open();
  assert.equal((await connection.answer('the answer')).status, 200);
  assert.deepEqual(warnings, [], 'listeners pile up');
});

test('garbage on a connection that streams does not spoil the stream', async (t) => {
  const turn = latch();
  const stage = await start(t, {
    run: async (_request, _signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      await turn.opened;
      return answer;
    },
  });
  const connection = await stage.connect();
  connection.send(chat(good, [withKey, asJson, 'Accept: text/event-stream']));
  await connection.received('event: session');
  connection.send('garbage\r\n\r\n');
  await stage.ask(requestBytes('GET /health'));
  turn.open();
  const { body } = await connection.answer('the stream');
  assert.deepEqual(eventsOf(body).map(({ name }) => name), ['session', 'result']);
});

test('requests sent without waiting are answered in order, each with its own', async (t) => {
  const turns = [latch(), latch(), latch()];
  const stage = await start(t, {
    run: async ({ userId }) => {
      await turns[userId - 1]?.opened;
      return { ...answer, content: `for ${userId}` };
    },
  });
  const connection = await stage.connect();
  connection.send(Buffer.concat([1, 2, 3].map((user_id) => chat({ prompt: 'x', user_id }))));
  connection.send(requestBytes('GET /nothing'));
  await until('three running turns', () => (stage.requests.length === 3 ? true : undefined));
  for (const turn of turns.reverse()) turn.open();
  for (const userId of [1, 2, 3]) assert.equal(JSON.parse((await connection.answer(`answer ${userId}`)).body).content, `for ${userId}`);
  assert.equal((await connection.answer('the last answer')).status, 404);
});

test('garbage behind several requests: all of them are answered', async (t) => {
  const turns = [latch(), latch()];
  const stage = await start(t, {
    run: async ({ userId }) => {
      await turns[userId - 1]?.opened;
      return { ...answer, content: `for ${userId}` };
    },
  });
  const connection = await stage.connect();
  connection.send(Buffer.concat([1, 2].map((user_id) => chat({ prompt: 'x', user_id }))));
  await until('two running turns', () => (stage.requests.length === 2 ? true : undefined));
  turns[0]?.open();
  assert.equal(JSON.parse((await connection.answer('the first answer')).body).content, 'for 1');
  connection.send('garbage\r\n\r\n');
  await stage.ask(requestBytes('GET /health'));
  turns[1]?.open();
  assert.equal(JSON.parse((await connection.answer('the second answer')).body).content, 'for 2');
});

test('Expect: 100-continue is answered before the body is sent', async (t) => {
  const stage = await start(t);
  const connection = await stage.connect();
  const body = JSON.stringify(good);
  connection.send(requestBytes(`POST ${chatPath}`, [withKey, asJson, `Content-Length: ${body.length}`, 'Expect: 100-continue']));
  assert.equal((await connection.answer('100 Continue')).status, 100);
  connection.send(body);
  assert.equal((await connection.answer('the answer')).status, 200);
  connection.send(requestBytes('GET /health'));
  assert.equal((await connection.answer('the next answer')).status, 200);
});

const unwelcome: ReadonlyArray<readonly [ProblemCode, readonly string[]]> = [
  ['missing_api_key', [asJson, 'Content-Length: 5']],
  ['body_too_large', [withKey, asJson, 'Content-Length: 999999']],
  ['unsupported_media_type', [withKey, 'Content-Type: text/plain', 'Content-Length: 5']],
];

for (const [code, headers] of unwelcome) {
  test(`Expect: 100-continue is refused with ${code} before the body is sent, and the connection ends`, async (t) => {
    const stage = await start(t);
    const connection = await stage.connect();
    connection.send(requestBytes(`POST ${chatPath}`, [...headers, 'Expect: 100-continue']));
    const reply = await connection.answer('the refusal');
    assert.equal(problemIn(reply)['code'], code);
    assert.equal(reply.headers.get('connection'), 'close');
    assert.equal(await connection.ended(), '');
  });
}

test('an expectation nobody knows does not stop a request', async (t) => {
  const stage = await start(t);
  const connection = await stage.connect();
  connection.send(chat(good, [withKey, asJson, 'Expect: tea']));
  let reply = await connection.answer('an answer');
  if (reply.status === 100) reply = await connection.answer('the final answer');
  assert.equal(reply.status, 200);
});
