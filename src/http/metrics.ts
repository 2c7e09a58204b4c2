import type { Figures, Histogram } from '../turns/figures.ts';
import type { PoolCounts } from '../turns/pool.ts';

/** What `/health` tells whoever has the key, besides its status. */
export interface HealthDetails extends PoolCounts {
  readonly version: string;
  /** The machine's name. */
  readonly node: string;
  /** Null when it could not be asked. */
  readonly claude_version: string | null;
  /** The kind of login; null when there is none. */
  readonly login: string | null;
  /** `on`, or why there is none; null while it is tried. */
  readonly sandbox: string | null;
  /** Sentences for the operator. */
  readonly warnings?: readonly string[];
  readonly uptime_seconds: number;
  /** Who has a turn under way. */
  readonly users: readonly number[];
  /** How many are held. */
  readonly idempotency_keys: number;
  readonly turns: number;
  readonly failures: number;
  /** By kind; counted in the sandbox only. */
  readonly tokens?: Readonly<Record<string, number>>;
}

type Labels = Readonly<Record<string, string>>;
type Samples = ReadonlyArray<readonly [labels: Labels, value: number]>;

/** The Prometheus text format, version 0.0.4; every scraper takes it, whatever it prefers. */
export const metricsType = 'text/plain; version=0.0.4; charset=utf-8';

/** The same figures as the JSON of `/health` has, and what only a monitoring system makes sense of. */
export function metricsText(isUp: boolean, details: HealthDetails, figures: Figures): string {
  const { version, claude_version, node, login, sandbox, memory } = details;
  const info = { version, claude_version: claude_version ?? '', node, login: login ?? '', sandbox: sandbox ?? '' };
  const { answered, failed } = figures.durations;
  const processes = [['running', details.running], ['warm', details.warm]] as const;
  const durations = [[{ outcome: 'answered' }, answered], [{ outcome: 'failed' }, failed]] as const;
  return [
    metric('up', 'gauge', '1 where /health is 200, 0 where it is 503', one(isUp ? 1 : 0)),
    metric('info', 'gauge', 'what runs here', [[info, 1]]),
    metric('uptime_seconds', 'gauge', 'since the start', one(details.uptime_seconds)),
    metric('processes', 'gauge', 'CLI processes', by('state', processes)),
    metric('capacity', 'gauge', 'processes there are, and how many more fit now', one(details.capacity)),
    metric('users', 'gauge', 'users who have a turn under way', one(details.users.length)),
    metric('idempotency_keys', 'gauge', 'keys held, of turns that run or ended lately', one(details.idempotency_keys)),
    metric('queued', 'gauge', 'turns that wait', one(details.queued)),
    metric('memory_bytes', 'gauge', 'what the processes hold, and what is left', by('kind', Object.entries(memory))),
    metric('server_memory_bytes', 'gauge', "the server's own memory", one(process.memoryUsage.rss())),
    metric('turns_total', 'counter', 'turns that are over', by('outcome', [['answered', answered.count], ['failed', failed.count]])),
    metric('turn_problems_total', 'counter', 'turns that failed, by code', by('code', figures.problems)),
    histogram('turn_duration_seconds', 'the whole turn, waiting included', durations),
    histogram('turn_wait_seconds', 'until the turn had its process', [[{}, figures.waits]]),
    metric('turn_starts_total', 'counter', 'turns by how they came by their process', by('process', figures.starts)),
    metric('tokens_total', 'counter', "by Anthropic's own count, with the sandbox", by('kind', Object.entries(details.tokens ?? {}))),
    metric('sandbox_refusals_total', 'counter', 'requests the API proxy refused', one(figures.events.get('api_refused') ?? 0)),
    metric('log_events_total', 'counter', 'lines of the log', by('event', figures.events)),
  ].join('');
}

function one(value: number): Samples {
  return [[{}, value]];
}

function by(label: string, values: Iterable<readonly [name: string, value: number]>): Samples {
  return Array.from(values, ([name, value]) => [{ [label]: name }, value]);
}

function metric(name: string, type: 'gauge' | 'counter', help: string, samples: Samples): string {
  return head(name, type, help) + samples.map(([labels, value]) => line(name, labels, value)).join('');
}

function histogram(name: string, help: string, samples: ReadonlyArray<readonly [Labels, Histogram]>): string {
  const lines = samples.flatMap(([labels, { buckets, count, sumSeconds }]) => [
    ...Array.from(buckets, ([bound, below]) => line(`${name}_bucket`, { ...labels, le: String(bound) }, below)),
    line(`${name}_bucket`, { ...labels, le: '+Inf' }, count),
    line(`${name}_sum`, labels, sumSeconds),
    line(`${name}_count`, labels, count),
  ]);
  return head(name, 'histogram', help) + lines.join('');
}

function head(name: string, type: string, help: string): string {
  return `# HELP claude_api_${name} ${help}\n# TYPE claude_api_${name} ${type}\n`;
}

function line(name: string, labels: Labels, value: number): string {
  const pairs = Object.entries(labels).map(([label, text]) => `${label}="${text.replace(/[\\"]/g, '\\$&').replaceAll('\n', '\\n')}"`);
  return `claude_api_${name}${pairs.length > 0 ? `{${pairs.join(',')}}` : ''} ${value}\n`;
}
