import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { Boxes, type Given } from '../../../src/cli/boxes.ts';
import type { TurnEnd } from '../../../src/cli/dialogue.ts';
import { Problem } from '../../../src/problem.ts';
import { until } from '../../running-server.ts';

const mib = 1024 * 1024;
const never = new AbortController().signal;
const answered: TurnEnd = { wasHeard: true, costUsd: 0.25, outcome: { content: 'done' } };

function makeBoxes(t: TestContext): Boxes {
  const top = mkdtempSync(join(tmpdir(), 'claude-api-boxes-'));
  t.after(() => rmSync(top, { recursive: true, force: true }));
  const boxes = new Boxes(join(top, '7'));
  for (const path of [boxes.inbox, boxes.outbox]) mkdirSync(path, { recursive: true });
  return boxes;
}

/** What is given after a turn in which this happens. */
async function givenBy(boxes: Boxes, act: () => void, files: Parameters<Boxes['around']>[0] = []): Promise<Given> {
  const { outcome } = await boxes.around(files, never, async () => {
    act();
    return answered;
  });
  return 'given' in outcome && outcome.given !== undefined ? outcome.given : assert.fail('nothing is said of files');
}

test('files lie in the inbox during their turn alone', async (t) => {
  const boxes = makeBoxes(t);
  const files = [{ name: 'отчёт.txt', bytes: Buffer.from('text') }, { name: '-rf', bytes: Buffer.alloc(0) }];
  await givenBy(boxes, () => {
    assert.deepEqual(readdirSync(boxes.inbox).sort(), ['-rf', 'отчёт.txt']);
    assert.equal(readFileSync(join(boxes.inbox, 'отчёт.txt'), 'utf8'), 'text');
  }, files);
  await until('an inbox that is empty again', () => readdirSync(boxes.inbox).length === 0 || undefined);
  await givenBy(boxes, () => assert.deepEqual(readdirSync(boxes.inbox), []));
});

test('what lies in the outbox after a turn is given once, in order', async (t) => {
  const boxes = makeBoxes(t);
  writeFileSync(join(boxes.outbox, 'from before'), 'x');
  const { files, omitted } = await givenBy(boxes, () => {
    assert.deepEqual(readdirSync(boxes.outbox), [], 'nothing of an earlier turn is there');
    for (const name of ['b.csv', 'a.png', 'empty']) writeFileSync(join(boxes.outbox, name), name === 'empty' ? '' : name);
  });
  assert.deepEqual([files.map(({ name, data }) => [name, Buffer.from(data, 'base64').toString()]), omitted], [[['a.png', 'a.png'], ['b.csv', 'b.csv'], ['empty', '']], []]);
  assert.deepEqual(await givenBy(boxes, () => {}), { files: [], omitted: [] });
});

test('of more than 20 files, or 8 MiB, the others are named', async (t) => {
  const boxes = makeBoxes(t);
  const names = Array.from({ length: 25 }, (_, i) => `${i + 10}`);
  const many = await givenBy(boxes, () => names.forEach((name) => writeFileSync(join(boxes.outbox, name), name)));
  assert.deepEqual([many.files.map(({ name }) => name), many.omitted], [names.slice(0, 20), names.slice(20)]);
  const large = await givenBy(boxes, () => {
    for (const [name, bytes] of [['a', 5 * mib], ['b', 3 * mib + 1], ['c', 3 * mib], ['d', 1], ['e', 0]] as const) writeFileSync(join(boxes.outbox, name), Buffer.alloc(bytes));
  });
  assert.deepEqual([large.files.map(({ name }) => name), large.omitted], [['a', 'c', 'e'], ['b', 'd']]);
});

test('only plain files are given, and nothing is followed or waited for', { timeout: 20_000 }, async (t) => {
  const boxes = makeBoxes(t);
  const secret = join(boxes.inbox, '../../secret');
  writeFileSync(secret, 'of the server');
  const { files, omitted } = await givenBy(boxes, () => {
    const path = (name: string): string => join(boxes.outbox, name);
    writeFileSync(path('plain'), 'plain');
    symlinkSync(secret, path('link'));
    symlinkSync(boxes.inbox, path('link to a folder'));
    execFileSync('mkfifo', [path('fifo')]);
    mkdirSync(path('folder'));
    writeFileSync(path('folder/inside'), 'x');
    writeFileSync(path('one of two names'), 'x');
    execFileSync('ln', [path('one of two names'), path('other of two names')]);
    execFileSync('truncate', ['--size', '10G', path('sparse')]);
    execFileSync(process.execPath, ['-e', 'require("net").createServer().listen(process.argv[1], () => process.exit())', path('socket')]);
  });
  assert.deepEqual(files.map(({ name }) => name), ['plain']);
  assert.deepEqual(omitted, ['fifo', 'folder', 'link', 'link to a folder', 'one of two names', 'other of two names', 'socket', 'sparse']);
  await boxes.remove();
  assert.equal(readFileSync(secret, 'utf8'), 'of the server');
});

test('names that no answer can carry are told in other letters, and never twice', async (t) => {
  const boxes = makeBoxes(t);
  const { files, omitted } = await givenBy(boxes, () => {
    for (const name of ['a\n\x9bb', 'e\u0301', '\u00e9', 'x'.repeat(201)]) writeFileSync(join(boxes.outbox, name), 'x');
    writeFileSync(Buffer.concat([Buffer.from(`${boxes.outbox}/`), Buffer.from([0x66, 0xff])]), 'x');
  });
  assert.deepEqual(files.map(({ name }) => name), ['a\ufffd\ufffdb', '\u00e9', 'f\ufffd']);
  assert.deepEqual(omitted, ['x'.repeat(201), '\u00e9']);
});

test('of a million names a thousand are told', async (t) => {
  const boxes = makeBoxes(t);
  const { files, omitted } = await givenBy(boxes, () => {
    for (let i = 0; i < 1100; i += 1) writeFileSync(join(boxes.outbox, String(i)), '');
  });
  assert.deepEqual([files.length, omitted.length], [20, 980]);
});

test('a turn that failed gives nothing', async (t) => {
  const boxes = makeBoxes(t);
  const failed: TurnEnd = { wasHeard: true, costUsd: 0, outcome: { problem: new Problem('claude_failed', 'It failed.') } };
  const end = await boxes.around([], never, async () => {
    writeFileSync(join(boxes.outbox, 'half'), 'x');
    return failed;
  });
  assert.equal(end, failed);
  assert.deepEqual(await givenBy(boxes, () => {}), { files: [], omitted: [] });
});

test('without an inbox there is no turn', async (t) => {
  const boxes = makeBoxes(t);
  rmSync(boxes.inbox, { recursive: true });
  const end = await boxes.around([{ name: 'a', bytes: Buffer.from('a') }], never, () => assert.fail('it was begun'));
  assert.deepEqual('problem' in end.outcome && [end.wasHeard, end.costUsd, end.outcome.problem.code], [false, 0, 'storage_unavailable']);
});

test('a turn that is given up before its files are in the inbox is not begun, and says why', async (t) => {
  const files = [{ name: 'a', bytes: Buffer.from('a') }];
  for (const isLate of [false, true]) {
    const given = new AbortController();
    const giveUp = (): void => given.abort(new Problem('claude_timeout', 'It took too long.'));
    if (!isLate) giveUp();
    const ending = makeBoxes(t).around(files, given.signal, () => assert.fail('it was begun'));
    giveUp();
    const { outcome } = await ending;
    assert.equal('problem' in outcome && outcome.problem.code, 'claude_timeout');
  }
});

test('an outbox that its user closed is read and removed all the same', async (t) => {
  // Root may read everything.
  if (process.getuid?.() === 0) {
    process.seteuid?.(65_534);
    t.after(() => process.seteuid?.(0));
  }
  const boxes = makeBoxes(t);
  const { files } = await givenBy(boxes, () => {
    writeFileSync(join(boxes.outbox, 'a'), 'a');
    chmodSync(boxes.outbox, 0);
  });
  assert.deepEqual(files.map(({ name }) => name), ['a']);
  await boxes.remove();
  assert.ok(!existsSync(join(boxes.inbox, '..')));
  const unread = makeBoxes(t);
  writeFileSync(join(unread.outbox, 'a'), 'a');
  chmodSync(unread.outbox, 0);
  await unread.remove();
  assert.ok(!existsSync(join(unread.inbox, '..')));
});

test('the end of the process waits until its last files are read', async (t) => {
  const boxes = makeBoxes(t);
  let removed: Promise<void> | undefined;
  const { files } = await givenBy(boxes, () => {
    writeFileSync(join(boxes.outbox, 'a'), 'a');
    // As when the CLI ends right behind its result.
    setImmediate(() => (removed = boxes.remove()));
  });
  assert.deepEqual(files.map(({ name }) => name), ['a']);
  await removed;
  await boxes.remove();
  assert.ok(!existsSync(join(boxes.inbox, '..')));
});
