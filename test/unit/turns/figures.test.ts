import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Problem } from '../../../src/problem.ts';
import { Figures } from '../../../src/turns/figures.ts';

test('a turn is counted as answered or by what it failed with', () => {
  const figures = new Figures();
  for (const end of [undefined, undefined, new Problem('busy', ''), new Problem('busy', '')]) figures.turnEnded(end, 40);
  assert.deepEqual([figures.turns, figures.failures, figures.problems.get('busy'), figures.problems.get('claude_failed')], [4, 2, 2, 0]);
  assert.deepEqual([figures.durations.answered.count, figures.durations.failed.count], [2, 2]);
});

test('what callers do wrong is counted as a turn, not as a failure', () => {
  const figures = new Figures();
  for (const code of ['session_not_found', 'request_timeout', 'rate_limited', 'claude_failed'] as const) figures.turnEnded(new Problem(code, ''), 1);
  assert.deepEqual([figures.turns, figures.failures], [4, 1]);
});

test('a time is counted in every bucket it is not above', () => {
  const figures = new Figures();
  for (const ms of [0, 100, 101, 700_000]) figures.turnAdmitted('warm', ms);
  const { waits, starts } = figures;
  const [first, second] = waits.buckets.values();
  assert.deepEqual([first, second, waits.buckets.get(600), waits.count, starts.get('warm')], [2, 3, 3, 4, 4]);
  assert.ok(Math.abs(waits.sumSeconds - 700.201) < 1e-6);
});

test('lines of the log are counted by their event, and written', () => {
  const figures = new Figures();
  const written: string[] = [];
  const log = figures.counting((level, event) => written.push(`${level} ${event}`));
  log('warning', 'api_refused');
  log('info', 'turn');
  log('warning', 'api_refused');
  assert.deepEqual(written, ['warning api_refused', 'info turn', 'warning api_refused']);
  assert.deepEqual(Object.fromEntries(figures.events), { api_refused: 2, turn: 1 });
});
