import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readFiles } from '../../../src/http/files.ts';

const data = 'QUJD';
const filesOf = (value: unknown) => {
  const { files, errors } = readFiles(value);
  assert.deepEqual(errors, []);
  return files.map(({ name, bytes }) => [name, bytes.toString()]);
};
const faultsOf = (value: unknown) => {
  const { files, errors } = readFiles(value);
  assert.deepEqual(files, []);
  for (const { field, detail } of errors) assert.ok(detail.startsWith(`${field} `), detail);
  return errors.map(({ field }) => field);
};

test('files are decoded, an empty one too, and none are none', () => {
  assert.deepEqual(filesOf(undefined), []);
  assert.deepEqual(filesOf([]), []);
  assert.deepEqual(filesOf([{ name: 'a', data }, { name: 'b', data: '' }, { name: 'c', data: 'QQ==' }, { name: 'd', data: 'QUI=' }, { name: 'e', data: 'ab+/' }]), [['a', 'ABC'], ['b', ''], ['c', 'A'], ['d', 'AB'], ['e', Buffer.from('ab+/', 'base64').toString()]]);
});

test('a name that macOS has taken apart is put together', () => {
  assert.deepEqual(filesOf([{ name: 'e\u0301.txt', data }]), [['\u00e9.txt', 'ABC']]);
});

const wrong: ReadonlyArray<readonly [what: string, value: unknown, fields: readonly string[]]> = [
  ['no list', { name: 'a', data }, ['files']],
  ['null', null, ['files']],
  ['no object', ['a'], ['files[0]']],
  ['null in the list', [null], ['files[0]']],
  ['a list in the list', [[]], ['files[0].name', 'files[0].data']],
  ['nothing but a name', [{ name: 'a' }], ['files[0].data']],
  ['no name', [{ data }], ['files[0].name']],
  ['a path', [{ name: 'a', data }, { name: '../b', data }], ['files[1].name']],
  ['an unknown member', [{ name: 'a', data, type: 'image/png' }], ['files[0].type']],
  ['more than three unknown members', [{ name: 'a', data, b: 1, c: 1, ['x'.repeat(200)]: 1, d: 1 }], ['files[0].b', 'files[0].c', `files[0].${'x'.repeat(100)}`]],
  ['the same name twice', [{ name: 'a', data }, { name: 'a', data }], ['files']],
  ['the same name twice, written in two ways', [{ name: 'e\u0301', data }, { name: '\u00e9', data }], ['files']],
  ['21 files', Array.from({ length: 21 }, (_, i) => ({ name: `${i}`, data })), ['files']],
  ['everything at once', [{ name: '..', data: '?' }, { name: 'a', data: 7, x: 1 }, 3], ['files[0].name', 'files[0].data', 'files[1].x', 'files[1].data', 'files[2]']],
  ...['QQ', 'QQ=', 'Q===', '====', 'QU JD', 'QUJD\n', 'QU\nD', '_-==', 'QQ==QQ==', 'ŁŁŁŁ', 'data:text/plain;base64,QUJD'].map(
    (text) => [`${JSON.stringify(text)} for base64`, [{ name: 'a', data: text }], ['files[0].data']] as const,
  ),
];
for (const [what, value, fields] of wrong) test(`${what} is refused by name`, () => assert.deepEqual(faultsOf(value), fields));

test('all files together have 8 MiB at most', () => {
  const half = Buffer.alloc(4 * 1024 * 1024).toString('base64');
  assert.equal(readFiles([{ name: 'a', data: half }, { name: 'b', data: half }]).files.length, 2);
  assert.deepEqual(faultsOf([{ name: 'a', data: half }, { name: 'b', data: half }, { name: 'c', data: 'QQ==' }]), ['files']);
});
