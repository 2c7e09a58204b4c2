import assert from 'node:assert/strict';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { Readable } from 'node:stream';
import { test } from 'node:test';
import { readChatRequest } from '../../src/http/body.ts';
import { Problem } from '../../src/problem.ts';
import { amount, randomOf } from '../random.ts';

const maxBytes = 1024 * 1024;

/** The body's way through the server, in pieces of random size; the request is as much of one as is looked at. */
function read(bytes: Buffer, random: () => number): Promise<object> {
  const parts: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    const end = at + 1 + Math.floor(random() * bytes.length);
    parts.push(bytes.subarray(at, end));
    at = end;
  }
  const req = Object.assign(Readable.from(parts), { headersDistinct: {}, headers: { 'content-type': 'application/json' }, httpVersion: '1.1', complete: true });
  return readChatRequest({ req: req as unknown as IncomingMessage, res: {} as ServerResponse }, maxBytes, { take: () => true, end: () => {} });
}

type Expected = { readonly code: 'malformed_json' } | { readonly code: 'invalid_request'; readonly fields: readonly string[] } | { readonly request: object };

/** What spec and README say of a body, written down once more. */
function reference(bytes: Buffer): Expected {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch {
    return { code: 'malformed_json' };
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return { code: 'malformed_json' };
  const body = value as Record<string, unknown>;
  const own = (name: string): unknown => (Object.hasOwn(body, name) ? body[name] : undefined);
  const [prompt, userId, sessionId] = [own('prompt'), own('user_id'), own('session_id')];
  const isPrompt = typeof prompt === 'string' && prompt.trim() !== '' && !prompt.includes('\0') && Buffer.from(prompt).toString() === prompt;
  const isUser = typeof userId === 'number' && userId >= 1 && userId <= 2 ** 53 - 1 && Math.floor(userId) === userId;
  const isSession = sessionId === undefined || sessionId === null || (typeof sessionId === 'string' && /^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$/.test(sessionId) && !sessionId.endsWith('\n'));
  const unknown = Object.keys(body).filter((name) => !['prompt', 'user_id', 'session_id'].includes(name));
  const fields = [...(isPrompt ? [] : ['prompt']), ...(isUser ? [] : ['user_id']), ...(isSession ? [] : ['session_id']), ...unknown];
  if (fields.length > 0) return { code: 'invalid_request', fields };
  return { request: { prompt, userId, ...(typeof sessionId === 'string' && { sessionId }) } };
}

const values = [
  '"hello"', '"\\u0000"', '"\\ud800"', '"\\ud83d\\ude00"', '"🔑"', '" "', '""', '"\\u00a0"', '"-x"', '"/config a=b"', '"@/etc/passwd"', 'null', 'true', 'false', '{}', '[]', '["a"]',
  '0', '-0', '1', '-1', '1.0', '1.5', '1e2', '1e999', '-1e999', '9007199254740991', '9007199254740992', '9007199254740993', '1e15', '0.1', '01', '+1', 'NaN', 'Infinity', '0x1',
  '"f1b19141-9e1d-4e8d-a902-a05c85145ac0"', '"../../x"', '"a\\n"', '"a/b"', '"-resume"', `"${'a'.repeat(128)}"`, `"${'a'.repeat(129)}"`, '"\\u0061"', '"é"',
  '"' + 'x'.repeat(2000) + '"', '['.repeat(500) + ']'.repeat(500), '{"a":'.repeat(300) + '1' + '}'.repeat(300), "'single'", 'undefined', '"unclosed',
];
const names = ['"prompt"', '"prompt"', '"user_id"', '"user_id"', '"session_id"', '"session_id"', '"__proto__"', '"constructor"', '"sesion_id"', '"Prompt"', '"\\u0070rompt"', '""', 'prompt', '"user_id "'];

function generate(random: () => number): Buffer {
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)] as T;
  const blank = (): string => pick(['', '', '', ' ', '\n', '\t', '\r\n', '\uFEFF', '\u00A0', '/* */'].slice(0, random() < 0.05 ? 10 : 7));
  const good = [`"prompt":${pick(['"hi"', pick(values)])}`, `"user_id":${pick(['1', '7', pick(values)])}`, ...(random() < 0.4 ? [`"session_id":${pick(values)}`] : [])];
  const others = Array.from({ length: random() < 0.3 ? Math.floor(random() * 4) : 0 }, () => `${pick(names)}${blank()}:${blank()}${pick(values)}`);
  const members = [...good.slice(random() < 0.1 ? 1 : 0), ...others].sort(() => random() - 0.5);
  let text = `${blank()}{${blank()}${members.join(pick([',', ',', ',', ' , ', ',\n', pick([',,', ';'])]))}${blank()}}${blank()}`;
  if (random() < 0.05) text = pick([pick(values), '', `[${text}]`, text + text, text.slice(0, Math.floor(random() * text.length))]);
  let bytes = Buffer.from(random() < 0.02 ? `\uFEFF${text}` : text, random() < 0.02 ? 'latin1' : 'utf8');
  if (random() < 0.05 && bytes.length > 0) bytes[Math.floor(random() * bytes.length)] = Math.floor(random() * 256);
  if (random() < 0.02) bytes = Buffer.from(text, 'utf16le');
  return bytes;
}

test('bodies of every kind are taken as they are, or refused with the right code and every wrong field', async (t) => {
  const random = randomOf(t);
  const seen: Record<string, number> = {};
  for (let i = 0; i < amount(20_000, 300_000); i += 1) {
    const bytes = generate(random);
    const expected = reference(bytes);
    const what = (): string => JSON.stringify(bytes.toString('latin1').slice(0, 300));
    const outcome = await read(bytes, random).catch((error: unknown) => error);
    if ('request' in expected) {
      assert.deepEqual(outcome, expected.request, what());
      seen['taken'] = (seen['taken'] ?? 0) + 1;
      continue;
    }
    assert.ok(outcome instanceof Problem, `${String(outcome)} for ${what()}`);
    assert.equal(outcome.code, expected.code, what());
    if (expected.code === 'invalid_request') assert.deepEqual(outcome.extras.errors?.map(({ field }) => field), expected.fields, what());
    seen[expected.code] = (seen[expected.code] ?? 0) + 1;
  }
  t.diagnostic(JSON.stringify(seen));
  for (const outcome of ['taken', 'malformed_json', 'invalid_request']) assert.ok((seen[outcome] ?? 0) > 100, outcome);
});
