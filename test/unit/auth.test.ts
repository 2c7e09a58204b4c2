import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createAuth } from '../../src/auth.ts';

const key = '5d0c2f8e71b64a93';
const auth = createAuth(key);

test('the key after Bearer is let in', () => {
  assert.equal(auth([`Bearer ${key}`]), 'ok');
});

test('the scheme may be written in any case, and blanks around the key do not matter', () => {
  for (const value of [`bearer ${key}`, `BEARER ${key}`, `bEaReR ${key}`, `Bearer   ${key}`, `Bearer ${key}  `]) {
    assert.equal(auth([value]), 'ok', JSON.stringify(value));
  }
});

test('no header is a missing key', () => {
  assert.equal(auth([]), 'missing_api_key');
});

const wrongValues = {
  'another key': 'Bearer 5d0c2f8e71b64a94',
  'the key in another case': `Bearer ${key.toUpperCase()}`,
  'the beginning of the key': `Bearer ${key.slice(0, -1)}`,
  'the key and more': `Bearer ${key}0`,
  'the key twice': `Bearer ${key} ${key}`,
  'the key twice with a comma': `Bearer ${key}, Bearer ${key}`,
  'the key in quotes': `Bearer "${key}"`,
  'the key without a scheme': key,
  'a scheme without a key': 'Bearer',
  'a scheme and a blank': 'Bearer ',
  'another scheme': `Basic ${key}`,
  'a scheme that begins like Bearer': `Bearers ${key}`,
  'text before the scheme': `x Bearer ${key}`,
  'no blank between': `Bearer${key}`,
  'a tab between': `Bearer\t${key}`,
  'a line break between': `Bearer\n${key}`,
  'a second line': `Bearer ${key}\nx`,
  'an empty value': '',
  'a very long key': `Bearer ${'a'.repeat(100_000)}`,
};

for (const [title, value] of Object.entries(wrongValues)) {
  test(`${title} is refused`, () => {
    assert.equal(auth([value]), 'invalid_api_key');
  });
}

test('two headers are refused, even when both have the key', () => {
  assert.equal(auth([`Bearer ${key}`, `Bearer ${key}`]), 'invalid_api_key');
  assert.equal(auth([`Bearer ${key}`, 'Bearer other']), 'invalid_api_key');
  assert.equal(auth(['Bearer other', `Bearer ${key}`]), 'invalid_api_key');
});
