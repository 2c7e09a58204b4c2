import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { Problem, toProblem } from '../../../src/problem.ts';
import { KeyedTurns } from '../../../src/turns/keyed.ts';
import type { Listeners } from '../../../src/turns/listeners.ts';
import { codeOf, settle, watch } from '../../fake-pool.ts';

type Event = { readonly type: string; readonly text?: string };
type Turn = { readonly listeners: Listeners<Event>; readonly answer: (text: string) => void; readonly fail: (problem: Problem) => void };

const kib = 1024;
const keepMs = 600_000;

/** A store of keys, and every turn it began. */
class Stage {
  readonly turns: Turn[] = [];
  readonly keyed: KeyedTurns<string, Event>;

  constructor({ maxKeys = 1000, maxBytes = 64 * kib * kib } = {}) {
    this.keyed = new KeyedTurns({ maxKeys, maxBytes, keepMs });
  }

  /** A request; what it is told, and what becomes of it. */
  ask(userId: number, key: string, { fingerprint = 'same', signal = new AbortController().signal } = {}) {
    const events: string[] = [];
    const onEvent = ({ type, text }: Event): void => void events.push(text ?? type);
    const start = (listeners: Listeners<Event>): Promise<string> =>
      new Promise((resolve, reject) => this.turns.push({ listeners, answer: resolve, fail: reject }));
    return Object.assign(watch(this.keyed.run(userId, { key, fingerprint }, { signal, onEvent }, start)), { events });
  }

  /** One whole turn; whether it was begun, and not found. */
  async isNew(userId: number, key: string, answer = 'answer'): Promise<boolean> {
    const before = this.turns.length;
    const asked = this.ask(userId, key);
    await settle();
    const turn = this.turns[before];
    turn?.answer(answer);
    await asked.promise;
    return turn !== undefined;
  }

  async begun(count: number): Promise<Turn[]> {
    await settle();
    assert.equal(this.turns.length, count, 'turns begun');
    return this.turns;
  }
}

const unanswered = new Problem('claude_failed', 'It failed.', { sessionId: 's-1' });
const unfinished = new Problem('max_turns_reached', 'Go on.', { sessionId: 's-1' });
const unbegun = new Problem('max_turns_reached', 'Go on.');

test('a hundred requests with one key are one turn, and all have its answer', async () => {
  const stage = new Stage();
  const asked = Array.from({ length: 100 }, () => stage.ask(1, 'k'));
  const [turn] = await stage.begun(1);
  turn?.answer('the answer');
  assert.deepEqual(await Promise.all(asked.map(({ promise }) => promise)), Array(100).fill('the answer'));
  assert.equal(await stage.ask(1, 'k').promise, 'the answer');
  assert.deepEqual([stage.turns.length, stage.keyed.size], [1, 1]);
  assert.deepEqual(asked.map(({ events }) => events.length), [0, ...Array<number>(99).fill(1)], 'all but the first are told that they are not the first');
});

test('a key belongs to its user and to one body', async () => {
  const stage = new Stage();
  stage.ask(1, 'k');
  stage.ask(2, 'k');
  stage.ask(1, 'K');
  // Not to be mistaken for user 1 with another key.
  stage.ask(11, 'k');
  stage.ask(1, '1k');
  await stage.begun(5);
  await assert.rejects(stage.ask(1, 'k', { fingerprint: 'other' }).promise, { code: 'idempotency_conflict' });
  stage.turns[0]?.answer('one');
  assert.equal(await stage.ask(1, 'k').promise, 'one');
  await assert.rejects(stage.ask(1, 'k', { fingerprint: 'other' }).promise, { code: 'idempotency_conflict' });
  await stage.begun(5);
});

test('who comes late is told from the beginning, and hears the rest', async () => {
  const stage = new Stage();
  stage.ask(1, 'k');
  const [turn] = await stage.begun(1);
  for (const type of ['admitted', 'session']) turn?.listeners.tell({ type });
  turn?.listeners.tell({ type: 'delta', text: 'so ' });
  const late = stage.ask(1, 'k');
  assert.deepEqual(late.events, ['replayed', 'admitted', 'session', 'so ']);
  turn?.listeners.tell({ type: 'delta', text: 'far' });
  turn?.answer('so far');
  await late.promise;
  const afterwards = stage.ask(1, 'k');
  await afterwards.promise;
  assert.deepEqual([late.events, afterwards.events], Array(2).fill(['replayed', 'admitted', 'session', 'so ', 'far']));
});

test('a turn with a key goes on when all have hung up, and who returns has its answer', async () => {
  const stage = new Stage();
  const callers = [new AbortController(), new AbortController(), new AbortController()];
  const [first, ...others] = callers.map(({ signal }) => stage.ask(1, 'k', { signal }));
  const [turn] = await stage.begun(1);
  for (const caller of callers) caller.abort(new Problem('request_timeout', 'Gone.'));
  await settle();
  assert.equal(turn?.listeners.signal.aborted, false);
  // The first one waits for the end, for it is the one to say what the turn has cost.
  assert.equal(first?.state, 'pending');
  assert.deepEqual(others.map(({ error }) => codeOf(error)), ['request_timeout', 'request_timeout']);
  turn?.listeners.tell({ type: 'delta', text: 'nobody hears' });
  assert.deepEqual(callers.map((_, i) => [first, ...others][i]?.events.includes('nobody hears')), [false, false, false]);
  turn?.answer('collected');
  assert.equal(await stage.ask(1, 'k').promise, 'collected');
  await assert.rejects(stage.ask(1, 'k', { signal: AbortSignal.abort(toProblem('gone before')) }).promise);
  assert.equal(await first?.promise, 'collected');
});

test('of failures only a 422 with a session is kept; any other is told to all who wait for it, and forgotten', async () => {
  for (const [problem, isKept] of [[unfinished, true], [unbegun, false], [unanswered, false], [new Problem('busy', 'Later.'), false]] as const) {
    const stage = new Stage();
    const asked = [stage.ask(1, 'k'), stage.ask(1, 'k')];
    const [turn] = await stage.begun(1);
    turn?.fail(problem);
    await settle();
    assert.deepEqual(asked.map(({ error }) => error), [problem, problem]);
    assert.equal(stage.keyed.size, isKept ? 1 : 0);
    const again = stage.ask(1, 'k');
    await stage.begun(isKept ? 1 : 2);
    if (isKept) assert.equal(again.error, problem);
  }
});

test('an answer is kept for ten minutes after its end', async (t: TestContext) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const stage = new Stage();
  stage.ask(1, 'k');
  const [turn] = await stage.begun(1);
  t.mock.timers.tick(2 * keepMs);
  turn?.answer('answer');
  await settle();
  t.mock.timers.tick(keepMs - 1);
  assert.equal(await stage.isNew(1, 'k'), false);
  t.mock.timers.tick(1);
  assert.equal(stage.keyed.size, 0);
  assert.equal(await stage.isNew(1, 'k'), true);
});

test('a key that was given up and taken again is kept as long as any other', async (t: TestContext) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const stage = new Stage({ maxKeys: 1 });
  await stage.isNew(1, 'k');
  await stage.isNew(1, 'other');
  t.mock.timers.tick(1);
  assert.equal(await stage.isNew(1, 'k'), true);
  t.mock.timers.tick(keepMs - 1);
  assert.equal(await stage.isNew(1, 'k'), false);
});

test('where all keys are taken the oldest finished one of the user who has most goes, and never one that runs', async () => {
  const stage = new Stage({ maxKeys: 5 });
  stage.ask(1, 'runs');
  await stage.begun(1);
  await stage.isNew(2, 'alone', 'x'.repeat(10 * kib));
  for (const key of ['a', 'b', 'c']) await stage.isNew(1, key);
  assert.equal(await stage.isNew(3, 'new'), true);
  for (const [userId, key] of [[2, 'alone'], [1, 'b'], [1, 'c'], [3, 'new']] as const) assert.equal(await stage.isNew(userId, key), false, key);
  assert.equal(await stage.isNew(1, 'a'), true, 'a had gone');
  assert.equal(stage.keyed.size, 5);
  stage.turns[0]?.answer('answer');
  assert.equal(await stage.isNew(1, 'runs'), false);
});

test('the oldest is the one that was over first, not the one that began first', async () => {
  const stage = new Stage({ maxKeys: 2 });
  for (const key of ['long', 'short']) stage.ask(1, key);
  const [long, short] = await stage.begun(2);
  short?.answer('answer');
  await settle();
  long?.answer('answer');
  await settle();
  stage.ask(1, 'new');
  await stage.begun(3);
  assert.equal(await stage.isNew(1, 'long'), false);
  stage.turns[2]?.answer('answer');
  await settle();
  assert.equal(await stage.isNew(1, 'short'), true);
});

test('where turns that run have all the keys a new one is busy, and a known one is not', async () => {
  const stage = new Stage({ maxKeys: 2 });
  stage.ask(1, 'a');
  stage.ask(2, 'b');
  await stage.begun(2);
  await assert.rejects(stage.ask(3, 'c').promise, { code: 'busy', extras: { retryAfterSeconds: 5 } });
  stage.ask(1, 'a');
  await stage.begun(2);
  stage.turns[1]?.answer('answer');
  await settle();
  stage.ask(3, 'c');
  await stage.begun(3);
});

test('where the bytes are short the user who holds most loses the oldest answers', async () => {
  const stage = new Stage({ maxBytes: 100 * kib });
  await stage.isNew(2, 'small', 'x'.repeat(10 * kib));
  for (const key of ['a', 'b', 'c']) await stage.isNew(1, key, 'x'.repeat(20 * kib));
  await stage.isNew(3, 'new', 'x'.repeat(25 * kib));
  for (const [userId, key] of [[2, 'small'], [1, 'c'], [3, 'new']] as const) assert.equal(await stage.isNew(userId, key), false, key);
  await stage.isNew(1, 'd', 'x'.repeat(50 * kib));
  assert.equal(stage.keyed.size, 3);
  for (const [userId, key] of [[2, 'small'], [3, 'new'], [1, 'd']] as const) assert.equal(await stage.isNew(userId, key), false, key);
  for (const key of ['a', 'b', 'c']) assert.equal(await stage.isNew(1, key), true, key);
});

test('a key counts too, however short its answer', async () => {
  const stage = new Stage({ maxBytes: 10 * kib });
  for (let i = 0; i < 20; i += 1) await stage.isNew(1, `k${i}`);
  assert.equal(stage.keyed.size, 9);
});

test('an answer too large to be kept is forgotten alone', async () => {
  const stage = new Stage({ maxBytes: 100 * kib });
  await stage.isNew(2, 'small');
  await stage.isNew(1, 'huge', 'x'.repeat(200 * kib));
  assert.equal(await stage.isNew(2, 'small'), false);
  assert.equal(await stage.isNew(1, 'huge'), true);
});

test('a turn that says more than there is room for costs no other user an answer, and a late listener has the rest of it', async () => {
  const stage = new Stage({ maxBytes: 100 * kib });
  await stage.isNew(2, 'small', 'x'.repeat(10 * kib));
  stage.ask(1, 'k');
  const turn = (await stage.begun(2))[1];
  for (const type of ['admitted', 'session']) turn?.listeners.tell({ type });
  for (let i = 0; i < 1000; i += 1) turn?.listeners.tell({ type: i % 2 === 0 ? 'delta' : 'tool', text: `${i} ${'x'.repeat(kib)}` });
  const late = stage.ask(1, 'k');
  assert.deepEqual(late.events.slice(0, 3), ['replayed', 'admitted', 'session']);
  assert.ok(late.events.length < 110, `${late.events.length} events are held`);
  turn?.listeners.tell({ type: 'delta', text: 'last' });
  assert.equal(late.events.at(-1), 'last');
  turn?.answer('whole');
  assert.equal(await stage.ask(1, 'k').promise, 'whole');
  assert.equal(await stage.isNew(2, 'small'), false);
});

test('no memory is left behind by keys that come and go', async () => {
  const stage = new Stage({ maxKeys: 10, maxBytes: 100 * kib });
  for (let i = 0; i < 2000; i += 1) await stage.isNew(1, `k${i}`, 'x'.repeat(i % 50 * 40));
  // Were any of their bytes still counted, there would be no room for this.
  for (let i = 0; i < 9; i += 1) await stage.isNew(1, `new ${i}`, 'x'.repeat(9 * kib));
  for (let i = 0; i < 9; i += 1) assert.equal(await stage.isNew(1, `new ${i}`), false, `new ${i}`);
});
