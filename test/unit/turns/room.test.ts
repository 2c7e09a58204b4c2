import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Room, StartPeak, victims, type RoomView } from '../../../src/turns/room.ts';

const mib = 1024 * 1024;

/** A machine with one process that runs, a start of 200 MiB, and so much left. */
function room(leftMib: number, view: Partial<RoomView> = {}): Room {
  const usual = { promisedBytes: 0, comingBytes: 0, idleBytes: 0, peakBytes: 200 * mib, starting: 0, stopping: 0, idle: 0, processes: 1, maxProcesses: Infinity };
  return new Room({ ...usual, leftBytes: leftMib * mib, ...view });
}

test('a start is taken for 300 MiB until one was seen, then for the median of the last twenty', () => {
  const peak = new StartPeak();
  assert.equal(peak.bytes, 300 * mib);
  peak.note(170 * mib);
  assert.equal(peak.bytes, 170 * mib);
  for (const size of [500, 180, 160, 590]) peak.note(size * mib);
  assert.equal(peak.bytes, 180 * mib);
  for (let i = 0; i < 20; i += 1) peak.note(200 * mib);
  assert.equal(peak.bytes, 200 * mib);
  for (let i = 0; i < 9; i += 1) peak.note(599 * mib);
  assert.equal(peak.bytes, 200 * mib, 'the minority teaches nothing');
});

test('what a start takes is held within 150 and 600 MiB, and one that has gone teaches nothing', () => {
  const [low, high] = [new StartPeak(), new StartPeak()];
  low.note(3 * mib);
  high.note(5000 * mib);
  low.note(0);
  assert.deepEqual([low.bytes, high.bytes], [150 * mib, 600 * mib]);
});

test('a start fits while what is left covers its peak and a reserve of 64 MiB', () => {
  assert.deepEqual([room(263).fits, room(264).fits], [false, true]);
  assert.deepEqual([room(264 + 10, { promisedBytes: 11 * mib }).fits, room(264 + 10, { promisedBytes: 10 * mib }).fits], [false, true]);
});

test('beside another start there must be 400 MiB more, so that the program stays in memory', () => {
  const side = { starting: 1, processes: 2 };
  assert.deepEqual([room(663, side).fits, room(664, side).fits], [false, true]);
  assert.deepEqual([room(263, side).waitsForStart, room(264, side).waitsForStart, room(664, side).waitsForStart], [false, true, false]);
});

test('where there is no other process a start fits that can succeed at all', () => {
  assert.deepEqual([room(149, { processes: 0 }).fits, room(150, { processes: 0 }).fits], [false, true]);
  assert.deepEqual([room(149, { processes: 2, stopping: 2 }).fits, room(150, { processes: 2, stopping: 2 }).fits], [false, true]);
});

test('no start fits beyond the number of processes there may be', () => {
  assert.equal(room(9999, { processes: 3, maxProcesses: 3 }).fits, false);
  assert.equal(room(9999, { processes: 3, maxProcesses: 4 }).fits, true);
});

test('room that is given is gone for the next', () => {
  const some = room(64 + 850);
  assert.equal(some.count, 4);
  some.take();
  assert.deepEqual([some.count, some.fits], [3, true]);
  some.take();
  assert.deepEqual([some.count, some.fits, some.waitsForStart], [2, false, true]);
});

test('what stopping processes give back is for the first who wait, once', () => {
  const some = room(64 + 150, { comingBytes: 260 * mib, stopping: 2, processes: 5, maxProcesses: 5 });
  assert.deepEqual([some.fits, some.takeComing(), some.takeComing(), some.takeComing()], [false, true, true, false]);
});

test('idle processes are asked to go only where that is enough', () => {
  const idle = { idle: 2, idleBytes: 150 * mib, processes: 3 };
  assert.deepEqual([room(64 + 49, idle).canBeMade, room(64 + 50, idle).canBeMade], [false, true]);
  assert.equal(room(64 + 500, { maxProcesses: 1 }).canBeMade, false, 'nobody is idle');
  // With all of them gone a start would be alone.
  assert.equal(room(10, { ...idle, processes: 2 }).canBeMade, true);
});

test('only as many give way as are needed', () => {
  const slots = [100, 50, 200].map((size) => ({ heldBytes: size * mib }));
  assert.deepEqual(victims(slots, 0), []);
  assert.deepEqual(victims(slots, -5), []);
  assert.deepEqual(victims(slots, 100 * mib), slots.slice(0, 1));
  assert.deepEqual(victims(slots, 101 * mib), slots.slice(0, 2));
  assert.deepEqual(victims(slots, 9000 * mib), slots);
});
