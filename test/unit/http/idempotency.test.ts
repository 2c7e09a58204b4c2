import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fingerprintOf, isKey } from '../../../src/http/idempotency.ts';

test('a key is one header of 1 to 128 visible ASCII characters', () => {
  for (const key of ['!', '~', '"quoted"', 'a,b', 'x'.repeat(128), '8e03978e-40d5-43dd-bc93-6894a57f9324']) assert.equal(isKey([key]), true, key);
  for (const key of ['', ' ', 'a b', 'a\tb', 'x'.repeat(129), '\x7f', 'é', '\u0080', 'a\nb', 'a\0']) assert.equal(isKey([key]), false, JSON.stringify(key));
  assert.equal(isKey(['a', 'b']), false);
  assert.equal(isKey(['a', 'a']), false);
});

const same = (a: string, b: string): boolean => fingerprintOf(JSON.parse(a)) === fingerprintOf(JSON.parse(b));

test('bodies are equal by what they say, not by how they are written', () => {
  for (const [a, b] of [
    ['{"a":1,"b":[{"c":2,"d":3}]}', ' { "b" : [ { "d" : 3 , "c" : 2 } ] , "a" : 1 } '],
    ['{"a":100}', '{"a":1e2}'],
    ['{"a":"é/"}', '{"a":"\\u00e9\\/"}'],
    ['{"2":1,"10":2,"__proto__":3}', '{"__proto__":3,"10":2,"2":1}'],
  ] as const) assert.ok(same(a, b), `${a} and ${b}`);
});

test('bodies that say something else are not equal', () => {
  const bodies = [
    '{"a":1}', '{"a":"1"}', '{"a":1,"b":null}', '{"a":[1]}', '{"a":{"0":1}}', '{"a":[1,2]}', '{"a":[2,1]}', '{"a":"1 "}', '{"a":"é"}', '{"a":"e\\u0301"}', '{"__proto__":1}', '{}',
  ];
  assert.equal(new Set(bodies.map((body) => fingerprintOf(JSON.parse(body)))).size, bodies.length);
});
