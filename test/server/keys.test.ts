import assert from 'node:assert/strict';
import { test } from 'node:test';
import { badKeys } from '../bad-requests.ts';
import { requestBytes } from '../http-client.ts';
import { apiKey, asJson, assertProblem, chat, chatPath, methods, problemIn, routes, start } from '../http-stage.ts';

for (const [title, headers, code] of badKeys) {
  test(`with ${title} no route does anything, and /health tells no more than it tells everybody`, async (t) => {
    const stage = await start(t, { corsOrigins: ['*'] });
    for (const [path] of routes) {
      for (const method of methods) {
        const bytes = requestBytes(`${method} ${path}`, [...headers, asJson], '{"prompt":"x","user_id":1}');
        const reply = await stage.ask(bytes, method === 'HEAD');
        const isPublic = path === '/health' && code === 'missing_api_key';
        if (isPublic && method === 'GET') assert.equal(reply.body, '{"status":"ok"}');
        else if (!isPublic && routes.some(([known, taken]) => known === path && (taken as readonly string[]).includes(method))) {
          assert.equal(reply.status, 401, `${method} ${path}`);
          if (method !== 'HEAD') assert.equal(problemIn(reply)['code'], code);
        } else assert.ok([200, 204, 404, 405].includes(reply.status), `${method} ${path}: ${reply.status}`);
      }
    }
    assert.deepEqual(stage.requests, []);
    assert.ok(!stage.logText.includes(apiKey));
  });
}

test('a 401 says how to authenticate and is logged with where it came from', async (t) => {
  const stage = await start(t);
  const { reply } = await assertProblem(stage, chat({ prompt: 'x', user_id: 1 }, ['Authorization: Bearer 0000', asJson, 'X-Request-Id: r-401']), 401, 'invalid_api_key');
  assert.equal(reply.headers.get('www-authenticate'), 'Bearer');
  const [line, ...others] = stage.lines;
  assert.deepEqual(others, []);
  assert.equal(line?.event, 'auth_failed');
  assert.deepEqual([line['request'], line['remote'], line['code']], ['r-401', '127.0.0.1', 'invalid_api_key']);
});

test('the key is asked for before the body is looked at', async (t) => {
  const stage = await start(t);
  const withoutBody = `POST ${chatPath} HTTP/1.1\r\nHost: test\r\nContent-Type: text/plain\r\nContent-Length: 999999999\r\n\r\n`;
  await assertProblem(stage, withoutBody, 401, 'missing_api_key');
});

test('the scheme may be written in any case', async (t) => {
  const stage = await start(t);
  for (const scheme of ['bearer', 'BEARER', 'BeArEr']) assert.equal((await stage.ask(chat(undefined, [`authorization: ${scheme} ${apiKey}`, asJson]))).status, 200, scheme);
});
