import assert from 'node:assert/strict';
import { mock, test } from 'node:test';
import { LineMemory, LineSplitter } from '../../../src/cli/ndjson.ts';

const limit = 1024;

/** A splitter alone with its memory, so that its longest line has this many bytes. */
const splitterOf = (maxLineBytes: number): LineSplitter => new LineSplitter(new LineMemory(2 * maxLineBytes));

/** All lines of the pieces pushed one after the other, and what is left at the end. */
function split(pieces: readonly (string | Buffer)[], maxLineBytes = limit): { lines: string[]; rest: string } {
  const splitter = splitterOf(maxLineBytes);
  const lines = pieces.flatMap((piece) => splitter.push(Buffer.from(piece)));
  return { lines, rest: splitter.end() };
}

/** The same bytes in pieces of this length. */
function pieces(text: string, length: number): Buffer[] {
  const bytes = Buffer.from(text);
  return Array.from({ length: Math.ceil(bytes.length / length) }, (_, i) => bytes.subarray(i * length, (i + 1) * length));
}

test('a chunk of whole lines gives all of them', () => {
  assert.deepEqual(split(['one\ntwo\n\nfour\n']), { lines: ['one', 'two', '', 'four'], rest: '' });
});

test('a line comes when its line feed does, however the bytes are cut', () => {
  const text = '{"a":"żółć 🦊\u2028\u2029"}\n\r\n{"b":"\u0085"}\r\nlast';
  const whole = split([text]);
  assert.deepEqual(whole, { lines: ['{"a":"żółć 🦊\u2028\u2029"}', '\r', '{"b":"\u0085"}\r'], rest: 'last' });
  for (const length of [1, 2, 3, 5, 7]) assert.deepEqual(split(pieces(text, length)), whole, `in pieces of ${length}`);
});

test('no line comes before its line feed', () => {
  const splitter = splitterOf(limit);
  assert.deepEqual(splitter.push(Buffer.from('{"a":1}')), []);
  assert.deepEqual(splitter.push(Buffer.from('\n{')), ['{"a":1}']);
});

test('U+2028 and U+2029 do not end a line', () => {
  assert.deepEqual(split(['a\u2028b\u2029c\n']).lines, ['a\u2028b\u2029c']);
});

test('CR is kept: it is white space to JSON', () => {
  assert.deepEqual(split(['{"a":1}\r\nx\ry\n']).lines, ['{"a":1}\r', 'x\ry']);
});

test('a character cut by a chunk stays whole', () => {
  const bytes = Buffer.from('🦊\n');
  for (const at of [1, 2, 3]) assert.deepEqual(split([bytes.subarray(0, at), bytes.subarray(at)]).lines, ['🦊'], `cut at ${at}`);
});

test('bytes that are not UTF-8 become U+FFFD and spoil nothing after them', () => {
  assert.deepEqual(split([Buffer.from([0x61, 0xff, 0x62, 0x0a, 0x63, 0x0a])]).lines, ['a\uFFFDb', 'c']);
});

test('an empty chunk changes nothing', () => {
  assert.deepEqual(split(['a', '', 'b\n', '']), { lines: ['ab'], rest: '' });
});

test('end gives what came after the last line feed, once', () => {
  const splitter = splitterOf(limit);
  splitter.push(Buffer.from('a\nb'));
  assert.equal(splitter.end(), 'b');
  assert.equal(splitter.end(), '');
  assert.deepEqual(splitter.push(Buffer.from('c\n')), ['c']);
});

test('a line of exactly the limit passes, in one chunk or many', () => {
  const line = 'x'.repeat(10);
  assert.deepEqual(split([`${line}\n${line}\n`], 10).lines, [line, line]);
  assert.deepEqual(split(pieces(`${line}\n`, 3), 10).lines, [line]);
});

test('a finished line over the limit is refused', () => {
  assert.throws(() => split([`${'x'.repeat(11)}\n`], 10), /a line is too long/);
});

test('an unfinished line over the limit is refused before its line feed comes', () => {
  const splitter = splitterOf(10);
  assert.deepEqual(splitter.push(Buffer.from('x'.repeat(10))), []);
  assert.throws(() => splitter.push(Buffer.from('x')), /a line is too long/);
});

test('the limit counts bytes, and each line anew', () => {
  assert.throws(() => split(['żółć ż'], 10), /a line is too long/);
  assert.deepEqual(split(['123456789\n', '123456789\n', '123456789\n'], 10).lines.length, 3);
});

test('a line over the limit is dropped from memory', () => {
  const splitter = splitterOf(10);
  splitter.push(Buffer.from('secret'));
  assert.throws(() => splitter.push(Buffer.from('x'.repeat(10))), /a line is too long/);
  assert.equal(splitter.end(), '');
});

test('many take no more than there is: the longest line is given up, and who has a short one goes on', () => {
  const memory = new LineMemory(1000);
  const hostile = Array.from({ length: 20 }, () => new LineSplitter(memory));
  for (const splitter of hostile) splitter.push(Buffer.from('x'.repeat(50)));
  const honest = new LineSplitter(memory);
  assert.deepEqual(honest.push(Buffer.from(`${'y'.repeat(40)}`)), []);
  assert.deepEqual(honest.push(Buffer.from('!\n')), [`${'y'.repeat(40)}!`]);
  const lost = hostile.filter((splitter) => {
    try {
      return splitter.push(Buffer.from('')).length > 0;
    } catch {
      return true;
    }
  });
  assert.equal(lost.length, 1);
  for (const splitter of hostile) splitter.drop();
  assert.deepEqual(new LineSplitter(memory).push(Buffer.from(`${'z'.repeat(500)}\n`)), ['z'.repeat(500)], 'what is dropped comes back');
});

test('what comes after a line that was given up takes no memory', () => {
  const memory = new LineMemory(1000);
  const hostile = new LineSplitter(memory);
  assert.throws(() => hostile.push(Buffer.from('x'.repeat(501))), /a line is too long/);
  for (let i = 0; i < 3; i += 1) assert.throws(() => hostile.push(Buffer.from('x'.repeat(400))), /a line is too long/);
  const others = [new LineSplitter(memory), new LineSplitter(memory)];
  for (const splitter of others) splitter.push(Buffer.from('y'.repeat(500)));
  for (const splitter of others) assert.deepEqual(splitter.push(Buffer.from('\n')), ['y'.repeat(500)]);
});

test('a line that comes byte by byte takes about as much memory as it has bytes', () => {
  const concat = mock.method(Buffer, 'concat');
  const splitter = splitterOf(100_000);
  for (let i = 0; i < 20_000; i += 1) splitter.push(Buffer.from('x'));
  concat.mock.resetCalls();
  assert.equal(splitter.end(), 'x'.repeat(20_000));
  const parts = concat.mock.calls[0]?.arguments[0] ?? [];
  concat.mock.restore();
  assert.ok(parts.length < 10, `${parts.length} parts`);
});

test('a 32 MiB line in 64 KiB chunks is put together once, not once a chunk', () => {
  const chunk = Buffer.alloc(64 * 1024, 'x');
  const splitter = splitterOf(48 * 1024 * 1024);
  const concat = mock.method(Buffer, 'concat');
  try {
    for (let i = 0; i < 512; i += 1) assert.deepEqual(splitter.push(chunk), []);
    assert.equal(concat.mock.callCount(), 0);
    const startedAt = performance.now();
    const [line = ''] = splitter.push(Buffer.from('\n'));
    assert.equal(line.length, 32 * 1024 * 1024);
    assert.equal(concat.mock.callCount(), 1);
    assert.ok(performance.now() - startedAt < 5000, 'joining took more than 5 s');
  } finally {
    concat.mock.restore();
  }
});
