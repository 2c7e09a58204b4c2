import assert from 'node:assert/strict';
import type { AddressInfo } from 'node:net';
import type { TestContext } from 'node:test';
import { createAuth } from '../src/auth.ts';
import type { HealthDetails } from '../src/http/metrics.ts';
import { createLog } from '../src/log.ts';
import type { ProblemCode } from '../src/problem.ts';
import { createHttpServer, type ServerOptions } from '../src/server.ts';
import type { Chat, ChatAnswer, ChatRequest } from '../src/turns/chat.ts';
import { Figures } from '../src/turns/figures.ts';
import { openConnection, requestBytes, type Connection, type WireAnswer } from './http-client.ts';
import { within, type LogLine } from './running-server.ts';

export const apiKey = 'e2a7c9d14b6f80353d5a1c7e9f2b4860';
export const withKey = `Authorization: Bearer ${apiKey}`;
export const asJson = 'Content-Type: application/json';
export const chatPath = '/api/v1/chat';
export const maxBodyBytes = 2000;

export type Json = Record<string, unknown>;
export type Run = Chat['run'];

export const answer: ChatAnswer = { content: 'two and two: żółć 🦊', sessionId: 's-1', costUsd: 0.25, durationMs: 12 };
export const answerJson = { content: 'two and two: żółć 🦊', session_id: 's-1', cost: 0.25, duration_ms: 12 };

export const healthDetails: HealthDetails = {
  version: '1.2.3',
  node: 'box',
  claude_version: '2.1.331',
  login: 'credentials file',
  sandbox: 'on',
  uptime_seconds: 7,
  running: 1,
  queued: 2,
  idempotency_keys: 4,
  warm: 3,
  capacity: 4,
  memory: { held: 5, left: 6 },
  users: [9],
  turns: 8,
  failures: 0,
  tokens: { input: 10, output: 11 },
};

export const good = { prompt: 'hello', user_id: 1 };

export const streaming = [withKey, asJson, 'Accept: text/event-stream'];

/** A server in this process, its chat replaced by `run`; everything it logs is kept. */
export class Stage {
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

export async function start(t: TestContext, { run = async () => answer, ...options }: Partial<ServerOptions> & { readonly run?: Run } = {}): Promise<Stage> {
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
    healthDetails: async () => healthDetails,
    figures: new Figures(),
    maxBodyBytes,
    corsOrigins: [],
    log: createLog('json', { write: (line) => (stage.logText += line) }),
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
export function chat(body: unknown = { prompt: 'hello', user_id: 1 }, headers: readonly string[] = [withKey, asJson]): Buffer {
  const isRaw = typeof body === 'string' || Buffer.isBuffer(body);
  return requestBytes(`POST ${chatPath}`, headers, isRaw ? body : JSON.stringify(body));
}

/** The problem an answer carries, its shape checked. */
export function problemIn({ status, headers, body }: WireAnswer): Json {
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

export async function assertProblem(stage: Stage, bytes: string | Buffer, status: number, code: ProblemCode): Promise<{ reply: WireAnswer; problem: Json }> {
  const reply = await stage.ask(bytes);
  const problem = problemIn(reply);
  assert.deepEqual([reply.status, problem['code']], [status, code]);
  return { reply, problem };
}

/** A turn that goes on until it is aborted. */
export const untilAborted: Run = (_request, signal) => new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason), { once: true }));

/** Something that happens when the test says so. */
export function latch(): { readonly opened: Promise<void>; readonly open: () => void } {
  let open = (): void => {};
  const opened = new Promise<void>((resolve) => (open = resolve));
  return { opened, open };
}

export type SentEvent = { readonly name: string; readonly data: Json };

/** The events of a finished stream; every byte must belong to one or to a comment. */
export function eventsOf(stream: string): SentEvent[] {
  assert.ok(stream.endsWith('\n\n'), 'the stream ends in mid-event');
  return stream.slice(0, -2).split('\n\n').flatMap((block) => {
    if (/^: [a-z ]+$/.test(block)) return [];
    const [, name = '', data = ''] = /^event: ([a-z]+)\ndata: (\{[^\n]*\})$/.exec(block) ?? assert.fail(`not an event: ${JSON.stringify(block.slice(0, 200))}`);
    return [{ name, data: JSON.parse(data) as Json }];
  });
}

export function textOf(events: readonly SentEvent[]): string {
  return events.filter(({ name }) => name === 'delta').map(({ data }) => String(data['text'])).join('');
}

export const routes = [['/health', ['GET', 'HEAD']], [chatPath, ['POST']], ['/', []], ['/nothing', []]] as const;
export const methods = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'TRACE', 'PROPFIND'];
