import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { settingNames } from '../../src/env.ts';
import { problemCodes } from '../../src/problem.ts';

const read = (name: string): Promise<string> => readFile(new URL(`../../${name}`, import.meta.url), 'utf8');

test('README.md and .env.example name every setting, and docs/api.md every problem code', async () => {
  const [readme, example, api] = await Promise.all([read('README.md'), read('.env.example'), read('docs/api.md')]);
  assert.deepEqual(settingNames.filter((name) => !readme.includes(`\`${name}\``)), []);
  assert.deepEqual(settingNames.filter((name) => !new RegExp(`^(# )?${name}=`, 'm').test(example)), []);
  assert.deepEqual(problemCodes.filter((code) => !api.includes(`\`${code}\``)), []);
});

test('nothing is needed at run time but Node', async () => {
  const manifest = JSON.parse(await read('package.json')) as Record<string, unknown>;
  for (const kind of ['dependencies', 'optionalDependencies', 'peerDependencies']) assert.equal(manifest[kind], undefined, kind);
});
