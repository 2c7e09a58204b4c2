import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';

const text = readFileSync(new URL('../docs/operations.md', import.meta.url), 'utf8');
const section = /^## The log\n([^]*?)^## /m.exec(text)?.[1] ?? '';
const words = (cell: string): string[] => Array.from(cell.matchAll(/`(\w+)`/g), ([, word = '']) => word);

/** Each event of the log with its fields, as docs/operations.md has them. */
export const logTable: ReadonlyMap<string, readonly string[]> = new Map(
  Array.from(section.matchAll(/^\| (`.+?) \| (.+?) \|/gm), ([, events = '', fields = '']) => words(events).map((event) => [event, words(fields)] as const)).flat(),
);

/** Fails where a line of the log has an event or a field that docs/operations.md lacks. */
export function assertInTable(lines: ReadonlyArray<Readonly<Record<string, unknown>>>): void {
  for (const { time, level, event, ...fields } of lines) {
    const documented = logTable.get(String(event)) ?? assert.fail(`docs/operations.md has no event ${String(event)}`);
    assert.deepEqual(Object.keys(fields).filter((name) => !documented.includes(name)), [], `fields of ${String(event)} that docs/operations.md lacks, at ${String(time)} ${String(level)}`);
  }
}
