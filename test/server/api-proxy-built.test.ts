import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { cp, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';

const project = fileURLToPath(new URL('../..', import.meta.url));

test('what is built finds its thread for large bodies as the sources do', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'api-proxy-built-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  await cp(join(project, 'package.json'), join(folder, 'package.json'));
  const compiler = join(project, 'node_modules/.bin/tsc');
  execFileSync(compiler, ['-p', join(project, 'tsconfig.build.json'), '--outDir', join(folder, 'dist')], { timeout: 60_000, stdio: 'inherit' });
  const built = (await import(pathToFileURL(join(folder, 'dist/sandbox/big-bodies.js')).href)) as typeof import('../../src/sandbox/big-bodies.ts');
  const bodies = built.createBigBodies();
  t.after(() => bodies.close());
  const bytes = new TextEncoder().encode('{"model":"claude-x","messages":"hello"}');
  const { verdict } = await bodies.check({ bytes, target: 'messages', rules: { models: undefined, isWebSearchAllowed: false } });
  assert.deepEqual(verdict, { textLength: 'claude-xhello'.length });
  assert.equal(bytes.length, 0, 'the bytes went over without being copied');
});
