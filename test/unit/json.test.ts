import assert from 'node:assert/strict';
import { test } from 'node:test';
import { jsonShapeOf } from '../../src/json.ts';
import { amount, randomOf } from '../random.ts';

type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

/** The same counts from the parsed value. */
function shapeOf(value: Json): { names: number; depth: number } {
  if (typeof value !== 'object' || value === null) return { names: 0, depth: 0 };
  const inner = Object.values(value).map(shapeOf);
  const own = Array.isArray(value) ? 0 : Object.keys(value).length;
  return { names: own + inner.reduce((sum, { names }) => sum + names, 0), depth: 1 + Math.max(0, ...inner.map(({ depth }) => depth)) };
}

test('names and depth are those of the parsed value, whatever the texts hold', (t) => {
  const random = randomOf(t);
  const letters = ['a', '"', '\\', ':', ',', '{', '}', '[', ']', '\n', 'ж', '🦊', '\ud800', '__proto__'];
  const text = (): string => Array.from({ length: Math.floor(random() * 6) }, () => letters[Math.floor(random() * letters.length)]).join('');
  const value = (depth: number): Json => {
    const kind = Math.floor(random() * (depth > 5 ? 4 : 6));
    if (kind < 2) return text();
    if (kind === 2) return random() * 1e6;
    if (kind === 3) return random() < 0.5 ? null : true;
    const length = Math.floor(random() * 4);
    if (kind === 4) return Array.from({ length }, () => value(depth + 1));
    return Object.fromEntries(Array.from({ length }, (_, i) => [`${text()}${i}`, value(depth + 1)]));
  };
  for (let i = 0; i < amount(3_000, 200_000); i += 1) {
    const made = value(0);
    const written = JSON.stringify(made, null, random() < 0.3 ? 2 : 0);
    const { names, depth } = jsonShapeOf(Buffer.from(written));
    assert.deepEqual({ names, depth }, shapeOf(made), written);
  }
});

test('what is no JSON is counted without harm', () => {
  for (const text of ['', '"', '"\\', '\\"', '[[[', ']]]', '{"a":', ':::', '"\\\\"', ' ', '\0']) jsonShapeOf(Buffer.from(text));
  assert.deepEqual(jsonShapeOf(Buffer.from('{"a":1,"a":[2,{}]}')), { names: 2, values: 5, depth: 3 });
});
