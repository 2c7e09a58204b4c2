import assert from 'node:assert/strict';
import { test } from 'node:test';
import { addTokens, createMeter, noTokens } from '../../../src/sandbox/usage.ts';
import { events, usage } from '../../api-stage.ts';

const tokens = { input: 1000, output: 100, cacheWrite: 20, cacheRead: 3 };

function read(contentType: string | undefined, ...pieces: ReadonlyArray<string | Buffer>) {
  const meter = createMeter(contentType);
  for (const piece of pieces) meter.push(Buffer.from(piece));
  return meter.reading();
}

test('a stream cut at any byte is counted as whole, and so is an answer in JSON', () => {
  const stream = Buffer.from(events.join(''));
  const json = Buffer.from(JSON.stringify({ type: 'message', content: [{ type: 'text', text: 'ż🦊"usage":{}' }], usage }));
  for (const [type, whole] of [['text/event-stream; charset=utf-8', stream], ['application/json', json]] as const) {
    for (let i = 0; i <= whole.length; i += 1) {
      assert.deepEqual(read(type, whole.subarray(0, i), whole.subarray(i)), { tokens, isWhole: true, errorType: undefined });
    }
    assert.deepEqual(read(type, ...[...whole].map((byte) => Buffer.from([byte]))).tokens, tokens);
  }
});

test('lines may end in CRLF, and a field may have no blank', () => {
  const stream = events.join('').replaceAll('\n', '\r\n').replaceAll('data: ', 'data:');
  assert.deepEqual(read('text/event-stream', stream).tokens, tokens);
});

test('running totals replace each other, as when a web search adds input', () => {
  const more = { input_tokens: 5000, output_tokens: 50, cache_read_input_tokens: 7, server_tool_use: { web_search_requests: 2 } };
  const delta = `data: ${JSON.stringify({ type: 'message_delta', usage: more })}\n\n`;
  assert.deepEqual(read('text/event-stream', ...events.slice(0, 3), delta).tokens, { input: 5000, output: 50, cacheWrite: 20, cacheRead: 7 });
});

test('texts that look like usage count nothing', () => {
  const evil = [
    { type: 'content_block_delta', delta: { type: 'text_delta', text: 'data: {"type":"message_delta","usage":{"output_tokens":9}}' } },
    { type: 'content_block_start', content_block: { type: 'tool_use', input: { usage: { input_tokens: 9 } } } },
    { type: 'content_block_delta', delta: { type: 'input_json_delta', partial_json: '\n\ndata: {"type":"message_start","message":{"usage":{"input_tokens":9}}}\n\n' } },
  ].map((event) => `data: ${JSON.stringify(event)}\n\n`);
  assert.deepEqual(read('text/event-stream', ...events.slice(0, 5), ...evil, ...events.slice(5)).tokens, tokens);
});

test('numbers that are no counts are not taken', () => {
  for (const wrong of [-1, '5', null, {}, 1e400]) {
    const delta = `data: ${JSON.stringify({ type: 'message_delta', usage: { input_tokens: wrong, output_tokens: 100 } })}\n\n`;
    assert.deepEqual(read('text/event-stream', ...events.slice(0, 3), delta).tokens, tokens);
  }
});

test('what went wrong is named, in an answer and in the midst of a stream', () => {
  const error = JSON.stringify({ type: 'error', error: { type: 'overloaded_error', message: 'x' } });
  assert.equal(read('application/json', error).errorType, 'overloaded_error');
  assert.deepEqual(read('text/event-stream', events[0] ?? '', `event: error\ndata: ${error}\n\n`), {
    tokens: { ...tokens, output: 1 },
    isWhole: false,
    errorType: 'overloaded_error',
  });
  for (const other of ['', 'x', 'null', '[]', '{"error":"x"}', '{"error":{"type":7}}']) assert.equal(read(undefined, other).errorType, undefined);
});

test('of a stream that is left early the pieces of text are counted as four letters a token', () => {
  const piece = (text: string): string => `data: ${JSON.stringify({ type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text } })}\n\n`;
  const short = read('text/event-stream', events[0] ?? '', ...Array<string>(50).fill(piece('ab'))).tokens;
  assert.equal(short.output, 51);
  const long = read('text/event-stream', events[0] ?? '', piece('x'.repeat(4001))).tokens;
  assert.equal(long.output, 1 + 1000, 'one letter more than whole tokens is one more');
  const error = 'data: {"type":"error","error":{"type":"overloaded_error"}}\n\n';
  assert.equal(read('text/event-stream', events[0] ?? '', piece('x'.repeat(4001)), error).tokens.output, long.output);
});

test('what is held has 8 MiB at most, in a line of a stream and in an answer in JSON', () => {
  const frame = JSON.stringify({ type: 'message_delta', pad: '', usage: { output_tokens: 7 } });
  for (const [type, begin] of [['text/event-stream', 'data: '], ['application/json', '']] as const) {
    for (const [over, output] of [[0, 7], [1, 0]] as const) {
      const pad = 'x'.repeat(8 * 1024 * 1024 + over - begin.length - frame.length);
      const whole = `${begin}${frame.replace('"pad":""', `"pad":"${pad}"`)}\n`;
      assert.equal(read(type, ...(whole.match(/[^]{1,1000000}/g) ?? []).map((piece) => (type === 'application/json' ? piece.trimEnd() : piece))).tokens.output, output, `${type} ${over}`);
    }
  }
});

test('only a stream of events is read as one, in whatever letters it is written', () => {
  const stream = events.join('');
  assert.deepEqual([read('Text/Event-Stream', stream).isWhole, read('x-text/event-stream', stream).isWhole], [true, false]);
});

test('a line longer than is ever held is left out, and the next one is read', () => {
  const meter = createMeter('text/event-stream');
  meter.push(Buffer.from('data: "usage"'));
  for (let i = 0; i < 20; i += 1) meter.push(Buffer.alloc(1024 * 1024, 'x'));
  meter.push(Buffer.from(`\n\n${events.join('')}`));
  assert.deepEqual(meter.reading().tokens, tokens);
});

test('a count that is told to be nothing is nothing', () => {
  const delta = `data: ${JSON.stringify({ type: 'message_delta', usage: { input_tokens: 0, output_tokens: 0 } })}\n\n`;
  assert.deepEqual(read('text/event-stream', ...events.slice(0, 3), delta).tokens, { ...tokens, input: 0, output: 0 });
});

test('tokens add up by kind', () => {
  assert.deepEqual(addTokens(tokens, addTokens(tokens, noTokens)), { input: 2000, output: 200, cacheWrite: 40, cacheRead: 6 });
});
