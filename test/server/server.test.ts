import assert from 'node:assert/strict';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { test, type TestContext } from 'node:test';
import { createAuth } from '../../src/auth.ts';
import type { Chat, ChatAnswer, ChatRequest } from '../../src/turns/chat.ts';
import { createLog } from '../../src/log.ts';
import { Problem, problemCodes, type ProblemCode } from '../../src/problem.ts';
import { createHttpServer, type ServerOptions } from '../../src/server.ts';
import { chunked, openConnection, requestBytes, type Connection, type WireAnswer } from '../http-client.ts';
import { until, within, type LogLine } from '../running-server.ts';

const apiKey = 'e2a7c9d14b6f80353d5a1c7e9f2b4860';
const withKey = `Authorization: Bearer ${apiKey}`;
const asJson = 'Content-Type: application/json';
const chatPath = '/api/v1/chat';
const maxBodyBytes = 2000;

type Json = Record<string, unknown>;
type Run = Chat['run'];

const answer: ChatAnswer = { content: 'two and two: żółć 🦊', sessionId: 's-1', costUsd: 0.25, durationMs: 12 };
const answerJson = { content: 'two and two: żółć 🦊', session_id: 's-1', cost: 0.25, duration_ms: 12 };

/** A server in this process, its chat replaced by `run`; everything it logs is kept. */
class Stage {
  readonly requests: ChatRequest[] = [];
  readonly signals: AbortSignal[] = [];
  logText = '';
  port = 0;
  connections = 0;
  readonly #t: TestContext;

  constructor(t: TestContext) {
    this.#t = t;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  get lines(): LogLine[] {
    return this.logText.split('\n').filter(Boolean).map((line) => JSON.parse(line) as LogLine);
  }

  connect(options?: { readonly allowHalfOpen?: boolean }): Promise<Connection> {
    return openConnection(this.#t, this.port, options);
  }

  /** The answer to one request on a connection of its own. */
  async ask(bytes: string | Buffer, isToHead = false): Promise<WireAnswer> {
    const connection = await this.connect();
    connection.send(bytes);
    const reply = await connection.answer('an answer', isToHead);
    connection.hangUp();
    return reply;
  }
}

async function start(t: TestContext, { run = async () => answer, ...options }: Partial<ServerOptions> & { readonly run?: Run } = {}): Promise<Stage> {
  const stage = new Stage(t);
  const server = createHttpServer({
    auth: createAuth(apiKey),
    chat: {
      run: (request, signal, onEvent) => {
        stage.requests.push(request);
        stage.signals.push(signal);
        return run(request, signal, onEvent);
      },
    },
    health: () => ({ status: 'ok' }),
    healthDetails: async () => ({ version: '1.2.3', login: 'credentials file' }),
    maxBodyBytes,
    corsOrigins: [],
    log: createLog('json', (line) => (stage.logText += line)),
    ...options,
  });
  server.on('connection', (socket) => {
    stage.connections += 1;
    socket.on('close', () => (stage.connections -= 1));
  });
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  await within('the server to listen', 10_000, new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve)));
  stage.port = (server.address() as AddressInfo).port;
  return stage;
}

/** A chat request in bytes. */
function chat(body: unknown = { prompt: 'hello', user_id: 1 }, headers: readonly string[] = [withKey, asJson]): Buffer {
  const isRaw = typeof body === 'string' || Buffer.isBuffer(body);
  return requestBytes(`POST ${chatPath}`, headers, isRaw ? body : JSON.stringify(body));
}

/** The problem an answer carries, its shape checked. */
function problemIn({ status, headers, body }: WireAnswer): Json {
  assert.equal(headers.get('content-type'), 'application/problem+json');
  assert.equal(headers.get('content-length'), String(Buffer.byteLength(body)));
  assert.equal(headers.get('cache-control'), 'no-store');
  assert.match(headers.get('x-request-id') ?? '', /^[\w.:-]{1,128}$/);
  const problem = JSON.parse(body) as Json;
  assert.equal(problem['status'], status);
  assert.equal(problem['type'], `urn:claude-api:problem:${String(problem['code'])}`);
  for (const name of ['title', 'detail']) assert.equal(typeof problem[name], 'string', name);
  return problem;
}

async function assertProblem(stage: Stage, bytes: string | Buffer, status: number, code: ProblemCode): Promise<{ reply: WireAnswer; problem: Json }> {
  const reply = await stage.ask(bytes);
  const problem = problemIn(reply);
  assert.deepEqual([reply.status, problem['code']], [status, code]);
  return { reply, problem };
}

/** A turn that goes on until it is aborted. */
const untilAborted: Run = (_request, signal) => new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason), { once: true }));

/** Something that happens when the test says so. */
function latch(): { readonly opened: Promise<void>; readonly open: () => void } {
  let open = (): void => {};
  const opened = new Promise<void>((resolve) => (open = resolve));
  return { opened, open };
}

// ---- a turn

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

// ---- the key

const routes = [['/health', ['GET', 'HEAD']], [chatPath, ['POST']], ['/', []], ['/nothing', []]] as const;
const methods = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'TRACE', 'PROPFIND'];

const badKeys: ReadonlyArray<readonly [string, readonly string[], ProblemCode]> = [
  ['no key', [], 'missing_api_key'],
  ['a wrong key', ['Authorization: Bearer 00000000000000000000000000000000'], 'invalid_api_key'],
  ['an empty header', ['Authorization:'], 'invalid_api_key'],
  ['a malformed header', [`Authorization: ${apiKey}`], 'invalid_api_key'],
  ['another scheme', [`Authorization: Basic ${Buffer.from(`claude:${apiKey}`).toString('base64')}`], 'invalid_api_key'],
  ['the key twice', [withKey, withKey], 'invalid_api_key'],
  ['a wrong key after the right one', [withKey, 'authorization: Bearer x'], 'invalid_api_key'],
  ['the key in another header', [`X-Api-Key: ${apiKey}`], 'missing_api_key'],
  ['the key in a cookie', [`Cookie: Authorization=Bearer ${apiKey}`], 'missing_api_key'],
];

for (const [title, headers, code] of badKeys) {
  test(`with ${title} no route does more than /health tells everybody`, async (t) => {
    const stage = await start(t, { corsOrigins: ['*'] });
    for (const [path] of routes) {
      for (const method of methods) {
        const bytes = requestBytes(`${method} ${path}`, [...headers, asJson], '{"prompt":"x","user_id":1}');
        const reply = await stage.ask(bytes, method === 'HEAD');
        if (path === '/health' && method === 'GET') assert.equal(reply.body, '{"status":"ok"}');
        else if (path === chatPath && method === 'POST') assert.deepEqual([reply.status, problemIn(reply)['code']], [401, code]);
        else assert.ok([200, 204, 404, 405].includes(reply.status), `${method} ${path}: ${reply.status}`);
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

// ---- routes and methods

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

test('a CONNECT request gets no tunnel', async (t) => {
  const stage = await start(t);
  const connection = await stage.connect();
  connection.send('CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n');
  assert.doesNotMatch(await connection.ended(), /^HTTP\/1\.1 2/);
  assert.equal((await fetch(`${stage.url}/health`)).status, 200);
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

// ---- health

test('/health answers these bytes to everybody', async (t) => {
  const stage = await start(t);
  const { status, headers, body } = await stage.ask(requestBytes('GET /health?verbose=1'));
  assert.deepEqual([status, headers.get('content-type'), body], [200, 'application/json', '{"status":"ok"}']);
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

test('/health with the key tells the details too, with a wrong one it does not', async (t) => {
  const stage = await start(t);
  assert.deepEqual(JSON.parse((await stage.ask(requestBytes('GET /health', [withKey]))).body), { status: 'ok', version: '1.2.3', login: 'credentials file' });
  assert.equal((await stage.ask(requestBytes('GET /health', ['Authorization: Bearer x']))).body, '{"status":"ok"}');
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

test('nothing of /health is logged', async (t) => {
  const stage = await start(t);
  await stage.ask(requestBytes('GET /health', [withKey]));
  assert.equal(stage.logText, '');
});

// ---- the request id

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

// ---- the body

const malformed: Readonly<Record<string, string | Buffer>> = {
  'no body': '',
  'cut JSON': '{"prompt":"LEAK',
  'JSON with more after it': '{"prompt":"LEAK","user_id":1} LEAK',
  'a bad escape': '{"prompt":"LEAK\\x"}',
  'a raw line break in a string': '{"prompt":"LEAK\n"}',
  'single quotes': "{'prompt':'LEAK'}",
  'a form': 'prompt=LEAK&user_id=1',
  'a bare word': 'LEAK',
  'an array': '["LEAK"]',
  null: 'null',
  'a string': '"LEAK"',
  'a number': '5',
  'bytes that are not UTF-8': Buffer.concat([Buffer.from('{"prompt":"LEAK'), Buffer.from([0xff, 0xfe]), Buffer.from('","user_id":1}')]),
  'Latin-1': Buffer.from('{"prompt":"LEAK é","user_id":1}', 'latin1'),
  'half a character': Buffer.concat([Buffer.from('{"prompt":"LEAK'), Buffer.from([0xf0, 0x9f]), Buffer.from('","user_id":1}')]),
  'a surrogate in UTF-8': Buffer.concat([Buffer.from('{"prompt":"LEAK'), Buffer.from([0xed, 0xa0, 0x80]), Buffer.from('","user_id":1}')]),
  'UTF-16': Buffer.from('\uFEFF{"prompt":"LEAK","user_id":1}', 'utf16le'),
  'deep nesting': '['.repeat(maxBodyBytes),
  'deep nesting that is closed': '['.repeat(maxBodyBytes / 2) + ']'.repeat(maxBodyBytes / 2),
};

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

const refusedTypes: ReadonlyArray<readonly string[]> = [
  ['Content-Type: text/plain'],
  ['Content-Type: application/x-www-form-urlencoded'],
  ['Content-Type: multipart/form-data; boundary=x'],
  ['Content-Type: application/json; charset=latin1'],
  ['Content-Type: application/json; charset=utf-16'],
  ['Content-Type: application/jsonx'],
  ['Content-Type: xapplication/json'],
  ['Content-Type: text/json'],
  ['Content-Type:'],
  [asJson, 'Content-Encoding: gzip'],
  [asJson, 'Content-Encoding: br'],
];

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

// ---- the fields

const good = { prompt: 'hello', user_id: 1 };
const invalid: ReadonlyArray<readonly [string, Json | string, Readonly<Record<string, RegExp>>]> = [
  ['nothing at all', {}, { prompt: /is required/, user_id: /is required/ }],
  ['every field wrong and one unknown', { prompt: 5, user_id: '1', session_id: 7, sesion_id: 's-1' }, { prompt: /string/, user_id: /integer/, session_id: /null for a new dialogue/, sesion_id: /not known/ }],
  ['a misspelt session_id', { ...good, sessionid: 's-1' }, { sessionid: /not known/ }],
  ['an unknown field that is null', { ...good, x: null }, { x: /not known/ }],
  ['two unknown fields', { ...good, a: 1, b: 2 }, { a: /not known/, b: /not known/ }],
  ['an unknown field with an odd name', '{"prompt":"x","user_id":1,"__proto__":{"user_id":2},"constructor":1}', { ['__proto__']: /not known/, constructor: /not known/ }],
  ['a prompt that is null', { ...good, prompt: null }, { prompt: /string/ }],
  ['a prompt that is a list', { ...good, prompt: ['x'] }, { prompt: /string/ }],
  ['an empty prompt', { ...good, prompt: '' }, { prompt: /empty/ }],
  ['a prompt of blanks', { ...good, prompt: ' \t\r\n\u00a0\u2028\uFEFF' }, { prompt: /empty/ }],
  ['NUL in the prompt', { ...good, prompt: 'a\0b' }, { prompt: /NUL/ }],
  ['half a surrogate pair at the end of the prompt', '{"prompt":"a\\ud83e","user_id":1}', { prompt: /surrogate/ }],
  ['half a surrogate pair inside the prompt', '{"prompt":"a\\udd8ab","user_id":1}', { prompt: /surrogate/ }],
  ['a surrogate pair the wrong way round', '{"prompt":"\\udd8a\\ud83e","user_id":1}', { prompt: /surrogate/ }],
  ...['0', '-1', '-0', '1.5', '9007199254740992', '1e400', '"1"', 'true', 'null', '[1]', '{}'].map(
    (value) => [`user_id ${value}`, `{"prompt":"x","user_id":${value}}`, { user_id: /integer from 1 to 9007199254740991/ }] as const,
  ),
  ...['', '-a', '_a', 'a.b', 'a/b', '../a', 'a b', ' a', 'a\n', 'a\0', 'ż', 'a'.repeat(129)].map(
    (value) => [`session_id ${JSON.stringify(value)}`, { ...good, session_id: value }, { session_id: /session_id of an earlier answer/ }] as const,
  ),
  ...[0, 7, true, [], {}, ['s-1']].map((value) => [`session_id ${JSON.stringify(value)}`, { ...good, session_id: value }, { session_id: /session_id of an earlier answer/ }] as const),
];

test('invalid: each wrong field is named, all of them at once, and none else', async (t) => {
  const stage = await start(t);
  for (const [title, body, expected] of invalid) {
    const { problem } = await assertProblem(stage, chat(body), 422, 'invalid_request');
    const errors = problem['errors'] as Array<{ field: string; detail: string }>;
    assert.deepEqual(errors.map(({ field }) => field), Object.keys(expected), title);
    for (const { field, detail } of errors) {
      assert.match(detail, Object.entries(expected).find(([name]) => name === field)?.[1] ?? /^$/, title);
      assert.ok(String(problem['detail']).includes(`${field} ${detail}`), title);
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

test('the edges of user_id and session_id are valid', async (t) => {
  const stage = await start(t);
  for (const user_id of ['1', '9007199254740991', '1.0', '1e3']) assert.equal((await stage.ask(chat(`{"prompt":"x","user_id":${user_id}}`))).status, 200, user_id);
  assert.deepEqual(stage.requests.map(({ userId }) => userId), [1, Number.MAX_SAFE_INTEGER, 1, 1000]);
  for (const session_id of ['a', '0', 'A-_9', 'a'.repeat(128), '0c6f2f1e-8f0e-4a51-9d0c-3a4e5b6c7d8e']) assert.equal((await stage.ask(chat({ ...good, session_id }))).status, 200, session_id);
});

// ---- errors

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
  assert.deepEqual([problem['detail'], problem['session_id'], problem['cost'], problem['duration_ms']], ['Later.', 's-9', 0.5, 40]);
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

// ---- the log

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

// ---- pages of other origins

const preflight = (origin: string): Buffer =>
  requestBytes(`OPTIONS ${chatPath}`, [`Origin: ${origin}`, 'Access-Control-Request-Method: POST', 'Access-Control-Request-Headers: authorization,content-type']);

function corsOf({ headers }: WireAnswer): Json {
  return Object.fromEntries([...headers].filter(([name]) => name.startsWith('access-control-') || name === 'vary'));
}

const exposed = { 'access-control-expose-headers': 'X-Request-Id, Retry-After' };
const granted = { ...exposed, 'access-control-allow-methods': 'POST, OPTIONS', 'access-control-allow-headers': 'Authorization, Content-Type, X-Request-Id', 'access-control-max-age': '600' };

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

// ---- HTTP itself

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

test('a caller who leaves in mid-body is logged once, and nothing runs', async (t) => {
  const stage = await start(t);
  const connection = await stage.connect();
  connection.send(chat().subarray(0, -5));
  // The server has the first bytes for sure once it has answered somebody who came later.
  await stage.ask(requestBytes('GET /health'));
  connection.hangUp();
  await until('the log line', () => (stage.lines.length > 0 ? true : undefined));
  await stage.ask(requestBytes('GET /health'));
  assert.deepEqual(stage.lines.map((line) => [line['level'], line['status']]), [['info', 408]]);
  assert.deepEqual(stage.requests, []);
});

test('a turn may take longer than a request may take to arrive', async (t) => {
  const stage = await start(t, { ...hurried, run: () => new Promise((resolve) => setTimeout(() => resolve(answer), 1000)) });
  assert.equal((await stage.ask(chat())).status, 200);
});

test('a next request that comes too slowly does not cost the running one its answer', async (t) => {
  const stage = await start(t, { ...hurried, run: () => new Promise((resolve) => setTimeout(() => resolve(answer), 1000)) });
  const connection = await stage.connect();
  connection.send(Buffer.concat([chat(), Buffer.from('GET /health HT')]));
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

// ---- the caller hangs up

test('a caller who hangs up aborts its turn, which is logged as 499', async (t) => {
  const stage = await start(t, { run: untilAborted });
  const connection = await stage.connect();
  connection.send(chat({ prompt: 'LEAK', user_id: 7, session_id: 's-7' }, [withKey, asJson, 'X-Request-Id: r-1']));
  const signal = await until('the turn', () => stage.signals[0]);
  assert.equal(signal.aborted, false);
  connection.hangUp();
  await until('the abort', () => (signal.aborted ? true : undefined));
  const line = await until('the log line', () => stage.lines[0]);
  assert.deepEqual([line.event, line['level'], line['status'], line['code'], line['request'], line['user'], line['session']], ['turn', 'info', 499, 'caller_gone', 'r-1', 7, 's-7']);
  assert.equal(stage.lines.length, 1);
});

test('a caller who hangs up aborts every turn it asked for without waiting', async (t) => {
  const stage = await start(t, { run: untilAborted });
  const connection = await stage.connect();
  connection.send(Buffer.concat([chat(), chat(), chat()]));
  await until('three turns', () => (stage.signals.length === 3 ? true : undefined));
  connection.hangUp();
  await until('three aborts', () => (stage.signals.every((signal) => signal.aborted) ? true : undefined));
  await until('three log lines', () => (stage.lines.length === 3 ? true : undefined));
  assert.deepEqual(stage.lines.map((line) => line['code']), Array(3).fill('caller_gone'));
});

test('a turn that ended normally is never aborted, not even when the connection ends', async (t) => {
  for (const accept of [[], ['Accept: text/event-stream']]) {
    const stage = await start(t, {
      run: async (_request, _signal, onEvent) => {
        onEvent({ type: 'session', sessionId: 's-1' });
        return answer;
      },
    });
    const connection = await stage.connect();
    connection.send(chat(good, [withKey, asJson, 'Connection: close', ...accept]));
    assert.equal((await connection.answer('the answer')).status, 200);
    await connection.ended();
    await stage.ask(requestBytes('GET /health'));
    assert.equal(stage.signals[0]?.aborted, false);
    assert.deepEqual(stage.lines.map((line) => line['status']), [200]);
  }
});

test('a turn that outlives its caller is not spoilt by what it tells afterwards', async (t) => {
  const stage = await start(t, {
    run: async (_request, signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      await until('the abort', () => (signal.aborted ? true : undefined));
      for (let i = 0; i < 100; i += 1) onEvent({ type: 'delta', text: 'x'.repeat(10_000) });
      return answer;
    },
  });
  for (const [i, accept] of [[], ['Accept: text/event-stream']].entries()) {
    const connection = await stage.connect();
    connection.send(chat(good, [withKey, asJson, ...accept]));
    await until('the turn', () => stage.signals[i]);
    if (accept.length > 0) await connection.received('event: session');
    connection.hangUp();
  }
  // The answer was there though nobody heard it: the money is spent, and the line says so.
  await until('both log lines', () => (stage.lines.length === 2 ? true : undefined));
  assert.deepEqual(stage.lines.map((line) => [line['status'], line['cost']]), Array(2).fill([200, 0.25]));
  assert.equal((await fetch(`${stage.url}/health`)).status, 200);
});

// ---- server-sent events

type SentEvent = { readonly name: string; readonly data: Json };
const streaming = [withKey, asJson, 'Accept: text/event-stream'];

/** The events of a finished stream; every byte must belong to one or to a comment. */
function eventsOf(stream: string): SentEvent[] {
  assert.ok(stream.endsWith('\n\n'), 'the stream ends in mid-event');
  return stream.slice(0, -2).split('\n\n').flatMap((block) => {
    if (/^: [a-z ]+$/.test(block)) return [];
    const [, name = '', data = ''] = /^event: ([a-z]+)\ndata: (\{[^\n]*\})$/.exec(block) ?? assert.fail(`not an event: ${JSON.stringify(block.slice(0, 200))}`);
    return [{ name, data: JSON.parse(data) as Json }];
  });
}

function textOf(events: readonly SentEvent[]): string {
  return events.filter(({ name }) => name === 'delta').map(({ data }) => String(data['text'])).join('');
}

test('a stream has the session, the text and tools in order, then the result', async (t) => {
  const stage = await start(t, {
    run: async (_request, _signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      onEvent({ type: 'delta', text: 'two\nand\r\n\u2028' });
      onEvent({ type: 'tool', name: 'Read' });
      onEvent({ type: 'delta', text: ' 🦊' });
      return answer;
    },
  });
  const { status, headers, body } = await stage.ask(chat(good, streaming));
  assert.equal(status, 200);
  assert.equal(headers.get('content-type'), 'text/event-stream; charset=utf-8');
  assert.equal(headers.get('cache-control'), 'no-cache');
  assert.equal(headers.get('x-accel-buffering'), 'no');
  assert.match(headers.get('x-request-id') ?? '', /./);
  assert.equal(
    body,
    'event: session\ndata: {"session_id":"s-1"}\n\n' +
      'event: delta\ndata: {"text":"two\\nand\\r\\n\u2028"}\n\n' +
      'event: tool\ndata: {"name":"Read"}\n\n' +
      'event: delta\ndata: {"text":" 🦊"}\n\n' +
      `event: result\ndata: ${JSON.stringify(answerJson)}\n\n`,
  );
});

test('events come as they happen, not at the end', async (t) => {
  const turn = latch();
  const stage = await start(t, {
    run: async (_request, _signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      onEvent({ type: 'delta', text: 'first' });
      await turn.opened;
      return answer;
    },
  });
  const connection = await stage.connect();
  connection.send(chat(good, streaming));
  await connection.received('data: {"text":"first"}\n\n');
  turn.open();
  assert.deepEqual(eventsOf((await connection.answer('the stream')).body).map(({ name }) => name), ['session', 'delta', 'result']);
  connection.send(requestBytes('GET /health'));
  assert.equal((await connection.answer('the next answer')).status, 200);
});

test('a stream without text is still a stream, with the one result', async (t) => {
  const stage = await start(t);
  const { headers, body } = await stage.ask(chat(good, streaming));
  assert.equal(headers.get('content-type'), 'text/event-stream; charset=utf-8');
  assert.deepEqual(eventsOf(body), [{ name: 'result', data: answerJson }]);
});

test('an error after the first event is the last event, and the only one of its kind', async (t) => {
  const stage = await start(t, {
    run: async (_request, _signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      onEvent({ type: 'delta', text: 'so far' });
      throw new Problem('claude_overloaded', 'Try again.', { sessionId: 's-1', costUsd: 0.5, durationMs: 9, retryAfterSeconds: 30 });
    },
  });
  const { status, body } = await stage.ask(chat(good, streaming));
  const events = eventsOf(body);
  assert.equal(status, 200);
  assert.deepEqual(events.map(({ name }) => name), ['session', 'delta', 'error']);
  assert.deepEqual(events.at(-1)?.data, {
    type: 'urn:claude-api:problem:claude_overloaded',
    title: 'Anthropic is overloaded',
    status: 503,
    detail: 'Try again.',
    code: 'claude_overloaded',
    session_id: 's-1',
    cost: 0.5,
    duration_ms: 9,
  });
});

test('a bug after the first event is an error event without a word of it', async (t) => {
  const stage = await start(t, {
    run: async (_request, _signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      throw new Error('secret /etc/path');
    },
  });
  const { body } = await stage.ask(chat(good, streaming));
  assert.equal(eventsOf(body).at(-1)?.data['code'], 'internal_error');
  assert.doesNotMatch(body, /secret|etc/);
});

test('an error before the first event is an ordinary answer', async (t) => {
  const stage = await start(t, {
    run: async () => {
      throw new Problem('busy', 'Later.', { retryAfterSeconds: 5 });
    },
  });
  const { reply } = await assertProblem(stage, chat(good, streaming), 503, 'busy');
  assert.equal(reply.headers.get('retry-after'), '5');
  await assertProblem(stage, chat({}, streaming), 422, 'invalid_request');
  await assertProblem(stage, chat(good, streaming.slice(1)), 401, 'missing_api_key');
});

for (const accept of ['text/event-stream', 'Text/Event-Stream', 'application/json, text/event-stream', 'text/event-stream;q=0.9, */*', 'text/event-stream; charset=utf-8']) {
  test(`Accept: ${accept} streams`, async (t) => {
    const stage = await start(t);
    assert.match((await stage.ask(chat(good, [withKey, asJson, `Accept: ${accept}`]))).headers.get('content-type') ?? '', /^text\/event-stream/);
  });
}

for (const accept of ['', 'application/json', '*/*', 'text/*', 'text/html', 'text/event-streams', 'application/json, text/event-stream;q=0']) {
  test(`Accept: ${accept} gets JSON`, async (t) => {
    const stage = await start(t, {
      run: async (_request, _signal, onEvent) => {
        onEvent({ type: 'session', sessionId: 's-1' });
        return answer;
      },
    });
    const reply = await stage.ask(chat(good, [withKey, asJson, `Accept: ${accept}`]));
    assert.equal(reply.headers.get('content-type'), 'application/json');
    assert.deepEqual(JSON.parse(reply.body), answerJson);
  });
}

test('a silent stream has comment lines, so that no proxy takes it for dead', async (t) => {
  const turn = latch();
  const stage = await start(t, {
    timeouts: { heartbeatMs: 10 },
    run: async (_request, _signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      await turn.opened;
      return answer;
    },
  });
  const connection = await stage.connect();
  connection.send(chat(good, streaming));
  await connection.received(': still working\n\n');
  turn.open();
  assert.deepEqual(eventsOf((await connection.answer('the stream')).body).map(({ name }) => name), ['session', 'result']);
  // Nothing may follow the end of the stream, or it would be taken for the next answer.
  connection.send(requestBytes('GET /health'));
  assert.equal((await connection.answer('the next answer')).body, '{"status":"ok"}');
});

test('a caller who hangs up in mid-stream aborts its turn', async (t) => {
  const stage = await start(t, {
    timeouts: { heartbeatMs: 5 },
    run: (request, signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      return untilAborted(request, signal, onEvent);
    },
  });
  const connection = await stage.connect();
  connection.send(chat(good, streaming));
  await connection.received('event: session');
  connection.hangUp();
  await until('the abort', () => (stage.signals[0]?.aborted ? true : undefined));
  const line = await until('the log line', () => stage.lines[0]);
  assert.deepEqual([line['status'], line['code']], [499, 'caller_gone']);
});

test('no timer is left of a stream whose caller has gone, though its turn goes on', async (t) => {
  const made = t.mock.method(globalThis, 'setInterval');
  const cleared = t.mock.method(globalThis, 'clearInterval');
  const turn = latch();
  t.after(turn.open);
  let told = 0;
  const stage = await start(t, {
    run: async ({ prompt }, signal, onEvent) => {
      if (prompt === 'early') onEvent({ type: 'session', sessionId: 's-1' });
      await until('the abort', () => (signal.aborted ? true : undefined));
      if (prompt === 'late') onEvent({ type: 'session', sessionId: 's-1' });
      told += 1;
      await turn.opened;
      return answer;
    },
  });
  for (const [i, prompt] of ['early', 'late'].entries()) {
    const connection = await stage.connect();
    connection.send(chat({ prompt, user_id: 1 }, streaming));
    const signal = await until('the turn', () => stage.signals[i]);
    if (prompt === 'early') await connection.received('event: session');
    connection.hangUp();
    await until('the abort', () => (signal.aborted ? true : undefined));
  }
  await until('both turns to have told everything', () => (told === 2 ? true : undefined));
  const left = (): unknown[] => made.mock.calls.map(({ result }) => result).filter((timer) => !cleared.mock.calls.some((call) => call.arguments[0] === timer));
  await until('the timers to be cleared', () => (left().length === 0 ? true : undefined));
  assert.equal(made.mock.callCount(), 1);
});

test('a reader who catches up hears on while the turn runs', async (t) => {
  const turn = latch();
  const stage = await start(t, {
    run: async (_request, _signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      // All in one breath: no reader can keep up.
      for (let i = 0; i < 100; i += 1) onEvent({ type: 'delta', text: 'x'.repeat(10_000) });
      onEvent({ type: 'delta', text: 'caught up' });
      await turn.opened;
      return answer;
    },
  });
  const connection = await stage.connect();
  connection.send(chat(good, streaming));
  await connection.received('caught up');
  turn.open();
  assert.equal(textOf(eventsOf((await connection.answer('the stream')).body)), `${'x'.repeat(1_000_000)}caught up`);
});

test('a slow reader gets every letter in far fewer events, and nobody waits for it', async (t) => {
  const count = 20_000;
  const pieces = Array.from({ length: count }, (_, i) => `${i}:${'x'.repeat(1000)}|`);
  const told = latch();
  const stage = await start(t, {
    run: async (_request, _signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      for (const [i, text] of pieces.entries()) {
        onEvent({ type: 'delta', text });
        if (i === count / 2) onEvent({ type: 'tool', name: 'Read' });
        if (i % 100 === 0) await new Promise((resolve) => setImmediate(resolve));
      }
      told.open();
      return answer;
    },
  });
  // Its answer is not read from: the bytes stay in the socket.
  const response = await paused(t, stage.port, JSON.stringify(good));
  await within('the turn to end although nobody reads', 20_000, told.opened);
  assert.equal((await stage.ask(requestBytes('GET /health'))).status, 200);
  await until('the log line', () => stage.lines[0]);

  const parts: Buffer[] = [];
  await within('the whole stream', 20_000, (async () => {
    for await (const part of response) parts.push(part as Buffer);
  })());
  const events = eventsOf(Buffer.concat(parts).toString());
  assert.ok(textOf(events) === pieces.join(''), 'letters are missing, or in another order');
  const beforeTool = events.slice(0, events.findIndex(({ name }) => name === 'tool'));
  assert.ok(textOf(beforeTool) === pieces.slice(0, count / 2 + 1).join(''), 'the tool came at another place');
  assert.deepEqual(events.at(-1), { name: 'result', data: answerJson });
  assert.equal(events.filter(({ name }) => ['result', 'error'].includes(name)).length, 1);
  assert.ok(events.length < count / 2, `${events.length} events`);
});

for (const accept of ['application/json', 'text/event-stream']) {
  test(`a caller who never reads its finished answer (${accept}) is cut off, though not while the turn runs`, async (t) => {
    const turn = latch();
    const stage = await start(t, {
      timeouts: { keepAliveMs: 100 },
      run: async (_request, _signal, onEvent) => {
        onEvent({ type: 'session', sessionId: 's-1' });
        onEvent({ type: 'delta', text: 'x'.repeat(20_000_000) });
        await turn.opened;
        return { ...answer, content: 'x'.repeat(20_000_000) };
      },
    });
    const connection = await stage.connect();
    connection.stopReading();
    connection.send(chat(good, [withKey, asJson, `Accept: ${accept}`]));
    const signal = await until('the turn', () => stage.signals[0]);
    await new Promise((resolve) => setTimeout(resolve, 500));
    assert.equal(signal.aborted, false);
    turn.open();
    await until('the connection to be closed', () => (stage.connections === 0 ? true : undefined));
  });
}

test('a caller who reads a finished answer slowly gets all of it', async (t) => {
  const content = 'x'.repeat(40_000_000);
  const stage = await start(t, { timeouts: { keepAliveMs: 3000 }, run: async () => ({ ...answer, content }) });
  const response = await paused(t, stage.port, JSON.stringify(good));
  let bytes = 0;
  let pauses = 0;
  await within('the whole answer', 30_000, (async () => {
    for await (const part of response) {
      bytes += (part as Buffer).length;
      // Together the pauses are longer than the time limit.
      if (bytes < 2_500_000 * (pauses + 1)) continue;
      pauses += 1;
      await new Promise((resolve) => setTimeout(resolve, 250));
    }
  })());
  assert.ok(bytes > content.length && pauses > 14, `${bytes} bytes, ${pauses} pauses`);
});

/** The streamed answer to a chat, with nothing of it read yet. */
function paused(t: TestContext, port: number, body: string): Promise<IncomingMessage> {
  const response = new Promise<IncomingMessage>((resolve, reject) => {
    const headers = { Authorization: `Bearer ${apiKey}`, 'Content-Type': 'application/json', Accept: 'text/event-stream', 'Content-Length': body.length };
    const request = httpRequest({ host: '127.0.0.1', port, path: chatPath, method: 'POST', headers, agent: false }, resolve).on('error', reject);
    t.after(() => request.destroy());
    request.end(body);
  });
  return within('the head of the stream', 10_000, response);
}
