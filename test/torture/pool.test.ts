import assert from 'node:assert/strict';
import { setImmediate as tick } from 'node:timers/promises';
import { test } from 'node:test';
import type { StartSession } from '../../src/claude.ts';
import { Problem } from '../../src/problem.ts';
import { Pool, type Lease } from '../../src/turns/pool.ts';
import { codeOf, FakeWorker, mib } from '../fake-pool.ts';
import { amount, randomOf } from '../random.ts';

const totalMib = 1400;
const maxProcesses = 9;
const queueLimit = 12;
const users = 5;
// What every start takes, so that what was learnt is what comes.
const peakMib = 160;
const reserveMib = 64;

/** A turn that was asked for. */
interface Turn {
  readonly number: number;
  readonly userId: number;
  readonly sessionId: string | undefined;
  readonly caller: AbortController;
  state: 'waiting' | 'running' | 'over';
  lease: Lease<FakeWorker> | undefined;
}

/** A pool on an imagined machine, and all that can be seen of it from outside. */
class World {
  readonly workers = new Set<FakeWorker>();
  readonly starting = new Set<FakeWorker>();
  readonly stopping = new Set<FakeWorker>();
  /** Those that were lent to a turn at some time; the others are spares. */
  readonly lent = new Set<FakeWorker>();
  readonly turns = new Set<Turn>();
  readonly sessions: { userId: number; sessionId: string }[] = [];
  readonly pool: Pool<FakeWorker>;
  readonly tally: Record<string, number> = {};
  hogMib = 0;
  turnsAsked = 0;
  /** Who ended the first turn of a dialogue, with a process fit for more. */
  readonly beginners = new Set<number>();
  problems: string[] = [];

  constructor() {
    this.pool = new Pool<FakeWorker>({
      start: async (session) => this.#start(session),
      hasSession: () => true,
      memory: { leftBytes: () => this.leftMib * mib },
      maxProcesses,
      queueLimit,
      queueTimeoutMs: 3_600_000,
      warmMs: 3_600_000,
      maxStarts: 3,
    });
  }

  get leftMib(): number {
    return totalMib - this.hogMib - [...this.workers].reduce((sum, worker) => sum + worker.bytes / mib, 0);
  }

  #start(session: StartSession): FakeWorker {
    const promised = [...this.starting].reduce((sum, worker) => sum + peakMib - worker.bytes / mib, 0);
    const others = [...this.workers].filter((worker) => !this.stopping.has(worker));
    const needed = others.length === 0 ? 150 : peakMib + reserveMib + (this.starting.size > 0 ? 400 : 0);
    if (this.leftMib - promised < needed) this.problems.push(`a start that does not fit: ${this.leftMib} left, ${promised} promised, ${needed} needed, ${JSON.stringify(this.pool.counts())} ${this.workers.size} ${this.starting.size} ${this.stopping.size}`);
    if (this.workers.size >= maxProcesses) this.problems.push('a process too many');
    if (this.starting.size >= 3) this.problems.push('a start too many');
    if ([...this.workers].some((worker) => worker.userId === session.userId && worker.sessionId === session.sessionId)) this.problems.push('two processes of one session');
    const worker = new FakeWorker(session, false);
    Object.assign(worker, { bytes: 40 * mib, peak: peakMib * mib });
    const stop = worker.stop.bind(worker);
    worker.stop = () => {
      if (worker.isAlive) this.stopping.add(worker);
      return stop();
    };
    this.workers.add(worker);
    this.starting.add(worker);
    this.#count('start');
    return worker;
  }

  /** It is up: its peak is over. */
  started(worker: FakeWorker, heldMib: number): void {
    this.starting.delete(worker);
    worker.bytes = heldMib * mib;
    worker.markStarted();
  }

  gone(worker: FakeWorker): void {
    for (const set of [this.workers, this.starting, this.stopping, this.lent]) set.delete(worker);
    worker.die();
    worker.markStarted();
  }

  ask(userId: number, sessionId: string | undefined): void {
    const turn: Turn = { number: this.turnsAsked, userId, sessionId, caller: new AbortController(), state: 'waiting', lease: undefined };
    this.turnsAsked += 1;
    this.turns.add(turn);
    this.pool.acquire(userId, sessionId, turn.caller.signal).then(
      (lease) => this.#granted(turn, lease),
      (error: unknown) => this.#over(turn, codeOf(error)),
    );
  }

  #granted(turn: Turn, lease: Lease<FakeWorker>): void {
    if (turn.state !== 'waiting') this.problems.push('a turn was granted twice');
    const others = [...this.turns].filter((other) => other !== turn && other.userId === turn.userId && other.sessionId === lease.sessionId);
    if (others.some((other) => other.state === 'running')) this.problems.push('two turns of one session run');
    if (others.some((other) => other.state === 'waiting' && other.number < turn.number)) this.problems.push('a later turn of a session ran first');
    if (lease.worker.userId !== turn.userId || (turn.sessionId !== undefined && lease.sessionId !== turn.sessionId)) this.problems.push('a process of somebody else');
    turn.state = 'running';
    turn.lease = lease;
    this.lent.add(lease.worker);
    if (turn.sessionId === undefined) this.sessions.push({ userId: turn.userId, sessionId: lease.sessionId });
    this.#count(lease.origin);
  }

  #over(turn: Turn, outcome: string): void {
    turn.state = 'over';
    this.turns.delete(turn);
    this.#count(outcome);
  }

  end(turn: Turn, isFit: boolean, heldMib: number): void {
    const { lease } = turn;
    if (lease === undefined) return;
    if (lease.worker.isAlive && !this.starting.has(lease.worker)) lease.worker.bytes = heldMib * mib;
    if (!isFit) lease.worker.isReusable = false;
    this.#over(turn, 'ended');
    const isFresh = turn.sessionId === undefined && lease.worker.isReusable && lease.worker.isAlive && lease.worker.bytes < 400 * mib;
    if (isFresh) this.beginners.add(turn.userId);
    lease.release();
    // Exactly once, however often it is said.
    lease.release();
  }

  of(state: Turn['state']): Turn[] {
    return [...this.turns].filter((turn) => turn.state === state);
  }

  #count(name: string): void {
    this.tally[name] = (this.tally[name] ?? 0) + 1;
  }

  /** What must hold whenever nothing is on its way. */
  check(): void {
    const { running, warm, queued } = this.pool.counts();
    const spares = [...this.workers].filter((worker) => !this.lent.has(worker) && !this.stopping.has(worker) && worker.isNew);
    assert.deepEqual(this.problems, []);
    assert.equal(queued, this.of('waiting').length, 'the queue is the turns that wait');
    assert.ok(spares.length <= 1, `${spares.length} spares`);
    assert.ok(spares.every(({ userId }) => this.beginners.has(userId)), 'the spare is for a user who began a dialogue');
    if (this.starting.size > 0 || this.stopping.size > 0) return;
    const died = this.of('running').filter(({ lease }) => lease?.worker.isAlive === false).length;
    assert.equal(running + warm, this.workers.size + died, 'each process has a slot, and each slot a process');
    assert.equal(running, this.of('running').length, 'each running turn has a slot');
    for (const turn of this.of('waiting')) this.#mustWait(turn, running, warm);
  }

  /** That no turn waits while it could go: another one of its session runs, or there is neither room nor an idle process. */
  #mustWait(turn: Turn, running: number, warm: number): void {
    const isBusy = this.of('running').some(({ userId, lease }) => userId === turn.userId && lease?.sessionId === turn.sessionId);
    if (isBusy || turn.sessionId === undefined ? isBusy : this.#earlierWaits(turn)) return;
    const idleBytes = [...this.workers].filter((worker) => this.#isIdle(worker)).reduce((sum, worker) => sum + worker.bytes / mib, 0);
    const needed = running === 0 ? 150 : peakMib + reserveMib;
    const couldFit = this.leftMib + idleBytes >= needed && running < maxProcesses;
    assert.ok(!couldFit, `turn ${turn.number} of user ${turn.userId} waits with ${this.leftMib} left, ${running} running, ${warm} idle with ${idleBytes}`);
  }

  #earlierWaits(turn: Turn): boolean {
    return this.of('waiting').some((other) => other.userId === turn.userId && other.sessionId === turn.sessionId && other.number < turn.number);
  }

  #isIdle(worker: FakeWorker): boolean {
    return this.of('running').every(({ lease }) => lease?.worker !== worker);
  }
}

async function settle(): Promise<void> {
  await tick();
  await tick();
}

const events = amount(100_000, 1_000_000);

test(`drawn at random: over ${events} events no start that does not fit, and no turn that waits while it could go`, async (t) => {
  t.mock.timers.enable({ apis: ['setInterval', 'setTimeout'] });
  const random = randomOf(t);
  const pick = <T>(items: readonly T[]): T | undefined => items[Math.floor(random() * items.length)];
  const world = new World();
  let rush = 0;
  // One thing at a time, each by its weight; the rush of callers changes, so that there is calm for spares too.
  const happenings: readonly (readonly [weight: () => number, () => void])[] = [
    [() => rush, () => {
      const known = random() < 0.6 ? pick(world.sessions.slice(-14)) : undefined;
      world.ask(known?.userId ?? 1 + Math.floor(random() ** 2 * users), known?.sessionId);
    }],
    [() => 6, () => {
      const turn = pick(world.of('running'));
      if (turn !== undefined) world.end(turn, random() < 0.9, random() < 0.05 ? 300 : 90 + 40 * random());
    }],
    [() => 6, () => {
      const worker = pick([...world.starting]);
      if (worker !== undefined) world.started(worker, 90 + 40 * random());
    }],
    [() => 6, () => {
      const worker = pick([...world.stopping]);
      if (worker !== undefined) world.gone(worker);
    }],
    [() => 0.3, () => {
      const worker = pick([...world.workers]);
      if (worker !== undefined) world.gone(worker);
    }],
    [() => 0.5, () => pick(world.of('waiting'))?.caller.abort(new Problem('request_timeout', 'gone'))],
    [() => 0.2, () => (world.hogMib = Math.floor(random() * 1300))],
    [() => 0.5, () => (world.hogMib = 0)],
    [() => 3, () => t.mock.timers.tick(100)],
  ];
  for (let i = 0; i < events; i += 1) {
    if (i % 300 === 0) rush = 1 + 7 * random();
    let luck = random() * happenings.reduce((sum, [weight]) => sum + weight(), 0);
    happenings.find(([weight]) => (luck -= weight()) < 0)?.[1]();
    await settle();
    if (i % 4 !== 0) continue;
    // The pool looks at memory that came back by itself only now and then.
    t.mock.timers.tick(100);
    await settle();
    world.check();
  }
  t.diagnostic(`${JSON.stringify(world.tally)}`);

  // All ends well: everybody is served, and nothing is left.
  world.hogMib = 0;
  for (let i = 0; i < 2000 && world.turns.size + world.starting.size + world.stopping.size > 0; i += 1) {
    for (const worker of [...world.starting]) world.started(worker, 100);
    for (const worker of [...world.stopping]) world.gone(worker);
    for (const turn of world.of('running')) world.end(turn, true, 100);
    t.mock.timers.tick(100);
    await settle();
  }
  world.check();
  assert.equal(world.turns.size, 0);
});

test('decisions take microseconds, also with 1,000 processes and 10,000 waiting turns', async (t) => {
  let reads = 0;
  const pool = new Pool<FakeWorker>({
    start: async (session) => {
      const worker = new FakeWorker(session, true);
      worker.markStarted();
      return worker;
    },
    hasSession: () => true,
    memory: { leftBytes: () => (reads += 1) && Infinity },
    maxProcesses: 1000,
    queueLimit: 20_000,
    queueTimeoutMs: 60_000,
    warmMs: 60_000,
    maxStarts: 2000,
  });
  t.after(async () => {
    const closed = pool.close();
    for (const lease of leases) lease.release();
    await closed;
  });
  const leases: Lease<FakeWorker>[] = [];
  const ask = (userId: number, sessionId?: string): void => void pool.acquire(userId, sessionId, new AbortController().signal).then((lease) => leases.push(lease), () => {});
  for (let i = 0; i < 1000; i += 1) ask(i, `s${i}`);
  await tick();
  for (let i = 0; i < 10_000; i += 1) ask(i % 1300, i % 3 === 0 ? `s${i % 1300}` : undefined);
  await tick();
  assert.deepEqual([pool.counts().running, pool.counts().queued], [1000, 10_000]);

  const [batches, steps] = [10, 300];
  reads = 0;
  const tookMs = Array.from({ length: batches }, () => 0);
  for (let i = 0; i < batches * steps; i += 1) {
    const lease = leases.shift() ?? assert.fail('nobody runs');
    const startedAt = performance.now();
    lease.release();
    ask(i % 1300, i % 2 === 0 ? `s${i % 1300}` : undefined);
    await tick();
    tookMs[Math.floor(i / steps)] = (tookMs[Math.floor(i / steps)] ?? 0) + performance.now() - startedAt;
  }
  // Of the quickest batch: this machine may be busy in all others.
  const stepUs = (1000 * Math.min(...tookMs)) / steps;
  t.diagnostic(`an end, a decision, a start and another turn: ${stepUs.toFixed(0)} µs; memory was read ${(reads / batches / steps).toFixed(1)} times in it`);
  assert.equal(pool.counts().running + pool.counts().warm, 1000);
  // A look at all of them takes some hundred.
  assert.ok(stepUs < 1000, `${stepUs} µs`);
});
