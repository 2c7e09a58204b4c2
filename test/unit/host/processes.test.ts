import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { heldBytes, peakBytes, treeOf } from '../../../src/host/processes.ts';
import { until, within } from '../../running-server.ts';

const mib = 1024 * 1024;

test('a process is counted with all it started, by what it has for itself and by the most it ever had', async (t) => {
  // The grandchild, started by a thread of its own, fills 60 MiB, gives 40 of them back and says so.
  const grandchild = "let a = Buffer.alloc(40 << 20, 1); const b = Buffer.alloc(20 << 20, 1); a = null; setTimeout(() => { gc(); console.log('ready', b.length); }, 50); setInterval(() => {}, 1000)";
  const inThread = `require('node:child_process').spawn(process.execPath, ['--expose-gc', '-e', ${JSON.stringify(grandchild)}], { stdio: ['ignore', 1, 2] })`;
  const script = `new (require('node:worker_threads').Worker)(${JSON.stringify(inThread)}, { eval: true }); setInterval(() => {}, 1000)`;
  const child = spawn('sh', ['-c', '"$0" -e "$1"; true', process.execPath, script], { stdio: ['ignore', 'pipe', 'inherit'], detached: true });
  t.after(() => process.kill(-(child.pid ?? assert.fail()), 'SIGKILL'));
  await within('the grandchild to be ready', 10_000, once(child.stdout, 'data'));
  const pid = child.pid ?? assert.fail();
  assert.equal(treeOf(pid).length, 3);
  let figures = '';
  // What was given back may be freed by another thread.
  await until('the figures', () => {
    const [held, peak] = [heldBytes(pid) / mib, peakBytes(pid) / mib];
    figures = `${held} MiB held, ${treeOf(pid).map((each) => heldBytes(each) / mib).join(', ')} with those below; ${peak} at most`;
    return held > 30 && held < 100 && peak > held + 40 ? true : undefined;
  }).catch((error: unknown) => assert.fail(`${String(error)}: ${figures}`));
});

test('a process that has gone holds nothing', async () => {
  const child = spawn('true');
  await once(child, 'exit');
  const pid = child.pid ?? assert.fail();
  assert.deepEqual([heldBytes(pid), peakBytes(pid)], [0, 0]);
});
