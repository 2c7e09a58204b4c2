import assert from 'node:assert/strict';
import { test } from 'node:test';
import { requestBytes, type WireAnswer } from '../http-client.ts';
import { asJson, assertProblem, chat, chatPath, good, methods, problemIn, routes, start, withKey, type Json } from '../http-stage.ts';

test('a query string and an absolute address lead to the same route', async (t) => {
  const stage = await start(t);
  for (const target of [`${chatPath}?x=1`, `http://test${chatPath}`, `HTTPS://test:8001${chatPath}?a=/b`]) {
    assert.equal((await stage.ask(requestBytes(`POST ${target}`, [withKey, asJson], '{"prompt":"x","user_id":1}'))).status, 200, target);
  }
});

test('an HTTP/1.0 request needs no Host and never gets an interim answer', async (t) => {
  const stage = await start(t);
  const body = '{"prompt":"x","user_id":1}';
  const head = `POST ${chatPath} HTTP/1.0\r\n${withKey}\r\nContent-Length: ${body.length}\r\nExpect: 100-continue\r\n\r\n`;
  assert.equal((await stage.ask(head + body)).status, 200);
});

for (const path of ['/', `${chatPath}/`, '/api/v1', '/API/v1/chat', '//api/v1/chat', '/%61pi/v1/chat', '/health/', '/health/../health', '/healthz', '/api/v1/chat;x', '*', 'http://test']) {
  test(`${path} is not found`, async (t) => {
    const stage = await start(t);
    for (const method of ['GET', 'POST']) await assertProblem(stage, requestBytes(`${method} ${path}`, [withKey]), 404, 'not_found');
  });
}

test('a known path with another method names those it takes', async (t) => {
  const stage = await start(t);
  for (const [path, taken] of routes.slice(0, 2)) {
    for (const method of methods.filter((name) => name !== 'OPTIONS' && !(taken as readonly string[]).includes(name))) {
      const reply = await stage.ask(requestBytes(`${method} ${path}`, [withKey, asJson], '{}'), method === 'HEAD');
      assert.equal(reply.status, 405, `${method} ${path}`);
      assert.equal(reply.headers.get('allow'), [...taken, 'OPTIONS'].join(', '));
      if (method !== 'HEAD') assert.equal(problemIn(reply)['code'], 'method_not_allowed');
    }
  }
  assert.deepEqual(stage.requests, []);
});

test('OPTIONS names the methods of a path, and * those of the server', async (t) => {
  const stage = await start(t);
  for (const [target, allow] of [['/health', 'GET, HEAD, OPTIONS'], [chatPath, 'POST, OPTIONS'], ['*', 'OPTIONS']] as const) {
    const { status, headers } = await stage.ask(requestBytes(`OPTIONS ${target}`));
    assert.deepEqual([status, headers.get('allow')], [204, allow], target);
  }
  await assertProblem(stage, requestBytes('OPTIONS /nothing'), 404, 'not_found');
});

test('an Upgrade is ignored', async (t) => {
  const stage = await start(t);
  assert.equal((await stage.ask(requestBytes('GET /health', ['Connection: Upgrade', 'Upgrade: websocket']))).status, 200);
});

test('what is sent behind an ignored Upgrade is not lost in silence: the connection ends', async (t) => {
  const stage = await start(t);
  const connection = await stage.connect();
  connection.send(Buffer.concat([requestBytes('GET /health', ['Connection: Upgrade', 'Upgrade: h2c']), requestBytes('GET /health')]));
  assert.equal((await connection.answer('the answer')).headers.get('connection'), 'close');
  assert.equal(await connection.ended(), '');
});

test('a sane X-Request-Id comes back, in answers and in the log', async (t) => {
  const stage = await start(t);
  for (const id of ['r-1', 'A.b_c:9', 'x'.repeat(128)]) {
    assert.equal((await stage.ask(chat(undefined, [withKey, asJson, `X-Request-Id: ${id}`]))).headers.get('x-request-id'), id);
    assert.equal(stage.lines.at(-1)?.['request'], id);
    assert.equal((await stage.ask(requestBytes('GET /nothing', [`X-Request-Id: ${id}`]))).headers.get('x-request-id'), id);
  }
});

test('any other X-Request-Id is replaced by a new one, and is not logged', async (t) => {
  const stage = await start(t);
  const given = [[], ['X-Request-Id:'], ['X-Request-Id: LEAK 1'], ['X-Request-Id: LEAK"<x>'], ['X-Request-Id: LEAK\xe9'], [`X-Request-Id: LEAK${'x'.repeat(125)}`], ['X-Request-Id: LEAK-1', 'X-Request-Id: LEAK-2']];
  const ids = [];
  for (const headers of given) ids.push((await stage.ask(requestBytes('GET /nothing', headers))).headers.get('x-request-id') ?? '');
  for (const id of ids) assert.match(id, /^[0-9a-f]{8}-[0-9a-f-]{27}$/);
  assert.equal(new Set(ids).size, given.length);
  assert.ok(!stage.logText.includes('LEAK'));
});

const preflight = (origin: string): Buffer =>
  requestBytes(`OPTIONS ${chatPath}`, [`Origin: ${origin}`, 'Access-Control-Request-Method: POST', 'Access-Control-Request-Headers: authorization,content-type']);

function corsOf({ headers }: WireAnswer): Json {
  return Object.fromEntries([...headers].filter(([name]) => name.startsWith('access-control-') || name === 'vary'));
}

const exposed = { 'access-control-expose-headers': 'X-Request-Id, Retry-After, Idempotency-Replayed' };
const granted = { ...exposed, 'access-control-allow-methods': 'POST, OPTIONS', 'access-control-allow-headers': 'Authorization, Content-Type, X-Request-Id, X-User-Id, Idempotency-Key', 'access-control-max-age': '600' };

const corsCases: ReadonlyArray<readonly [string, readonly string[], string, Json, Json]> = [
  ['without CORS_ORIGINS no page may call', [], 'https://a.test', {}, {}],
  ['a listed origin may call', ['https://b.test', 'https://a.test'], 'https://a.test', { vary: 'Origin', 'access-control-allow-origin': 'https://a.test', ...granted }, { vary: 'Origin', 'access-control-allow-origin': 'https://a.test', ...exposed }],
  ['an unlisted origin may not', ['https://a.test'], 'https://b.test', { vary: 'Origin' }, { vary: 'Origin' }],
  ['an origin that only begins like a listed one may not', ['https://a.test'], 'https://a.test.evil.test', { vary: 'Origin' }, { vary: 'Origin' }],
  ['the origin null may not', ['https://a.test'], 'null', { vary: 'Origin' }, { vary: 'Origin' }],
  ['with * every page may call', ['*'], 'https://a.test', { 'access-control-allow-origin': '*', ...granted }, { 'access-control-allow-origin': '*', ...exposed }],
];

for (const [title, corsOrigins, origin, onPreflight, onAnswer] of corsCases) {
  test(`CORS: ${title}, and never with cookies`, async (t) => {
    const stage = await start(t, { corsOrigins });
    const reply = await stage.ask(preflight(origin));
    assert.deepEqual([reply.status, reply.body, corsOf(reply)], [204, '', onPreflight]);
    assert.deepEqual(corsOf(await stage.ask(chat(good, [withKey, asJson, `Origin: ${origin}`]))), onAnswer);
    assert.deepEqual(corsOf(await stage.ask(chat(good, [asJson, `Origin: ${origin}`]))), onAnswer, 'an error must be readable too');
    assert.deepEqual(corsOf(await stage.ask(chat(good, [withKey, asJson, 'Accept: text/event-stream', `Origin: ${origin}`]))), onAnswer);
  });
}

test('CORS: a request without an origin gets no grant', async (t) => {
  const stage = await start(t, { corsOrigins: ['https://a.test'] });
  assert.deepEqual(corsOf(await stage.ask(requestBytes('GET /health'))), { vary: 'Origin' });
});
