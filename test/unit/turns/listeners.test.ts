import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Listeners } from '../../../src/turns/listeners.ts';

test('a turn has lost its listeners when the last one has gone, for the reason of that one', () => {
  const [first, second] = [new AbortController(), new AbortController()];
  const heard: string[] = [];
  const listeners = new Listeners<string>({ signal: first.signal, onEvent: (event) => heard.push(`first ${event}`) });
  listeners.add({ signal: second.signal, onEvent: (event) => heard.push(`second ${event}`) });
  first.abort('left early');
  assert.equal(listeners.signal.aborted, false);
  listeners.tell('event');
  assert.deepEqual(heard, ['second event']);
  second.abort('left last');
  assert.deepEqual([listeners.signal.aborted, listeners.signal.reason], [true, 'left last']);
});

test('who has gone before the turn begins is none of its listeners', () => {
  const { signal } = new Listeners({ signal: AbortSignal.abort('gone'), onEvent: () => {} });
  assert.deepEqual([signal.aborted, signal.reason], [true, 'gone']);
});
