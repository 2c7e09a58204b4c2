import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Dialogue, type TurnEnd } from '../../../src/cli/dialogue.ts';
import type { CliEvent, CliResult } from '../../../src/cli/protocol.ts';

const init: CliEvent = { type: 'init', sessionId: 'a', version: '2.1.330' };
const retry = (status: number): CliEvent => ({ type: 'api_retry', status, delayMs: 10 });
const refused: CliResult = { subtype: 'success', isError: true, text: 'Refused for good', errors: [], apiStatus: undefined, terminalReason: undefined, totalCostUsd: 0, turnCostUsd: 0 };

async function codeAfter(...events: CliEvent[]): Promise<string> {
  const dialogue = new Dialogue(0, () => {});
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

test('a session without a usable id is no protocol to go on with', () => {
  for (const sessionId of ['', '../x', 'a b']) {
    const dialogue = new Dialogue(0, () => {});
    void dialogue.begin(() => assert.fail('nobody is told'));
    assert.throws(() => dialogue.hear({ type: 'init', sessionId, version: '2.1.330' }));
  }
});
