import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { findProgram, isTooOld, versionOf } from '../../../src/cli/program.ts';
import type { Problem } from '../../../src/problem.ts';

/** A program of this text. */
function program(t: TestContext, text: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'claude-api-program-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const path = join(folder, 'claude');
  writeFileSync(path, text, { mode: 0o755 });
  return path;
}

// What npm 12 leaves without the package's install script; the words are the package's own.
const stub = '#!/bin/sh\necho "Error: claude native binary not installed." >&2\necho "Either postinstall did not run (--ignore-scripts, some pnpm configs)" >&2\nexit 1\n';

const broken: ReadonlyArray<readonly [what: string, text: string, code: string, words: RegExp]> = [
  ['a stub of npm 12', stub, 'claude_not_found', /^The Claude CLI is a stub, since npm left out its install script: .*--allow-scripts=@anthropic-ai\/claude-code/],
  ['a wrapper whose target is gone', '#!/bin/sh\nexec /nowhere/claude "$@"\n', 'claude_not_found', /^The Claude CLI is there, but what it is a wrapper for is gone.*CLAUDE_BINARY_PATH/],
  ['a script whose interpreter is gone', '#!/nowhere/node\n', 'claude_not_found', /^The Claude CLI is there, but what it is a wrapper for is gone/],
  ['one that crashes', '#!/bin/sh\necho "Illegal instruction" >&2\nexit 4\n', 'claude_not_found', /^The Claude CLI does not run, and says "Illegal instruction"/],
  ['another program', '#!/bin/sh\necho hello\n', 'claude_not_found', /does not answer --version as the Claude CLI does/],
  ['one that is too old', '#!/bin/sh\necho "2.1.325 (Claude Code)"\n', 'claude_too_old', /^The Claude CLI 2\.1\.325 is too old, 2\.1\.326 or newer is needed: update it with "npm install -g/],
];

for (const [what, text, code, words] of broken) {
  test(`${what} is told apart from the others, with the line that cures it`, async (t) => {
    const command = program(t, text);
    await assert.rejects(versionOf({ command, args: [] }, { PATH: process.env['PATH'] ?? '' }), (error: Problem) => {
      assert.deepEqual([error.code, error.message.match(words) !== null], [code, true], error.message);
      assert.doesNotMatch(error.message, /claude-api-program-/, 'no path');
      return true;
    });
  });
}

test('a CLI that runs says its version', async (t) => {
  const command = program(t, '#!/bin/sh\necho "2.1.331 (Claude Code)"\n');
  assert.equal(await versionOf({ command, args: [] }, {}), '2.1.331');
});

test('a program is a file on PATH that may be run, or a path', async (t) => {
  const path = program(t, '');
  assert.equal(await findProgram('claude', `relative:/nowhere:${join(path, '..')}`), path);
  assert.equal(await findProgram(path, ''), path);
  assert.equal(await findProgram('claude', '/nowhere'), undefined);
  assert.equal(await findProgram(join(path, '..'), ''), undefined, 'a folder');
});

test('versions are compared by their numbers', () => {
  for (const old of ['2.1.325', '2.1.99', '2.0.999', '1.9.999', '']) assert.equal(isTooOld(old), true, old);
  for (const supported of ['2.1.326', '2.1.331', '2.2.0', '2.10.0', '3.0.0']) assert.equal(isTooOld(supported), false, supported);
});
