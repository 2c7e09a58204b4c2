import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { endMarked, markerName } from '../../../src/cli/strays.ts';
import { until } from '../../running-server.ts';

test('a process that comes while another one is ended does not escape', async (t) => {
  const marker = `strays-test-${process.pid}.`;
  // Without the marker itself: whenever one of its processes is ended it becomes the next one, until there were three.
  const script = `env -i ${markerName}=${marker} sleep 100; env ${markerName}=${marker} sleep 100; exec env ${markerName}=${marker} sleep 100`;
  const ended = await until('three processes, one after the other, to be found', async () => {
    const parent = spawn('sh', ['-c', script], { stdio: 'ignore' });
    t.after(() => parent.kill('SIGKILL'));
    // A busy machine may start the next one only after a round that finds none: then it is tried again.
    const found = await until('the first one', async () => (await endMarked(marker)) || undefined);
    await until('the end of all', async () => (await endMarked(marker), parent.signalCode ?? parent.exitCode ?? undefined));
    assert.equal(parent.signalCode, 'SIGKILL');
    return found === 3 ? found : undefined;
  }, 30_000);
  assert.equal(ended, 3);
});

test('neither a variable that resembles the marker nor the marker of the server itself ends a process', async (t) => {
  const marker = `strays-test-self-${process.pid}.`;
  const other = spawn('sleep', ['100'], { env: { [`X${markerName}`]: marker }, stdio: 'ignore' });
  t.after(() => other.kill('SIGKILL'));
  assert.equal(await endMarked(marker), 0);
  const script = `import { endMarked } from ${JSON.stringify(new URL('../../../src/cli/strays.ts', import.meta.url))};
    process.exitCode = await endMarked(${JSON.stringify(marker)}) === 0 ? 7 : 8;`;
  const own = spawn(process.execPath, ['--import', import.meta.resolve('tsx'), '--input-type=module', '-e', script], { env: { [markerName]: marker }, stdio: 'ignore' });
  assert.deepEqual(await once(own, 'exit'), [7, null]);
});
