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

/** What is wrong with a CLAUDE_API_KEY, each as `NAME: expected …` without its value; none for an unset one. */
export function keyProblems(key: string | undefined): string[] {
  if (key === undefined) return [];
  const fault = keyFaults.find(([, isFaulty]) => isFaulty(key));
  return fault ? [`CLAUDE_API_KEY: expected ${fault[0]}`] : [];
}

const keyFaults: readonly (readonly [string, (key: string) => boolean])[] = [
  ['a key, not an empty value; leave the name out to have one made for each run', (key) => key === ''],
  ['a random key, not a placeholder; `openssl rand -hex 32` prints one', (key) => isPlaceholder(key)],
  ['printable ASCII characters without blanks: it travels in a header', (key) => !/^[\x21-\x7E]+$/.test(key)],
  ['16 characters or more; `openssl rand -hex 32` prints 64', (key) => key.length < 16],
];

function isPlaceholder(key: string): boolean {
  const isPeriodic = /^(.{1,8}?)\1+$/.test(key);
  // 1234567890123456, abcdefghijklmnop, aaaabbbbccccdddd: nearly every character is its neighbour's equal or next.
  const steps = [...key].filter((char, at) => at > 0 && Math.abs(char.charCodeAt(0) - key.charCodeAt(at - 1)) <= 1);
  return isPeriodic || steps.length >= 0.75 * (key.length - 1) || placeholderWords.test(key);
}

// Each is long or bounded enough to be in fewer than one of a million random base64 keys.
const placeholderWords = new RegExp(
  [
    'change[-_ ]?(?:me|this|it)', '(?:^|[^a-z0-9])your[-_ ]', 'your(?:api|claude|own|secret|secure|token|key)',
    'example', 'placeholder', 'replace', 'password', 'qwerty', '(?:my|super)[-_ ]?secret',
    'secret[-_ ]?(?:api[-_ ]?)?key', '(?:key|secret|token)[-_ ]?(?:goes[-_ ]?)?here',
    '(?:^|[^a-z0-9])x{4,}(?:[^a-z0-9]|$)', 'x{8}', 'openssl rand', '\\$\\(', '\\$\\{', '^<.*>$',
  ].join('|'),
  'i',
);

/** A sentence for a key that is accepted, but short. */
export function weakKeyWarnings(key: string | undefined): string[] {
  if (key === undefined || key.length >= 32) return [];
  return ['CLAUDE_API_KEY has fewer than 32 characters; `openssl rand -hex 32` prints a stronger one'];
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
