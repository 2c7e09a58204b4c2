import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Problem } from '../../../src/problem.ts';
import { createTokenCount } from '../../../src/sandbox/token-count.ts';
import { noTokens } from '../../../src/sandbox/usage.ts';

const spent = { input: 10, output: 20, cacheWrite: 30, cacheRead: 40 };

test('tokens of every kind count for their user, until the day ends by UTC', () => {
  let nowMs = Date.parse('2026-11-24T23:59:30.5Z');
  const tokens = createTokenCount(200, () => nowMs);
  tokens.of(1).onTokens?.(spent);
  nowMs -= 10_000;
  tokens.of(1).onTokens?.({ ...spent, input: 9 });
  assert.equal(tokens.of(1).hasTokensLeft?.(), true, 'one is left');
  nowMs += 10_000;
  tokens.of(1).onTokens?.({ ...noTokens, input: 1 });
  assert.deepEqual([tokens.of(1).hasTokensLeft?.(), tokens.of(2).hasTokensLeft?.()], [false, true]);
  tokens.requireLeft(2);
  assert.throws(() => tokens.requireLeft(1), (error) => error instanceof Problem && error.code === 'rate_limited' && error.extras.retryAfterSeconds === 30);
  nowMs -= 12 * 60 * 60 * 1000;
  assert.throws(() => tokens.requireLeft(1), (error) => error instanceof Problem && error.extras.retryAfterSeconds === 12 * 60 * 60 + 30);
  nowMs = Date.parse('2026-11-25T00:00:00Z');
  tokens.requireLeft(1);
  tokens.of(1).onTokens?.(spent);
  assert.deepEqual(tokens.total(), { input: 30, output: 60, cacheWrite: 90, cacheRead: 120 }, 'the sum is not the day\'s');
});

test('without a limit nobody is refused', () => {
  const tokens = createTokenCount();
  tokens.of(1).onTokens?.({ ...spent, input: Number.MAX_SAFE_INTEGER });
  assert.equal(tokens.of(1).hasTokensLeft?.(), true);
  tokens.requireLeft(1);
});
