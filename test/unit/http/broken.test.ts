import assert from 'node:assert/strict';
import { test } from 'node:test';
import { reaction, type BrokenConnection, type Reaction } from '../../../src/http/broken.ts';

const open: BrokenConnection = { hasEnded: false, isRefused: false, request: 'none' };

const table: ReadonlyArray<readonly [string, Partial<BrokenConnection>, Reaction]> = [
  ['words that are no request are refused', {}, 'refuse'],
  ['half a head, and the caller sends no more: it may still read', { hasEnded: true }, 'refuse'],
  ['a body that is not what its headers say is that request’s error', { request: 'arriving' }, 'answer'],
  ['garbage behind a request that runs does not cost it its answer', { request: 'heard' }, 'refuse_later'],
  ['more garbage where something was refused passes by, and so does a reset', { isRefused: true }, 'ignore'],
  ['more garbage behind the error of a request passes by', { isRefused: true, request: 'arriving' }, 'ignore'],
  ['more garbage behind a request that runs passes by', { isRefused: true, request: 'heard' }, 'ignore'],
  ['a caller who leaves in mid-body hears nothing', { hasEnded: true, request: 'arriving' }, 'destroy'],
  ['a caller who leaves while its turn runs hears nothing', { hasEnded: true, request: 'heard' }, 'destroy'],
  ['a caller who leaves after a refusal, with an answer under way, hears nothing', { hasEnded: true, isRefused: true, request: 'heard' }, 'destroy'],
  ['a refused caller who ends its side is ended by the refusal', { hasEnded: true, isRefused: true }, 'ignore'],
];

for (const [title, facts, expected] of table) {
  test(title, () => assert.equal(reaction({ ...open, ...facts }), expected));
}
