import assert from 'node:assert/strict';
import { test } from 'node:test';
import { requestBytes } from '../http-client.ts';
import { assertProblem, chat, healthDetails, start, untilAborted, withKey } from '../http-stage.ts';
import { until } from '../running-server.ts';

test('/health answers these bytes to everybody', async (t) => {
  const stage = await start(t);
  const { status, headers, body } = await stage.ask(requestBytes('GET /health?verbose=1'));
  assert.deepEqual([status, headers.get('content-type'), body], [200, 'application/json', '{"status":"ok"}']);
});

test('/health of a server that is not well has the details as well, with the key', async (t) => {
  const stage = await start(t, { health: () => ({ status: 'unavailable', detail: 'Install it.' }) });
  const { status, body } = await stage.ask(requestBytes('GET /health', [withKey]));
  assert.deepEqual([status, JSON.parse(body)], [503, { status: 'unavailable', detail: 'Install it.', ...healthDetails }]);
});

test('HEAD /health has the headers of GET and no body', async (t) => {
  const stage = await start(t);
  const connection = await stage.connect();
  connection.send(requestBytes('HEAD /health'));
  const { status, headers } = await connection.answer('the HEAD answer', true);
  assert.deepEqual([status, headers.get('content-length'), headers.get('content-type')], [200, '15', 'application/json']);
  connection.send(requestBytes('GET /health'));
  assert.equal((await connection.answer('the GET answer')).body, '{"status":"ok"}');
});

test('/health with the key tells the details too', async (t) => {
  const stage = await start(t);
  assert.deepEqual(JSON.parse((await stage.ask(requestBytes('GET /health', [withKey]))).body), { status: 'ok', ...healthDetails });
});

test('/health with a wrong key is 401, also to HEAD and where the server is not well, and is logged', async (t) => {
  const stage = await start(t, { health: () => ({ status: 'unavailable', detail: 'Install it.' }) });
  const { reply } = await assertProblem(stage, requestBytes('GET /health', ['Authorization: Bearer x']), 401, 'invalid_api_key');
  assert.equal(reply.headers.get('www-authenticate'), 'Bearer');
  assert.equal((await stage.ask(requestBytes('HEAD /health', ['Authorization: Bearer x']), true)).status, 401);
  assert.deepEqual(stage.lines.map((line) => [line.event, line['code'], line['remote']]), Array(2).fill(['auth_failed', 'invalid_api_key', '127.0.0.1']));
});

test('/health is 503 while the server stops or the CLI cannot be run', async (t) => {
  const draining = await start(t, { health: () => ({ status: 'draining' }) });
  const unavailable = await start(t, { health: () => ({ status: 'unavailable', detail: 'Install it.' }) });
  for (const [stage, body] of [[draining, '{"status":"draining"}'], [unavailable, '{"status":"unavailable","detail":"Install it."}']] as const) {
    const reply = await stage.ask(requestBytes('GET /health'));
    assert.deepEqual([reply.status, reply.body], [503, body]);
  }
});

test('/health answers while turns run', async (t) => {
  const stage = await start(t, { run: untilAborted });
  const busy = await Promise.all(Array.from({ length: 20 }, () => stage.connect()));
  for (const connection of busy) connection.send(chat());
  await until('20 running turns', () => (stage.signals.length === 20 ? true : undefined));
  assert.equal((await stage.ask(requestBytes('GET /health'))).body, '{"status":"ok"}');
});

const prometheus = 'application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1';

test('/health gives figures as text to whom prefers text to JSON and has the key, with 200 also where the server is not well', async (t) => {
  const stage = await start(t, { health: () => ({ status: 'draining' }) });
  for (const accept of [prometheus, 'text/plain', 'text/*', 'application/json;q=0.5, text/plain;q=0.6']) {
    const { status, headers, body } = await stage.ask(requestBytes('GET /health', [withKey, `Accept: ${accept}`]));
    assert.deepEqual([status, headers.get('content-type')], [200, 'text/plain; version=0.0.4; charset=utf-8'], accept);
    assert.match(body, /^claude_api_up 0$/m);
  }
});

test('/health gives JSON to curl, axios, browsers, and to whom has no key', async (t) => {
  const stage = await start(t);
  const accepts = ['*/*', 'application/json, text/plain, */*', 'text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8'];
  for (const accept of accepts) {
    const { headers, body } = await stage.ask(requestBytes('GET /health', [withKey, `Accept: ${accept}`]));
    assert.deepEqual([headers.get('content-type'), JSON.parse(body)], ['application/json', { status: 'ok', ...healthDetails }], accept);
  }
  assert.equal((await stage.ask(requestBytes('GET /health', [`Accept: ${prometheus}`]))).body, '{"status":"ok"}');
});

test('nothing of /health is logged', async (t) => {
  const stage = await start(t);
  await stage.ask(requestBytes('GET /health', [withKey]));
  assert.equal(stage.logText, '');
});
