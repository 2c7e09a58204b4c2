import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Problem } from '../../../src/problem.ts';
import { codeOf, FakeWorker, makePool, settle, watch } from '../../fake-pool.ts';

test("a session's next turn gets its own warm process, another user's does not", async () => {
  const { begin, acquire, workers } = makePool();
  const sessionId = await begin(1);
  const again = await acquire(1, sessionId).promise;
  assert.deepEqual([again.origin, again.worker, again.sessionId], ['warm', workers[0], sessionId]);
  again.release();
  const other = await acquire(2, 'b').promise;
  assert.equal(other.origin, 'cold');
  assert.deepEqual([other.worker.userId, other.worker.sessionId], [2, 'b']);
});

test('turns beyond the capacity wait, and get their places in the order they came', async () => {
  const { acquire, mostAlive, pool } = makePool({ warmMs: 0 });
  const turns = Array.from({ length: 6 }, (_, i) => acquire(i + 1));
  const done: number[] = [];
  turns.forEach((turn, i) => void turn.promise.then(() => done.push(i)));
  for (let i = 0; i < turns.length; i += 1) {
    await settle();
    assert.deepEqual(pool.counts(), { running: Math.min(2, 6 - i), queued: Math.max(0, 4 - i), warm: 0, capacity: 2, memory: { held: 0, left: Infinity } });
    (await turns[i]?.promise)?.release();
  }
  assert.deepEqual(done, [0, 1, 2, 3, 4, 5]);
  assert.equal(mostAlive(), 2);
});

test('two turns of one session run one after the other, in the same process', async () => {
  const { acquire, begin, workers } = makePool();
  const sessionId = await begin(1);
  const first = acquire(1, sessionId);
  const second = acquire(1, sessionId);
  const lease = await first.promise;
  await settle();
  assert.equal(second.state, 'pending');
  lease.release();
  assert.equal((await second.promise).worker, workers[0]);
});

test('a turn that must wait for its session lets others pass', async () => {
  const { acquire } = makePool();
  const running = await acquire(1, 'a').promise;
  const waiting = acquire(1, 'a');
  const other = acquire(2, 'b');
  await settle();
  assert.deepEqual([waiting.state, other.state], ['pending', 'done']);
  running.release();
  await waiting.promise;
});

test('a new dialogue is busy from its start, before anything of it is on disk', async () => {
  const { acquire } = makePool({ hasSession: () => false });
  const first = await acquire(1).promise;
  const second = acquire(1, first.sessionId);
  await settle();
  assert.equal(second.state, 'pending');
  first.release();
  assert.equal((await second.promise).origin, 'warm');
});

test('the longest idle process gives way', async () => {
  const { acquire, workers } = makePool();
  for (const id of ['a', 'b']) (await acquire(1, id).promise).release();
  (await acquire(1, 'a').promise).release();
  await acquire(1, 'c').promise;
  assert.deepEqual(workers.map((worker) => [worker.sessionId, worker.isAlive]), [['a', true], ['b', false], ['c', true]]);
});

test('a process starts in the place of another only when that one is gone', async () => {
  const { acquire, workers, mostAlive } = makePool({ maxProcesses: 1, diesWhenStopped: false });
  (await acquire(1, 'a').promise).release();
  const next = acquire(2, 'b');
  await settle();
  assert.deepEqual([next.state, workers.length, workers[0]?.isStopAsked], ['pending', 1, true]);
  workers[0]?.die();
  assert.equal((await next.promise).worker, workers[1]);
  assert.equal(mostAlive(), 1);
});

test('a session resumed while its warm process is being evicted waits for the end of it', async () => {
  const { acquire, workers } = makePool({ maxProcesses: 2, diesWhenStopped: false });
  (await acquire(1, 'a').promise).release();
  const other = await acquire(2, 'b').promise;
  const evicting = acquire(3, 'c');
  await settle();
  other.release();
  const resumed = acquire(1, 'a');
  await settle();
  // b's place could be had, but a's process still writes its transcript.
  assert.deepEqual([evicting.state, resumed.state], ['pending', 'pending']);
  workers[0]?.die();
  (await evicting.promise).release();
  await settle();
  workers[1]?.die();
  assert.equal((await resumed.promise).worker.sessionId, 'a');
});

test('simultaneous first turns of one user share the spare fairly: one has it, the other starts cold', async () => {
  const { acquire, begin, workers } = makePool({ maxProcesses: 4 });
  await begin(1);
  assert.equal(workers.length, 2, 'a spare was started');
  const [first, second] = await Promise.all([acquire(1).promise, acquire(1).promise]);
  assert.deepEqual([first.origin, second.origin], ['spare', 'cold']);
  assert.notEqual(first.worker, second.worker);
});

test('the spare is for the user who last began a dialogue, and nobody else gets it', async () => {
  const { acquire, begin, workers, pool } = makePool({ maxProcesses: 4 });
  await begin(1);
  assert.equal(workers[1]?.userId, 1);
  const other = await acquire(2).promise;
  assert.equal(other.origin, 'cold');
  other.release();
  await settle();
  assert.deepEqual([workers[1]?.isAlive, workers.at(-1)?.userId, workers.length], [false, 2, 4]);
  assert.equal(pool.counts().warm, 3);
});

test('the spare gives way before any warm dialogue', async () => {
  const { acquire, begin, workers } = makePool({ maxProcesses: 2 });
  await begin(1);
  await acquire(2, 'b').promise;
  assert.deepEqual(workers.map((worker) => worker.isAlive), [true, false, true]);
});

test('without room to spare there is no spare', async () => {
  const { begin, workers } = makePool({ maxProcesses: 1 });
  await begin(1);
  assert.equal(workers.length, 1);
});

test('a first turn that went wrong brings no spare', async () => {
  const { acquire, workers } = makePool({ maxProcesses: 4 });
  const lease = await acquire(1).promise;
  lease.worker.isReusable = false;
  lease.release();
  await settle();
  assert.equal(workers.length, 1);
});

test('a spare that dies is not put up again and again', async () => {
  const { begin, workers } = makePool();
  await begin(1);
  workers[1]?.die();
  await settle();
  assert.equal(workers.length, 2);
});

test('a spare that cannot be started is given up, and its place is free', async () => {
  let starts = 0;
  const { begin, pool } = makePool({
    start: async (session) => {
      starts += 1;
      if (starts === 2) throw new Problem('claude_not_found', 'gone');
      const worker = new FakeWorker(session, true);
      worker.markStarted();
      return worker;
    },
  });
  await begin(1);
  assert.deepEqual([starts, pool.counts().warm, pool.counts().running], [2, 1, 0]);
});

test('a process that dies while idle frees its place, and its session starts anew', async () => {
  const { acquire, workers, pool } = makePool();
  (await acquire(1, 'a').promise).release();
  workers[0]?.die();
  await settle();
  assert.equal(pool.counts().warm, 0);
  const lease = await acquire(1, 'a').promise;
  assert.deepEqual([lease.origin, lease.worker], ['cold', workers[1]]);
});

test('a process that dies at the moment of hand-over is replaced in its place, and the session stays its own', async () => {
  const { acquire, workers, pool } = makePool({ maxProcesses: 1 });
  (await acquire(1, 'a').promise).release();
  const lease = await acquire(1, 'a').promise;
  const next = acquire(1, 'a');
  workers[0]?.die();
  await lease.renew();
  assert.equal(lease.worker, workers[1]);
  assert.deepEqual([next.state, pool.counts().running], ['pending', 1]);
  lease.release();
  assert.equal((await next.promise).worker, workers[1]);
});

test('a process that became unfit while idle is replaced before the turn', async () => {
  const { acquire, workers, mostAlive } = makePool({ maxProcesses: 1 });
  const first = await acquire(1, 'a').promise;
  first.release();
  first.worker.isReusable = false;
  const lease = await acquire(1, 'a').promise;
  assert.deepEqual([lease.origin, lease.worker, mostAlive()], ['cold', workers[1], 1]);
});

test('a pool closed while the spare starts ends it too', async () => {
  let spareMayStart = (): void => {};
  const spareStart = new Promise<void>((resolve) => (spareMayStart = resolve));
  const started: FakeWorker[] = [];
  const { begin, pool } = makePool({
    start: async (session) => {
      if (started.length === 1) await spareStart;
      const worker = new FakeWorker(session, true);
      worker.markStarted();
      started.push(worker);
      return worker;
    },
  });
  await begin(1);
  const closed = watch(pool.close());
  spareMayStart();
  await settle();
  assert.deepEqual([closed.state, started.map((worker) => worker.isAlive)], ['done', [false, false]]);
});

test('a turn aborted while it waits leaves the queue with the reason of the signal', async () => {
  const { acquire, pool } = makePool({ maxProcesses: 1 });
  await acquire(1, 'a').promise;
  const caller = new AbortController();
  const waiting = acquire(2, 'b', caller.signal);
  const next = acquire(3, 'c');
  assert.equal(pool.counts().queued, 2);
  caller.abort(new Problem('request_timeout', 'gone'));
  await settle();
  assert.deepEqual([waiting.state, codeOf(waiting.error), next.state, pool.counts().queued], ['failed', 'request_timeout', 'pending', 1]);
});

test('a caller already gone gets no place', async () => {
  const { acquire, workers } = makePool();
  const turn = acquire(1, 'a', AbortSignal.abort(new Problem('request_timeout', 'gone')));
  await settle();
  assert.deepEqual([turn.state, workers.length], ['failed', 0]);
});

test('a full queue refuses at once, with the time to come back', async () => {
  const { acquire } = makePool({ maxProcesses: 1, queueLimit: 2 });
  await acquire(1).promise;
  const waiting = [acquire(2), acquire(3)];
  const refused = acquire(4);
  await settle();
  assert.deepEqual([...waiting, refused].map((turn) => turn.state), ['pending', 'pending', 'failed']);
  assert.ok(refused.error instanceof Problem && refused.error.code === 'busy' && Number(refused.error.extras.retryAfterSeconds) > 0);
});

test('with no queue at all a free place is still given', async () => {
  const { acquire } = makePool({ queueLimit: 0, maxProcesses: 1 });
  (await acquire(1, 'a').promise).release();
  await acquire(2, 'b').promise;
});

test('a turn that waited too long is refused', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const { acquire, pool } = makePool({ maxProcesses: 1, queueTimeoutMs: 5000 });
  await acquire(1, 'a').promise;
  const waiting = acquire(2, 'b');
  t.mock.timers.tick(4999);
  await settle();
  assert.equal(waiting.state, 'pending');
  t.mock.timers.tick(1);
  await settle();
  assert.deepEqual([codeOf(waiting.error), pool.counts().queued], ['busy', 0]);
});

test('an idle process is kept for its time, and not longer', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const { begin, workers, pool } = makePool({ warmMs: 5000 });
  await begin(1);
  t.mock.timers.tick(4999);
  assert.deepEqual(workers.map((worker) => worker.isAlive), [true, true]);
  t.mock.timers.tick(1);
  await settle();
  assert.deepEqual([workers.map((worker) => worker.isAlive), pool.counts().warm], [[false, false], 0]);
  assert.equal(workers.length, 2, 'the spare does not come back by itself');
});

test('the time of idleness starts anew with every turn', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const { acquire, workers } = makePool({ warmMs: 5000 });
  (await acquire(1, 'a').promise).release();
  t.mock.timers.tick(4000);
  const lease = await acquire(1, 'a').promise;
  t.mock.timers.tick(60_000);
  lease.release();
  t.mock.timers.tick(4999);
  await settle();
  assert.deepEqual(workers.map((worker) => worker.isAlive), [true]);
});

test('without a time to be warm every process ends with its turn', async () => {
  const { begin, workers, pool } = makePool({ warmMs: 0 });
  await begin(1);
  assert.deepEqual([workers.map((worker) => worker.isAlive), pool.counts().running], [[false], 0]);
});

test('a process that is not fit is stopped, and its session waits until it is gone', async () => {
  const { acquire, workers, pool } = makePool({ diesWhenStopped: false });
  const lease = await acquire(1, 'a').promise;
  lease.worker.isReusable = false;
  lease.release();
  const next = acquire(1, 'a');
  await settle();
  assert.deepEqual([next.state, pool.counts().running], ['pending', 0]);
  workers[0]?.die();
  assert.equal((await next.promise).worker, workers[1]);
});

test('a place is freed exactly once, however often it is released', async () => {
  const { acquire, pool } = makePool({ maxProcesses: 1, warmMs: 0 });
  const first = await acquire(1, 'a').promise;
  const second = acquire(2, 'b');
  const third = acquire(3, 'c');
  first.release();
  first.release();
  await second.promise;
  first.release();
  await settle();
  assert.deepEqual([third.state, pool.counts().running], ['pending', 1]);
});

test('a process is retired after enough turns, and when it has grown too large', async () => {
  const { acquire, workers } = makePool();
  for (let turn = 0; turn < 100; turn += 1) (await acquire(1, 'a').promise).release();
  await settle();
  assert.deepEqual(workers.map((worker) => worker.isAlive), [false]);
  const lease = await acquire(1, 'a').promise;
  lease.worker.bytes = 500 * 1024 * 1024;
  lease.release();
  await settle();
  assert.deepEqual(workers.map((worker) => worker.isAlive), [false, false]);
});

test('after a failed login no process from before serves again', async () => {
  const { acquire, pool, workers } = makePool({ maxProcesses: 3 });
  (await acquire(1, 'idle').promise).release();
  const running = await acquire(1, 'running').promise;
  pool.retireAll();
  await settle();
  assert.deepEqual(workers.map((worker) => worker.isAlive), [false, true]);
  running.release();
  await settle();
  assert.deepEqual(workers.map((worker) => worker.isAlive), [false, false]);
  (await acquire(1, 'new').promise).release();
  assert.equal((await acquire(1, 'new').promise).origin, 'warm');
});

test('a start that fails is the turn\'s own failure: its place is free for the next', async () => {
  const { acquire, pool } = makePool({
    maxProcesses: 1,
    start: async (session) => {
      if (session.userId === 1) throw new Problem('claude_not_found', 'gone');
      return new FakeWorker(session, true);
    },
  });
  const failing = acquire(1);
  const next = acquire(2);
  await settle();
  assert.equal(codeOf(failing.error), 'claude_not_found');
  await next.promise;
  assert.deepEqual(pool.counts(), { running: 1, queued: 0, warm: 0, capacity: 1, memory: { held: 0, left: Infinity } });
});

test('only so many processes start at once', async () => {
  const { acquire, workers } = makePool({ maxProcesses: 4, maxStarts: 2, startsAtOnce: false });
  const turns = [acquire(1), acquire(2), acquire(3)];
  await settle();
  assert.deepEqual(turns.map((turn) => turn.state), ['done', 'done', 'pending']);
  workers[0]?.markStarted();
  await settle();
  assert.equal(turns[2]?.state, 'done');
});

test('a process that hangs at its start keeps others from starting for ten seconds only', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const { acquire, workers } = makePool({ maxProcesses: 3, queueTimeoutMs: 60_000, maxStarts: 1, startsAtOnce: false });
  const turns = [acquire(1), acquire(2), acquire(3)];
  await settle();
  t.mock.timers.tick(9_999);
  await settle();
  assert.deepEqual(turns.map((turn) => turn.state), ['done', 'pending', 'pending']);
  t.mock.timers.tick(1);
  await settle();
  assert.deepEqual(turns.map((turn) => turn.state), ['done', 'done', 'pending']);
  // The late end of its start is not taken for the second one's.
  workers[0]?.markStarted();
  await settle();
  assert.deepEqual(turns.map((turn) => turn.state), ['done', 'done', 'pending']);
});

test('as many idle processes give way as turns need a new one, and no more', async () => {
  const { acquire, workers } = makePool({ maxProcesses: 3, diesWhenStopped: false });
  for (const sessionId of ['a', 'b', 'c']) (await acquire(1, sessionId).promise).release();
  const turns = [acquire(2, 'd'), acquire(3, 'e')];
  await settle();
  assert.deepEqual(workers.map((worker) => worker.isStopAsked), [true, true, false]);
  // Another look at the queue asks nobody else to go.
  const own = acquire(1, 'c');
  await settle();
  assert.deepEqual([own.state, ...turns.map((turn) => turn.state)], ['done', 'pending', 'pending']);
  assert.deepEqual(workers.map((worker) => worker.isStopAsked), [true, true, false]);
  workers[1]?.die();
  await settle();
  assert.deepEqual(turns.map((turn) => turn.state), ['done', 'pending'], 'the first room is for the first turn');
});

test('a caller who hangs up while a process gives way gets none started', async () => {
  const { acquire, workers } = makePool({ maxProcesses: 1, diesWhenStopped: false });
  (await acquire(1, 'a').promise).release();
  const caller = new AbortController();
  const turn = acquire(2, 'b', caller.signal);
  await settle();
  caller.abort(new Problem('request_timeout', 'gone'));
  workers[0]?.die();
  await settle();
  assert.deepEqual([turn.state, codeOf(turn.error), workers.length], ['failed', 'request_timeout', 1]);
});

test('an unknown session is a problem of its own turn, and no idle process gives way for it', async () => {
  const asked: string[] = [];
  const { acquire, workers } = makePool({ maxProcesses: 1, hasSession: (userId, sessionId) => {
    asked.push(`${userId}/${sessionId}`);
    return sessionId !== 'unknown';
  } });
  (await acquire(1, 'a').promise).release();
  const unknown = acquire(2, 'unknown');
  await settle();
  assert.deepEqual([unknown.state, codeOf(unknown.error), workers.map((worker) => worker.isAlive)], ['failed', 'session_not_found', [true]]);
  assert.deepEqual(asked, ['1/a', '2/unknown']);
  assert.equal((await acquire(1, 'a').promise).origin, 'warm');
  assert.deepEqual(asked, ['1/a', '2/unknown'], 'what is live is not looked up');
});

test('a session that cannot be looked up is the trouble of its own turn', async () => {
  const { acquire } = makePool({ hasSession: () => {
    throw new Problem('storage_unavailable', 'no disk');
  } });
  const turn = acquire(1, 'a');
  const fresh = acquire(1);
  await settle();
  assert.deepEqual([codeOf(turn.error), fresh.state], ['storage_unavailable', 'done']);
});

test('one id under two users is two sessions', async () => {
  const { acquire, pool, workers } = makePool({ maxProcesses: 3 });
  const first = await acquire(1, 'a').promise;
  const planted = await acquire(2, 'a').promise;
  assert.notEqual(first.worker, planted.worker);
  planted.worker.isReusable = false;
  planted.release();
  await settle();
  assert.deepEqual(workers.map((worker) => worker.isAlive), [true, false]);
  first.release();
  await settle();
  assert.deepEqual([(await acquire(1, 'a').promise).origin, pool.counts().running], ['warm', 1]);
});

test('the server chooses the id of a new dialogue before its process starts, the spare too', async () => {
  const { acquire, begin, workers } = makePool({ maxProcesses: 4 });
  const sessionId = await begin(1);
  const spare = await acquire(1).promise;
  assert.deepEqual(workers.map((worker) => worker.isNew), [true, true]);
  assert.deepEqual([workers[0]?.sessionId, workers[1]?.sessionId], [sessionId, spare.sessionId]);
  assert.match(sessionId, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
  assert.notEqual(sessionId, spare.sessionId);
});

test('a dead spare is renewed as the new dialogue it was for, a dead dialogue by resuming', async () => {
  const { acquire, begin, workers } = makePool({ maxProcesses: 4 });
  await begin(1);
  const spare = await acquire(1).promise;
  workers[1]?.die();
  await spare.renew();
  assert.deepEqual([workers[2]?.sessionId, workers[2]?.isNew], [spare.sessionId, true]);
  spare.release();
  await settle();
  const again = await acquire(1, spare.sessionId).promise;
  workers[2]?.die();
  await again.renew();
  assert.deepEqual([again.worker.sessionId, again.worker.isNew], [spare.sessionId, false]);
});

test('unfit processes are replaced no more at once than others start', async () => {
  const { acquire, pool, workers } = makePool({ maxProcesses: 3, maxStarts: 1, startsAtOnce: false });
  for (const [i, sessionId] of ['a', 'b', 'c'].entries()) {
    const lease = acquire(i + 1, sessionId);
    workers.forEach((worker) => worker.markStarted());
    await settle();
    (await lease.promise).release();
    workers.forEach((worker) => worker.markStarted());
    await settle();
  }
  assert.equal(pool.counts().warm, 3);
  workers.forEach((worker) => (worker.isReusable = false));
  const turns = ['a', 'b', 'c'].map((sessionId, i) => acquire(i + 1, sessionId));
  await settle();
  assert.deepEqual(turns.map((turn) => turn.state), ['done', 'pending', 'pending']);
});

test('of the turns of one session only the first has a place', async () => {
  const { acquire } = makePool({ maxProcesses: 9, queueLimit: 0, maxStarts: 1, startsAtOnce: false });
  const turns = [acquire(1), ...Array.from({ length: 5 }, () => acquire(2, 'y'))];
  await settle();
  assert.deepEqual(turns.map((turn) => turn.state), ['done', 'pending', 'failed', 'failed', 'failed', 'failed']);
});

test('a turn that waits only for others to start is none of the queue', async () => {
  const { acquire, workers } = makePool({ maxProcesses: 3, queueLimit: 0, maxStarts: 1, startsAtOnce: false });
  const turns = [acquire(1, 'a'), acquire(2), acquire(3), acquire(4), acquire(1, 'a')];
  await settle();
  assert.deepEqual(turns.map((turn) => turn.state), ['done', 'pending', 'pending', 'failed', 'failed']);
  for (const i of [0, 1]) {
    workers[i]?.markStarted();
    await settle();
  }
  assert.deepEqual(turns.map((turn) => turn.state), ['done', 'done', 'done', 'failed', 'failed']);
});

test('closing turns away whoever waits or comes, ends the idle, and waits for the running', async () => {
  const { acquire, pool, workers } = makePool({ maxProcesses: 2 });
  const running = await acquire(1, 'a').promise;
  (await acquire(2, 'b').promise).release();
  const blocked = acquire(1, 'a');
  const closed = watch(pool.close());
  const late = acquire(3, 'c');
  await settle();
  assert.deepEqual([codeOf(blocked.error), codeOf(late.error), closed.state], ['shutting_down', 'shutting_down', 'pending']);
  assert.deepEqual(workers.map((worker) => worker.isAlive), [true, false]);
  running.release();
  await closed.promise;
  assert.deepEqual(workers.map((worker) => worker.isAlive), [false, false]);
});

test('closing an empty pool is done at once', async () => {
  await makePool().pool.close();
});
