import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Deltas } from '../../../src/cli/deltas.ts';
import type { CliEvent } from '../../../src/cli/protocol.ts';

const start = (messageId: string): CliEvent => ({ type: 'message_start', messageId });
const said = (text: string): CliEvent => ({ type: 'text_delta', text });
const complete: CliEvent = { type: 'message_complete' };
const block = (messageId: string, text: string): CliEvent => ({ type: 'text_block', messageId, text });
const tool: CliEvent = { type: 'tool', name: 'Read' };

/** What the caller gets to see of these events, piece by piece. */
function passedOn(...events: readonly CliEvent[]): string[] {
  const deltas = new Deltas();
  return events.map((event) => deltas.push(event)).filter((text) => text !== '');
}

test('streamed pieces are passed on as they come', () => {
  assert.deepEqual(passedOn(start('m1'), said('Hel'), said('lo'), complete), ['Hel', 'lo']);
});

test('the whole message that follows its stream is not said again', () => {
  assert.deepEqual(passedOn(start('m1'), said('Hello'), block('m1', 'Hello'), complete), ['Hello']);
  assert.deepEqual(passedOn(start('m1'), said('Hello'), complete, block('m1', 'Hello')), ['Hello']);
});

test('a message that was never streamed is passed on whole', () => {
  assert.deepEqual(passedOn(block('m1', 'Hello')), ['Hello']);
});

test('both blocks of a message that was never streamed are passed on', () => {
  assert.deepEqual(passedOn(block('m1', 'Let me look.'), tool, block('m1', ' Done.')), ['Let me look.', ' Done.']);
});

test('both blocks of a streamed message are passed on, each once', () => {
  const events = [start('m1'), said('One.'), block('m1', 'One.'), said('Two.'), block('m1', 'Two.'), complete];
  assert.deepEqual(passedOn(...events), ['One.', 'Two.']);
});

test('a second message is passed on though it begins like the first', () => {
  assert.deepEqual(passedOn(start('m1'), said('Hello'), complete, start('m2'), said('Hello'), said(' again'), complete), ['Hello', 'Hello', ' again']);
  assert.deepEqual(passedOn(block('m1', 'Yes'), block('m2', 'Yes')), ['Yes', 'Yes']);
  assert.deepEqual(passedOn(block('m1', 'Yes'), start('m2'), said('Yes')), ['Yes', 'Yes']);
  assert.deepEqual(passedOn(start('m1'), said('Yes'), complete, block('m2', 'Yes')), ['Yes', 'Yes']);
});

test('a message that breaks off and is streamed anew goes on where the caller stopped hearing', () => {
  assert.deepEqual(passedOn(start('m1'), said('Hello wo'), start('m2'), said('Hel'), said('lo world'), said('!'), complete), ['Hello wo', 'rld', '!']);
});

test('a message that breaks off and comes again in one piece goes on where the caller stopped hearing', () => {
  assert.deepEqual(passedOn(start('m1'), said('Hello wo'), block('m2', 'Hello world!')), ['Hello wo', 'rld!']);
});

test('a message of two blocks that breaks off in the second goes on there too', () => {
  assert.deepEqual(passedOn(start('m1'), said('One.'), said('Tw'), block('m2', 'One.'), tool, block('m2', 'Two.')), ['One.', 'Tw', 'o.']);
});

test('a message that breaks off twice is still said once', () => {
  assert.deepEqual(passedOn(start('m1'), said('Hello wo'), start('m2'), said('Hello world'), start('m3'), said('Hello world!'), complete), ['Hello wo', 'rld', '!']);
});

test('a message that breaks off twice, the second time earlier than the first, is still said once', () => {
  assert.deepEqual(passedOn(start('m1'), said('Hello wo'), start('m2'), said('Hel'), start('m3'), said('Hello world!'), complete), ['Hello wo', 'rld!']);
});

test('a message that comes again in other words is said in full', () => {
  assert.deepEqual(passedOn(start('m1'), said('Hello wo'), start('m2'), said('Good day'), said(' to you'), complete), ['Hello wo', 'Good day', ' to you']);
});

test('a message that comes again and turns to other words half-way is said in full', () => {
  assert.deepEqual(passedOn(start('m1'), said('Hello wo'), start('m2'), said('Hello '), said('there'), complete), ['Hello wo', 'Hello there']);
});

test('other events bring no text', () => {
  const others: CliEvent[] = [tool, { type: 'init', sessionId: 's', version: '1', tools: [] }, { type: 'api_error', errorClass: 'x' }, { type: 'api_retry', status: 529, delayMs: 1 }];
  assert.deepEqual(passedOn(start('m1'), said('a'), ...others, said('b')), ['a', 'b']);
});
