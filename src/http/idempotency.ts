import { createHash } from 'node:crypto';

// Visible ASCII, taken as it stands: the quotes of draft-ietf-httpapi-idempotency-key-header are part of the key.
const keyPattern = /^[\x21-\x7e]{1,128}$/;

/** Whether an Idempotency-Key header, by the values it came with, can be a key. */
export function isKey(values: readonly string[]): boolean {
  return values.length === 1 && keyPattern.test(values[0] ?? '');
}

/** A SHA-256 that is the same for equal JSON values, whatever the order of their members; as a hash it keeps no prompt. */
export function fingerprintOf(value: unknown): string {
  return createHash('sha256').update(JSON.stringify(value, sortMembers)).digest('base64');
}

function sortMembers(_name: string, value: unknown): unknown {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return value;
  return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)));
}
