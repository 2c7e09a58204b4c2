import { Problem } from '../problem.ts';

const windowMs = 60_000;

type Turn = { readonly atMs: number };

/**
 * A limit of turns per user in any 60 seconds. The function it gives counts one turn of a user, or throws Problem
 * `rate_limited` with the time until the next is free; a refused turn is not counted. What it returns gives the turn back,
 * where it came to nothing. 0 means no limit.
 */
export function createRateLimit(turnsPerMinute: number, nowMs: () => number = () => performance.now()): (userId: number) => () => void {
  // In the order of their last turns, so that those who have been away for a minute come first.
  const recent = new Map<number, readonly Turn[]>();

  return (userId) => {
    if (turnsPerMinute === 0) return () => {};
    const now = nowMs();
    const isOver = ({ atMs }: Turn): boolean => atMs <= now - windowMs;
    for (const [user, turns] of recent) {
      if (!turns.every(isOver)) break;
      recent.delete(user);
    }
    const turns = (recent.get(userId) ?? []).filter((turn) => !isOver(turn));
    const [oldest] = turns;
    if (oldest !== undefined && turns.length >= turnsPerMinute) {
      throw new Problem('rate_limited', `This user has reached the limit of ${turnsPerMinute} turns per minute; wait and try again.`, {
        retryAfterSeconds: Math.max(1, Math.ceil((oldest.atMs + windowMs - now) / 1000)),
      });
    }
    const turn = { atMs: now };
    recent.delete(userId);
    recent.set(userId, [...turns, turn]);
    return () => void recent.set(userId, (recent.get(userId) ?? []).filter((other) => other !== turn));
  };
}
