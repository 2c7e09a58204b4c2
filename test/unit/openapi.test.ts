import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { Problem, problemBody, problemCodes, problemHeaders } from '../../src/problem.ts';
import { healthDetails } from '../http-stage.ts';
import { assertSchema, at, openapi } from '../openapi.ts';

const read = (name: string): Promise<string> => readFile(new URL(`../../${name}`, import.meta.url), 'utf8');
const names = (value: object): string[] => Object.keys(value).sort();
const schemaOf = (name: string): Readonly<Record<string, unknown>> => at('components', 'schemas', name, 'properties');
const words = (text: string, mark: string): string[] => Array.from(text.matchAll(new RegExp(`${mark}([\\w-]+)${mark}`, 'g')), ([, word = '']) => word);

/** A table of docs/api.md: the first cell of each row under this heading, up to the next one of its level. */
async function rowsUnder(heading: string): Promise<string[]> {
  const section = (await read('docs/api.md')).split(/^(?=#{2,3} )/m).find((text) => text.startsWith(`${heading}\n`)) ?? assert.fail(heading);
  return Array.from(section.matchAll(/^\| `(\w+)` \|/gm), ([, name = '']) => name);
}

test('openapi.json is of this version', async () => {
  const { version } = JSON.parse(await read('package.json')) as { version: string };
  assert.equal((openapi['info'] as { version: string }).version, version);
});

test('openapi.json has every problem code under its status, and no other', () => {
  const described = ['/api/v1/chat post', '/health get'].map((route) => {
    const responses = at('paths', ...route.split(' '), 'responses');
    return Object.keys(responses).flatMap((status) => {
      const content = at('paths', ...route.split(' '), 'responses', status, 'content');
      const { schema } = (content['application/problem+json'] ?? {}) as { schema?: { allOf: [object, { properties: { status: { const: number }; code: { enum: string[] } } }] } };
      assert.equal(schema?.allOf[1].properties.status.const ?? Number(status), Number(status));
      return (schema?.allOf[1].properties.code.enum ?? []).map((code) => `${status} ${code}`);
    });
  });
  const all = problemCodes.map((code) => `${new Problem(code, '').status} ${code}`);
  assert.deepEqual(described[0]?.sort(), [...all].sort());
  assert.deepEqual(described[1]?.filter((line) => !all.includes(line)), []);
  assert.deepEqual(at('components', 'schemas', 'Problem', 'properties', 'code')['enum'], problemCodes);
});

test('openapi.json has every member of a problem, an answer and /health, every field, event and header, and no other', async () => {
  const extras = { sessionId: 's', costUsd: 1, durationMs: 1, errors: [{ field: 'a', detail: 'b' }], retryAfterSeconds: 1 };
  const problem = new Problem('missing_api_key', 'x', extras);
  assert.deepEqual(names(problemBody(problem)), names(schemaOf('Problem')));
  assert.deepEqual(names(healthDetails).concat('status', 'detail', 'warnings').sort(), names(schemaOf('Health')));
  const [body, routes, exchange] = await Promise.all(['src/http/body.ts', 'src/http/routes.ts', 'src/http/exchange.ts'].map(read));
  assert.deepEqual(words(/knownFields = \[(.*)\]/.exec(body ?? '')?.[1] ?? '', "'").sort(), names(schemaOf('ChatRequest')));
  const events = Array.from((routes ?? '').matchAll(/stream\.(?:send|end)\('(\w+)'/g), ([, name]) => name);
  assert.deepEqual([...new Set(events)].sort(), names(at('paths', '/api/v1/chat', 'post', 'responses', '200', 'content', 'text/event-stream', 'x-events')));
  const asked = /Allow-Headers', '(.*)'/.exec(routes ?? '')?.[1]?.split(', ').filter((name) => !['Authorization', 'Content-Type'].includes(name));
  assert.deepEqual(asked?.sort(), names(at('components', 'parameters')));
  const told = [...(/Expose-Headers', '(.*)'/.exec(exchange ?? '')?.[1]?.split(', ') ?? []), 'Allow', ...Object.keys(problemHeaders(problem))];
  assert.deepEqual([...new Set(told)].sort(), names(at('components', 'headers')));
});

test('docs/api.md and openapi.json have the same fields, members and events', async () => {
  assert.deepEqual((await rowsUnder('## POST /api/v1/chat')).sort(), [...names(schemaOf('ChatRequest')), ...names(schemaOf('ChatAnswer'))].sort());
  assert.deepEqual((await rowsUnder('### Streaming')).sort(), names(at('paths', '/api/v1/chat', 'post', 'responses', '200', 'content', 'text/event-stream', 'x-events')));
  assert.deepEqual((await rowsUnder('## GET /health')).concat('status', 'detail').sort(), names(schemaOf('Health')));
});

test('the schemas refuse what is wrong', () => {
  const good = { content: 'x', session_id: 's', cost: 0.5, duration_ms: 3 };
  assertSchema(good, { $ref: '#/components/schemas/ChatAnswer' }, 'an answer');
  for (const wrong of [{ ...good, cost: '1' }, { ...good, more: 1 }, { ...good, cost: -1 }, { ...good, duration_ms: 1.5 }, { content: 'x' }, [], null]) {
    assert.throws(() => assertSchema(wrong, { $ref: '#/components/schemas/ChatAnswer' }, 'an answer'), JSON.stringify(wrong));
  }
  assert.throws(() => assertSchema(1, { maxProperties: 1 }, 'x'), /do not know the keyword/);
});
