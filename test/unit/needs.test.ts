import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { needs, needsToRun } from '../needs.ts';

test('a test that lacks a program says which and what it is for', () => {
  assert.equal(needs(['node', 'sh'], 'does something'), false);
  assert.equal(needs(['sh', 'no-such-program', 'nor-this'], 'does something'), 'needs no-such-program, nor-this: does something');
  assert.equal(needs(['root'], 'does something'), process.getuid?.() !== 0 && 'needs root: does something');
  assert.equal(needsToRun(['true'], 'a truth', 'tells it'), false);
  assert.equal(needsToRun(['false'], 'a truth', 'tells it'), 'needs a truth: tells it');
});

test('what was skipped is told at the end, each reason once, and makes no run red', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'claude-api-skips-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const file = join(folder, 'skips.test.mjs');
  const summary = fileURLToPath(new URL('../summary.js', import.meta.url));
  const run = (text: string): { status: number | null; stdout: string } => {
    writeFileSync(file, `import { test } from 'node:test';\n${text}`);
    const env = { ...process.env, NODE_TEST_CONTEXT: undefined };
    return spawnSync(process.execPath, ['--test', `--test-reporter=${summary}`, '--test-reporter-destination=stdout', file], { encoding: 'utf8', env });
  };
  const skips = run("for (const skip of ['needs b: x', 'needs a: y', 'needs b: x', true, false]) test('one', { skip }, () => {});");
  assert.deepEqual([skips.status, skips.stdout], [0, '\nNot tested on this machine:\n  needs a: y (1 skipped)\n  needs b: x (2 skipped)\n  no reason given (1 skipped)\n']);
  assert.equal(run("test('one', () => {});").stdout, '');
});
