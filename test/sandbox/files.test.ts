import assert from 'node:assert/strict';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { until, type Reply, type RunningServer } from '../running-server.ts';
import { chownAll, makeSandboxedHome, startSandboxedServer, testSandboxed } from '../sandboxed.ts';

const secret = 'MILK-OF-USER-TWO';

/** A server with a second user, whose secret the first is after. */
async function startWithTwo(t: TestContext): Promise<{ server: RunningServer; theirs: string; sh: (script: string, sessionId?: unknown) => Promise<Reply> }> {
  const home = await makeSandboxedHome(t);
  const server = await startSandboxedServer(t, {}, home);
  await server.chat({ prompt: 'hello', user_id: 2 });
  const theirs = join(home, 'state/users/2/work/secret.txt');
  await writeFile(theirs, secret);
  await chownAll(theirs);
  const sh = async (script: string, sessionId?: unknown): Promise<Reply> => {
    const files = [{ name: 'own.txt', data: Buffer.from('own').toString('base64') }];
    const reply = await server.chat({ prompt: `play sh ${script}`, files, ...(sessionId !== undefined && { session_id: sessionId }) });
    assert.equal(reply.status, 200, JSON.stringify(reply.body));
    return reply;
  };
  return { server, theirs, sh };
}

const given = ({ body }: Reply): Record<string, string> => {
  const files = (body['files'] ?? []) as Array<{ name: string; data: string }>;
  return Object.fromEntries(files.map(({ name, data }) => [name, Buffer.from(data, 'base64').toString()]));
};

testSandboxed('the inbox can be read and not changed, and a copy of it comes back', async (t) => {
  const { sh } = await startWithTwo(t);
  const script = 'cd /inbox; touch new 2>/dev/null || echo refused; rm own.txt 2>/dev/null || echo refused; chmod 777 . 2>/dev/null || echo refused; mv own.txt /work 2>/dev/null || echo refused; cp own.txt /outbox/back.txt';
  const reply = await sh(script);
  assert.deepEqual([reply.body['content'], given(reply)], ['refused\nrefused\nrefused\nrefused', { 'back.txt': 'own' }]);
});

testSandboxed('nothing in the outbox but plain files is given: not followed, not waited for, not in memory', async (t) => {
  const { server, theirs, sh } = await startWithTwo(t);
  const script = `cd /outbox; echo plain > plain; ln -s ${theirs} link; ln -s /etc/passwd passwd; ln -s ../../../2/work/secret.txt relative; ln -s .. up;
    mkfifo fifo; mkdir -p folder/deeper; echo x > folder/deeper/x; echo x > one; ln one other; ln /inbox/own.txt hard 2>/dev/null || echo no link out;
    mknod device c 1 3 2>/dev/null || echo no device; truncate -s 2G sparse;
    node -e 'require("net").createServer().listen("socket", () => process.exit())';
    perl -e 'open F, ">", "leased"; fcntl F, 1024, 1 or die $!; open L, ">", "ready"; sleep 300' >/dev/null 2>&1 & while [ ! -e ready ]; do sleep 0.1; done`;
  const startedAt = performance.now();
  const reply = await sh(script);
  assert.deepEqual([reply.body['content'], given(reply)], ['no link out\nno device', { plain: 'plain\n', ready: '' }]);
  assert.deepEqual(reply.body['omitted_files'], ['fifo', 'folder', 'leased', 'link', 'one', 'other', 'passwd', 'relative', 'socket', 'sparse', 'up']);
  assert.ok(performance.now() - startedAt < 20_000);
  const peakKiB = Number(/^VmHWM:\s+(\d+) kB/m.exec(await readFile(`/proc/${server.pid}/status`, 'utf8'))?.[1]);
  assert.ok(peakKiB > 0 && peakKiB < 400 * 1024, `${peakKiB} KiB`);
  assert.equal(await readFile(theirs, 'utf8'), secret);
});

testSandboxed('a file that grows, or is swapped for a link while it is read, gives nothing of others and holds nobody up', async (t) => {
  const { server, theirs, sh } = await startWithTwo(t);
  const racing = `cd /outbox; (while :; do head -c 200000 /dev/zero >> grow; done) >/dev/null 2>&1 & (while :; do ln -sfn ${theirs} swap; rm -f swap; echo plain > swap; done) >/dev/null 2>&1 & sleep 0.3`;
  const seen = new Set<string>();
  for (let i = 0; i < 8; i += 1) {
    const reply = await sh(racing);
    assert.ok(!JSON.stringify(reply.body).includes(secret));
    const { swap, grow } = given(reply);
    assert.ok(swap === undefined || swap === 'plain\n' || swap === '', swap);
    assert.ok(grow === undefined || /^\0*$/.test(grow));
    for (const name of [...Object.keys(given(reply)), ...((reply.body['omitted_files'] ?? []) as string[]).map((name) => `not ${name}`)]) seen.add(name);
  }
  t.diagnostic([...seen].join(', '));
  assert.ok(seen.size > 0);
  assert.equal((await server.request('/health')).status, 200);
});

testSandboxed('the outbox is empty at the next turn, and gone with the process, whatever its user made of it', async (t) => {
  const { server, sh } = await startWithTwo(t);
  const turns = join(server.home, 'state/users/1/turns');
  const deep = 'mkdir -p /outbox/$(seq -s / 1 40)/end; touch /outbox/$(seq -s / 1 40)/end/file; for i in $(seq 300); do echo x > /outbox/f$i; done; echo x > /outbox/.hidden';
  const first = await sh(deep);
  assert.equal(Object.keys(given(first)).length, 20);
  assert.equal((first.body['omitted_files'] as string[]).length, 282);
  const second = await sh('ls -A /outbox | wc -l; ls -A /inbox', first.body['session_id']);
  assert.deepEqual([second.body['content'], given(second)], ['0\nown.txt', {}]);
  const closing = 'cd /outbox; echo x > a; mkdir -p folder/deeper; touch folder/x folder/deeper/x; chmod 500 folder/deeper; mkdir -p $(seq -s / 1 70)/end; find 1 -depth -type d -exec chmod 0 {} +; chmod 0 folder /outbox';
  const closed = await sh(closing, first.body['session_id']);
  assert.deepEqual(given(closed), { a: 'x\n' });
  const after = await sh('ls -A /outbox | wc -l; ls -ld /outbox | cut -c 1-10', first.body['session_id']);
  assert.equal(after.body['content'], '0\ndrwx------');
  await server.end();
  await until('no folder of a process', async () => ((await readdir(turns)).length === 0 ? true : undefined));
});
