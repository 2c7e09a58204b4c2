import assert from 'node:assert/strict';
import { Readable } from 'node:stream';
import { test } from 'node:test';
import { readPaced } from '../../../src/cli/pace.ts';
import { until } from '../../running-server.ts';

/** Works for so many milliseconds, of which other processes take nothing away. */
function work(ms: number): void {
  const before = process.cpuUsage();
  while (process.cpuUsage(before).user < ms * 1000);
}

test('who has more to say than a tenth of the time is made to rest, and is heard to the end', async () => {
  const lines = Array.from({ length: 9 }, (_, i) => `${i} `);
  const stream = Readable.from(lines.map((line) => Buffer.from(line)));
  const startedAt = performance.now();
  let text = '';
  readPaced(stream, (chunk) => {
    work(15);
    text += String(chunk);
  });
  await until('a rest', () => (stream.isPaused() ? true : undefined));
  assert.ok(text.length < lines.join('').length);
  await until('the end', () => (text === lines.join('') ? true : undefined));
  assert.ok(performance.now() - startedAt >= 450, 'rests');
});

test('who says little is never made to rest', async () => {
  const stream = Readable.from(Array.from({ length: 100 }, () => Buffer.from('x')));
  stream.on('pause', () => assert.fail('it rested'));
  let length = 0;
  readPaced(stream, (chunk) => (length += chunk.length));
  await until('the end', () => (length === 100 ? true : undefined));
});
