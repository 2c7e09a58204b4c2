import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createLog, type Fields, type Level, type LogFormat } from '../../src/log.ts';

const noon = new Date('2026-02-03T12:34:56.789Z');

function lineOf(format: LogFormat, level: Level, event: string, fields?: Fields): string {
  const lines: string[] = [];
  createLog(format, { write: (line) => lines.push(line) }, () => noon)(level, event, fields);
  assert.equal(lines.length, 1);
  return lines.join('');
}

test('an event is one line of JSON with its time, level and fields', () => {
  assert.equal(
    lineOf('json', 'info', 'turn', { request: 'r-1', user: 7, warm: true }),
    '{"time":"2026-02-03T12:34:56.789Z","level":"info","event":"turn","request":"r-1","user":7,"warm":true}\n',
  );
});

test('fields may be left out', () => {
  assert.equal(lineOf('json', 'info', 'started'), '{"time":"2026-02-03T12:34:56.789Z","level":"info","event":"started"}\n');
});

test('an undefined field is left out, in JSON and in text', () => {
  assert.ok(!lineOf('json', 'info', 'turn', { code: undefined }).includes('code'));
  assert.ok(!lineOf('text', 'info', 'turn', { code: undefined, message: undefined }).includes('undefined'));
});

test('the journal learns the level from a prefix and gets the same JSON', () => {
  const prefixes = { error: '<3>', warning: '<4>', info: '<6>' } as const;
  for (const level of ['error', 'warning', 'info'] as const) {
    assert.equal(lineOf('journal', level, 'x', { a: 1 }), prefixes[level] + lineOf('json', level, 'x', { a: 1 }));
  }
});

test('text for a person has the time of day, the message and the fields', () => {
  const time = noon.toTimeString().slice(0, 8);
  assert.equal(lineOf('text', 'info', 'listening', { host: '127.0.0.1', message: 'ready', port: 8001 }), `${time}  listening  ready  host=127.0.0.1  port=8001\n`);
});

test('text names the level of what needs attention', () => {
  assert.match(lineOf('text', 'warning', 'login'), /  warning: login\n$/);
  assert.match(lineOf('text', 'error', 'turn'), /  error: turn\n$/);
});

test('an event stays one line whatever its values hold', () => {
  const nasty = 'a\nb\r\nc\u2028d\u0085e\u001b[2Jf\0g';
  for (const format of ['json', 'journal', 'text'] as const) {
    const line = lineOf(format, 'info', 'x', { message: nasty, cause: nasty });
    assert.match(line, /^[^\n\r\u001b\0]*\n$/, format);
  }
});

test('while the output is full nothing is written, and then how much was dropped', () => {
  const lines: string[] = [];
  let isFull = false;
  const log = createLog('json', { write: (line) => lines.push(line), isFull: () => isFull }, () => noon);
  log('info', 'one');
  isFull = true;
  for (const event of ['two', 'three']) log('error', event);
  isFull = false;
  for (const event of ['four', 'five']) log('info', event);
  const events = lines.map((line) => JSON.parse(line) as Record<string, unknown>).map(({ event, lines: dropped }) => [event, dropped]);
  assert.deepEqual(events, [['one', undefined], ['log_dropped', 2], ['four', undefined], ['five', undefined]]);
});
