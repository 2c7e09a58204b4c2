import { Problem } from '../problem.ts';
import type { TurnLimits } from './api-turn.ts';
import { addTokens, noTokens, type Tokens } from './usage.ts';

/** What the API proxy counted, of all users together and of each. In memory: a restart begins anew. */
export interface TokenCount {
  /** All since the start. */
  total(): Tokens;
  /** What a turn of this user asks and tells. */
  of(userId: number): Pick<TurnLimits, 'hasTokensLeft' | 'onTokens'>;
  /** Throws Problem `rate_limited` where this user has had the tokens of the day (UTC), with the seconds until it ends. */
  requireLeft(userId: number): void;
}

const dayMs = 24 * 60 * 60 * 1000;

/** A count with so many tokens a day for each user, of whatever kind; undefined = no limit. */
export function createTokenCount(perDay = Infinity, nowMs: () => number = Date.now): TokenCount {
  let total = noTokens;
  let day = 0;
  const today = new Map<number, number>();

  function hadToday(userId: number): number {
    const current = Math.floor(nowMs() / dayMs);
    if (current !== day) today.clear();
    day = current;
    return today.get(userId) ?? 0;
  }

  return {
    total: () => total,
    of: (userId) => ({
      hasTokensLeft: () => hadToday(userId) < perDay,
      onTokens(tokens) {
        total = addTokens(total, tokens);
        today.set(userId, hadToday(userId) + tokens.input + tokens.output + tokens.cacheWrite + tokens.cacheRead);
      },
    }),
    requireLeft(userId) {
      if (hadToday(userId) >= perDay) throw outOfTokens(nowMs());
    },
  };
}

/** The problem of a user who has had the tokens of the day. */
export function outOfTokens(nowMs: number): Problem {
  return new Problem('rate_limited', 'This user has had the tokens that CLAUDE_USER_TOKENS_PER_DAY allows; try again tomorrow (UTC).', {
    retryAfterSeconds: Math.ceil((dayMs - (nowMs % dayMs)) / 1000),
  });
}
