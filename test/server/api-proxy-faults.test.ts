import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer as createPlainServer, type IncomingMessage } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { connect, createServer as createSocketServer, type AddressInfo, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { createUpstream } from '../../src/sandbox/upstream.ts';
import { ask, events, messageBody, sayOk, setStage, stream } from '../api-stage.ts';
import { needs } from '../needs.ts';
import { until } from '../running-server.ts';

const tokens = { input: 1000, output: 100, cacheWrite: 20, cacheRead: 3 };
const unreached = { status: undefined, type: 'connection_error', retryAfterSeconds: undefined };

async function listen(t: TestContext, server: Server): Promise<number> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  return (server.address() as AddressInfo).port;
}

test('a connection to the API that breaks breaks the client\'s, without an answer of ours', async (t) => {
  const faults: Record<string, (socket: import('node:net').Socket) => void> = {
    'closed at once': (socket) => socket.destroy(),
    'reset after the request': (socket) => socket.once('data', () => socket.resetAndDestroy()),
    'an answer that is no HTTP': (socket) => socket.once('data', () => socket.end('SSH-2.0-x\r\n')),
    'half a head': (socket) => socket.once('data', () => socket.end('HTTP/1.1 200 OK\r\nContent-')),
    'half a body': (socket) => socket.once('data', () => socket.end('HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf')),
    'a reset where only the end tells the length': (socket) => socket.once('data', () => socket.write('HTTP/1.1 200 OK\r\n\r\nhalf', () => setTimeout(() => socket.resetAndDestroy(), 50))),
    'half a chunk': (socket) => socket.once('data', () => socket.end('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nhalf')),
  };
  for (const [name, fault] of Object.entries(faults)) {
    const server = createSocketServer((socket) => fault(socket.on('error', () => {})));
    const stage = await setStage(t, { upstreamUrl: `http://127.0.0.1:${await listen(t, server)}` });
    const socket = await stage.openInTurn();
    await assert.rejects(ask(socket), { code: 'ECONNRESET' }, name);
    const { lastFailure, refusals } = socket.endTurn();
    assert.deepEqual({ ...lastFailure, status: undefined }, unreached, name);
    assert.equal(refusals, 0);
  }
});

test('an API that cannot be reached breaks the connection, and the log says why', async (t) => {
  for (const [upstreamUrl, code] of [['http://127.0.0.1:1', 'ECONNREFUSED'], ['http://name.invalid', /^(ENOTFOUND|EAI_AGAIN)$/]] as const) {
    const stage = await setStage(t, { upstreamUrl });
    const socket = await stage.openInTurn();
    await assert.rejects(ask(socket), { code: 'ECONNRESET' });
    const line = stage.lines.find(({ event }) => event === 'api_unreachable');
    assert.match(String(line?.['cause']), new RegExp(code));
    const { lastFailure, tokens: spent } = socket.endTurn();
    assert.deepEqual(lastFailure, unreached);
    assert.equal(spent.input, 0);
  }
});

test('a stream that is cut is cut for the client, and what it told is counted', async (t) => {
  const stage = await setStage(t, { script: stream(events.slice(0, 4), true) });
  const socket = await stage.openInTurn();
  await assert.rejects(ask(socket), { code: 'ECONNRESET' });
  const { lastFailure, tokens: spent } = socket.endTurn();
  assert.deepEqual(lastFailure, { status: 200, type: 'connection_error', retryAfterSeconds: undefined });
  assert.equal(spent.input, 1000);
});

test('an API that never begins to answer, or falls silent in a stream, is given up in time', async (t) => {
  const stage = await setStage(t, { firstByteMs: 1000, idleMs: 1000, script: () => {} });
  const socket = await stage.openInTurn();
  let closed = 0;
  await assert.rejects(ask(socket), { code: 'ECONNRESET' });
  stage.script = (res) => {
    res.on('close', () => (closed += 1));
    res.writeHead(200, { 'content-type': 'text/event-stream' }).write(events[0]);
  };
  await assert.rejects(ask(socket), { code: 'ECONNRESET' });
  await until('the API to be left', () => (closed === 1 ? true : undefined));
  assert.equal(socket.endTurn().lastFailure?.type, 'connection_error');
});

test('an answer that is compressed all the same is not passed on, for nobody could count it', async (t) => {
  const stage = await setStage(t, { script: (res) => res.writeHead(200, { 'content-type': 'application/json', 'content-encoding': 'gzip' }).end('x') });
  const socket = await stage.openInTurn();
  await assert.rejects(ask(socket), { code: 'ECONNRESET' });
  assert.deepEqual(socket.endTurn().lastFailure, unreached);
});

test('an answer with a status that is none counts as no answer', async (t) => {
  const stage = await setStage(t, { script: (res) => res.socket?.end('HTTP/1.1 029 \r\ncontent-length: 1\r\n\r\nx') });
  const socket = await stage.openInTurn();
  await assert.rejects(ask(socket), { code: 'ECONNRESET' });
  assert.deepEqual(socket.endTurn().lastFailure, unreached);
});

test('pings keep a stream, and an answer in JSON may be silent for longer than a stream', async (t) => {
  const stage = await setStage(t, { idleMs: 2000 });
  const socket = await stage.openInTurn();
  stage.script = (res) => {
    res.writeHead(200, { 'content-type': 'text/event-stream' }).write(events[0]);
    let pings = 0;
    const timer = setInterval(() => {
      pings += 1;
      res.write(events[1]);
      if (pings < 6) return;
      clearInterval(timer);
      res.end(events.slice(2).join(''));
    }, 500);
  };
  assert.match((await ask(socket)).body, /message_stop/);
  stage.script = (res, request) => {
    res.writeHead(200, { 'content-type': 'application/json' }).flushHeaders();
    setTimeout(() => sayOkBody(res), 3000);
    void request;
  };
  const sayOkBody = (res: Parameters<typeof sayOk>[0]): void => void res.end(JSON.stringify({ usage: { input_tokens: 1, output_tokens: 1 } }));
  assert.equal((await ask(socket)).status, 200);
  assert.deepEqual(socket.endTurn().tokens, { ...tokens, input: 1001, output: 101 });
});

test('a slow client slows the API down instead of filling the memory', async (t) => {
  let written = 0;
  const stage = await setStage(t, {
    script: (res) => {
      res.writeHead(200, { 'content-type': 'text/event-stream' });
      const piece = Buffer.alloc(1_000_000, ':');
      const more = (): void => {
        while (written < 200 && res.write(piece)) written += 1;
        if (written < 200) res.once('drain', () => ((written += 1), more()));
      };
      more();
    },
  });
  const connection = await stage.connect(await stage.openInTurn());
  connection.stopReading();
  void connection.send(`POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: ${messageBody().length}\r\n\r\n${messageBody()}`);
  await until('the first pieces', () => (written > 0 ? true : undefined));
  let before = -1;
  await until('the API to stand still', () => {
    const stands = before === written;
    before = written;
    return stands ? true : undefined;
  });
  assert.ok(written < 40, `${written} MB are under way`);
});

/** A made-up authority's certificate for localhost and 127.0.0.1. */
async function makeCertificate(t: TestContext): Promise<{ key: Buffer; cert: Buffer }> {
  const folder = await mkdtemp(join(tmpdir(), 'api-proxy-tls-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const names = 'subjectAltName=DNS:localhost,IP:127.0.0.1';
  const args = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '1', '-subj', '/CN=made up', '-addext', names];
  execFileSync('openssl', [...args, '-keyout', join(folder, 'key'), '-out', join(folder, 'cert')], { stdio: 'ignore', timeout: 10_000 });
  return { key: await readFile(join(folder, 'key')), cert: await readFile(join(folder, 'cert')) };
}

const needsOpenssl = { skip: needs(['openssl'], 'makes a certificate for a stand-in') };

/** A stand-in over TLS, its certificate, and how many connections it had. */
async function startTls(t: TestContext) {
  const pair = await makeCertificate(t);
  const seen = { connections: 0, requests: [] as string[] };
  const server = createTlsServer(pair, (req, res) => {
    seen.requests.push(`${req.method} ${req.url} ${req.headers['host']} ${req.headers['x-custom'] ?? ''}`);
    req.resume().on('end', () => res.writeHead(200, { 'content-type': 'application/json' }).end('{}'));
  });
  server.on('secureConnection', () => (seen.connections += 1));
  const port = await listen(t, server);
  t.after(() => server.closeAllConnections());
  return { port, seen, ca: pair.cert };
}

const request = { path: '/v1/messages?beta=true', headers: { 'content-type': 'application/json' }, body: Buffer.from('{}') };

async function statusOf(upstream: ReturnType<typeof createUpstream>): Promise<number> {
  const { status, body } = await upstream.send(request, new AbortController().signal);
  await body.resume().toArray();
  return status;
}

test('HTTPS goes by a trusted certificate alone, on a connection that is kept', needsOpenssl, async (t) => {
  const { port, seen, ca } = await startTls(t);
  const env = { ANTHROPIC_CUSTOM_HEADERS: 'X-Custom: one\nnot a header\n' };
  const trusted = createUpstream({ baseUrl: `https://localhost:${port}/gateway/`, env, ca });
  t.after(() => trusted.close());
  for (const _ of [1, 2, 3]) assert.equal(await statusOf(trusted), 200);
  assert.equal(seen.connections, 1);
  assert.deepEqual(new Set(seen.requests), new Set([`POST /gateway/v1/messages?beta=true localhost:${port} one`]));
  const untrusting = createUpstream({ baseUrl: `https://localhost:${port}`, env: {} });
  t.after(() => untrusting.close());
  await assert.rejects(statusOf(untrusting), { code: 'DEPTH_ZERO_SELF_SIGNED_CERT' });
  assert.equal(seen.requests.length, 3);
});

/** The operator's own proxy: CONNECT, by whatever name, to this machine, or a refusal. */
async function startConnectProxy(t: TestContext, status = 200) {
  const asked: string[] = [];
  const server = createPlainServer();
  server.on('connect', ({ url, headers }: IncomingMessage, socket) => {
    asked.push(`${url} ${headers['proxy-authorization'] ?? '-'}`);
    socket.on('error', () => {});
    if (status !== 200) return socket.end(`HTTP/1.1 ${status} No\r\n\r\n`);
    const [, port] = String(url).split(':');
    const onward = connect(Number(port), '127.0.0.1', () => socket.write('HTTP/1.1 200 OK\r\n\r\n'));
    onward.on('error', () => socket.destroy()).pipe(socket).pipe(onward);
  });
  t.after(() => server.closeAllConnections());
  return { url: `http://operator:p%40ss@127.0.0.1:${await listen(t, server)}`, asked };
}

test("the operator's proxy is asked for the connection, and sees nothing of what goes over it", needsOpenssl, async (t) => {
  const { port, seen, ca } = await startTls(t);
  const proxy = await startConnectProxy(t);
  for (const host of ['localhost', '127.0.0.1']) {
    const upstream = createUpstream({ baseUrl: `https://${host}:${port}`, env: { HTTPS_PROXY: proxy.url }, ca });
    t.after(() => upstream.close());
    for (const _ of [1, 2]) assert.equal(await statusOf(upstream), 200);
  }
  const login = `Basic ${Buffer.from('operator:p@ss').toString('base64')}`;
  assert.deepEqual(proxy.asked, [`localhost:${port} ${login}`, `127.0.0.1:${port} ${login}`]);
  assert.equal(seen.connections, 2);
  const wrongName = createUpstream({ baseUrl: `https://127.0.0.2:${port}`, env: { HTTPS_PROXY: proxy.url }, ca });
  t.after(() => wrongName.close());
  await assert.rejects(statusOf(wrongName), { code: 'ERR_TLS_CERT_ALTNAME_INVALID' });
});

test("a gateway without TLS goes through the operator's proxy too; a proxy that refuses or is away breaks the connection", async (t) => {
  const stand = await setStage(t);
  await ask(await stand.openInTurn());
  const target = `http://${stand.recorded[0]?.headers.host}`;
  const proxy = await startConnectProxy(t);
  const through = await setStage(t, { upstreamUrl: target, env: { ANTHROPIC_API_KEY: 'k', http_proxy: proxy.url } });
  assert.equal((await ask(await through.openInTurn())).status, 200);
  assert.equal(proxy.asked.length, 1);
  const refusing = await startConnectProxy(t, 403);
  for (const HTTPS_PROXY of [refusing.url, 'http://127.0.0.1:1']) {
    const stage = await setStage(t, { upstreamUrl: target, env: { ANTHROPIC_API_KEY: 'k', HTTPS_PROXY } });
    const socket = await stage.openInTurn();
    await assert.rejects(ask(socket), { code: 'ECONNRESET' });
    assert.deepEqual(socket.endTurn().lastFailure, unreached);
    assert.doesNotMatch(stage.logText, /operator|p%40ss|p@ss/);
  }
  assert.equal(stand.recorded.length, 2);
});
