import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { chmod, link, mkdir, mkdtemp, readdir, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { runSizeProgram, sizeProgram, type FolderSize } from '../../src/sandbox/folder-size.ts';
import { walkArgv, walkedFolder } from '../../src/sandbox/sandbox.ts';
import { callTools, cliEnv, say, startMessagesApi, toolResultsOf } from '../messages-api.ts';
import { needs, needsToRun } from '../needs.ts';
import { testWithRealClis, until, within } from '../running-server.ts';
import {
  asOrdinaryUser, chownAll, makeSandboxedHome, makeSandboxedUsers, noSandbox, startSandboxedServer, testSandboxed, type SandboxedUsers,
} from '../sandboxed.ts';

const mib = 1024 * 1024;

/** What user 1's folder holds, counted as the server does. */
function sizeOf({ machine, stateDir }: SandboxedUsers, maxFiles = 1000): Promise<FolderSize | undefined> {
  const walk = walkArgv(machine, join(stateDir, 'users/1'), sizeProgram(walkedFolder, maxFiles));
  return runSizeProgram(asOrdinaryUser(machine.bwrap, ...walk), { PATH: '/usr/sbin:/usr/bin:/bin' }, 10_000);
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
  assert.deepEqual(await runSizeProgram(asOrdinaryUser('sleep', '60'), { PATH: '/usr/bin:/bin' }, 1), { bytes: Infinity, files: Infinity });
  await rm(join(users.stateDir, 'users/1'), { recursive: true });
  assert.equal(await sizeOf(users), undefined);
});

/** A folder that is a disk of its own, of 2 GB and 100,000 files. */
async function makeDisk(t: TestContext): Promise<string> {
  const top = await mkdtemp(join(tmpdir(), 'claude-api-disk-'));
  const [image, folder] = [join(top, 'image'), join(top, 'disk')];
  await mkdir(folder);
  await chmod(top, 0o755);
  await writeFile(image, '');
  await truncate(image, 2048 * mib);
  execFileSync('mkfs.ext4', ['-q', '-N', '100000', image]);
  execFileSync('mount', ['-o', 'loop', image, folder]);
  t.after(async () => {
    execFileSync('umount', ['--lazy', folder]);
    await rm(top, { recursive: true });
  });
  await chownAll(folder);
  return folder;
}

/** Why there can be no such disk here, or false. */
const noDisk = noSandbox || needs(['root', 'mkfs.ext4'], 'makes a disk of its own') || needsToRun(['losetup', '--find'], 'a loop device', 'makes a disk of its own');

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
});

for (const [what, fill] of [
  ['bytes but 80 MiB', 'fallocate -l $(($(df -m --output=avail . | tail -n 1) - 80))M a; sleep 60'],
  ['bytes', 'while :; do i=$((i+1)); fallocate -l 64M /work/$i || sleep 0.1; done'],
  ['files', 'seq 200000 | xargs touch 2>/dev/null; sleep 60'],
] as const) {
  test(`a turn that takes all ${what} of the disk is ended, its user has none until there is room, and others go on`, { skip: noDisk }, async (t) => {
    const stateDir = await makeDisk(t);
    const server = await startSandboxedServer(t, { CLAUDE_STATE_DIR: stateDir, CLAUDE_USER_DISK_MB: '10000' });
    const codeOf = async (userId: number) => (await server.chat({ prompt: 'hello', user_id: userId })).body['code'];
    const running = server.chat({ prompt: 'play sh touch /work/runs; until [ -e /work/go ]; do sleep 0.2; done', user_id: 2 });
    // A process that starts while the disk is full may fail as well.
    await until('the turn of another', () => (existsSync(join(stateDir, 'users/2/work/runs')) ? true : undefined));
    assert.ok(existsSync(join(stateDir, 'reserve')));
    const filler = await within('the end of the turn', 30_000, server.chat({ prompt: `play sh cd /work; ${fill}` }));
    assert.deepEqual([filler.status, filler.body['code']], [507, 'user_storage_full'], JSON.stringify(filler.body));
    assert.match(String(filler.body['session_id']), /^[0-9a-f-]{36}$/);
    await until('room for others', async () => ((await codeOf(3)) === undefined ? true : undefined), 30_000);
    await writeFile(join(stateDir, 'users/2/work/go'), '');
    assert.equal((await running).status, 200);
    await until('the reserve to be given', () => (existsSync(join(stateDir, 'reserve')) ? undefined : true));
    assert.equal(await codeOf(1), 'user_storage_full', 'what the reserve gave is not room that somebody made');
    for (const name of await readdir(join(stateDir, 'users/1/work'))) await rm(join(stateDir, 'users/1/work', name));
    assert.equal(await codeOf(1), undefined);
  });
}

if (noDisk === false) testWithRealClis('a disk filled by Bash of the real CLI', async (t, binary) => {
  const api = await startMessagesApi(t);
  const stateDir = await makeDisk(t);
  const server = await startSandboxedServer(t, { ...cliEnv(binary, api), CLAUDE_MODEL: 'claude-sonnet-5-5', CLAUDE_STATE_DIR: stateDir, CLAUDE_USER_DISK_MB: '10000' });
  const hello = async (userId: number, sessionId?: unknown) => {
    api.script = () => say('ok');
    return server.chat({ prompt: 'hello', user_id: userId, ...(sessionId !== undefined && { session_id: sessionId }) });
  };
  const other = await hello(2);
  for (const folder of ['/tmp', '/work']) {
    const command = `cd ${folder}; while :; do i=$((i+1)); fallocate -l 64M $i || sleep 0.1; done`;
    api.script = (request) => (toolResultsOf(request).length === 0 ? callTools([{ name: 'Bash', input: { command } }]) : say('never'));
    const filling = await within('the end of the turn', 60_000, server.chat({ prompt: 'fill it' }));
    assert.deepEqual([filling.status, filling.body['code']], [507, 'user_storage_full'], folder);
    const sessionId = filling.body['session_id'];
    await until('room for others', async () => ((await hello(2, other.body['session_id'])).status === 200 ? true : undefined), 30_000);
    if (folder === '/work') {
      assert.equal((await hello(1, sessionId)).body['code'], 'user_storage_full');
      const own = join(stateDir, 'users/1/work');
      for (const name of await readdir(own)) await rm(join(own, name));
    }
    // The dialogue goes on when there is room, and /tmp is emptied with its process.
    await until('its own turn again', async () => ((await hello(1, sessionId)).status === 200 ? true : undefined), 30_000);
  }
});
