import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { decideSandbox, hasEverBeenSandboxed, rememberSandbox, type Circumstances } from '../../../src/sandbox/mode.ts';

const works = { works: true, version: '2.1.331', durationMs: 300 } as const;
const lasting = { works: false, reason: 'bubblewrap is not installed.', isLasting: true } as const;
const passing = { works: false, reason: 'the trial took more than 60 s.', isLasting: false } as const;
const usual = { isRoot: false, provider: undefined, hasEverRun: false } as const;

const table: ReadonlyArray<readonly [circumstances: Circumstances, expected: string]> = [
  [{ ...usual, setting: 'auto', trial: undefined }, 'try'],
  [{ ...usual, setting: 'auto', trial: works }, 'on'],
  [{ ...usual, setting: 'auto', trial: lasting }, 'without'],
  [{ ...usual, setting: 'auto', trial: passing }, 'without'],
  [{ ...usual, setting: 'auto', trial: undefined, isRoot: true }, 'without'],
  [{ ...usual, setting: 'auto', trial: undefined, provider: 'CLAUDE_CODE_USE_VERTEX' }, 'without'],
  [{ ...usual, setting: 'required', trial: undefined }, 'try'],
  [{ ...usual, setting: 'required', trial: works }, 'on'],
  [{ ...usual, setting: 'required', trial: lasting }, 'end 78'],
  [{ ...usual, setting: 'required', trial: passing }, 'end 1'],
  [{ ...usual, setting: 'required', trial: undefined, isRoot: true }, 'end 78'],
  [{ ...usual, setting: 'required', trial: undefined, provider: 'CLAUDE_CODE_USE_VERTEX' }, 'end 78'],
  [{ ...usual, setting: 'off', trial: undefined }, 'without'],
  [{ ...usual, setting: 'off', trial: undefined, isRoot: true }, 'without'],
  [{ ...usual, setting: 'off', trial: undefined, provider: 'CLAUDE_CODE_USE_VERTEX' }, 'without'],
  // Never back.
  [{ ...usual, hasEverRun: true, setting: 'auto', trial: undefined }, 'try'],
  [{ ...usual, hasEverRun: true, setting: 'auto', trial: works }, 'on'],
  [{ ...usual, hasEverRun: true, setting: 'auto', trial: lasting }, 'end 78'],
  [{ ...usual, hasEverRun: true, setting: 'auto', trial: passing }, 'end 1'],
  [{ ...usual, hasEverRun: true, setting: 'auto', trial: undefined, isRoot: true }, 'end 78'],
  [{ ...usual, hasEverRun: true, setting: 'auto', trial: undefined, provider: 'CLAUDE_CODE_USE_VERTEX' }, 'end 78'],
  [{ ...usual, hasEverRun: true, setting: 'required', trial: works }, 'on'],
  [{ ...usual, hasEverRun: true, setting: 'required', trial: passing }, 'end 1'],
  [{ ...usual, hasEverRun: true, setting: 'off', trial: undefined }, 'end 78'],
];

test('how the CLIs run, or why the server ends, by setting, past and trial', () => {
  for (const [circumstances, expected] of table) {
    const decision = decideSandbox(circumstances);
    const found = decision.kind === 'end' ? `end ${decision.exitCode}` : decision.kind;
    assert.equal(found, expected, JSON.stringify(circumstances));
  }
});

test('the reason names the cause, and says what to do about a past that forbids to go on', () => {
  const without = decideSandbox({ ...usual, setting: 'auto', trial: lasting });
  assert.deepEqual(without, { kind: 'without', reason: 'bubblewrap is not installed.' });
  for (const circumstances of table.map(([each]) => each)) {
    const decision = decideSandbox(circumstances);
    if (decision.kind !== 'end') continue;
    if (circumstances.hasEverRun && circumstances.setting !== 'required') assert.match(decision.reason, /a new CLAUDE_STATE_DIR/);
    if (circumstances.trial === lasting) assert.match(decision.reason, /bubblewrap is not installed/);
    if (circumstances.isRoot) assert.match(decision.reason, /as an ordinary user/);
  }
});

test('a state folder remembers that there was a sandbox, and one that cannot be looked at counts as such', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'claude-api-test-'));
  t.after(() => rmSync(folder, { recursive: true }));
  assert.equal(hasEverBeenSandboxed(folder), false);
  rememberSandbox(folder);
  assert.equal(hasEverBeenSandboxed(folder), true);
  rememberSandbox(folder);
  assert.equal(hasEverBeenSandboxed(folder), true);
  assert.deepEqual(readdirSync(folder), ['sandboxed'], 'the name is the one that earlier servers wrote');
  assert.equal(hasEverBeenSandboxed(`${'x'.repeat(5000)}`), true);
});

test('what has the name of the mark already is not written to: the service user could not', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'claude-api-test-'));
  t.after(() => rmSync(folder, { recursive: true }));
  mkdirSync(join(folder, 'sandboxed'));
  rememberSandbox(folder);
});
