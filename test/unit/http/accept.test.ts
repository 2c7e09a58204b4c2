import assert from 'node:assert/strict';
import { test } from 'node:test';
import { namedOver, weightOf } from '../../../src/http/accept.ts';

test('a type has the weight of the most specific range that matches it (RFC 9110 section 12.5.1)', () => {
  const accept = 'text/*;q=0.3, text/plain;q=0.7, text/plain;format=flowed, text/html;level=1 ; Q=0.4, */*;q=0.5';
  const weights = ['text/plain', 'text/html', 'text/csv', 'image/png'].map((type) => weightOf(accept, type));
  assert.deepEqual(weights, [1, 0.4, 0.3, 0.5]);
  assert.deepEqual(['', 'text/html', 'application/*;q=0', 'nonsense', 'application/json;q=x'].map((header) => weightOf(header, 'application/json')), [1, 0, 0, 0, 0]);
});

const named: ReadonlyArray<readonly [string, boolean]> = [
  ['text/event-stream', true],
  ['Text/Event-Stream', true],
  [' text/event-stream ; charset=utf-8', true],
  ['application/json, text/event-stream', true],
  ['text/event-stream, */*', true],
  ['text/event-stream;q=0.5, application/json;q=0.5', true],
  ['text/event-stream;q=0.2, */*;q=0.1', true],
  ['text/event-stream;q=0.001', true],
  ['text/event-stream;q=0, text/event-stream', true],
  ['', false],
  ['*/*', false],
  ['text/*', false],
  ['application/json;q=0.1, text/*', false],
  ['text/event-streams', false],
  ['text/event-stream;q=0', false],
  ['text/event-stream;q=0.000', false],
  ['text/event-stream;q=much', false],
  ['application/json, text/event-stream;q=0.9', false],
  ['text/event-stream;q=0.9, */*', false],
  ['text/event-stream;q=0.5, application/*;q=0.6', false],
];

for (const [accept, isStream] of named) {
  test(`"${accept}" ${isStream ? 'chooses' : 'does not choose'} the stream`, () => {
    assert.equal(namedOver(accept, 'text/event-stream', 'application/json'), isStream);
  });
}
