import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { openUsers } from '../../src/cli/users.ts';
import { amount, randomOf } from '../random.ts';

const racer = fileURLToPath(new URL('racer.ts', import.meta.url));
const raceMs = amount(4_000, 60_000);

test(`while a user swaps files and folders for links, the server reads, removes and changes nothing outside (drawn at random, ${raceMs / 1000} s)`, async (t) => {
  const random = randomOf(t);
  const state = mkdtempSync(join(tmpdir(), 'claude-api-race-'));
  const users = await openUsers(state);
  const folder = join(state, 'users/2');
  const ids = Array.from({ length: 4 }, (_, i) => `${i}`.repeat(8) + '-0000-4000-8000-000000000000');
  // What lies outside looks as if it were worth a sweep.
  const outside = join(state, 'outside');
  mkdirSync(join(outside, 'deeper'), { recursive: true });
  const names = [...ids.map((id) => `${id}.jsonl`), 'deeper/file'];
  for (const name of names) {
    writeFileSync(join(outside, name), 'theirs');
    utimesSync(join(outside, name), 0, 0);
  }
  await users.prepare(2, 1);
  const racing = spawn(process.execPath, ['--import', import.meta.resolve('tsx'), racer, folder, outside, String(Math.floor(random() * 1e6))], { stdio: ['pipe', 'ignore', 'inherit'] });
  t.after(async () => {
    const exited = once(racing, 'exit');
    if (racing.kill('SIGKILL')) await exited;
    rmSync(state, { recursive: true, force: true });
  });
  const descriptors = (): number => readdirSync('/proc/self/fd').length;
  const before = descriptors();
  const outsideNow = () => readdirSync(outside, { recursive: true }).sort().map((name) => {
    const { ino, mtimeMs, size } = statSync(join(outside, String(name)));
    return { name, ino, mtimeMs, size };
  });
  const expected = outsideNow();
  const seen = { sessions: 0, looks: 0, swept: 0, emptied: 0 };
  const wasRace = (): boolean => seen.swept > 0 && seen.sessions > 0 && seen.sessions < seen.looks;
  const beganAt = performance.now();
  // On a loaded machine the racer comes to its work late.
  while (performance.now() < beganAt + (wasRace() ? raceMs : raceMs + 60_000)) {
    for (let i = 0; i < 200; i += 1) {
      seen.looks += 1;
      if (users.hasSession(2, ids[i % ids.length] ?? '')) seen.sessions += 1;
    }
    seen.swept += await users.sweep(60_000);
    await users.tidy(2);
    seen.emptied += 1;
    await users.prepare(2, 1);
  }
  assert.equal(racing.exitCode, null, 'it raced to the end');
  t.diagnostic(JSON.stringify(seen));
  assert.ok(wasRace(), `the race was one: ${JSON.stringify(seen)}`);
  assert.deepEqual(outsideNow(), expected);
  assert.deepEqual(names.map((name) => readFileSync(join(outside, name), 'utf8')), names.map(() => 'theirs'));
  assert.ok(descriptors() <= before, 'none stays open');
});
