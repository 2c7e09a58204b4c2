import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { TestContext } from 'node:test';
import { until, type Reply, type RunningServer } from './running-server.ts';

export type Json = Readonly<Record<string, unknown>>;
export type ToolCall = { readonly name: string; readonly input: Json };

/** What the model says to one request, or how it fails to. */
export type ApiReply =
  | { readonly kind: 'text'; readonly pieces: readonly string[] }
  | { readonly kind: 'tools'; readonly pieces: readonly string[]; readonly calls: readonly ToolCall[] }
  | { readonly kind: 'error'; readonly status: number; readonly type: string; readonly message: string; readonly headers: Readonly<Record<string, string>> }
  /** The pieces, then silence until the client goes away. Without pieces not even the status is sent. */
  | { readonly kind: 'hang'; readonly pieces: readonly string[] }
  /** The pieces, then the connection breaks in the middle of the message. */
  | { readonly kind: 'cut'; readonly pieces: readonly string[] };

export const say = (...pieces: readonly string[]): ApiReply => ({ kind: 'text', pieces });
export const callTools = (calls: readonly ToolCall[], ...pieces: readonly string[]): ApiReply => ({ kind: 'tools', pieces, calls });
export const hang = (...pieces: readonly string[]): ApiReply => ({ kind: 'hang', pieces });
export const cut = (...pieces: readonly string[]): ApiReply => ({ kind: 'cut', pieces });
export const refuse = (status: number, type: string, message: string, headers: Readonly<Record<string, string>> = {}): ApiReply => {
  return { kind: 'error', status, type, message, headers };
};

/** One request as it came in. */
export interface ApiRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: IncomingMessage['headers'];
  readonly rawBody: string;
  /** The parsed body, {} for none. */
  readonly body: Json;
  /** Whether the client broke the connection before the whole reply was out. */
  isAborted: boolean;
}

/** The usage every message reports, so that every turn of one message costs the same. */
const usage = { input_tokens: 1000, output_tokens: 100, cache_creation_input_tokens: 0, cache_read_input_tokens: 0 };

/** A stand-in for Anthropic's Messages API on 127.0.0.1, which says what the test scripts. */
export class MessagesApi {
  /** Everything that was asked, in order of arrival. */
  readonly requests: ApiRequest[] = [];
  /** Called for every message to be made; a test sets its own. */
  script: (request: ApiRequest) => ApiReply = () => say('ok');
  readonly #server: Server;

  constructor() {
    this.#server = createServer((req, res) => void this.#answer(req, res));
    this.#server.keepAliveTimeout = 60_000;
  }

  async listen(port = 0): Promise<void> {
    this.#server.listen(port, '127.0.0.1');
    await once(this.#server, 'listening');
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** The requests for a message, in order of arrival. */
  get turns(): ApiRequest[] {
    return this.requests.filter((request) => request.path === '/v1/messages');
  }

  /** The first request for a message whose last prompt this is, waited for. */
  async asked(prompt: string, timeoutMs = 10_000): Promise<ApiRequest> {
    return until(`a request with the prompt ${prompt}`, () => this.turns.find((request) => promptsOf(request).at(-1) === prompt), timeoutMs);
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }

  async #answer(req: IncomingMessage, res: ServerResponse): Promise<void> {
    const path = (req.url ?? '').replace(/\?.*/, '');
    const rawBody = await readText(req).catch(() => undefined);
    if (rawBody === undefined) return;
    const body = rawBody === '' ? {} : asJson(JSON.parse(rawBody));
    const request: ApiRequest = { method: req.method ?? '', path, headers: req.headers, rawBody, body, isAborted: false };
    this.requests.push(request);
    res.on('error', () => {});
    res.on('close', () => (request.isAborted = !res.writableFinished));
    if (path === '/v1/messages/count_tokens') sendJson(res, 200, { input_tokens: usage.input_tokens });
    else if (path === '/v1/messages' && req.method === 'POST') sendReply(res, request, this.script(request));
    else if (req.method === 'HEAD') res.writeHead(200).end();
    else sendJson(res, 404, errorBody('not_found_error', `no such route: ${path}`));
  }
}

/** A listening stand-in, on a free port unless one is given; closed at the end of the test. */
export async function startMessagesApi(t: TestContext, port = 0): Promise<MessagesApi> {
  const api = new MessagesApi();
  await api.listen(port);
  t.after(() => api.close());
  return api;
}

export const anthropicKey = 'sk-ant-made-up-for-tests';

/** The environment of a server that runs this CLI against the stand-in. */
export function cliEnv(binary: string, api: MessagesApi) {
  return { CLAUDE_BINARY_PATH: binary, ANTHROPIC_BASE_URL: api.url, ANTHROPIC_API_KEY: anthropicKey };
}

async function readText(req: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of req) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString('utf8');
}

function sendReply(res: ServerResponse, { body }: ApiRequest, reply: ApiReply): void {
  if (reply.kind === 'error') {
    sendJson(res, reply.status, errorBody(reply.type, reply.message), reply.headers);
    return;
  }
  if (reply.kind === 'hang' && reply.pieces.length === 0) return;
  const message = messageOf(reply, String(body['model']));
  if (body['stream'] !== true) {
    if (reply.kind === 'cut') res.destroy();
    else if (reply.kind !== 'hang') sendJson(res, 200, message);
    return;
  }
  res.writeHead(200, { 'Content-Type': 'text/event-stream', 'request-id': `req_${randomUUID()}` });
  const events = eventsOf(reply, message);
  res.write(events.map((event) => `event: ${String(event['type'])}\ndata: ${JSON.stringify(event)}\n\n`).join(''), () => {
    if (reply.kind === 'cut') res.destroy();
  });
  if (reply.kind === 'text' || reply.kind === 'tools') res.end();
}

function messageOf(reply: Exclude<ApiReply, { kind: 'error' }>, model: string): Json {
  const text = reply.pieces.join('');
  const calls = reply.kind === 'tools' ? reply.calls : [];
  const content = [
    ...(text === '' ? [] : [{ type: 'text', text }]),
    ...calls.map(({ name, input }) => ({ type: 'tool_use', id: `toolu_${randomUUID()}`, name, input })),
  ];
  const stopReason = calls.length > 0 ? 'tool_use' : 'end_turn';
  return { id: `msg_${randomUUID()}`, type: 'message', role: 'assistant', model, content, stop_reason: stopReason, stop_sequence: null, usage };
}

/** The events of a streamed message (docs.anthropic.com, "Streaming Messages"); the whole of it only where the reply is whole. */
function eventsOf(reply: Exclude<ApiReply, { kind: 'error' }>, message: Json): Json[] {
  const isWhole = reply.kind === 'text' || reply.kind === 'tools';
  const blocks = (message['content'] as readonly Json[]).flatMap((block, index): Json[] => {
    const isText = block['type'] === 'text';
    const deltas = isText
      ? reply.pieces.map((text) => ({ type: 'text_delta', text }))
      : [{ type: 'input_json_delta', partial_json: JSON.stringify(block['input']) }];
    return [
      { type: 'content_block_start', index, content_block: isText ? { type: 'text', text: '' } : { ...block, input: {} } },
      ...deltas.map((delta) => ({ type: 'content_block_delta', index, delta })),
      ...(isWhole ? [{ type: 'content_block_stop', index }] : []),
    ];
  });
  const start = { ...message, content: [], stop_reason: null, usage: { ...usage, output_tokens: 1 } };
  const end = [
    { type: 'message_delta', delta: { stop_reason: message['stop_reason'], stop_sequence: null }, usage: { output_tokens: usage.output_tokens } },
    { type: 'message_stop' },
  ];
  return [{ type: 'message_start', message: start }, ...blocks, ...(isWhole ? end : [])];
}

function errorBody(type: string, message: string): Json {
  return { type: 'error', error: { type, message }, request_id: `req_${randomUUID()}` };
}

function sendJson(res: ServerResponse, status: number, body: Json, headers: Readonly<Record<string, string>> = {}): void {
  res.writeHead(status, { 'Content-Type': 'application/json', 'request-id': `req_${randomUUID()}`, ...headers });
  res.end(JSON.stringify(body));
}

/** The texts of the dialogue's user prompts, in order, without what the CLI says of itself and without tool results. */
export function promptsOf({ body }: ApiRequest): string[] {
  return messagesOf(body).flatMap((message) => (message['role'] === 'user' ? textsOf(message['content']) : []));
}

function messagesOf(body: Json): Json[] {
  return asList(body['messages']).map(asJson);
}

function textsOf(content: unknown): string[] {
  const blocks = typeof content === 'string' ? [{ type: 'text', text: content }] : asList(content).map(asJson);
  return blocks.flatMap((block) => (block['type'] === 'text' ? [String(block['text'])] : [])).filter((text) => !/^<system-reminder>/.test(text));
}

/** The pictures in the dialogue's messages, in order; those in tool results aside. */
export function imagesOf({ body }: ApiRequest): Array<{ readonly type: string; readonly bytes: Buffer }> {
  const sources = messagesOf(body).flatMap(({ content }) => asList(content).map(asJson)).flatMap(({ type, source }) => (type === 'image' ? [asJson(source)] : []));
  return sources.map((source) => ({ type: String(source['media_type']), bytes: Buffer.from(String(source['data']), 'base64') }));
}

/** What the tools gave back in this request, in order: the text of each result and whether it says it failed. */
export function toolResultsOf({ body }: ApiRequest): Array<{ readonly text: string; readonly isError: boolean }> {
  return messagesOf(body)
    .flatMap((message) => asList(message['content']).map(asJson))
    .filter((block) => block['type'] === 'tool_result')
    .map((block) => ({ text: stringsIn(block['content']).join('\n'), isError: block['is_error'] === true }));
}

export interface Attempt {
  readonly sessionId: string;
  /** What came of each call, in order. */
  readonly results: ReturnType<typeof toolResultsOf>;
}

/** One turn in which the model makes these calls, so many in one message, and then gives up. */
export async function attempt(api: MessagesApi, server: RunningServer, calls: readonly ToolCall[], body: Json = {}, atOnce = 1): Promise<Attempt> {
  let made = 0;
  api.script = () => {
    const next = calls.slice(made, made + atOnce);
    made += next.length;
    return next.length === 0 ? say('I give up') : callTools(next);
  };
  const reply: Reply = await server.chat({ prompt: 'do as you like', ...body });
  assert.equal(reply.status, 200, JSON.stringify(reply.body));
  assert.equal(reply.body['content'], 'I give up');
  const results = toolResultsOf(api.turns.at(-1) ?? assert.fail('nothing was asked'));
  assert.ok(results.length >= calls.length, 'a result for every call');
  return { sessionId: String(reply.body['session_id']), results: results.slice(results.length - calls.length) };
}

/** The names of the tools the model is offered. */
export function toolNamesOf({ body }: ApiRequest): string[] {
  return asList(body['tools']).map((tool) => String(asJson(tool)['name']));
}

/** Whether this text is anywhere in the request: address, headers, or any name or string of the body. */
export function holds({ path, headers, body }: ApiRequest, text: string): boolean {
  // The login itself travels in this header, and nowhere else.
  const { 'x-api-key': _login, ...otherHeaders } = headers;
  return [path, ...stringsIn(otherHeaders), ...stringsIn(body)].some((string) => string.includes(text));
}

function stringsIn(value: unknown): string[] {
  if (typeof value === 'string') return [value];
  if (Array.isArray(value)) return value.flatMap(stringsIn);
  return Object.entries(asJson(value)).flatMap(([name, member]) => [name, ...stringsIn(member)]);
}

function asJson(value: unknown): Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Json) : {};
}

function asList(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}
