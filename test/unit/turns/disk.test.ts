import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Problem } from '../../../src/problem.ts';
import type { FolderSize } from '../../../src/sandbox/folder-size.ts';
import { createDiskLimit, type DiskLimit } from '../../../src/turns/disk.ts';
import { until, within } from '../../running-server.ts';

const mib = 1024 * 1024;

/** A limit of 100 MiB and 1,000 files over folders whose size the test says. */
class Disk {
  readonly sizes = new Map<number, FolderSize | undefined>();
  readonly counted: number[] = [];
  /** What the count of a user's folder waits for. */
  readonly slow = new Map<number, Promise<unknown>>();
  shortage: keyof FolderSize | undefined;
  looks = 0;
  readonly reserve = { isKept: false, keep: async () => void (this.reserve.isKept = true), give: async () => void (this.reserve.isKept = false) };
  readonly limit: DiskLimit;

  constructor({ giveAfterMs = 50, isByDefault = false } = {}) {
    const times = { watchMs: 10, giveAfterMs, countWaitMs: 50, lookWaitMs: 50 };
    this.limit = createDiskLimit({
      measure: async (userId) => {
        this.counted.push(userId);
        await this.slow.get(userId);
        return this.sizes.get(userId);
      },
      shortage: () => {
        this.looks += 1;
        return this.shortage;
      },
      max: { bytes: 100 * mib, files: 1000 },
      reserve: this.reserve,
      ...(!isByDefault && times),
    });
  }

  hold(userId: number, mebibytes: number, files = 10): void {
    this.sizes.set(userId, { bytes: mebibytes * mib, files });
  }

  async refusal(userId: number): Promise<string | undefined> {
    return this.limit.admit(userId).then(() => undefined, (error) => (error instanceof Problem ? error.code : String(error)));
  }
}

test('up to the limit a turn runs, a tenth above it Claude is told, beyond that no turn runs', async () => {
  const disk = new Disk();
  for (const [userId, mebibytes, files] of [[1, 100, 1000], [2, 100.5, 10], [3, 10, 1001], [4, 110, 1100]] as const) disk.hold(userId, mebibytes, files);
  assert.equal(await disk.limit.admit(1), undefined);
  assert.match((await disk.limit.admit(2)) ?? '', /hold 101 MiB of 100 and 10 files of 1000\. Make room/);
  for (const userId of [3, 4]) assert.match((await disk.limit.admit(userId)) ?? '', /Make room/);
  disk.hold(5, 111);
  disk.hold(6, 1, 1101);
  disk.hold(7, Infinity, Infinity);
  for (const userId of [5, 6, 7]) assert.equal(await disk.refusal(userId), 'user_storage_full');
  await assert.rejects(disk.limit.admit(5), /more than 100 MiB \(CLAUDE_USER_DISK_MB\) and 1000 files/);
});

test('what cannot be counted refuses nobody', async () => {
  assert.equal(await new Disk().limit.admit(1), undefined);
});

test('a folder is counted before the first turn and after others, not before each', async () => {
  const disk = new Disk();
  disk.hold(1, 1);
  await Promise.all([disk.limit.admit(1), disk.limit.admit(1)]);
  await disk.limit.admit(1);
  assert.deepEqual(disk.counted, [1]);
  for (let i = 0; i < 3; i += 1) disk.limit.begin(1, () => {})();
  disk.hold(1, 111);
  await until('a count', () => (disk.counted.length === 2 ? true : undefined));
  assert.equal(await disk.refusal(1), 'user_storage_full');
  assert.deepEqual(disk.counted, [1, 1], 'three turns, one count; and one who asks again at once is not counted');
  disk.limit.begin(1, () => {})();
  await until('a count after the next turn', () => (disk.counted.length === 3 ? true : undefined));
});

test('who is over the limit is counted again after 5 s, who is not is not', async (t) => {
  const disk = new Disk();
  disk.hold(1, 111);
  disk.hold(2, 110);
  let nowMs = 0;
  t.mock.method(performance, 'now', () => nowMs);
  for (nowMs of [9000, 13_999, 14_000]) for (const userId of [1, 2]) await disk.refusal(userId);
  assert.deepEqual(disk.counted, [1, 2, 1]);
});

test('when the disk runs full, all turns of the user whose folder grew most are ended, of others none', async () => {
  const disk = new Disk();
  const ended: number[] = [];
  for (const userId of [1, 2, 3]) {
    disk.hold(userId, 10 * userId);
    await disk.limit.admit(userId);
  }
  const end = (userId: number, code: string): void => {
    disk.shortage = undefined; // at once: the next look is 10 ms away
    ended.push(code === 'user_storage_full' ? userId : NaN);
  };
  const begin = (userId: number): (() => void) => disk.limit.begin(userId, ({ code }) => end(userId, code));
  const over = begin(2);
  const ends = [begin(1), begin(2)];
  over();
  ends.push(begin(2), begin(3));
  disk.hold(1, 20);
  disk.hold(2, 60);
  disk.hold(3, 65); // more, but grown less
  disk.shortage = 'bytes';
  await until('an end', () => (ended.length > 0 ? true : undefined));
  assert.deepEqual(ended, [2, 2]);
  for (const each of ends) each();
});

for (const shortage of ['bytes', 'files'] as const) {
  test(`turns that wrote little go on where others filled the disk: ${shortage}`, async () => {
    const disk = new Disk();
    disk.hold(1, 10);
    await disk.limit.admit(1);
    const ends = [1, 2].map(() => disk.limit.begin(1, () => assert.fail('it was ended')));
    disk.hold(1, 20, 500);
    disk.shortage = shortage;
    await until('two counts', () => (disk.counted.length >= 3 ? true : undefined));
    for (const end of ends) end();
    const looks: number[] = [];
    for (const _ of [1, 2]) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      looks.push(disk.looks);
    }
    assert.equal(looks[0], looks[1], 'the disk is not looked at between turns');
    disk.limit.begin(1, () => {});
    await until('a look in the next turn', () => (disk.looks > (looks[1] ?? 0) ? true : undefined));
  });
}

test('who filled the disk has no turn while it is full, and the others get the reserve', async () => {
  const disk = new Disk();
  for (const userId of [1, 2]) {
    disk.hold(userId, 10);
    await disk.limit.admit(userId);
  }
  const ends: Problem[] = [];
  const end = disk.limit.begin(1, (problem) => void ends.push(problem));
  disk.limit.begin(2, () => {})();
  await until('a reserve', () => (disk.reserve.isKept ? true : undefined));
  disk.hold(1, 60);
  disk.shortage = 'bytes';
  await until('the end of the turn', () => ends[0]);
  end();
  assert.deepEqual([await disk.refusal(1), await disk.refusal(2)], ['user_storage_full', undefined]);
  await until('the reserve', () => (disk.reserve.isKept ? undefined : true));
  disk.shortage = undefined;
  assert.equal(await disk.refusal(1), undefined);
  disk.shortage = 'bytes';
  assert.equal(await disk.refusal(1), undefined, 'what was is forgotten');
});

test('one who filled the disk and ended before it was looked at is found all the same', async () => {
  const disk = new Disk();
  disk.hold(1, 10);
  await disk.limit.admit(1);
  const end = disk.limit.begin(1, () => {});
  disk.hold(1, 26);
  disk.shortage = 'bytes';
  end();
  await until('a refusal', async () => ((await disk.refusal(1)) === 'user_storage_full' ? true : undefined));
});

test('one who filled the disk, made room and fills it again at once is found again', async () => {
  const disk = new Disk();
  disk.hold(1, 1);
  for (const round of [1, 2]) {
    await disk.limit.admit(1);
    assert.ok(disk.reserve.isKept, 'it is kept before anybody can fill the disk quicker than it is looked at');
    const ended = new Promise<void>((resolve) => {
      const over = disk.limit.begin(1, () => {
        over();
        resolve();
      });
    });
    disk.hold(1, 90);
    disk.shortage = 'bytes';
    await within(`end ${round}`, 1000, ended);
    disk.hold(1, 1);
    disk.shortage = undefined;
    await disk.reserve.give();
  }
});

/** Has this user fill the disk, and their turn ended for it; gives what the turn calls when it leaves. */
async function fillBy(disk: Disk, userId: number): Promise<() => void> {
  disk.hold(userId, 10);
  await disk.limit.admit(userId);
  let isEnded = false;
  const leave = disk.limit.begin(userId, () => (isEnded = true));
  disk.hold(userId, 40);
  disk.shortage = 'bytes';
  await until('the end', () => (isEnded ? true : undefined));
  return leave;
}

test('the reserve is given for the filling that ended somebody, and not for the next one', async () => {
  const disk = new Disk({ giveAfterMs: 1000 });
  const leave = await fillBy(disk, 1);
  leave();
  disk.hold(1, 10);
  disk.shortage = undefined;
  await disk.limit.admit(1);
  const leaveAgain = disk.limit.begin(1, () => assert.fail('this one grew by nothing'));
  disk.shortage = 'bytes';
  await new Promise((resolve) => setTimeout(resolve, 1500));
  assert.ok(disk.reserve.isKept);
  leaveAgain();
});

test('the reserve is given also where there was room for a moment while the filling went on', async () => {
  const disk = new Disk();
  const leave = await fillBy(disk, 1);
  disk.shortage = undefined;
  await disk.limit.admit(2);
  leave();
  disk.shortage = 'bytes';
  await until('the reserve', () => (disk.reserve.isKept ? undefined : true), 2000);
});

test('a turn does not wait for a long count, whose end holds for the next one', async () => {
  const disk = new Disk();
  let finish = (): void => {};
  disk.slow.set(1, new Promise<void>((resolve) => (finish = resolve)));
  disk.hold(1, Infinity, Infinity);
  assert.equal(await within('an admission', 5000, disk.limit.admit(1)), undefined);
  finish();
  assert.equal(await disk.refusal(1), 'user_storage_full');
  assert.deepEqual(disk.counted, [1]);
});

test('a folder that is not counted in time when the disk runs full is the one that grew most', async () => {
  const disk = new Disk();
  for (const userId of [1, 2]) {
    disk.hold(userId, 10);
    await disk.limit.admit(userId);
  }
  const ended: number[] = [];
  for (const userId of [1, 2]) disk.limit.begin(userId, () => void ended.push(userId));
  disk.slow.set(1, new Promise(() => {}));
  disk.hold(2, 60);
  disk.shortage = 'bytes';
  await until('two ends', () => ended[1]);
  assert.deepEqual(ended, [1, 2], 'and then the next one, for the disk still is full');
});

test('a folder that was too large to be counted from the start is the one that grew most', async () => {
  const disk = new Disk();
  let finish = (): void => {};
  disk.slow.set(1, new Promise<void>((resolve) => (finish = resolve)));
  disk.hold(1, Infinity, Infinity);
  disk.hold(2, 10);
  for (const userId of [2, 1]) await disk.limit.admit(userId);
  const ended: number[] = [];
  for (const userId of [2, 1]) disk.limit.begin(userId, () => void ended.push(userId));
  finish();
  await until('a reserve', () => (disk.reserve.isKept ? true : undefined));
  disk.hold(2, 60);
  disk.shortage = 'bytes';
  assert.equal(await until('an end', () => ended[0]), 1);
});

test('a folder that was counted only after its turn began grows from there', async () => {
  const disk = new Disk();
  let finish = (): void => {};
  disk.slow.set(1, new Promise<void>((resolve) => (finish = resolve)));
  disk.hold(1, 10);
  await disk.limit.admit(1);
  const ends: Problem[] = [];
  disk.limit.begin(1, (problem) => void ends.push(problem));
  finish();
  await until('a reserve', () => (disk.reserve.isKept ? true : undefined));
  disk.hold(1, 60);
  disk.shortage = 'bytes';
  assert.equal((await until('the end of the turn', () => ends[0])).code, 'user_storage_full');
});

test('by default: a look each second, counts waited for 5 s before a turn and 3 s in a look, the reserve given after 3 s', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval', 'setTimeout'] });
  const disk = new Disk({ isByDefault: true });
  const after = async (ms: number): Promise<void> => {
    await new Promise((resolve) => setImmediate(resolve));
    t.mock.timers.tick(ms);
    await new Promise((resolve) => setImmediate(resolve));
  };
  const never = new Promise(() => {});
  const done: string[] = [];
  disk.hold(2, 10);
  await disk.limit.admit(2);
  for (const userId of [1, 2]) disk.slow.set(userId, never);
  void disk.limit.admit(1).then(() => done.push('admitted'));
  await after(4999);
  assert.equal(done.join(), '');
  await after(1);
  assert.equal(done.join(), 'admitted');

  disk.limit.begin(2, () => done.push('ended'));
  const { looks } = disk;
  await after(999);
  assert.equal(disk.looks, looks);
  disk.shortage = 'bytes';
  await after(1);
  assert.equal(disk.looks, looks + 1);
  await after(2999);
  assert.equal(done.join(), 'admitted');
  await after(1);
  assert.equal(done.join(), 'admitted,ended');

  await after(2999);
  assert.ok(disk.reserve.isKept);
  await after(1);
  assert.ok(!disk.reserve.isKept);
});
