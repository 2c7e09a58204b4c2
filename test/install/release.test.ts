import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { needs } from '../needs.ts';
import { noScratchMachine, ScratchMachine } from './scratch-machine.ts';

const checkout = fileURLToPath(new URL('../..', import.meta.url));
const { version } = JSON.parse(await readFile(join(checkout, 'package.json'), 'utf8')) as { version: string };
const name = `claude-api-${version}`;
const skip = existsSync(join(checkout, '.git')) ? needs(['git', 'tar', 'gzip'], 'makes a release') : 'needs a git checkout: makes a release';

/** What `npm run release` makes in a clone of its own: the archive and the text of its `.sha256`. */
async function makeRelease(t: TestContext, umask: string): Promise<{ archive: Buffer; sum: string }> {
  const folder = await mkdtemp(join(tmpdir(), 'claude-api-release-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  execFileSync('sh', ['-ec', `umask ${umask}; git clone -q "$0" "$1"`, checkout, join(folder, 'clone')]);
  await symlink(join(checkout, 'node_modules'), join(folder, 'clone/node_modules'));
  execFileSync('sh', ['-ec', `umask ${umask}; exec .ci/release`], { cwd: join(folder, 'clone'), stdio: 'pipe', timeout: 120_000 });
  const file = join(folder, 'clone/release', `${name}.tar.gz`);
  return { archive: await readFile(file), sum: await readFile(`${file}.sha256`, 'utf8') };
}

test('a release of the same commit has the same bytes, and its sum is right', { skip, timeout: 180_000 }, async (t) => {
  const [first, second] = [await makeRelease(t, '022'), await makeRelease(t, '077')];
  assert.ok(first.archive.equals(second.archive));
  assert.equal(first.sum, `${createHash('sha256').update(first.archive).digest('hex')}  ${name}.tar.gz\n`);
  const listed = execFileSync('tar', ['-tzvf', '-'], { input: first.archive, encoding: 'utf8' });
  for (const file of ['dist/main.js', 'install.sh', 'claude-api.service', 'README.md', 'docs/api.md']) assert.ok(listed.includes(` ${name}/${file}\n`), file);
  assert.deepEqual(listed.split('\n').filter((line) => /\/(?:src|test|node_modules|\.git)\//.test(line) || (line !== '' && !/ 0\/0 /.test(line))), []);
});

test('install.sh takes a release by its address, without npm ci or a compiler, and none with a wrong sum', { skip: skip || noScratchMachine, timeout: 180_000 }, async (t) => {
  const { archive, sum } = await makeRelease(t, '022');
  const machine = await ScratchMachine.boot(t);
  await machine.must('cp /root/copy/install.sh /tmp/ && rm -rf /root/copy');
  await machine.put('/tmp/release.tar.gz', archive);
  const install = 'cd / && cat /tmp/install.sh | bash';
  const address = { CLAUDE_API_SOURCE: 'file:///tmp/release.tar.gz' };
  const hex = sum.slice(0, 64);
  const wrong = hex.replace(/^./, (digit) => (digit === '0' ? '1' : '0'));

  const refusals: [RegExp, Record<string, string>, string?][] = [
    [/there is no file:\/\/\/tmp\/release\.tar\.gz\.sha256/, {}],
    [/its SHA-256 is not /, { CLAUDE_API_SHA256: wrong }],
    [/its SHA-256 is not /, {}, `${wrong}  release.tar.gz\n`],
    [/its SHA-256 is not /, {}, '<!DOCTYPE html>\n'],
  ];
  for (const [said, env, text] of refusals) {
    if (text !== undefined) await machine.put('/tmp/release.tar.gz.sha256', text);
    const { status, stderr } = await machine.run(install, { ...address, ...env });
    assert.equal(status, 1);
    assert.match(stderr, said);
    assert.match(stderr, /the download failed\nNothing was changed/);
  }
  await machine.put('/tmp/release.tar.gz.sha256', sum);
  await machine.must(install, address);
  assert.doesNotMatch(await machine.must('cat /run/stub/npm-calls'), /^ci/m);
  assert.match(await machine.must('/home/claude/claude-api/current/install.sh'), /nothing to change/);
  // Unpacked by hand it is a folder to install from, like a copy of the repository.
  await machine.must(`mkdir /root/by-hand && tar -xzf /tmp/release.tar.gz -C /root/by-hand`);
  assert.match(await machine.must(`/root/by-hand/${name}/install.sh`), /nothing to change/);
});
