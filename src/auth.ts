import { createHash, timingSafeEqual } from 'node:crypto';

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
