import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';

type Json = Readonly<Record<string, unknown>>;

/** openapi.json as it stands. */
export const openapi: Json = JSON.parse(readFileSync(new URL('../openapi.json', import.meta.url), 'utf8')) as Json;

/** An answer, of whatever client. */
interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly body: string;
}

/** What was found in answers so far: `200 application/json`, a status with a code, an event, a header, a member. */
export const seen = new Set<string>();

/** Fails unless openapi.json describes this answer of a route: its status, type, headers and every member of its body. */
export function assertDescribed(method: string, path: string, { status, headers, body }: Answer): void {
  const response = asObject(at('paths', path, method.toLowerCase(), 'responses')[String(status)], `${method} ${path} ${status}`);
  for (const [name, described] of Object.entries(asObject(response['headers'] ?? {}))) checkHeader(name, resolve(described), headers);
  const type = headers.get('content-type')?.replace(/;.*/, '') ?? '';
  const content = asObject(asObject(response['content'])[type], `${status} ${type}`);
  seen.add(`${status} ${type}`);
  if (type === 'text/event-stream') return checkEvents(body, asObject(content['x-events']));
  const value: unknown = type.endsWith('json') ? JSON.parse(body) : body;
  if (type === 'application/problem+json') seen.add(`${status} ${String(asObject(value)['code'])}`);
  assertSchema(value, content['schema'], `${status} ${type}`);
}

/** Fails unless the events, all of a stream, are those of openapi.json. */
function checkEvents(body: string, events: Json): void {
  for (const block of body.split('\n\n').filter((text) => text !== '' && !text.startsWith(':'))) {
    const [, name = '', data = ''] = /^event: (\w+)\ndata: ([^\n]*)$/.exec(block) ?? assert.fail(`not an event: ${block}`);
    assertSchema(JSON.parse(data), events[name] ?? assert.fail(`openapi.json has no event ${name}`), name);
    seen.add(`event ${name}`);
  }
}

function checkHeader(name: string, described: Json, headers: Headers): void {
  const value = headers.get(name);
  if (value !== null) seen.add(`header ${name}`);
  if (value !== null || described['required'] === true) assertSchema(value, described['schema'], name);
}

/** What is at the end of these names in openapi.json. */
export function at(...names: readonly string[]): Json {
  return names.reduce((value, name) => asObject(resolve(value[name]), names.join(' ')), openapi);
}

function resolve(value: unknown): Json {
  const { $ref: reference } = asObject(value);
  return typeof reference === 'string' ? at(...reference.slice(2).split('/')) : asObject(value);
}

function asObject(value: unknown, what = 'an object'): Json {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Json;
  return assert.fail(`openapi.json has no ${what}`);
}

// As much of JSON Schema 2020-12 as openapi.json uses; another keyword fails, so that none is written in vain.
const keywords: Readonly<Record<string, (value: unknown, wanted: unknown, path: string, schema: Json) => void>> = {
  $ref: (value, _wanted, path, schema) => assertSchema(value, resolve(schema), path),
  allOf: (value, wanted, path) => (wanted as Json[]).forEach((schema) => assertSchema(value, schema, path)),
  type: (value, wanted, path) => assert.ok([wanted].flat().some((type) => hasType(value, type)), `${path} is no ${String(wanted)}`),
  const: (value, wanted, path) => assert.equal(value, wanted, path),
  enum: (value, wanted, path) => assert.ok((wanted as unknown[]).includes(value), `${path} is ${String(value)}`),
  minimum: (value, wanted, path) => assert.ok(typeof value !== 'number' || value >= Number(wanted), `${path} is ${String(value)}`),
  maximum: (value, wanted, path) => assert.ok(typeof value !== 'number' || value <= Number(wanted), `${path} is ${String(value)}`),
  minLength: (value, wanted, path) => assert.ok(typeof value !== 'string' || value.length >= Number(wanted), `${path} is short`),
  pattern: (value, wanted, path) => assert.ok(typeof value !== 'string' || new RegExp(String(wanted), 'u').test(value), `${path} is ${String(value)}`),
  maxItems: (value, wanted, path) => assert.ok(!Array.isArray(value) || value.length <= Number(wanted), `${path} has ${String(value)}`),
  items: (value, wanted, path) => Array.isArray(value) && value.forEach((item, i) => assertSchema(item, wanted, `${path}[${i}]`)),
  required: (value, wanted, path) => (wanted as string[]).forEach((name) => assert.ok(name in asObject(value), `${path}.${name} is missing`)),
  properties(value, wanted, path) {
    for (const [name, schema] of Object.entries(asObject(wanted))) {
      const member = asObject(value)[name];
      if (member === undefined) continue;
      seen.add(`member ${name}`);
      assertSchema(member, schema, `${path}.${name}`);
    }
  },
  additionalProperties(value, _wanted, path, { properties }) {
    const unknown = Object.keys(asObject(value)).filter((name) => !(name in asObject(properties)));
    assert.deepEqual(unknown, [], `${path} has members that openapi.json lacks`);
  },
  contentEncoding: () => {},
  description: () => {},
};

/** Fails unless the value is as the schema says. */
export function assertSchema(value: unknown, schema: unknown, path: string): void {
  const rules = asObject(schema);
  for (const [keyword, wanted] of Object.entries(rules)) {
    const check = keywords[keyword] ?? assert.fail(`the tests do not know the keyword ${keyword} of openapi.json`);
    check(value, wanted, path, rules);
  }
}

function hasType(value: unknown, type: unknown): boolean {
  if (type === 'null') return value === null;
  if (type === 'array') return Array.isArray(value);
  if (type === 'integer') return Number.isInteger(value);
  return type === 'object' ? typeof value === 'object' && value !== null && !Array.isArray(value) : typeof value === type;
}
