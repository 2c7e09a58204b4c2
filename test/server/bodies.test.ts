import assert from 'node:assert/strict';
import { test } from 'node:test';
import { invalid, malformed, refusedTypes } from '../bad-requests.ts';
import { chunked, requestBytes } from '../http-client.ts';
import { answer, answerJson, asJson, assertProblem, chat, chatPath, good, latch, maxBodyBytes, start, withKey } from '../http-stage.ts';
import { until } from '../running-server.ts';

test('a turn is answered with its content, session, cost and duration', async (t) => {
  const stage = await start(t);
  const reply = await stage.ask(chat());
  assert.equal(reply.status, 200);
  assert.equal(reply.headers.get('content-type'), 'application/json');
  assert.equal(reply.headers.get('cache-control'), 'no-store');
  assert.deepEqual(JSON.parse(reply.body), answerJson);
});

test('the chat gets the prompt letter by letter, the user and the session', async (t) => {
  const stage = await start(t);
  const prompts = [' --version\n', '/clear', '@/etc/passwd', '!ls', '# memo', '-', 'żółć 🦊', '\u2028\uFEFFx', '"\\', '\u0001', '\uFFFD', '日本語'];
  for (const prompt of prompts) {
    assert.equal((await stage.ask(chat({ prompt, user_id: 7 }))).status, 200, JSON.stringify(prompt));
    assert.deepEqual(stage.requests.pop(), { prompt, userId: 7 });
  }
  await stage.ask(chat({ prompt: 'x', user_id: 7, session_id: 's-1' }));
  assert.deepEqual(stage.requests.pop(), { prompt: 'x', userId: 7, sessionId: 's-1' });
  await stage.ask(chat({ prompt: 'x', user_id: 7, session_id: null }));
  assert.deepEqual(stage.requests.pop(), { prompt: 'x', userId: 7 });
});

test('X-User-Id is not needed, and where it is there it is the user_id in decimal', async (t) => {
  const stage = await start(t);
  const send = (userId: unknown, ...values: readonly string[]): Buffer =>
    chat({ prompt: 'x', user_id: userId }, [withKey, asJson, ...values.map((value) => `X-User-Id: ${value}`)]);
  for (const userId of [1, 7, 1234567, Number.MAX_SAFE_INTEGER]) assert.equal((await stage.ask(send(userId, String(userId)))).status, 200, String(userId));
  assert.equal((await stage.ask(send(7, '7', '7'))).status, 200);
  assert.deepEqual(stage.requests.splice(0).map(({ userId }) => userId), [1, 7, 1234567, Number.MAX_SAFE_INTEGER, 7]);
  for (const values of [['8'], [''], ['07'], ['7.0'], ['+7'], ['7, 7'], ['7', '8'], ['8', '7'], ['1e3']]) {
    const { problem } = await assertProblem(stage, send(7, ...values), 422, 'invalid_request');
    assert.deepEqual((problem['errors'] as { field: string }[]).map(({ field }) => field), ['X-User-Id'], values.join());
  }
  assert.deepEqual(stage.requests, []);
});

test('a body that comes byte by byte, or in chunks, is the same body', async (t) => {
  const stage = await start(t);
  const body = JSON.stringify({ prompt: 'żółć 🦊', user_id: 1 });
  const connection = await stage.connect();
  for (const byte of chat(body)) connection.send(Buffer.from([byte]));
  assert.equal((await connection.answer('the first answer')).status, 200);
  connection.send(chat(chunked(body, 1), [withKey, asJson, 'Transfer-Encoding: chunked']));
  assert.equal((await connection.answer('the second answer')).status, 200);
  assert.deepEqual(stage.requests, Array(2).fill({ prompt: 'żółć 🦊', userId: 1 }));
});

test('a BOM before the JSON is no error', async (t) => {
  const stage = await start(t);
  assert.equal((await stage.ask(chat(`\uFEFF${JSON.stringify({ prompt: 'x', user_id: 1 })}`))).status, 200);
});

for (const [title, body] of Object.entries(malformed)) {
  test(`malformed: ${title} is refused without quoting it`, async (t) => {
    const stage = await start(t);
    const { reply } = await assertProblem(stage, chat(body), 400, 'malformed_json');
    assert.ok(!reply.body.includes('LEAK') && !stage.logText.includes('LEAK'), reply.body);
    assert.deepEqual(stage.requests, []);
  });
}

test('JSON nested a million deep is refused and does not end the server', async (t) => {
  const stage = await start(t, { maxBodyBytes: 1_048_576 });
  await assertProblem(stage, chat('['.repeat(1_000_000)), 400, 'malformed_json');
  await assertProblem(stage, chat(`{"prompt":${'['.repeat(500_000)}${']'.repeat(500_000)},"user_id":1}`), 422, 'invalid_request');
});

test('a body of exactly the limit passes, one byte more does not', async (t) => {
  const stage = await start(t);
  const body = (bytes: number): string => JSON.stringify({ prompt: 'ż'.repeat(100), user_id: 1 }).padEnd(bytes - 100);
  assert.equal(Buffer.byteLength(body(maxBodyBytes)), maxBodyBytes);
  for (const encoding of [[], ['Transfer-Encoding: chunked']]) {
    const send = (bytes: number): Buffer => chat(encoding.length === 0 ? body(bytes) : chunked(body(bytes)), [withKey, asJson, ...encoding]);
    assert.equal((await stage.ask(send(maxBodyBytes))).status, 200);
    await assertProblem(stage, send(maxBodyBytes + 1), 413, 'body_too_large');
  }
});

test('a body declared too large is refused before it comes', async (t) => {
  const stage = await start(t);
  const { problem } = await assertProblem(stage, `POST ${chatPath} HTTP/1.1\r\nHost: test\r\n${withKey}\r\nContent-Length: ${maxBodyBytes + 1}\r\n\r\n`, 413, 'body_too_large');
  assert.match(String(problem['detail']), /2000 bytes that MAX_BODY_BYTES allows/);
});

test('a body without a declared length is refused as soon as too much has come', async (t) => {
  const stage = await start(t);
  const connection = await stage.connect();
  connection.send(requestBytes(`POST ${chatPath}`, [withKey, asJson, 'Transfer-Encoding: chunked']));
  connection.send(`${(maxBodyBytes + 1).toString(16)}\r\n${'x'.repeat(maxBodyBytes + 1)}\r\n`);
  assert.equal((await connection.answer('413 before the end of the body')).status, 413);
  connection.send(`5\r\nhello\r\n0\r\n\r\n${requestBytes('GET /health').toString()}`);
  assert.equal((await connection.answer('the next answer on the same connection')).status, 200);
});

test('a refused caller who goes on sending without end is cut off', async (t) => {
  const stage = await start(t);
  const connection = await stage.connect();
  connection.send(`POST ${chatPath} HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000000\r\n\r\n`);
  assert.equal((await connection.answer('the refusal')).status, 401);
  for (let sentMiB = 0; !connection.isReset && sentMiB < 500; sentMiB += 1) await connection.send(Buffer.alloc(1024 * 1024));
  assert.ok(connection.isReset, '500 MiB were taken');
});

for (const headers of refusedTypes) {
  test(`${headers.join(', ')} is not taken`, async (t) => {
    const stage = await start(t);
    await assertProblem(stage, chat(undefined, [withKey, ...headers]), 415, 'unsupported_media_type');
    assert.deepEqual(stage.requests, []);
  });
}

const takenTypes: ReadonlyArray<readonly string[]> = [
  [],
  ['Content-Type: application/json; charset=utf-8'],
  ['Content-Type: Application/JSON;charset="UTF-8"'],
  ['Content-Type: application/json ; charset=UTF-8 ;'],
  ['Content-Type: application/json;'],
  ['Content-Type: application/vnd.bot+json'],
  [asJson, 'Content-Encoding: identity'],
  [asJson, 'Content-Encoding: Identity'],
];

for (const headers of takenTypes) {
  test(`${headers.join(', ') || 'no content type'} is taken`, async (t) => {
    const stage = await start(t);
    assert.equal((await stage.ask(chat(undefined, [withKey, ...headers]))).status, 200);
  });
}

test('invalid: each wrong field is named, all of them at once, and none else', async (t) => {
  const stage = await start(t);
  for (const [title, body, expected] of invalid) {
    const { problem } = await assertProblem(stage, chat(body), 422, 'invalid_request');
    const errors = problem['errors'] as Array<{ field: string; detail: string }>;
    assert.equal(problem['detail'], errors.map(({ detail }) => detail).join(' '), title);
    assert.deepEqual(errors.map(({ field }) => field), Object.keys(expected), title);
    for (const { field, detail } of errors) {
      assert.match(detail, Object.entries(expected).find(([name]) => name === field)?.[1] ?? /^$/, title);
      assert.match(detail, /^[A-Za-z].*[.?]$/, title);
    }
  }
  assert.deepEqual(stage.requests, []);
});

test('invalid: the prompt is not quoted, and a thousand unknown fields do not make a long answer', async (t) => {
  const stage = await start(t, { maxBodyBytes: 1_000_000 });
  const many = Object.fromEntries(Array.from({ length: 1000 }, (_, i): [string, number] => [`${i}${'x'.repeat(500)}`, i]));
  const { reply } = await assertProblem(stage, chat({ prompt: 'LEAK\0', user_id: 0, session_id: 'LEAK/', ...many }), 422, 'invalid_request');
  assert.ok(!reply.body.includes('LEAK') && !stage.logText.includes('LEAK'));
  assert.ok(reply.body.length < 10_000, `${reply.body.length} characters`);
});

const guesses: ReadonlyArray<readonly [field: string, known: string | undefined]> = [
  ['promt', 'prompt'], ['Prompt', 'prompt'], ['prompts', 'prompt'], ['pormpt', 'prompt'],
  ['userId', 'user_id'], ['user', 'user_id'], ['usre_id', 'user_id'], ['user-id', 'user_id'],
  ['session', 'session_id'], ['sessionID', 'session_id'], ['session_ids', 'session_id'],
  ['message', undefined], ['id', undefined], ['model', undefined], ['u', undefined], ['', undefined], ['user_id'.repeat(5), undefined],
];

test('an unknown field is answered with the known one it resembles, if there is one', async (t) => {
  const stage = await start(t);
  for (const [field, known] of guesses) {
    const { problem } = await assertProblem(stage, chat({ ...good, [field]: 1 }), 422, 'invalid_request');
    assert.equal(problem['detail'], `Unknown field "${field}"${known === undefined ? '.' : `; did you mean "${known}"?`}`);
  }
});

test('the edges of user_id and session_id are valid', async (t) => {
  const stage = await start(t);
  for (const user_id of ['1', '9007199254740991', '1.0', '1e3']) assert.equal((await stage.ask(chat(`{"prompt":"x","user_id":${user_id}}`))).status, 200, user_id);
  assert.deepEqual(stage.requests.map(({ userId }) => userId), [1, Number.MAX_SAFE_INTEGER, 1, 1000]);
  for (const session_id of ['a', '0', 'A-_9', 'a'.repeat(128), '0c6f2f1e-8f0e-4a51-9d0c-3a4e5b6c7d8e']) assert.equal((await stage.ask(chat({ ...good, session_id }))).status, 200, session_id);
});

test('large bodies have so much memory together, from their arrival to their answer; a small one is answered all the same', async (t) => {
  const { opened, open } = latch();
  const stage = await start(t, { maxBodyBytes: 200_000, maxHeldBytes: 160_000, run: async () => opened.then(() => answer) });
  const large = chat({ ...good, prompt: 'x'.repeat(140_000) });
  const running = [stage.ask(large), stage.ask(large)];
  await until('both turns', () => (stage.requests.length === 2 ? true : undefined));
  const { reply } = await assertProblem(stage, large, 503, 'busy');
  assert.equal(reply.headers.get('retry-after'), '5');
  const small = stage.ask(chat(good));
  await until('the small one', () => (stage.requests.length === 3 ? true : undefined));
  open();
  assert.deepEqual((await Promise.all([...running, small])).map(({ status }) => status), [200, 200, 200]);
  for (let i = 0; i < 3; i += 1) assert.equal((await stage.ask(large)).status, 200, 'all of it was given back');
});
