import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createCannedApi } from '../../../src/sandbox/canned-api.ts';
import { createMeter } from '../../../src/sandbox/usage.ts';

async function send(body: unknown, path = '/v1/messages?beta=true') {
  const api = createCannedApi('ready');
  const answer = await api.send({ path, headers: {}, body: Buffer.from(JSON.stringify(body)) }, new AbortController().signal);
  const bytes = Buffer.concat(await answer.body.toArray());
  return { api, answer, text: bytes.toString(), bytes };
}

test('a message costs nothing, streamed or not, and its model is known afterwards', async () => {
  for (const stream of [true, false]) {
    const { api, answer, text, bytes } = await send({ model: 'claude-x', stream });
    assert.equal(answer.status, 200);
    assert.match(text, /ready/);
    assert.deepEqual([...api.models], ['claude-x']);
    const meter = createMeter(answer.headers['content-type']);
    meter.push(bytes);
    assert.deepEqual(meter.reading(), { tokens: { input: 0, output: 0, cacheWrite: 0, cacheRead: 0 }, isWhole: true, errorType: undefined });
  }
});

test('a question for a count has a count as its answer', async () => {
  assert.deepEqual(JSON.parse((await send({ model: 'claude-x' }, '/v1/messages/count_tokens')).text), { input_tokens: 1 });
});
