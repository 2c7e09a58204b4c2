import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Dialogue, type TurnEnd } from '../../../src/cli/dialogue.ts';
import { Problem } from '../../../src/problem.ts';
import type { CliEvent, CliResult } from '../../../src/cli/protocol.ts';

const init: CliEvent = { type: 'init', sessionId: 'a', version: '2.1.331', tools: [] };
const retry = (status: number): CliEvent => ({ type: 'api_retry', status, delayMs: 10 });
const refused: CliResult = { subtype: 'success', isError: true, text: 'Refused for good', errors: [], apiStatus: undefined, terminalReason: undefined, sessionId: 'a', costUsd: 0 };

async function codeAfter(...events: CliEvent[]): Promise<string> {
  const dialogue = new Dialogue('a', false, () => {});
  const end: Promise<TurnEnd> = dialogue.begin(() => {});
  for (const event of [init, ...events, { type: 'result', ...refused } as const]) dialogue.hear(event);
  const { outcome } = await end;
  return 'problem' in outcome ? outcome.problem.code : 'answer';
}

test('a trouble that the CLI got over is not the cause of what fails later', async () => {
  for (const status of [413, 429, 529]) {
    assert.notEqual(await codeAfter(retry(status)), 'claude_api_error', 'the last word of a result that names no status');
    assert.equal(await codeAfter(retry(status), { type: 'message_start', messageId: 'm' }), 'claude_api_error');
  }
});

test('whatever the CLI says of another session than its own is no protocol to go on with', () => {
  const result: CliEvent = { type: 'result', ...refused };
  for (const wrong of [{ ...init, sessionId: 'b' }, { ...init, sessionId: '' }, { ...result, sessionId: 'b' }, { ...result, sessionId: '' }] as CliEvent[]) {
    const dialogue = new Dialogue('a', false, () => {});
    void dialogue.begin(() => assert.fail('nobody is told'));
    assert.throws(() => dialogue.hear(wrong), Error, JSON.stringify(wrong));
  }
});

test('a cost that cannot be is no protocol to go on with', async () => {
  const endWith = (costUsd: number): Promise<TurnEnd> => {
    const dialogue = new Dialogue('a', false, () => {});
    const end = dialogue.begin(() => {});
    dialogue.hear(init);
    dialogue.hear({ type: 'result', ...refused, costUsd });
    return end;
  };
  for (const costUsd of [-1, -1e-9, 1000.01, 1e308, Infinity, NaN]) assert.throws(() => endWith(costUsd), Error, String(costUsd));
  for (const costUsd of [0, 0.25, 1000]) assert.equal((await endWith(costUsd)).costUsd, costUsd);
});

test('a turn cannot say more than the server can hold: it is no protocol to go on with', () => {
  const mebibyte = 'x'.repeat(1024 * 1024);
  const more: readonly CliEvent[] = [{ type: 'text_delta', text: mebibyte }, { type: 'tool', name: mebibyte }, { type: 'tool', name: '' }, init];
  for (const event of more) {
    const dialogue = new Dialogue('a', true, () => {});
    let told = 0;
    void dialogue.begin((event) => (told += JSON.stringify(event).length));
    const sayOn = (): void => {
      while (told < 128 * mebibyte.length) dialogue.hear(event);
    };
    assert.throws(sayOn, Error, event.type);
    assert.ok(told >= 10 * mebibyte.length, `${event.type}: ${told}`);
  }
});

test('a process whose turn ended with a problem gets no further one', () => {
  for (const [isError, isReady] of [[false, true], [true, false]] as const) {
    const dialogue = new Dialogue('a', false, () => {});
    void dialogue.begin(() => {});
    for (const event of [init, { type: 'result', ...refused, isError } as const]) dialogue.hear(event);
    assert.equal(dialogue.isReady, isReady);
  }
});

test('what is said between two turns spoils the process for the next one', () => {
  for (const late of [init, { type: 'result', ...refused } as const]) {
    const dialogue = new Dialogue('a', false, () => {});
    void dialogue.begin(() => {});
    dialogue.hear(init);
    dialogue.hear({ type: 'result', ...refused, isError: false });
    assert.equal(dialogue.isReady, true);
    dialogue.hear(late);
    assert.equal(dialogue.isReady, false, late.type);
  }
});

test('a result before the init line of its turn is none of its own', async () => {
  const dialogue = new Dialogue('a', false, () => {});
  const first = dialogue.begin(() => {});
  for (const event of [init, { type: 'result', ...refused, isError: false } as const]) dialogue.hear(event);
  await first;
  const second = dialogue.begin(() => {});
  dialogue.hear({ type: 'result', ...refused, isError: false, text: 'an answer nobody asked for' });
  for (const event of [init, { type: 'result', ...refused, isError: false, text: 'its own' } as const]) dialogue.hear(event);
  assert.deepEqual((await second).outcome, { content: 'its own' });
  assert.equal(dialogue.isReady, false, 'a process that says what nobody asked for gets no further turn');
});

test('a CLI that turns out to be too old for the server is given up on', async () => {
  let isGivenUp = false;
  const dialogue = new Dialogue('a', false, () => (isGivenUp = true));
  const end = dialogue.begin(() => {});
  dialogue.hear({ ...init, version: '2.1.325' } as CliEvent);
  dialogue.hear({ type: 'result', ...refused });
  const { outcome } = await end;
  assert.deepEqual([isGivenUp, 'problem' in outcome && outcome.problem.code], [true, 'claude_too_old']);
});

test('behind the wall of a sandbox nobody is believed about what concerns all: the version, how a process ended', async () => {
  let isGivenUp = false;
  const dialogue = new Dialogue('a', true, () => (isGivenUp = true));
  const end = dialogue.begin(() => {});
  dialogue.hear({ ...init, version: '1.0.0' });
  assert.equal(isGivenUp, false);
  dialogue.hear({ type: 'result', ...refused, isError: false });
  assert.ok('content' in (await end).outcome);
  for (const exit of [{ code: 127, signal: null }, { code: 126, signal: null }]) {
    const unheard = new Dialogue('a', true, () => {});
    const turn = unheard.begin(() => {});
    unheard.fail(exit, undefined);
    const { outcome } = await turn;
    assert.equal('problem' in outcome && outcome.problem.code, 'claude_failed', String(exit.code));
  }
});

test('a turn that is given up ends with that problem, whatever the CLI still says', async () => {
  let isGivenUp = false;
  const dialogue = new Dialogue('a', true, () => (isGivenUp = true));
  const end = dialogue.begin(() => {});
  dialogue.hear(init);
  dialogue.giveUp(new Problem('claude_failed', 'enough'));
  assert.equal(isGivenUp, true);
  dialogue.hear({ type: 'result', ...refused, isError: false, costUsd: 1 });
  const { outcome, costUsd } = await end;
  assert.equal('problem' in outcome && outcome.problem.message, 'enough');
  assert.equal(costUsd, 1);
});
