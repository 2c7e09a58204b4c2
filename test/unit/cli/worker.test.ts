import assert from 'node:assert/strict';
import childProcess, { type ChildProcess } from 'node:child_process';
import { getEventListeners } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Problem } from '../../../src/problem.ts';
import { Boxes } from '../../../src/cli/boxes.ts';
import { Worker } from '../../../src/cli/worker.ts';
import { Folder } from '../../../src/host/folder.ts';
import { until, within } from '../../running-server.ts';

const boxes = new Boxes('/nowhere');
const launch = { command: 'claude', args: [], env: {}, cwd: '/', marker: `test-${process.pid}.`, sessionId: 'a', boxes, inbox: '/inbox', isInPlace: () => true };

// Node tells of a missing program by an event, and throws these from spawn itself.
for (const [code, expected] of [['ENOMEM', 'busy'], ['ETXTBSY', 'claude_not_found'], ['ENOEXEC', 'claude_not_found'], ['ENOTDIR', 'claude_not_found']] as const) {
  test(`a start that fails at once with ${code} is ${expected}, not a bug`, (t) => {
    t.mock.method(childProcess, 'spawn', () => {
      throw Object.assign(new Error(`spawn ${code}`), { code });
    });
    syncBuiltinESMExports();
    t.after(() => {
      t.mock.restoreAll();
      syncBuiltinESMExports();
    });
    assert.throws(() => new Worker(launch), (error) => {
      assert.ok(error instanceof Problem, String(error));
      assert.deepEqual([error.code, String(error.extras.cause)], [expected, `Error: spawn ${code}`]);
      return true;
    });
  });
}

test('a program below a file cannot be run', () => {
  assert.throws(() => new Worker({ ...launch, command: '/etc/passwd/claude' }), { code: 'claude_not_found' });
});

test('settings that are longer than the kernel takes are an error that names it', () => {
  assert.throws(() => new Worker({ ...launch, command: '/bin/true', env: { ANTHROPIC_CUSTOM_HEADERS: 'x'.repeat(200_000) } }), { code: 'E2BIG' });
});

test('a process with a control group is started in it, weighed by it and ended with it', async () => {
  const told: string[] = [];
  const group = {
    enter: (command: string, args: readonly string[]) => ({ command: '/bin/sh', args: ['-c', 'exec cat', command, ...args] }),
    heldBytes: () => 42,
    end: async () => void told.push('end'),
  };
  const worker = new Worker({ ...launch, command: '/no/such/program', group });
  await within('what it answers', 5000, worker.started);
  assert.equal(worker.heldBytes(), 42);
  await within('its end', 10_000, worker.stop());
  assert.deepEqual(told, ['end']);
});

test('a turn that is ended while the boxes are still emptied ends at once, is not said, and its process is not used again', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'claude-api-worker-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const own = new Boxes(join(folder, '1'));
  for (const path of [own.inbox, own.outbox]) mkdirSync(path, { recursive: true });
  const worker = new Worker({ ...launch, command: '/bin/sh', args: ['-c', 'exec cat >said'], cwd: folder, boxes: own });
  t.after(() => worker.stop());
  let emptied: (() => void) | undefined;
  t.mock.method(Folder.prototype, 'empty', () => new Promise<void>((resolve) => (emptied = resolve)), { times: 1 });
  const caller = new AbortController();
  const turn = worker.turn({ prompt: 'unsaid', files: [{ name: 'late', bytes: Buffer.from('x') }] }, caller.signal, () => {});
  const end = await until('the emptying', () => emptied);
  assert.ok(worker.isReusable);
  const reason = new Problem('claude_timeout', 'It took too long.');
  caller.abort(reason);
  assert.deepEqual(await within('the end of the turn', 1000, turn), { wasHeard: false, costUsd: 0, outcome: { problem: reason } });
  assert.equal(worker.isReusable, false);
  assert.equal(getEventListeners(caller.signal, 'abort').length, 0);
  end();
  await within('the end of the process', 5000, worker.stop());
  assert.doesNotMatch(readFileSync(join(folder, 'said'), 'utf8'), /unsaid/);
  assert.ok(!existsSync(join(folder, '1')));
});

// As where what is around the CLI is ended from outside: the CLI, which is ended with it, may take a prompt in its last moments.
test('a prompt counts as heard where the process has gone and somebody in it may still read', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'claude-api-worker-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const own = new Boxes(join(folder, '1'));
  for (const path of [own.inbox, own.outbox]) mkdirSync(path, { recursive: true });
  const script = 'exec 3<&0; (sleep 3; cat >said) <&3 & sleep 1';
  const worker = new Worker({ ...launch, command: '/bin/sh', args: ['-c', script], cwd: folder, boxes: own });
  const { wasHeard } = await within('the end of the turn', 10_000, worker.turn({ prompt: 'hello' }, new AbortController().signal, () => {}));
  await until('what was read', () => existsSync(join(folder, 'said')) && readFileSync(join(folder, 'said'), 'utf8').includes('hello') ? true : undefined);
  assert.equal(wasHeard, true);
  await worker.stop();
});

test('a pipe to the CLI that breaks ends nothing', (t) => {
  const { spawn } = childProcess;
  const started: ChildProcess[] = [];
  t.mock.method(childProcess, 'spawn', (...args: Parameters<typeof spawn>) => {
    const child = spawn(...args);
    started.push(child);
    return child;
  });
  syncBuiltinESMExports();
  t.after(() => {
    t.mock.restoreAll();
    syncBuiltinESMExports();
  });
  const worker = new Worker({ ...launch, command: '/bin/cat' });
  t.after(() => worker.stop());
  for (const pipe of started[0]?.stdio.slice(0, 3) ?? []) assert.ok(pipe?.emit('error', new Error('read EIO')));
});
