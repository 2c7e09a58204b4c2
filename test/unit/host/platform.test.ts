import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { platformProblems } from '../../../src/host/platform.ts';

test('the server runs on Linux with the Node that package.json asks for, and newer', async () => {
  const { engines, os } = JSON.parse(await readFile(new URL('../../../package.json', import.meta.url), 'utf8')) as { engines: { node: string }; os: string[] };
  assert.deepEqual(os, ['linux']);
  for (const version of [`${engines.node.replace('>=', '')}.0`, '20.20.2', '22.9.0', '24.21.0', '100.0.0']) assert.deepEqual(platformProblems('linux', version), []);
});

test('it says what it needs where it cannot run', () => {
  assert.deepEqual(platformProblems('darwin', '24.0.0'), ['this is darwin, and the server needs Linux']);
  for (const version of ['18.20.8', '20.2.9', '9.11.2']) assert.deepEqual(platformProblems('linux', version), [`this is Node ${version}, and the server needs 20.3 or newer`]);
  assert.equal(platformProblems('win32', '18.0.0').length, 2);
});
