import { Problem } from '../problem.ts';

const windowMs = 60_000;

/**
 * A limit of turns per user in any 60 seconds. The function it gives counts one turn of a user, or throws Problem
 * `rate_limited` with the time until the next is free; a refused turn is not counted. 0 means no limit.
 */
export function createRateLimit(turnsPerMinute: number, nowMs: () => number = () => performance.now()): (userId: number) => void {
  const recent = new Map<number, number[]>();
  let sweptAt = nowMs();

  return (userId) => {
    if (turnsPerMinute === 0) return;
    const now = nowMs();
    if (now - sweptAt > windowMs) {
      for (const [user, times] of recent) if ((times.at(-1) ?? 0) <= now - windowMs) recent.delete(user);
      sweptAt = now;
    }
    const times = (recent.get(userId) ?? []).filter((time) => time > now - windowMs);
    recent.set(userId, times);
    const [oldest = now] = times;
    if (times.length >= turnsPerMinute) {
      throw new Problem('rate_limited', `This user has had ${turnsPerMinute} turns in the last minute; wait and try again.`, {
        retryAfterSeconds: Math.max(1, Math.ceil((oldest + windowMs - now) / 1000)),
      });
    }
    times.push(now);
  };
}
