import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs, { linkSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { Folder } from '../../../src/host/folder.ts';

function makeFolder(t: TestContext): string {
  const path = realpathSync(mkdtempSync(join(tmpdir(), 'claude-api-folder-')));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** How many descriptors of this process are of something in the folder: Node opens and closes others at its own time. */
function descriptors(path: string): number {
  return readdirSync('/proc/self/fd').filter((name) => isInside(`/proc/self/fd/${name}`, path)).length;
}

function isInside(link: string, path: string): boolean {
  try {
    return readlinkSync(link).startsWith(path);
  } catch {
    // The one it was listed with.
    return false;
  }
}

test('a folder is opened name by name, and a link on the way is refused', (t) => {
  const path = makeFolder(t);
  mkdirSync(join(path, 'a/b'), { recursive: true });
  writeFileSync(join(path, 'a/b/file'), 'text');
  symlinkSync('a', join(path, 'link'));
  const folder = Folder.open(path, ['a', 'b']);
  assert.deepEqual([folder.stat('file').isFile(), folder.stat('file').size], [true, 4]);
  folder.close();
  assert.throws(() => Folder.open(path, ['link', 'b']), { code: /^(ELOOP|ENOTDIR)$/ });
  assert.throws(() => Folder.open(join(path, 'link')), { code: /^(ELOOP|ENOTDIR)$/ });
  assert.throws(() => Folder.open(path, ['a', 'nowhere']), { code: 'ENOENT' });
  assert.equal(descriptors(path), 0, 'every folder on the way is closed again');
});

test('a link is not looked through, and a FIFO is not waited for', (t) => {
  const path = makeFolder(t);
  writeFileSync(join(path, 'file'), 'text');
  symlinkSync('file', join(path, 'link'));
  execFileSync('mkfifo', [join(path, 'fifo')]);
  const folder = Folder.open(path);
  t.after(() => folder.close());
  assert.throws(() => folder.stat('link'), { code: 'ELOOP' });
  assert.equal(folder.stat('fifo').isFIFO(), true);
});

test('a folder that was moved away and replaced by a link still means the folder', (t) => {
  const path = makeFolder(t);
  mkdirSync(join(path, 'own'));
  mkdirSync(join(path, 'foreign'));
  writeFileSync(join(path, 'own/mine'), '');
  writeFileSync(join(path, 'foreign/theirs'), '');
  const folder = Folder.open(path, ['own']);
  t.after(() => folder.close());
  execFileSync('sh', ['-c', 'mv own gone && ln -s foreign own'], { cwd: path });
  assert.equal(folder.stat('mine').isFile(), true);
  assert.throws(() => folder.stat('theirs'), { code: 'ENOENT' });
});

test('emptying removes everything inside, follows no link, and leaves what is outside', async (t) => {
  const path = makeFolder(t);
  const outside = join(path, 'outside');
  const inside = join(path, 'inside');
  mkdirSync(outside);
  writeFileSync(join(outside, 'kept'), 'kept');
  mkdirSync(join(inside, 'a/b/c'), { recursive: true });
  for (const name of ['file', 'a/file', 'a/b/c/.hidden', 'with\nbreak']) writeFileSync(join(inside, name), '');
  writeFileSync(Buffer.concat([Buffer.from(`${inside}/a/`), Buffer.from([0xff, 0xfe])]), 'a name that is no UTF-8');
  symlinkSync(outside, join(inside, 'a/link'));
  symlinkSync('/nowhere', join(inside, 'dangling'));
  linkSync(join(outside, 'kept'), join(inside, 'hard'));
  execFileSync('mkfifo', [join(inside, 'fifo')]);
  const folder = Folder.open(inside);
  await folder.empty();
  folder.close();
  assert.deepEqual(readdirSync(inside), []);
  assert.equal(readFileSync(join(outside, 'kept'), 'utf8'), 'kept');
  assert.equal(descriptors(path), 0);
});

test('folders nested as deep as can be are removed, with few descriptors', async (t) => {
  const path = makeFolder(t);
  const outside = join(path, 'outside');
  mkdirSync(outside);
  writeFileSync(join(outside, 'kept'), '');
  const nest = 'i=0; while [ $i -lt 300 ]; do mkdir d e && : >file && ln -s "$0" link && cd d; i=$((i+1)); done';
  for (const name of ['emptied', 'removed']) {
    mkdirSync(join(path, name));
    execFileSync('sh', ['-c', nest, outside], { cwd: join(path, name) });
  }
  let most = 0;
  const timer = setInterval(() => (most = Math.max(most, descriptors(path))), 1);
  t.after(() => clearInterval(timer));
  await Folder.use(path, ['emptied'], (folder) => folder.empty());
  await Folder.use(path, [], (folder) => folder.remove('removed'));
  assert.deepEqual([readdirSync(path).sort(), readdirSync(join(path, 'emptied')), readdirSync(outside)], [['emptied', 'outside'], [], ['kept']]);
  assert.ok(most <= 140, `${most} descriptors`);
  assert.equal(descriptors(path), 0);
});

test('the server does not stand still while a folder of many names is looked at', async (t) => {
  const path = makeFolder(t);
  for (let i = 0; i < 4000; i += 1) writeFileSync(join(path, `${i}`.padStart(200, 'x')), '');
  const atOnce = t.mock.method(fs, 'opendirSync');
  syncBuiltinESMExports();
  t.after(() => {
    atOnce.mock.restore();
    syncBuiltinESMExports();
  });
  await Folder.use(path, [], (folder) => folder.empty());
  assert.deepEqual([atOnce.mock.callCount(), readdirSync(path)], [0, []]);
  mkdirSync(join(path, 'small'));
  await Folder.use(path, ['small'], (folder) => folder.empty());
  assert.equal(atOnce.mock.callCount(), 1);
});

test('a file that turns out longer than it was is not read', async () => {
  // As the kernel's own: it has a size of 0 until it is read.
  const folder = Folder.open('/proc');
  assert.equal(await folder.read('version', 1000), undefined);
  folder.close();
});
