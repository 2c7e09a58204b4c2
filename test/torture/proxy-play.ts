import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import type { TestContext } from 'node:test';
import type { Connection } from '../http-client.ts';
import { amount, seededRandom } from '../random.ts';
import { Chance } from './chance.ts';

/** How many requests each proxy gets. */
export const total = amount(1000, 100_000);
export const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
export const openFiles = async (): Promise<number> => (await readdir('/proc/self/fd')).length;
const residentMb = async (): Promise<number> => (Number((await readFile('/proc/self/statm', 'latin1')).split(' ')[1]) * 4096) / 1024 / 1024;
export const shown = (bytes: Buffer): string => JSON.stringify(bytes.toString('latin1').replace(/(.{1,5}?)\1{20,}/gs, '$1…').slice(0, 3000));

/** Plays until `total` were played, on so many lanes; fails for memory that grows. */
export async function playAll<Lane>(t: TestContext, random: () => number, lanes: readonly Lane[], total: number, play: (chance: Chance, lane: Lane) => Promise<number>): Promise<void> {
  let [played, megabytesAtQuarter] = [0, 0];
  const startedAt = performance.now();
  await Promise.all(
    lanes.map(async (lane) => {
      while (played < total) {
        const count = await play(new Chance(seededRandom(Math.floor(random() * 2 ** 32))), lane);
        played += count;
        if (megabytesAtQuarter === 0 && played > total / 4) megabytesAtQuarter = await residentMb();
      }
    }),
  );
  const growth = (await residentMb()) - megabytesAtQuarter;
  t.diagnostic(`${played} in ${((performance.now() - startedAt) / 1000).toFixed(1)} s; memory grew ${growth.toFixed(1)} MB over the last three quarters`);
  assert.ok(growth < 96, `memory grew ${growth} MB`);
}

/** Counts answers by their name. */
export class Tally {
  readonly #counts = new Map<string, number>();

  add(name: string | number | undefined): void {
    this.#counts.set(String(name), (this.#counts.get(String(name)) ?? 0) + 1);
  }

  toString(): string {
    return [...this.#counts].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, count]) => `${name} × ${count}`).join(', ');
  }
}

/** Asks again where a connection had nothing to say for 10 s, for a minute: this machine may have much else to do. */
export async function patiently<T>(ask: () => Promise<T>, times = 6): Promise<T> {
  return ask().catch((error: unknown) => {
    if (times > 1 && String(error).includes('in vain')) return patiently(ask, times - 1);
    throw error;
  });
}

/** The next answer's status; undefined when the connection ended instead. */
export async function statusOf(connection: Connection, isHead: boolean): Promise<number | undefined> {
  for (;;) {
    const answer = await patiently(() => connection.answer('an answer', isHead)).catch((error: unknown) => {
      if (String(error).includes('the connection ended before')) return undefined;
      throw error;
    });
    if (answer?.status !== 100) return answer?.status;
  }
}
