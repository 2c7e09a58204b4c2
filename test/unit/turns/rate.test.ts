import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { Problem } from '../../../src/problem.ts';
import { createRateLimit } from '../../../src/turns/rate.ts';

/** A limit whose clock a test moves. */
function limitOf(turnsPerMinute: number): { take: (userId: number) => () => void; clock: { ms: number } } {
  const clock = { ms: 1000 };
  return { take: createRateLimit(turnsPerMinute, () => clock.ms), clock };
}

function waitOf(take: () => unknown): number | undefined {
  try {
    take();
    return 0;
  } catch (error) {
    assert.ok(error instanceof Problem && error.code === 'rate_limited', String(error));
    return error.extras.retryAfterSeconds;
  }
}

test('a user has so many turns in any 60 seconds, and is told when the next is free', () => {
  const { take, clock } = limitOf(2);
  take(1);
  clock.ms += 30_000;
  take(1);
  assert.equal(waitOf(() => take(1)), 30);
  clock.ms += 29_999;
  assert.equal(waitOf(() => take(1)), 1);
  clock.ms += 1;
  assert.equal(waitOf(() => take(1)), 0);
  assert.equal(waitOf(() => take(1)), 30);
});

test('a refused turn is not counted', () => {
  const { take, clock } = limitOf(1);
  take(1);
  for (let i = 0; i < 59; i += 1) {
    clock.ms += 1000;
    assert.equal(waitOf(() => take(1)), 59 - i);
  }
  clock.ms += 1000;
  assert.equal(waitOf(() => take(1)), 0);
});

test('a turn given back is not counted, and no other for it', () => {
  const { take } = limitOf(2);
  const [giveBack] = [take(1), take(1)];
  giveBack?.();
  giveBack?.();
  assert.equal(waitOf(() => take(1)), 0);
  assert.equal(waitOf(() => take(1)), 60);
});

test('each user has a limit of their own, and 0 means none', () => {
  const { take } = limitOf(1);
  assert.deepEqual([1, 2, 3].map((userId) => waitOf(() => take(userId))), [0, 0, 0]);
  const free = limitOf(0);
  for (let i = 0; i < 1000; i += 1) free.take(1)();
});

test('nobody is remembered for much longer than the minute', () => {
  setFlagsFromString('--expose-gc');
  const collect: unknown = runInNewContext('gc');
  const heldBytes = (): number => {
    if (typeof collect === 'function') collect();
    return process.memoryUsage().heapUsed;
  };
  const { take, clock } = limitOf(5);
  const before = heldBytes();
  for (let userId = 1; userId <= 300_000; userId += 1) {
    take(userId);
    clock.ms += 10;
  }
  const grownMiB = (heldBytes() - before) / 1024 / 1024;
  take(1);
  assert.ok(grownMiB < 10, `${grownMiB.toFixed(1)} MiB for the 6,000 users of the last minute`);
});
