import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmod, link, mkdir, mkdtemp, readdir, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { runSizeProgram, sizeProgram, type FolderSize } from '../../src/sandbox/folder-size.ts';
import { walkArgv, walkedFolder } from '../../src/sandbox/sandbox.ts';
import { needs } from '../needs.ts';
import { until, within } from '../running-server.ts';
import {
  asOrdinaryUser, chownAll, makeSandboxedHome, makeSandboxedUsers, noSandbox, startSandboxedServer, testSandboxed, type SandboxedUsers,
} from '../sandboxed.ts';

const mib = 1024 * 1024;

/** What user 1's folder holds, counted as the server does. */
function sizeOf({ machine, stateDir }: SandboxedUsers, maxFiles = 1000, timeoutMs = 10_000): Promise<FolderSize | undefined> {
  const walk = walkArgv(machine, join(stateDir, 'users/1'), sizeProgram(walkedFolder, maxFiles));
  return runSizeProgram(asOrdinaryUser(machine.bwrap, ...walk), { PATH: '/usr/sbin:/usr/bin:/bin' }, timeoutMs);
}

testSandboxed('a folder is counted with what it takes, whatever lies in it', async (t) => {
  const users = await makeSandboxedUsers(t);
  const work = join(users.stateDir, 'users/1/work');
  const empty = (await sizeOf(users)) ?? assert.fail();
  await mkdir(join(work, 'closed/deeper'), { recursive: true });
  await writeFile(join(work, 'closed/deeper/file'), Buffer.alloc(3 * mib, 1));
  await link(join(work, 'closed/deeper/file'), join(work, 'again'));
  await writeFile(join(work, 'name\n1 1:1 999999999\n'), '');
  await writeFile(join(work, 'holes'), '');
  await truncate(join(work, 'holes'), 10_240 * mib);
  await symlink('/usr', join(work, 'usr'));
  await chownAll(work);
  await chmod(join(work, 'closed/deeper'), 0o000);
  await chmod(join(work, 'closed'), 0o000);
  const { bytes, files } = (await sizeOf(users)) ?? assert.fail();
  assert.equal(files, empty.files + 7);
  assert.ok(Math.abs(bytes - empty.bytes - 3 * mib) < 100_000, `${bytes - empty.bytes} bytes more`);
});

testSandboxed('a count ends at the most files, and at its time', async (t) => {
  const users = await makeSandboxedUsers(t);
  const work = join(users.stateDir, 'users/1/work');
  await Promise.all(Array.from({ length: 500 }, (_, i) => writeFile(join(work, String(i)), '')));
  assert.equal((await sizeOf(users, 100))?.files, 100);
  assert.deepEqual(await sizeOf(users, 1000, 1), { bytes: Infinity, files: Infinity });
  await rm(join(users.stateDir, 'users/1'), { recursive: true });
  assert.equal(await sizeOf(users), undefined);
});

/** A folder that is a small disk of its own, in memory. */
async function makeDisk(t: TestContext, size: string): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'claude-api-disk-'));
  execFileSync('mount', ['-t', 'tmpfs', '-o', `mode=0755,size=${size}`, 'tmpfs', folder]);
  t.after(async () => {
    execFileSync('umount', ['--lazy', folder]);
    await rm(folder, { recursive: true });
  });
  await chownAll(folder);
  return folder;
}

testSandboxed('one who fills the folder is told to make room, then has no turn until there is room again; others are served', async (t) => {
  const home = await makeSandboxedHome(t);
  const server = await startSandboxedServer(t, { CLAUDE_USER_DISK_MB: '20' }, home);
  const work = join(home, 'state/users/1/work');
  const chat = async (prompt: string, userId = 1) => server.chat({ prompt, user_id: userId });
  const counted = async (pattern: RegExp) =>
    until(`an answer like ${pattern}`, async () => {
      const { body } = await chat('hello');
      return pattern.test(String(body['content'] ?? body['code'])) ? body : undefined;
    }, 20_000);
  assert.equal((await chat('play sh fallocate -l 21M /work/a; truncate -s 10G /work/sparse; echo done')).body['content'], 'done');
  await counted(/^you said: hello\n\n\(From the server: your folders hold 2\d MiB of 20 /);
  await chat('play sh fallocate -l 2M /work/b');
  const refused = await counted(/^user_storage_full$/);
  assert.match(String(refused['detail']), /^This user's folder holds more than 20 MiB/);
  assert.equal((await chat('hello', 2)).body['content'], 'you said: hello');
  for (const name of await readdir(work)) await rm(join(work, name));
  await counted(/^you said: hello$/);
  await chat('play sh cd /work && mkdir many && seq 230000 | (cd many && xargs touch)');
  await counted(/^user_storage_full$/);
  assert.equal((await chat('hello', 2)).status, 200);
});

test('a turn that fills the disk is ended with 507; others are served', { skip: noSandbox || needs(['root'], 'mounts a small disk') }, async (t) => {
  const server = await startSandboxedServer(t, { CLAUDE_STATE_DIR: await makeDisk(t, '1g') });
  const other = server.chat({ prompt: 'play sh dd if=/dev/zero of=/work/mine bs=1M count=20 2>/dev/null; sleep 6; echo slept', user_id: 2 });
  const fill = 'i=0; while :; do i=$((i+1)); fallocate -l 8M /work/$i || sleep 1; sleep 0.02; done';
  const hog = await within('the end of the turn', 30_000, server.chat({ prompt: `play sh ${fill}`, user_id: 1 }));
  assert.deepEqual([hog.status, hog.body['code']], [507, 'user_storage_full'], JSON.stringify(hog.body));
  assert.match(String(hog.body['session_id']), /^[0-9a-f-]{36}$/);
  assert.equal((await other).body['content'], 'slept');
});
