import assert from 'node:assert/strict';
import { setImmediate as turnOfTheLoop } from 'node:timers/promises';
import { test } from 'node:test';
import { Problem } from '../../src/problem.ts';
import { createEnding, drain } from '../../src/shutdown.ts';

/** What a drain ends, what it did in order, and the end of the turns it waits for. */
function makeParts(): { parts: Parameters<typeof drain>[0]; steps: string[]; closing: AbortController; endTurns: () => void } {
  const steps: string[] = [];
  const closing = new AbortController();
  let endTurns = (): void => {};
  const turns = new Promise<void>((resolve) => (endTurns = resolve));
  const parts = {
    pool: { close: () => turns.then(() => void steps.push('pool closed')) },
    endProcesses: async () => void steps.push('processes ended'),
    closeConnections: async (graceMs: number) => void steps.push(`connections closed within ${Math.ceil(graceMs / 1000)} s`),
    closing,
  };
  return { parts, steps, closing, endTurns };
}

test('a drain waits for the turns, and then ends the processes and last the connections', async () => {
  const { parts, steps, closing, endTurns } = makeParts();
  const drained = drain(parts, 60_000);
  assert.deepEqual(steps, []);
  endTurns();
  await drained;
  assert.deepEqual(steps, ['pool closed', 'processes ended', 'connections closed within 60 s']);
  assert.equal(closing.signal.aborted, false);
});

test('a drain interrupts the turns that take longer than they may, and answers have 2 s all the same', async () => {
  const { parts, steps, closing, endTurns } = makeParts();
  closing.signal.addEventListener('abort', endTurns);
  await drain(parts, 0);
  const { reason } = closing.signal as { reason: unknown };
  assert.ok(reason instanceof Problem);
  assert.deepEqual([reason.code, reason.extras.retryAfterSeconds], ['shutting_down', 10]);
  assert.equal(steps.at(-1), 'connections closed within 2 s');
});

/** The end of a process whose app is told to stop and quit, and how it exits. */
function makeEnding(): { ending: ReturnType<typeof createEnding>; steps: string[] } {
  const steps: string[] = [];
  const app = {
    stop: (graceMs: number) => new Promise<void>(() => steps.push(`stop ${graceMs}`)),
    quit: async () => void steps.push('quit'),
  };
  const ending = createEnding(app, (code) => steps.push(`exit ${code}`), (_level, event) => steps.push(event));
  return { ending, steps };
}

test('the first signal stops the app, one right behind it is the same, and a later one quits', async (t) => {
  let now = 1000;
  t.mock.method(performance, 'now', () => now);
  const { ending, steps } = makeEnding();
  ending.bySignal('SIGINT', 5000);
  now += 599;
  ending.bySignal('SIGTERM', 5000);
  assert.deepEqual(steps, ['draining', 'stop 5000']);
  now += 2;
  ending.bySignal('SIGINT', 5000);
  await turnOfTheLoop();
  assert.deepEqual(steps, ['draining', 'stop 5000', 'quitting', 'quit', 'exit 1']);
});

test('a failure stops the app at once and keeps its exit code, also when a second one quits', async () => {
  const { ending, steps } = makeEnding();
  ending.byFailure(70);
  ending.byFailure(78);
  await turnOfTheLoop();
  assert.deepEqual(steps, ['stop 0', 'quit', 'exit 70']);
});
