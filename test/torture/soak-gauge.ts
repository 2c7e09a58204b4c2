import assert from 'node:assert/strict';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { treeOf } from '../../src/host/processes.ts';

/** A process that is watched, and the state folder it has, if any. */
export interface Watched {
  readonly name: string;
  readonly pid: number;
  readonly stateDir?: string;
}

/** What must not grow, and by how much it may all the same, as the rest of the machine wants it: so many times, and so many more. */
const measures = {
  'memory, MiB': { times: 1.25, more: 20 },
  descriptors: { times: 1.25, more: 15 },
  sockets: { times: 1.25, more: 15 },
  processes: { times: 1.25, more: 10 },
  'entries in turns and tmp': { times: 1.25, more: 20 },
  'folders of users': { times: 1, more: 2 },
  'latency, ms': { times: 4, more: 200 },
} as const;

export type Measure = keyof typeof measures;

interface Sample {
  readonly minutes: number;
  readonly values: ReadonlyMap<string, number>;
}

export function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;
}

/** Looks at processes again and again, and says whether anything grows. */
export class Gauge {
  readonly samples: Sample[] = [];
  readonly #startedAt = performance.now();

  /** Notes how each of them is, and how long turns took since the last look, by the name of the server they were asked of. */
  look(watched: readonly Watched[], latenciesMs: Readonly<Record<string, readonly number[]>>): void {
    const values = new Map<string, number>();
    for (const one of watched) for (const [measure, value] of Object.entries(measuresOf(one))) values.set(`${one.name}: ${measure}`, value);
    for (const [name, times] of Object.entries(latenciesMs)) if (times.length > 0) values.set(`${name}: latency, ms`, median(times));
    this.samples.push({ minutes: (performance.now() - this.#startedAt) / 60_000, values });
  }

  /** What was measured of one thing, over time. */
  series(key: string): Array<{ readonly minutes: number; readonly value: number }> {
    return this.samples.flatMap(({ minutes, values }) => {
      const value = values.get(key);
      return value === undefined ? [] : [{ minutes, value }];
    });
  }

  get keys(): string[] {
    return [...new Set(this.samples.flatMap(({ values }) => [...values.keys()]))];
  }

  /** The medians of the four quarters of everything measured. */
  quarters(): Record<string, number[]> {
    const end = this.samples.at(-1)?.minutes ?? 0;
    return Object.fromEntries(this.keys.map((key) => {
      const series = this.series(key);
      const inQuarter = (quarter: number) => series.filter(({ minutes }) => Math.min(3, Math.floor((4 * minutes) / end)) === quarter);
      return [key, [0, 1, 2, 3].map((quarter) => Number(median(inQuarter(quarter).map(({ value }) => value)).toFixed(1)))];
    }));
  }

  /** Fails where the last quarter is above the second: the first is when caches fill and all processes come up. */
  assertFlat(except: readonly Measure[] = []): void {
    const grown = Object.entries(this.quarters()).filter(([key, [, second = NaN, , last = NaN]]) => {
      const measure = key.replace(/^.*?: /, '') as Measure;
      const { times, more } = measures[measure];
      return !except.includes(measure) && !(last <= times * second + more);
    });
    assert.deepEqual(grown, [], 'the last quarter against the second');
  }
}

function measuresOf({ pid, stateDir }: Watched): Partial<Record<Measure, number>> {
  const links = readdirSync(`/proc/${pid}/fd`).map((name) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${name}`);
    } catch {
      return ''; // closed meanwhile
    }
  });
  return {
    'memory, MiB': (Number(readFileSync(`/proc/${pid}/statm`, 'latin1').split(' ')[1]) * 4096) / 1024 / 1024,
    descriptors: links.length,
    sockets: links.filter((link) => link.startsWith('socket:')).length,
    processes: treeOf(pid).length - 1,
    ...(stateDir !== undefined && { 'entries in turns and tmp': leftIn(stateDir).length }),
    ...(stateDir !== undefined && { 'folders of users': namesIn(join(stateDir, 'users')).length }),
  };
}

/** What lies in the folders of users that is no dialogue: of turns, and of what ran in them. */
export function leftIn(stateDir: string): string[] {
  const users = namesIn(join(stateDir, 'users')).map((name) => join(stateDir, 'users', name));
  return users.flatMap((user) => ['turns', 'tmp'].flatMap((name) => namesIn(join(user, name)).map((entry) => join(user, name, entry))));
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return []; // not made yet, or gone
  }
}

/** The curves of each measure in a panel of its own, all from 0. */
export function draw(title: string, gauge: Gauge): string {
  const [width, height, gap] = [900, 120, 60];
  const colors = ['#06c', '#c60', '#083', '#909'];
  const end = gauge.samples.at(-1)?.minutes ?? 1;
  const panels = Object.keys(measures).map((measure, row) => {
    const keys = gauge.keys.filter((key) => key.endsWith(`: ${measure}`));
    const curves = keys.map((key) => [key.replace(/: .*/, ''), gauge.series(key)] as const);
    const most = Math.max(1, ...curves.flatMap(([, series]) => series.map(({ value }) => value)));
    const top = 60 + row * (height + gap);
    const lines = curves.map(([, series], i) => {
      const [x, y] = [(minutes: number) => 60 + (minutes / end) * width, (value: number) => top + height - (value / most) * height];
      const points = series.map(({ minutes, value }) => `${x(minutes).toFixed(1)},${y(value).toFixed(1)}`);
      return `<polyline points="${points.join(' ')}" fill="none" stroke="${colors[i % 4]}"/>`;
    });
    const names = curves.map(([name], i) => `<tspan fill="${colors[i % 4]}"> ${name}</tspan>`);
    return `<text x="60" y="${top - 8}">${measure}, ${most.toFixed(0)} at most:${names.join('')}</text>
<path d="M60 ${top}V${top + height}H${60 + width}" fill="none" stroke="#999"/>
${lines.join('\n')}`;
  });
  const total = 60 + panels.length * (height + gap);
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 ${total}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="#fff"/>
<text x="60" y="24" font-size="16">${title}, ${end.toFixed(1)} minutes</text>
${panels.join('\n')}
</svg>
`;
}
