import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isFileName } from '../../../src/host/turn-files.ts';

const good = ['a', 'отчёт за май.pdf', 'a b.txt', '🦊.png', '-rf', 'trailing.', '...', '.hidden', ' ', 'x'.repeat(200), 'ж'.repeat(100), 'a\\b', '"a"', 'é', '\u202e.exe'];
const bad = ['', '.', '..', 'a/b', '/', '../a', 'a\0b', 'a\nb', '\x7f', '\x9b', 'x'.repeat(201), 'ж'.repeat(101), 'e\u0301', '\ud83e', 'a\udd8a'];

for (const name of good) test(`a file may be called ${JSON.stringify(name)}`, () => assert.ok(isFileName(name)));
for (const name of bad) test(`a file may not be called ${JSON.stringify(name)}`, () => assert.ok(!isFileName(name)));
