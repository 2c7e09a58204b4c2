import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Problem, problemCodes, type ProblemCode } from '../../src/problem.ts';
import { badKeys, invalid, malformed, refusedTypes } from '../bad-requests.ts';
import { chunked, requestBytes } from '../http-client.ts';
import { answer, answerJson, apiKey, asJson, assertProblem, chat, chatPath, good, maxBodyBytes, problemIn, start, withKey } from '../http-stage.ts';
import type { LogLine } from '../running-server.ts';

test('every error leaves the connection usable', async (t) => {
  const stage = await start(t, {
    run: async ({ prompt }) => {
      const code = problemCodes.find((name) => name === prompt);
      if (code !== undefined) throw new Problem(code, 'x', { sessionId: 's-1', retryAfterSeconds: 3, errors: [] });
      if (prompt === 'bug') throw new Error('bug');
      return answer;
    },
  });
  const refusals: ReadonlyArray<readonly [Buffer, ProblemCode]> = [
    ...badKeys.map(([, headers, code]) => [chat(good, [...headers, asJson]), code] as const),
    ...Object.values(malformed).map((body) => [chat(body), 'malformed_json'] as const),
    ...invalid.map(([, body]) => [chat(body), 'invalid_request'] as const),
    ...refusedTypes.map((headers) => [chat(good, [withKey, ...headers]), 'unsupported_media_type'] as const),
    [requestBytes('GET /nothing'), 'not_found'],
    [requestBytes('PUT /nothing', [], 'x'.repeat(100_000)), 'not_found'],
    [requestBytes(`PUT ${chatPath}`, [withKey], 'x'), 'method_not_allowed'],
    [chat('x'.repeat(maxBodyBytes + 1)), 'body_too_large'],
    [chat('x'.repeat(maxBodyBytes * 100)), 'body_too_large'],
    [chat(chunked('x'.repeat(maxBodyBytes + 1)), [withKey, asJson, 'Transfer-Encoding: chunked']), 'body_too_large'],
    [Buffer.from('GET /health HTTP/1.1\r\n\r\n'), 'malformed_request'],
    [chat({ ...good, prompt: 'bug' }), 'internal_error'],
    // The only one that is meant to end the connection.
    ...problemCodes.filter((code) => code !== 'shutting_down').map((code) => [chat({ ...good, prompt: code }), code] as const),
  ];
  assert.deepEqual(new Set(refusals.map(([, code]) => code)), new Set(problemCodes.filter((code) => code !== 'shutting_down')));

  const connection = await stage.connect();
  for (const [bytes, code] of refusals) {
    connection.send(bytes);
    const reply = await connection.answer(`the answer ${code}`);
    assert.equal(problemIn(reply)['code'], code);
    assert.notEqual(reply.headers.get('connection'), 'close', code);
  }
  connection.send(chat());
  assert.deepEqual(JSON.parse((await connection.answer('the answer after all the errors')).body), answerJson);
});

test('a problem of the turn comes with its session, cost, duration and when to come back', async (t) => {
  const stage = await start(t, {
    run: async () => {
      throw new Problem('claude_rate_limited', 'Later.', { sessionId: 's-9', costUsd: 0.5, durationMs: 40, retryAfterSeconds: 90 });
    },
  });
  const { reply, problem } = await assertProblem(stage, chat(), 429, 'claude_rate_limited');
  assert.equal(reply.headers.get('retry-after'), '90');
  assert.deepEqual([problem['detail'], problem['session_id'], problem['cost'], problem['duration_ms'], problem['retry_after_seconds']], ['Later.', 's-9', 0.5, 40, 90]);
});

test('a server that stops closes the connection after its answer', async (t) => {
  const stage = await start(t, {
    run: async () => {
      throw new Problem('shutting_down', 'Later.', { retryAfterSeconds: 5 });
    },
  });
  const connection = await stage.connect();
  connection.send(chat());
  const reply = await connection.answer('the refusal');
  assert.deepEqual([reply.status, reply.headers.get('connection'), reply.headers.get('retry-after')], [503, 'close', '5']);
  assert.equal(await connection.ended(), '');
});

for (const thrown of [new Error('secret /etc/path'), 'secret /etc/path', undefined, null, { secret: '/etc/path' }]) {
  test(`a bug that throws ${thrown instanceof Error ? 'an Error' : JSON.stringify(thrown)} is 500 without a word of it`, async (t) => {
    const stage = await start(t, { run: () => Promise.reject(thrown) });
    const { reply } = await assertProblem(stage, chat(undefined, [withKey, asJson, 'X-Request-Id: r-500']), 500, 'internal_error');
    assert.doesNotMatch(JSON.stringify([reply.body, [...reply.headers]]), /secret|etc|server\.ts/);
    const [line] = stage.lines;
    assert.deepEqual([line?.['level'], line?.['request'], line?.['status']], ['error', 'r-500', 500]);
    assert.doesNotMatch(stage.logText, /\/etc/);
  });
}

test('a chat that throws at once, without a promise, is a bug like any other', async (t) => {
  const stage = await start(t, {
    run: () => {
      throw new Error('secret');
    },
  });
  await assertProblem(stage, chat(), 500, 'internal_error');
});

test('details of /health that cannot be had are a bug like any other', async (t) => {
  const stage = await start(t, { healthDetails: () => Promise.reject(new Error('secret /etc/path')) });
  const { reply } = await assertProblem(stage, requestBytes('GET /health', [withKey]), 500, 'internal_error');
  assert.doesNotMatch(reply.body, /secret|etc/);
  assert.doesNotMatch(stage.logText, /\/etc/);
});

const noLine: LogLine = { event: 'none' };

test('a turn is one line: request, user, session, status, milliseconds and cost, and nothing that was said', async (t) => {
  const stage = await start(t);
  await stage.ask(chat({ prompt: 'LEAK', user_id: 7 }, [withKey, asJson, 'X-Request-Id: r-1']));
  const [line = noLine, ...others] = stage.lines;
  assert.deepEqual(others, []);
  const { time, ...rest } = line;
  assert.match(String(time), /^\d{4}-\d\d-\d\dT/);
  assert.deepEqual(rest, { level: 'info', event: 'turn', request: 'r-1', user: 7, session: 's-1', status: 200, ms: 12, cost: 0.25 });
  for (const secret of ['LEAK', 'żółć', apiKey]) assert.ok(!stage.logText.includes(secret), secret);
});

test('a turn that failed is one line with its code, and the session asked for', async (t) => {
  const stage = await start(t, {
    run: async () => {
      throw new Problem('claude_failed', 'Try again.', { cause: 'panic at /srv/cli.js:3 in "/home/x"' });
    },
  });
  await stage.ask(chat({ prompt: 'LEAK', user_id: 7, session_id: 's-7' }));
  const [line = noLine, ...others] = stage.lines;
  assert.deepEqual(others, []);
  assert.deepEqual([line['level'], line['session'], line['status'], line['code']], ['warning', 's-7', 502, 'claude_failed']);
  assert.equal(typeof line['ms'], 'number');
  assert.match(String(line['cause']), /^panic at <path>/);
  assert.doesNotMatch(stage.logText, /LEAK|srv|home/);
});

test('a refused request is one line with its code and where it came from', async (t) => {
  const stage = await start(t);
  await stage.ask(chat({ prompt: 'LEAK', user_id: 0 }));
  await stage.ask(requestBytes('GET /LEAK?LEAK=1'));
  assert.deepEqual(stage.lines.map((line) => [line['level'], line.event, line['code'], line['remote']]), [
    ['info', 'request', 'invalid_request', '127.0.0.1'],
    ['info', 'request', 'not_found', '127.0.0.1'],
  ]);
  assert.doesNotMatch(stage.logText, /LEAK/);
});
