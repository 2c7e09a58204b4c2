/** Milliseconds that this takes. */
export async function timed(work: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now();
  await work();
  return performance.now() - startedAt;
}

export function percentile(values: readonly number[], share: number): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length * share)] ?? NaN;
}

export const median = (values: readonly number[]): number => percentile(values, 0.5);

export const ms = (value: number): string => `${value.toFixed(value < 10 ? 2 : 0)} ms`;

const rows: string[] = [];

/** Notes one measurement, and shows it at once. */
export function row(what: string, figure: string, target: string, isReached: boolean): void {
  rows.push(`| ${what} | ${figure} | ${target} | ${isReached ? 'reached' : 'MISSED'} |`);
  console.error(rows.at(-1));
}

/** The whole table; gives whether every target was reached. */
export function printRows(): boolean {
  console.log(['| what | measured | target | |', '|---|---|---|---|', ...rows].join('\n'));
  return rows.every((line) => !line.includes('MISSED'));
}
