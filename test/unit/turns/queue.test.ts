import assert from 'node:assert/strict';
import { setImmediate as tick } from 'node:timers/promises';
import { after, test } from 'node:test';
import { Problem } from '../../../src/problem.ts';
import { Queue, sessionKey, type Choice, type SessionState, type Waiting } from '../../../src/turns/queue.ts';

const all: Choice = { takesCold: () => true, comesLast: () => false };

// A turn that is left waiting has a timer, for which the whole run would wait.
const queues: Array<Queue<string>> = [];
after(() => queues.forEach((queue) => queue.failAll(new Problem('shutting_down', 'the tests are over'))));

/** A queue whose turns have names; `turnedAway` are those that failed so far. */
function makeQueue(limit = 100) {
  const queue = new Queue<string>(limit, 60_000);
  queues.push(queue);
  const names = new Map<Waiting<string>, string>();
  const turnedAway: string[] = [];
  return {
    queue,
    turnedAway,
    enter(name: string, userId: number, sessionId?: string, state: SessionState = 'none', signal = new AbortController().signal): Waiting<string> {
      const waiting = queue.enter(userId, sessionId, signal, state);
      names.set(waiting, name);
      waiting.granted.catch(() => turnedAway.push(name));
      return waiting;
    },
    /** Who could run, in order; those that `takes` says yes to do. */
    ready(choice: Partial<Choice> = {}, takes: (name: string) => boolean = () => false): string[] {
      const seen: string[] = [];
      for (const waiting of queue.ready({ ...all, ...choice })) {
        const name = names.get(waiting) ?? '';
        seen.push(name);
        if (takes(name)) waiting.grant(Promise.resolve(name));
      }
      return seen;
    },
  };
}

test('turns are ready in the order they came, warm and cold ones, each once', () => {
  const { enter, ready, queue } = makeQueue();
  enter('a', 1);
  enter('b', 2, 's', 'idle');
  enter('c', 1, 't');
  enter('d', 3);
  assert.deepEqual(ready(), ['a', 'b', 'c', 'd']);
  assert.deepEqual(ready({}, (name) => name === 'b'), ['a', 'b', 'c', 'd']);
  assert.deepEqual([ready(), queue.length], [['a', 'c', 'd'], 3]);
});

test('of a session only the first turn is ready, and none while it is busy', () => {
  const { enter, ready, queue } = makeQueue();
  enter('a', 1, 's', 'busy');
  enter('b', 1, 's', 'busy');
  assert.deepEqual(ready(), []);
  queue.sessionChanged(sessionKey(1, 's'), 'idle');
  assert.deepEqual([ready({ takesCold: () => false }), ready({}, () => true), ready()], [['a'], ['a', 'b'], []]);
});

test('once no new process can be had only turns with a process of their own are ready', () => {
  const { enter, ready } = makeQueue();
  for (const [name, state] of [['a', 'none'], ['b', 'none'], ['c', 'idle']] as const) enter(name, 1, name, state);
  let looked = 0;
  assert.deepEqual(ready({ takesCold: () => (looked += 1) < 2 }), ['a', 'c']);
});

test('who comes last has a turn when none of the others is left waiting that could run', () => {
  const { enter, ready } = makeQueue();
  for (const [name, userId] of [['a', 1], ['b', 1], ['c', 2], ['d', 1], ['e', 3]] as const) enter(name, userId);
  const comesLast = (userId: number): boolean => userId === 1;
  assert.deepEqual(ready({ comesLast }), ['c', 'e'], 'they are left waiting');
  assert.deepEqual(ready({ comesLast }, (name) => name === 'c'), ['c', 'e']);
  assert.deepEqual(ready({ comesLast }, (name) => 'eab'.includes(name)), ['e', 'a', 'b', 'd']);
});

test('who comes last waits while another could run if only a process could be had', () => {
  const { enter, ready } = makeQueue();
  enter('a', 1, 's', 'idle');
  enter('b', 2);
  const comesLast = (userId: number): boolean => userId === 1;
  assert.deepEqual(ready({ comesLast, takesCold: () => false }), []);
  // A turn that waits for its own session keeps nobody from theirs.
  const { enter: enter2, ready: ready2 } = makeQueue();
  enter2('a', 1, 's', 'idle');
  enter2('b', 2, 't', 'busy');
  assert.deepEqual(ready2({ comesLast, takesCold: () => false }), ['a']);
});

test('a user alone in the queue is nobody\'s last', () => {
  const { enter, ready } = makeQueue();
  enter('a', 1);
  assert.deepEqual(ready({ comesLast: () => assert.fail('not asked') }), ['a']);
});

test('in a full queue the newest turns of a user with more than half of it give way to others', async () => {
  const { queue, enter, turnedAway } = makeQueue(4);
  const come = (name: string, userId: number): void => queue.turnAwayIfTooMany(enter(name, userId), () => 0);
  for (const name of ['a1', 'a2', 'a3', 'a4', 'a5']) come(name, 1);
  await tick();
  assert.deepEqual(turnedAway, ['a5'], 'alone it may have all of the queue');
  come('b1', 2);
  come('c1', 3);
  await tick();
  assert.deepEqual(turnedAway, ['a5', 'a4', 'a3']);
  come('d1', 4);
  come('a6', 1);
  await tick();
  assert.deepEqual([turnedAway.slice(3), queue.length], [['d1', 'a6'], 4], 'with half of it or less nobody gives way');
});

test('who has room, and only waits for other starts, takes nobody\'s place in the queue', async () => {
  const { queue, enter, turnedAway } = makeQueue(1);
  for (const [name, userId] of [['a', 1], ['b', 2], ['c', 3], ['d', 4]] as const) queue.turnAwayIfTooMany(enter(name, userId), () => 2);
  await tick();
  assert.deepEqual([turnedAway, queue.length], [['d'], 3]);
});

test('a turn that leaves, however, lets the next one of its session and user up', async () => {
  const { queue, enter, ready, turnedAway } = makeQueue();
  const caller = new AbortController();
  enter('a', 1, 's', 'none', caller.signal);
  const b = enter('b', 1, 's', 'none');
  enter('c', 1, 't', 'none');
  assert.deepEqual(ready(), ['a', 'c']);
  caller.abort(new Problem('request_timeout', 'gone'));
  assert.deepEqual(ready(), ['b', 'c']);
  b.fail(new Problem('busy', ''));
  assert.deepEqual(ready(), ['c']);
  queue.failAll(new Problem('shutting_down', ''));
  await tick();
  assert.deepEqual([ready(), queue.length, turnedAway], [[], 0, ['a', 'b', 'c']]);
});
