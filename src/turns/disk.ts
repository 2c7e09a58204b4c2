import type { Reserve } from '../host/reserve.ts';
import { Problem } from '../problem.ts';
import type { FolderSize } from '../sandbox/folder-size.ts';
import { inTime } from '../waiting.ts';

/** What is asked, and how much one user may have. */
interface DiskOptions {
  /** What the user's folder holds now; undefined where that cannot be counted at the moment. Never rejects. */
  readonly measure: (userId: number) => Promise<FolderSize | undefined>;
  /** What the disk of all users is nearly out of, the reserve counted as kept; undefined where there is enough. */
  readonly shortage: () => keyof FolderSize | undefined;
  readonly max: FolderSize;
  /** What others can go on in when one has filled the disk. */
  readonly reserve: Pick<Reserve, 'keep' | 'give'>;
  /** How often the disk is looked at while turns run. */
  readonly watchMs?: number;
  /** How long until the programs of a turn that was ended are gone: they would fill the reserve too. */
  readonly giveAfterMs?: number;
  /** How long a turn waits for a count, which goes on all the same. */
  readonly countWaitMs?: number;
  /** The same for a look at the disk that runs full. */
  readonly lookWaitMs?: number;
}

/** What users have on disk, and what follows from it for their turns. */
export interface DiskLimit {
  /**
   * To be asked before a turn: gives the line that tells Claude to make room, where the folder is over its limit. Throws
   * Problem `user_storage_full` where it is over by more than a tenth, or this user filled the disk and it still is full.
   * Counts only what is not known to be within the limit; a count of more than 5 s holds for the next turn. Keeps the reserve.
   */
  admit(userId: number): Promise<string | undefined>;
  /**
   * A turn of this user runs, until the function it gives is called. `end` is called with Problem `user_storage_full`
   * when the disk runs full and this user's folder grew most since.
   */
  begin(userId: number, end: (problem: Problem) => void): () => void;
}

/** A user with turns that run. */
interface Running {
  /** What the folder held when the first of them began, or as soon after as it was counted. */
  before: FolderSize | undefined;
  readonly ends: Set<(problem: Problem) => void>;
}

const mib = 1024 * 1024;
// A user has a tenth more to clear up in.
const mostOver = 1.1;
// What a turn left running has ended by then, and of turns that follow each other not each is counted.
const countAfterMs = 1000;
// Asked again and again, one who is over costs no more than this.
const recountMs = 5000;
// What is so large that it is not counted in time grew most.
const uncounted: FolderSize = { bytes: Infinity, files: Infinity };
// An honest turn writes less: where others filled the disk, it need not end.
const leastGrowth: FolderSize = { bytes: 16 * mib, files: 1000 };

/** The limit for all users. Counts nothing before it is asked. */
export function createDiskLimit(options: DiskOptions): DiskLimit {
  const { measure, shortage, max, reserve, watchMs = 1000, giveAfterMs = 3000, countWaitMs = 5000, lookWaitMs = 3000 } = options;
  const known = new Map<number, { readonly size: FolderSize; readonly atMs: number }>();
  const counting = new Map<number, Promise<FolderSize | undefined>>();
  const planned = new Set<number>();
  const running = new Map<number, Running>();
  const fillers = new Set<number>();
  let watch: NodeJS.Timeout | undefined;
  let looking: Promise<void> | undefined;
  let giving: NodeJS.Timeout | undefined;

  function count(userId: number): Promise<FolderSize | undefined> {
    const begun = counting.get(userId);
    if (begun !== undefined) return begun;
    const counted = measure(userId).then((size) => {
      counting.delete(userId);
      if (size !== undefined) known.set(userId, { size, atMs: performance.now() });
      return size;
    });
    counting.set(userId, counted);
    return counted;
  }

  function planCount(userId: number): void {
    if (planned.has(userId)) return;
    planned.add(userId);
    setTimeout(() => {
      planned.delete(userId);
      void count(userId);
    }, countAfterMs).unref();
  }

  function shareOf({ bytes, files }: FolderSize): number {
    return Math.max(bytes / max.bytes, files / max.files);
  }

  /** Keeps the reserve. What is to be given of it waits from the last time there was room: the filling may go on. */
  function keepReserve(): Promise<void> {
    giving?.refresh();
    return reserve.keep();
  }

  /** Looks at the disk, and ends whoever fills it. */
  async function look(): Promise<void> {
    const short = shortage();
    if (short === undefined) return keepReserve();
    looking ??= endFiller(short).finally(() => (looking = undefined));
    return looking;
  }

  async function endFiller(short: keyof FolderSize): Promise<void> {
    const grown = [...running].map(async ([userId, user]) => {
      const now = (await inTime(count(userId), lookWaitMs, uncounted))?.[short];
      const before = user.before?.[short];
      if (now === undefined || before === undefined || fillers.has(userId)) return { userId, user, growth: 0 };
      return { userId, user, growth: now === Infinity ? now : now - before };
    });
    const [most] = (await Promise.all(grown)).sort((a, b) => b.growth - a.growth);
    if (most === undefined || most.growth < leastGrowth[short]) return;
    fillers.add(most.userId);
    for (const end of most.user.ends) end(diskFull());
    clearTimeout(giving);
    giving = setTimeout(() => {
      giving = undefined;
      // With all of them back it is another filling that goes on.
      if (fillers.size > 0 && shortage() !== undefined) void reserve.give();
    }, giveAfterMs).unref();
  }

  function leave(userId: number, user: Running): void {
    if (user.ends.size > 0) return;
    if (running.get(userId) === user) running.delete(userId);
    if (running.size > 0) return;
    clearInterval(watch);
    watch = undefined;
  }

  return {
    async admit(userId) {
      const isShort = shortage() !== undefined;
      if (fillers.has(userId) && isShort) throw diskFull();
      // The last count has what is gone since: with it another filling would be no growth.
      if (fillers.delete(userId)) known.delete(userId);
      // Before anybody can fill the disk quicker than it is looked at.
      if (!isShort) await keepReserve();
      const last = known.get(userId);
      const isKnown = last !== undefined && (shareOf(last.size) <= mostOver || performance.now() - last.atMs < recountMs);
      const size = isKnown ? last.size : await inTime(count(userId), countWaitMs, last?.size);
      const share = size === undefined ? 0 : shareOf(size);
      if (share > mostOver) throw folderFull(max);
      return size !== undefined && share > 1 ? makeRoom(size, max) : undefined;
    },

    begin(userId, end) {
      const user: Running = running.get(userId) ?? { before: known.get(userId)?.size, ends: new Set() };
      running.set(userId, user);
      if (user.before === undefined) void count(userId).then((size) => (user.before ??= size));
      user.ends.add(end);
      watch ??= setInterval(() => void look(), watchMs).unref();
      return () => {
        user.ends.delete(end);
        planCount(userId);
        // One that filled it quicker than it is looked at has ended by itself.
        if (shortage() === undefined) leave(userId, user);
        else void look().then(() => leave(userId, user));
      };
    },
  };
}

function makeRoom({ bytes, files }: FolderSize, max: FolderSize): string {
  const has = `${Math.ceil(bytes / mib)} MiB of ${max.bytes / mib} and ${files} files of ${max.files}`;
  return `(From the server: your folders hold ${has}. Make room: with a tenth more than allowed no turn will run.)`;
}

function folderFull(max: FolderSize): Problem {
  const allowed = `${max.bytes / mib} MiB (CLAUDE_USER_DISK_MB) and ${max.files} files`;
  return new Problem('user_storage_full', `This user's folder holds more than ${allowed}; the operator must remove some of it.`);
}

function diskFull(): Problem {
  const detail = "The server's disk is nearly full, and this user's folder grew most; the operator must make room.";
  return new Problem('user_storage_full', detail);
}
