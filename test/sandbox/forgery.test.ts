import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { endMarked } from '../../src/cli/strays.ts';
import { needs } from '../needs.ts';
import { until } from '../running-server.ts';
import { makeSandboxedUsers, noSandbox, runningWith } from '../sandboxed.ts';

const overMemory = readFileSync(new URL('../bin/over-memory.py', import.meta.url), 'utf8');
const noForging = noSandbox || (process.arch !== 'x64' && 'needs x86-64: writes machine code') || needs(['python3'], 'writes over memory');

/** A shell command that does this with the program above. */
function overwrite(...args: readonly string[]): string {
  return `cat >/tmp/over.py <<'END'\n${overMemory}\nEND\n/usr/bin/python3 /tmp/over.py ${args.join(' ')} 2>&1`;
}

test('nobody inside can teach the first process of a sandbox to outlive its end', { skip: noForging }, async (t) => {
  const users = await makeSandboxedUsers(t);
  const inside = users.start(['/bin/bash', '-c', `${overwrite('stay')}; sleep 300.42`]);
  const ofSandbox = (): number => inside.status.pid;
  t.after(() => {
    try {
      process.kill(ofSandbox(), 'SIGKILL');
    } catch {
      // It is gone, as it should be.
    }
  });
  await until('the program to be through', () => (inside.stdout.includes('stayed') ? true : undefined));
  assert.match(inside.stdout, /^\/proc\/1\/mem Permission denied\n\/proc\/1\/task\/1\/mem Permission denied\n/);
  inside.child.kill('SIGKILL');
  await until('nothing left', async () => ((await runningWith('sleep 300.4')).length === 0 ? true : undefined), 3000);
  assert.equal(await endMarked(users.markerPrefix), 0);
});
