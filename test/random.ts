import type { TestContext } from 'node:test';

/** Numbers in [0, 1), the same on each run (mulberry32). */
export function seededRandom(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), seed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Numbers for this run of a test: of TEST_SEED where it is set, else new ones in `npm run torture` and always the same in `npm test`. The report says which, to play it again. */
export function randomOf(t: TestContext): () => number {
  const seed = Number(process.env['TEST_SEED'] ?? (isTorture ? Date.now() % 1_000_000 : 1));
  t.diagnostic(`TEST_SEED=${seed}`);
  return seededRandom(seed);
}

/** Whether this run is `npm run torture`, which has the time that `npm test` has not. */
export const isTorture = process.env['TEST_AMOUNT'] === 'torture';

/** How much a test does: little in `npm test`, all of it in `npm run torture`. */
export function amount(inTest: number, inTorture: number): number {
  return isTorture ? inTorture : inTest;
}
