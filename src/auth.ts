import { createHash, timingSafeEqual } from 'node:crypto';
import type { Log } from './log.ts';

/** What the key check says of a request. */
export type Verdict = 'ok' | 'missing_api_key' | 'invalid_api_key';

/**
 * A check of the `Authorization` header values of one request against the key: Bearer, scheme in any case (RFC 9110
 * section 11.1), exactly one header. Takes the same time for every wrong key of whatever length: both sides are hashed.
 */
export function createAuth(apiKey: string): (headerValues: readonly string[]) => Verdict {
  const expected = sha256(apiKey);
  return (headerValues) => {
    const [value, ...others] = headerValues;
    if (value === undefined) return 'missing_api_key';
    const token = /^bearer +(\S+) *$/i.exec(value)?.[1];
    if (others.length > 0 || token === undefined) return 'invalid_api_key';
    return timingSafeEqual(sha256(token), expected) ? 'ok' : 'invalid_api_key';
  };
}

function sha256(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}

/** Says that a key was made for this run. It is shown to a person only: in a log file or the journal it would lie about. */
export function offerKey(apiKey: string, port: number, log: Log, terminal: { write(text: string): unknown } | undefined): void {
  log('warning', 'config', { message: 'CLAUDE_API_KEY is not set: a key was made for this run, and only this machine can connect' });
  terminal?.write(`
  curl http://127.0.0.1:${port}/api/v1/chat \\
    -H 'Authorization: Bearer ${apiKey}' \\
    -H 'Content-Type: application/json' \\
    -d '{"prompt": "Hello", "user_id": 1}'

`);
}
