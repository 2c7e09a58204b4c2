import type { Log } from '../log.ts';
import { problemCodes, type Problem, type ProblemCode } from '../problem.ts';

/**
 * How a turn came by its process: its session's own, the spare, or one that was started, to go on with a dialogue or for a
 * new one.
 */
export type TurnStart = 'warm' | 'spare' | 'resumed' | 'cold';

// From a refusal to the longest answer that the defaults allow.
const boundsSeconds = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600];

/** How many times were how long. */
export class Histogram {
  /** Upper bounds in seconds, each with the number of times not above it. */
  readonly buckets = new Map(boundsSeconds.map((seconds) => [seconds, 0]));
  count = 0;
  sumSeconds = 0;

  /** Counts one time, in milliseconds. */
  add(ms: number): void {
    const seconds = ms / 1000;
    this.count += 1;
    this.sumSeconds += seconds;
    for (const [bound, count] of this.buckets) if (seconds <= bound) this.buckets.set(bound, count + 1);
  }
}

/** What happened since the start, in numbers. */
export class Figures {
  readonly waits = new Histogram();
  readonly durations = { answered: new Histogram(), failed: new Histogram() };
  readonly starts = new Map<TurnStart, number>((['warm', 'spare', 'resumed', 'cold'] as const).map((start) => [start, 0]));
  readonly problems = new Map<ProblemCode, number>(problemCodes.map((code) => [code, 0]));
  /** Lines of the log by their event. */
  readonly events = new Map<string, number>();
  /** Turns that failed by no fault of the caller's: what they did wrong, hanging up included, is no failure of the server's. */
  failures = 0;

  /** Turns that are over. */
  get turns(): number {
    return this.durations.answered.count + this.durations.failed.count;
  }

  /** Counts a turn that has its process, and how long it waited for it. */
  turnAdmitted(start: TurnStart, waitedMs: number): void {
    countOne(this.starts, start);
    this.waits.add(waitedMs);
  }

  /** Counts a turn that is over, by what it failed with; `durationMs` is the whole of it. */
  turnEnded(problem: Problem | undefined, durationMs: number): void {
    this.durations[problem === undefined ? 'answered' : 'failed'].add(durationMs);
    if (problem === undefined) return;
    countOne(this.problems, problem.code);
    if (problem.status >= 500) this.failures += 1;
  }

  /** The same log, with its lines counted. */
  counting(log: Log): Log {
    return (level, event, fields) => {
      countOne(this.events, event);
      log(level, event, fields);
    };
  }
}

function countOne<K>(counts: Map<K, number>, name: K): void {
  counts.set(name, (counts.get(name) ?? 0) + 1);
}
