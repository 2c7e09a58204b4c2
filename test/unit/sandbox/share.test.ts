import assert from 'node:assert/strict';
import { getEventListeners } from 'node:events';
import { setImmediate as nextTick } from 'node:timers/promises';
import { test } from 'node:test';
import { createShare } from '../../../src/sandbox/share.ts';

const never = new AbortController().signal;

test('amounts are given in the order they were asked for, as far as there is something left', async () => {
  const share = createShare(10);
  const given: string[] = [];
  const take = (name: string, amount: number) => share.take(amount, never).then((release) => (given.push(name), release));
  const [a] = [await take('a', 6), take('b', 6), take('c', 1)];
  await nextTick();
  assert.deepEqual(given, ['a'], 'a small one does not overtake');
  a();
  a();
  await nextTick();
  assert.deepEqual(given, ['a', 'b', 'c'], 'giving back twice gives back once');
  let hasMore = false;
  void share.take(4, never).then(() => (hasMore = true));
  await nextTick();
  assert.equal(hasMore, false);
});

test('who gives up while waiting takes nothing and holds nobody up', async () => {
  const share = createShare(2);
  const first = await share.take(2, never);
  const stop = new AbortController();
  const second = share.take(2, stop.signal);
  const third = share.take(1, never);
  stop.abort(new Error('enough'));
  await assert.rejects(second, /enough/);
  first();
  (await third)();
  (await share.take(2, never))();
  await assert.rejects(share.take(1, stop.signal), /enough/);
  const half = await share.take(1, never);
  const later = new AbortController();
  const whole = share.take(2, later.signal);
  const other = share.take(1, never);
  later.abort(new Error('enough'));
  await assert.rejects(whole, /enough/);
  (await other)();
  half();
  await share.take(2, never);
});

test('on a signal that lives as long as the server nothing is left of those who were served', async () => {
  const share = createShare(1);
  const { signal } = new AbortController();
  const first = await share.take(1, signal);
  const second = share.take(1, signal);
  first();
  (await second)();
  assert.equal(getEventListeners(signal, 'abort').length, 0);
});
