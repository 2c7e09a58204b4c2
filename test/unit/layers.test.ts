import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const src = fileURLToPath(new URL('../../src', import.meta.url));
// A front at the top belongs to the room behind it; main.ts and app.ts may know everybody; json.ts, log.ts, problem.ts and waiting.ts are known to all.
const fronts: Readonly<Record<string, string>> = { 'server.ts': 'http', 'auth.ts': 'http', 'claude.ts': 'cli', 'env.ts': 'host', 'problem.ts': 'all', 'log.ts': 'all', 'json.ts': 'all', 'waiting.ts': 'all' };
const mayImport: Readonly<Record<string, readonly string[]>> = {
  http: ['http', 'turns', 'host', 'all'],
  turns: ['turns', 'cli', 'sandbox', 'host', 'all'],
  cli: ['cli', 'sandbox', 'host', 'all'],
  sandbox: ['sandbox', 'host', 'all'],
  host: ['host', 'all'],
  all: ['all'],
};

const roomOf = (file: string): string => fronts[file] ?? dirname(file);

async function sources(): Promise<{ file: string; text: string }[]> {
  const files = (await readdir(src, { recursive: true })).filter((name) => name.endsWith('.ts'));
  return Promise.all(files.map(async (file) => ({ file, text: await readFile(join(src, file), 'utf8') })));
}

test('no file of src imports a room that must stay unknown to it', async () => {
  const arrows = (await sources()).flatMap(({ file, text }) => [...text.matchAll(/(?:from|import\() ?'(\.[^']+)'/g)].map(([, path = '']) => [file, join(dirname(file), path)] as const));
  assert.ok(arrows.length > 50);
  const wrong = arrows.filter(([from, to]) => roomOf(from) !== '.' && !mayImport[roomOf(from)]?.includes(roomOf(to)));
  assert.deepEqual(wrong.map((arrow) => arrow.join(' -> ')), []);
});

test('no file of src has more than 250 lines, and none of them more than 140 characters', async () => {
  const files = (await sources()).map(({ file, text }) => ({ file, lines: text.trimEnd().split('\n') }));
  assert.deepEqual(files.filter(({ lines }) => lines.length > 250).map(({ file, lines }) => `${file}: ${lines.length} lines`), []);
  assert.deepEqual(files.flatMap(({ file, lines }) => lines.flatMap((line, i) => (line.length > 140 ? [`${file}:${i + 1}`] : []))), []);
});
