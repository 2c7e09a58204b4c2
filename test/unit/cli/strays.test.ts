import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { test } from 'node:test';
import { endMarked, markerName } from '../../../src/cli/strays.ts';
import { until } from '../../running-server.ts';

test('a process that comes while another one is ended does not escape', async (t) => {
  const marker = `strays-test-${process.pid}.`;
  // Without the marker itself: whenever one of its processes is ended it becomes the next one, until there were three.
  const script = `env ${markerName}=${marker} sleep 100; env ${markerName}=${marker} sleep 100; exec env ${markerName}=${marker} sleep 100`;
  const ended = await until('three processes, one after the other, to be found', async () => {
    const parent = spawn('sh', ['-c', script], { stdio: 'ignore' });
    t.after(() => parent.kill('SIGKILL'));
    // A busy machine may start the next one only after a round that finds none: then it is tried again.
    const found = await until('the first one', async () => (await endMarked(marker)) || undefined);
    await until('the end of all', async () => (parent.signalCode ?? parent.exitCode) !== null || (await endMarked(marker)) > 0 || undefined);
    return found === 3 ? found : undefined;
  }, 30_000);
  assert.equal(ended, 3);
});
