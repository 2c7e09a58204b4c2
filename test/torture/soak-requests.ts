import assert from 'node:assert/strict';
import { assertDescribed } from '../openapi.ts';
import { eventsOf, type StreamEvent } from '../running-server.ts';

export type Json = Record<string, unknown>;

export interface Answer {
  /** As outcomes.ts has it: `200`, or status and code. */
  readonly outcome: string;
  readonly body: Json;
  readonly headers: Headers;
}

/** What is wrong with a request for user 1, and how it is answered. */
export const badRequests: ReadonlyArray<readonly [outcome: string, headers: Readonly<Record<string, string>>, body: string]> = [
  ['401 invalid_api_key', { Authorization: 'Bearer 00000000000000000000000000000000' }, '{"prompt":"x","user_id":1}'],
  ['400 malformed_json', {}, '{"prompt":"x","user_id":1'],
  ['415 unsupported_media_type', { 'Content-Type': 'text/plain' }, '{"prompt":"x","user_id":1}'],
  ['422 invalid_request', {}, '{"prompt":"x","user_id":1,"sesion_id":null}'],
  ['422 invalid_request', {}, '{"user_id":1}'],
  ['422 invalid_request', {}, '{"prompt":"x","user_id":2}'],
  ['404 session_not_found', {}, '{"prompt":"x","user_id":1,"session_id":"11111111-2222-4333-8444-555555555555"}'],
];

/** One turn, streamed or not. Fails where the answer is not as openapi.json says. */
export async function askChat(url: string, init: RequestInit): Promise<Answer> {
  const response = await fetch(`${url}/api/v1/chat`, { ...init, method: 'POST' });
  const { status, headers } = response;
  if (/^text\/event-stream/.test(headers.get('content-type') ?? '')) {
    const events: StreamEvent[] = [];
    for await (const event of eventsOf(response)) events.push(event);
    const { name, data } = events.at(-1) ?? assert.fail('an empty stream');
    return { outcome: name === 'result' ? '200' : `${String(data['status'])} ${String(data['code'])}`, body: data, headers };
  }
  const text = await response.text();
  assertDescribed('POST', '/api/v1/chat', { status, headers, body: text });
  const body = JSON.parse(text) as Json;
  return { outcome: status === 200 ? '200' : `${status} ${String(body['code'])}`, body, headers };
}
