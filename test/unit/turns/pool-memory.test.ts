import assert from 'node:assert/strict';
import { test } from 'node:test';
import { codeOf, makePool, mib, settle } from '../../fake-pool.ts';

const usual = { maxProcesses: Infinity, heldMib: 100, peakMib: 160 };

test('processes start while a start fits, and then the longest idle gives way', async () => {
  // 64 in reserve: three fit, the third needs 160 of the 176 left.
  const { acquire, alive, pool } = makePool({ ...usual, totalMib: 440 });
  for (const id of ['a', 'b', 'c']) (await acquire(1, id).promise).release();
  assert.deepEqual([alive(), pool.counts().capacity], [['a', 'b', 'c'], 3]);
  (await acquire(1, 'd').promise).release();
  assert.deepEqual(alive(), ['b', 'c', 'd']);
});

test('with all of memory in use by turns the next one waits, and goes when there is some', async () => {
  const { acquire, alive } = makePool({ ...usual, totalMib: 340 });
  const [a, b] = [await acquire(1, 'a').promise, await acquire(2, 'b').promise];
  const waiting = acquire(3, 'c');
  await settle();
  assert.equal(waiting.state, 'pending');
  a.release();
  await waiting.promise;
  assert.deepEqual(alive(), ['b', 'c']);
  b.release();
});

test('memory that comes back without any turn ending is found', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const { acquire, machine } = makePool({ ...usual, totalMib: 400 });
  machine.hogMib = 380;
  const waiting = acquire(1, 'a');
  t.mock.timers.tick(1000);
  await settle();
  assert.equal(waiting.state, 'pending');
  machine.hogMib = 0;
  t.mock.timers.tick(100);
  await waiting.promise;
});

test('what starting processes will take is not given to others, and what they have counts once', async () => {
  const { acquire, workers } = makePool({ ...usual, totalMib: 1000, startsAtOnce: false });
  // The first is learnt from; the others may start beside it only with room for the program.
  const turns = ['a', 'b', 'c', 'd'].map((id) => acquire(1, id));
  const states = (): string[] => turns.map((turn) => turn.state);
  await settle();
  assert.deepEqual(states(), ['done', 'pending', 'pending', 'pending']);
  workers[0]?.markStarted();
  await settle();
  // 900 left: two starts of 160 and 464 besides fit, the second of them with what it has.
  assert.deepEqual(states(), ['done', 'done', 'done', 'pending']);
});

test('a fat process is the first to give way, after the spare', async () => {
  const { acquire, alive, begin, workers } = makePool({ ...usual, totalMib: 1000 });
  (await acquire(1, 'old').promise).release();
  const fat = await acquire(1, 'fat').promise;
  fat.worker.bytes = 300 * mib;
  fat.release();
  const young = await begin(1);
  const spare = workers[3]?.sessionId ?? '';
  assert.deepEqual(alive(), ['old', 'fat', young, spare]);
  // 400 left, and 64 of it reserved: two more fit.
  for (const id of ['e', 'f']) await acquire(2, id).promise;
  assert.deepEqual(alive(), ['old', 'fat', young, spare, 'e', 'f']);
  await acquire(2, 'g').promise;
  assert.deepEqual(alive(), ['old', 'fat', young, 'e', 'f', 'g']);
  await acquire(2, 'h').promise;
  assert.deepEqual(alive(), ['old', young, 'e', 'f', 'g', 'h']);
});

test('nobody gives way where that would not be enough', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] }); // what is left is too little for an idle one by itself
  const { acquire, alive, machine } = makePool({ ...usual, totalMib: 440 });
  (await acquire(1, 'idle').promise).release();
  await acquire(1, 'running').promise;
  machine.hogMib = 160;
  const waiting = acquire(2, 'c');
  await settle();
  // 80 left and 100 idle: a start takes 224 with the reserve.
  assert.deepEqual([waiting.state, alive()], ['pending', ['idle', 'running']]);
});

test('when memory runs short without any turn asking, idle processes give way, as many as needed', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const { acquire, alive, machine } = makePool({ ...usual, totalMib: 1000 });
  for (const id of ['a', 'b', 'c', 'd']) (await acquire(1, id).promise).release();
  const running = await acquire(1, 'a').promise;
  machine.hogMib = 472;
  t.mock.timers.tick(100);
  await settle();
  assert.deepEqual(alive(), ['a', 'b', 'c', 'd'], '128 left');
  machine.hogMib = 640;
  t.mock.timers.tick(100);
  await settle();
  assert.deepEqual(alive(), ['a', 'd'], '40 short: one would do, but for the reserve');
  machine.hogMib = 1000;
  t.mock.timers.tick(100);
  await settle();
  assert.deepEqual(alive(), ['a'], 'a turn is never ended for want of memory');
  running.release();
});

test('what a starting process was promised is kept for it: idle ones give way when somebody else takes it', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval', 'setTimeout'] });
  const { acquire, alive, workers, machine } = makePool({ ...usual, totalMib: 1000, startsAtOnce: false });
  for (const [i, id] of ['a', 'b', 'c'].entries()) {
    const turn = acquire(1, id);
    await settle();
    workers[i]?.markStarted();
    (await turn.promise).release();
  }
  await acquire(1, 'd').promise;
  const tick = async (hogMib: number): Promise<string[]> => {
    machine.hogMib = hogMib;
    t.mock.timers.tick(100);
    await settle();
    return alive();
  };
  // Of 600 that are left 60 are promised to the fourth, and 64 are in reserve.
  assert.deepEqual(await tick(476), ['a', 'b', 'c', 'd']);
  assert.deepEqual(await tick(477), ['b', 'c', 'd']);
  workers[3]?.markStarted();
});

test('memory that stopping processes give back is waited for, not asked for twice', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const { acquire, workers, machine } = makePool({ ...usual, totalMib: 1000, diesWhenStopped: false });
  for (const id of ['a', 'b', 'c']) (await acquire(1, id).promise).release();
  machine.hogMib = 630;
  for (let i = 0; i < 5; i += 1) t.mock.timers.tick(100);
  await settle();
  assert.deepEqual(workers.map((worker) => worker.isStopAsked), [true, false, false]);
});

test('with all memory taken by idle dialogues the spare takes the place of the longest idle of four or more', async () => {
  const { acquire, alive, begin, workers } = makePool({ ...usual, totalMib: 630 });
  for (const id of ['a', 'b', 'c', 'd']) (await acquire(1, id).promise).release();
  const last = await begin(2);
  await settle();
  const spare = workers.at(-1);
  assert.deepEqual([alive(), spare?.userId], [['b', 'c', 'd', last, spare?.sessionId], 2]);
  assert.equal((await acquire(2).promise).origin, 'spare');
});

test('with three idle dialogues and no room there is no spare', async () => {
  const { acquire, alive, begin } = makePool({ ...usual, totalMib: 430 });
  for (const id of ['a', 'b']) (await acquire(1, id).promise).release();
  const last = await begin(2);
  assert.deepEqual(alive(), ['a', 'b', last]);
});

test('who took the last room is followed by no spare in the place of another', async () => {
  const { acquire, alive } = makePool({ ...usual, totalMib: 630 });
  for (const id of ['a', 'b', 'c', 'd']) (await acquire(1, id).promise).release();
  const lease = await acquire(2).promise;
  const cold = acquire(3, 'e');
  lease.release();
  (await cold.promise).release();
  await settle();
  assert.equal(alive().length, 5);
  assert.ok(alive().includes('e') && alive().includes(lease.sessionId));
});

test('while another user waits, one user runs at most half of the processes', async () => {
  const { acquire } = makePool({ maxProcesses: 4 });
  const mine = [1, 2, 3, 4].map((i) => acquire(1, `mine-${i}`));
  const leases = await Promise.all(mine.map((turn) => turn.promise));
  const more = [5, 6, 7].map((i) => acquire(1, `mine-${i}`));
  const theirs = [acquire(2, 'x'), acquire(3, 'y'), acquire(3, 'z')];
  const states = (): string[][] => [more, theirs].map((turns) => turns.map((turn) => turn.state));
  await settle();
  assert.deepEqual(states(), [['pending', 'pending', 'pending'], ['pending', 'pending', 'pending']]);
  for (const lease of leases.slice(0, 2)) lease.release();
  await settle();
  assert.deepEqual(states(), [['pending', 'pending', 'pending'], ['done', 'done', 'pending']]);
  // User 1 has one of four, and came first.
  leases[2]?.release();
  await settle();
  assert.deepEqual(states(), [['done', 'pending', 'pending'], ['done', 'done', 'pending']]);
  // Two are half of them: it comes last again.
  (await theirs[0]?.promise)?.release();
  await settle();
  assert.deepEqual(states(), [['done', 'pending', 'pending'], ['done', 'done', 'done']]);
});

test('one user cannot keep others out of the queue', async () => {
  const { acquire } = makePool({ maxProcesses: 1, queueLimit: 4 });
  await acquire(1, 'running').promise;
  const flood = Array.from({ length: 6 }, (_, i) => acquire(1, `flood-${i}`));
  const other = acquire(2, 'x');
  await settle();
  assert.deepEqual(flood.map((turn) => turn.state), ['pending', 'pending', 'pending', 'failed', 'failed', 'failed']);
  assert.deepEqual([other.state, codeOf(flood[3]?.error)], ['pending', 'busy']);
});

test('the counts say what the processes hold, what is left, and how many more fit', async () => {
  const { acquire, pool } = makePool({ ...usual, totalMib: 1000 });
  assert.deepEqual(pool.counts(), { running: 0, queued: 0, warm: 0, capacity: 3, memory: { held: 0, left: 1000 * mib } });
  (await acquire(1, 'a').promise).release();
  await acquire(1, 'b').promise;
  // 736 without the reserve, in parts of the 160 that were learnt.
  assert.deepEqual(pool.counts(), { running: 1, queued: 0, warm: 1, capacity: 6, memory: { held: 200 * mib, left: 800 * mib } });
});
