import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { amount, isTorture, randomOf } from '../random.ts';
import { Crowd } from './crowd.ts';
import { Front, Machine, noMoves } from './front.ts';

const crowdedBucket = 17;

/** Users at random, 64 of whom share no bucket but these: so many are in one. */
function someUsers(count: number, inOneBucket: number, random: () => number): number[] {
  const crowded = Array.from({ length: inOneBucket }, (_, i) => crowdedBucket + 64 * i);
  const users = new Set(crowded);
  while (users.size < count) {
    const userId = 1 + Math.floor(random() * 1e12);
    if (userId % 64 !== crowdedBucket) users.add(userId);
  }
  return [...users];
}

class Stage {
  readonly front: Front;
  readonly machines: Machine[];
  readonly crowd: Crowd;
  readonly random: () => number;

  constructor(front: Front, machines: Machine[], crowd: Crowd, random: () => number) {
    [this.front, this.machines, this.crowd, this.random] = [front, machines, crowd, random];
  }

  /** Does something under load. Who was refused meanwhile must be one of those concerned; a lost connection is only where one may be. */
  async whoNotices(act: () => Promise<unknown>, isConcerned: (userId: number, before: string[], after: string[]) => boolean, mayBeGone = false): Promise<string> {
    const before = await this.front.buckets();
    const turns = this.crowd.turns;
    await act();
    await this.crowd.talked(10);
    const after = await this.front.buckets();
    const losses = this.crowd.losses.splice(0);
    for (const { userId, kind } of losses) {
      assert.ok(kind === 'gone' ? mayBeGone : isConcerned(userId, before, after), `user ${userId} was not concerned: ${kind}`);
    }
    const counts = ['busy', 'shutting_down', 'gone'].map((kind) => `${losses.filter((loss) => loss.kind === kind).length} ${kind}`);
    return `${this.crowd.turns - turns} answers, ${counts.join(', ')}`;
  }

  /** Everybody's dialogue is whole, and on their bucket's machine alone. */
  async check(): Promise<void> {
    await this.crowd.checkHistories();
    const buckets = await this.front.buckets();
    for (const machine of this.machines) {
      for (const userId of await machine.users()) assert.equal(buckets[userId % 64], machine.name, `user ${userId} has a folder on ${machine.name}`);
    }
  }
}

async function startStage(t: TestContext, count: number): Promise<Stage> {
  const random = randomOf(t);
  const machines = await Promise.all(Array.from({ length: count }, (_, i) => Machine.start(t, i + 1, {})));
  // In the short test the last two have hardly anything to give or to take.
  const short = (bucket: number): number => (bucket === 0 ? 2 : bucket < 16 ? 3 : bucket % 2);
  const machineOf = (bucket: number): Machine | undefined => machines[isTorture || count < 4 ? bucket % 3 : short(bucket)];
  const front = await Front.start(t, machines.slice(0, isTorture ? 3 : count), machineOf);
  const crowd = new Crowd(front.url, someUsers(amount(60, 300), amount(6, 20), random), random);
  t.after(() => crowd.stop().catch(() => {}));
  crowd.begin(amount(3, 24));
  return new Stage(front, machines, crowd, random);
}

test('machines and HAProxy are killed and drained, and buckets move, while everybody talks', { skip: noMoves }, async (t) => {
  const stage = await startStage(t, 4);
  const { front, machines, crowd } = stage;
  const named = (name: string | undefined): Machine => machines.find((machine) => machine.name === name) ?? assert.fail(String(name));
  await stage.whoNotices(() => crowd.talked(amount(60, 1000), 300_000), () => false);

  await t.test('a server that is killed and comes back', async (t) => {
    const victim = named((await front.buckets())[crowdedBucket]);
    const killed = async (): Promise<void> => {
      await victim.server.end('SIGKILL');
      await crowd.talked(amount(10, 100));
      await victim.restart();
      await front.isReady();
    };
    t.diagnostic(await stage.whoNotices(killed, (userId, before) => before[userId % 64] === victim.name, true));
  });

  await t.test('HAProxy, killed and started again', async (t) => {
    const killed = async (): Promise<void> => {
      await front.end('SIGKILL');
      await front.run();
    };
    t.diagnostic(await stage.whoNotices(killed, () => false, true));
  });

  await t.test('a machine that is drained for a while', async (t) => {
    const drained = async (): Promise<void> => {
      await front.command('@1 set server m2/m2 state drain');
      await crowd.talked(amount(10, 100));
      await front.command('@1 set server m2/m2 state ready');
    };
    t.diagnostic(await stage.whoNotices(drained, (userId, before) => before[userId % 64] === 'm2'));
  });

  await t.test('a bucket that moves, broken off by SIGKILL at each step and begun again', async (t) => {
    const steps = ['holding', 'now on', ...(isTorture ? ['copying 20 users', 'what has changed', 'putting aside'] : [])];
    for (const step of steps) {
      const target = (await front.buckets())[crowdedBucket] === 'm1' ? 'm2' : 'm1';
      const move = (): ReturnType<Front['startBuckets']> => front.startBuckets('move', String(crowdedBucket), target);
      const moved = async (): Promise<void> => {
        const broken = move();
        await broken.said(step);
        await new Promise((resolve) => setTimeout(resolve, stage.random() * 150));
        await broken.kill();
        // Between the two the bucket is held, or it is not; in both cases nobody is lost.
        await crowd.talked(5);
        await move().done();
      };
      t.diagnostic(`at ${step}: ${await stage.whoNotices(moved, (userId) => userId % 64 === crowdedBucket)}`);
      assert.equal((await front.buckets())[crowdedBucket], target);
    }
  });

  await t.test('a fourth machine is added, and one retired', async (t) => {
    const added = async (): Promise<void> => {
      await front.write(machines);
      front.reload();
      await front.isReloaded();
      await front.startBuckets('add', 'm4').done(300_000);
    };
    const retired = async (): Promise<void> => {
      await front.startBuckets('retire', 'm3').done(300_000);
    };
    const hasMoved = (userId: number, before: string[], after: string[]): boolean => before[userId % 64] !== after[userId % 64];
    t.diagnostic(`added: ${await stage.whoNotices(added, hasMoved)}`);
    assert.equal((await front.buckets()).filter((name) => name === 'm4').length, 16);
    t.diagnostic(`retired: ${await stage.whoNotices(retired, hasMoved)}`);
    assert.ok(!(await front.buckets()).includes('m3'));
    assert.deepEqual(await named('m3').users(), []);
  });

  await crowd.talked(Math.max(0, amount(300, 3000) - crowd.turns), 600_000);
  await crowd.stop();
  await stage.check();
  t.diagnostic(`${crowd.turns} turns of ${crowd.people.length} users`);
});
