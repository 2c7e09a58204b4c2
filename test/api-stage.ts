import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, request, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http';
import { connect, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { createLog } from '../src/log.ts';
import { createApiProxy, type ApiProxy } from '../src/sandbox/api-proxy.ts';
import type { ProxySocket } from '../src/sandbox/api-socket.ts';
import type { TurnLimits } from '../src/sandbox/api-turn.ts';
import { createCredentials } from '../src/sandbox/credentials.ts';
import { createLoginFile } from '../src/sandbox/login-file.ts';
import type { BodyRules } from '../src/sandbox/request-body.ts';
import { createUpstream } from '../src/sandbox/upstream.ts';
import { Connection } from './http-client.ts';
import { within, type LogLine } from './running-server.ts';

export const model = 'claude-sonnet-5-5';
export const messagesPath = '/v1/messages?beta=true';
export const countPath = '/v1/messages/count_tokens?beta=true';

/** A body as a client of the API writes it. */
export function messageBody(extra: Readonly<Record<string, unknown>> = {}): string {
  return JSON.stringify({ model, max_tokens: 100, messages: [{ role: 'user', content: 'hello' }], ...extra });
}

/** One request as the stand-in for the API got it. */
export interface Recorded {
  readonly method: string | undefined;
  readonly url: string | undefined;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
}

/** What the stand-in does with a request. */
export type Script = (res: ServerResponse, request: Recorded) => void;

export interface ApiReply {
  readonly status: number | undefined;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

interface StageOptions {
  readonly script?: Script;
  readonly rules?: Partial<BodyRules>;
  readonly env?: Readonly<Record<string, string>>;
  readonly upstreamUrl?: string;
  readonly loginFile?: Parameters<typeof createLoginFile>;
  readonly idleMs?: number;
  readonly firstByteMs?: number;
}

/** An API proxy between sockets in a folder of the test and a stand-in for the API on 127.0.0.1. */
export class ApiStage {
  readonly recorded: Recorded[] = [];
  readonly refusals = { turnsEnded: 0 };
  /** To the stand-in, since the start. */
  connections = 0;
  logText = '';
  script: Script;
  proxy: ApiProxy | undefined;
  readonly #t: TestContext;
  readonly #folder: string;
  #sockets = 0;

  constructor(t: TestContext, folder: string, script: Script) {
    this.#t = t;
    this.#folder = folder;
    this.script = script;
  }

  get lines(): LogLine[] {
    return this.logText.split('\n').filter(Boolean).map((line) => JSON.parse(line) as LogLine);
  }

  /** What was refused, in order, in the log's words. */
  get refused(): unknown[] {
    return this.lines.filter(({ event }) => event === 'api_refused').map(({ what }) => what);
  }

  /** A socket for one more process; closed at the end of the test. */
  async open(): Promise<ProxySocket> {
    const socket = await (this.proxy ?? assert.fail('no proxy')).open(join(this.#folder, String((this.#sockets += 1))));
    this.#t.after(() => socket.close());
    return socket;
  }

  /** The same, in a turn. */
  async openInTurn(limits: Partial<TurnLimits> = {}): Promise<ProxySocket> {
    const socket = await this.open();
    socket.beginTurn(this.limits(limits));
    return socket;
  }

  limits(limits: Partial<TurnLimits> = {}): TurnLimits {
    return { maxRequests: 500, onTooManyRefusals: () => (this.refusals.turnsEnded += 1), ...limits };
  }

  /** A connection that sends and shows bytes. */
  async connect({ path }: ProxySocket, options: { readonly allowHalfOpen?: boolean } = {}): Promise<Connection> {
    const socket = connect({ path, ...options });
    const connection = new Connection(socket);
    this.#t.after(() => connection.hangUp());
    await within('a connection', 10_000, once(socket, 'connect'));
    return connection;
  }
}

/** The stage; everything on it ends with the test. */
export async function setStage(t: TestContext, options: StageOptions = {}): Promise<ApiStage> {
  const folder = await mkdtemp(join(tmpdir(), 'api-proxy-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const stage = new ApiStage(t, folder, options.script ?? sayOk);
  const url = options.upstreamUrl ?? (await listen(t, stage));
  const env = options.env ?? { ANTHROPIC_API_KEY: 'sk-ant-made-up' };
  const file = createLoginFile(...(options.loginFile ?? [join(folder, 'none'), async () => {}]));
  const rules: BodyRules = { models: [model], isWebSearchAllowed: true, ...options.rules };
  const log = createLog('json', { write: (line) => (stage.logText += line) });
  const { firstByteMs, idleMs } = options;
  const upstream = createUpstream({ baseUrl: url, env, ...(firstByteMs !== undefined && { firstByteMs }) });
  stage.proxy = createApiProxy({ upstream, credentials: createCredentials(env, file), rules: () => rules, log, ...(idleMs !== undefined && { idleMs }) });
  t.after(() => stage.proxy?.close());
  return stage;
}

async function listen(t: TestContext, stage: ApiStage): Promise<string> {
  const server = createServer((req, res) => void record(stage, req, res));
  server.on('connection', () => (stage.connections += 1));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

async function record(stage: ApiStage, req: IncomingMessage, res: ServerResponse): Promise<void> {
  const chunks: Buffer[] = [];
  res.on('error', () => {});
  req.on('error', () => {});
  req.on('data', (chunk: Buffer) => chunks.push(chunk));
  await once(req, 'end').catch(() => {});
  if (!req.complete) return;
  const recorded = { method: req.method, url: req.url, headers: req.headers, body: Buffer.concat(chunks) };
  stage.recorded.push(recorded);
  stage.script(res, recorded);
}

export const usage = { input_tokens: 1000, output_tokens: 100, cache_creation_input_tokens: 20, cache_read_input_tokens: 3 };

/** A whole message in JSON. */
export const sayOk: Script = (res) => {
  res.writeHead(200, { 'content-type': 'application/json', 'request-id': 'req_1', 'set-cookie': 'a=b' });
  res.end(JSON.stringify({ type: 'message', role: 'assistant', content: [{ type: 'text', text: 'ok' }], usage }));
};

/** A failure as the API tells it. */
export function fail(status: number, type: string, headers: Readonly<Record<string, string>> = {}): Script {
  return (res) => res.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify({ type: 'error', error: { type, message: 'no' } }));
}

/** The events of a streamed message, each as it goes over the wire. */
export const events: readonly string[] = [
  { type: 'message_start', message: { type: 'message', content: [], usage: { ...usage, output_tokens: 1 } } },
  { type: 'ping' },
  { type: 'content_block_start', index: 0, content_block: { type: 'text', text: '' } },
  { type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text: 'żółć 🦊 "usage"' } },
  { type: 'content_block_stop', index: 0 },
  { type: 'message_delta', delta: { stop_reason: 'end_turn' }, usage: { output_tokens: 100 } },
  { type: 'message_stop' },
].map((event) => `event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`);

/** A stream of these events, whole or broken off. */
export function stream(pieces: readonly string[], isCut = false): Script {
  return (res) => {
    res.writeHead(200, { 'content-type': 'text/event-stream' });
    res.write(pieces.join(''), () => (isCut ? res.destroy() : undefined));
    if (!isCut) res.end();
  };
}

interface Asked {
  readonly path?: string;
  readonly method?: string;
  readonly headers?: Readonly<Record<string, string | string[]>>;
  readonly body?: string | Buffer;
  readonly signal?: AbortSignal;
}

/** The answer to one request over a socket, on a connection of its own. Rejects when the connection breaks. */
export function ask({ path: socketPath }: ProxySocket, asked: Asked = {}): Promise<ApiReply> {
  const { path = messagesPath, method = 'POST', headers = {}, body = messageBody(), signal } = asked;
  const answered = new Promise<ApiReply>((resolve, reject) => {
    const sent = request({ socketPath, path, method, agent: false, headers: { 'content-length': Buffer.byteLength(body), ...headers }, ...(signal && { signal }) });
    sent.on('error', reject);
    sent.on('response', (res) => {
      const chunks: Buffer[] = [];
      res.on('data', (chunk: Buffer) => chunks.push(chunk));
      res.on('error', reject);
      res.on('end', () => resolve({ status: res.statusCode, headers: res.headers, body: Buffer.concat(chunks).toString() }));
    });
    sent.end(body);
  });
  return within('an answer of the API proxy', 60_000, answered);
}
