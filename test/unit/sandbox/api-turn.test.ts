import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ApiTurn } from '../../../src/sandbox/api-turn.ts';

test('that the tokens of the day ran out is kept, though the day ends meanwhile', () => {
  let hasLeft = false;
  const turn = new ApiTurn({ maxRequests: 2, hasTokensLeft: () => hasLeft, onTooManyRefusals: () => {} });
  assert.equal(turn.hasTokensLeft(), false);
  hasLeft = true;
  assert.equal(turn.hasTokensLeft(), true);
  assert.equal(turn.end().isOutOfTokens, true);
});
