import { Chance } from './chance.ts';

export const maxBodyBytes = 20_000;

/** What the server knows, so that a request can be told right from wrong. */
export interface World {
  /** The dialogues there are, and whose they are. */
  readonly ownerOf: ReadonlyMap<string, number>;
}

/** The right answers to a body, each a status and the code of its problem, as in "422 invalid_request". */
export interface BodyVerdict {
  readonly right: readonly string[];
  /** The text of a 200, where it is known. */
  readonly content?: RegExp;
}

/** What the fake CLI plays by name, and the right answer. None of it is mutated: it does not know other names. */
const scenarios: Readonly<Record<string, readonly [right: string, content: RegExp]>> = {
  'play tool': ['200', /^found it$/],
  'play stream 40': ['200', /^(piece \d+ ){40}$/],
  'play slow 30': ['200', /^after 30$/],
  'play huge 300000': ['200', /^x{300000}$/],
  'play u2028': ['200', /^one\u2028two\u2029three$/],
  'play api 429': ['429 claude_rate_limited', /./],
  'play api 529': ['503 claude_overloaded', /./],
  'play max-turns': ['422 max_turns_reached', /./],
  'play crash': ['502 claude_failed', /./],
};

/** A body for a chat: good, with wrong fields, mutated, or no JSON at all. Every prompt has LEAK in it. */
export function makeBody(chance: Chance, world: World): Buffer {
  const good = goodBody(chance, world);
  const kind = chance.int(1, 20);
  if (kind <= 8) return good;
  if (kind <= 11) return wrongFields(chance, world);
  if (kind <= 16) return mutated(chance, Buffer.from(JSON.stringify({ prompt: prompt(chance), ...owned(chance, world) })));
  return chance.pick(noJson(chance, good));
}

function goodBody(chance: Chance, world: World): Buffer {
  // Most scenarios that fail cost the start of a process.
  const name = chance.is(0.75) ? prompt(chance) : chance.is(0.85) ? chance.pick(Object.keys(scenarios).slice(0, 5)) : chance.pick(Object.keys(scenarios));
  const fields = { prompt: name, ...owned(chance, world) };
  const text = chance.is(0.3) ? JSON.stringify(fields, null, chance.pick([1, 4, '\t', '\r\n'])) : JSON.stringify(fields);
  const escaped = chance.is(0.2) ? text.replace(/[^\x20-\x7e]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`) : text;
  return Buffer.from(`${chance.is(0.05) ? '\uFEFF' : ''}${escaped.replace(/\\u000([9ad])/g, (_, digit: string) => ({ 9: '\\t', a: '\\n', d: '\\r' })[digit] ?? '')}`);
}

function prompt(chance: Chance): string {
  const texts = ['', ' --version', '/clear', '@/etc/passwd', '!ls', '# memo', 'żółć 🦊', '日本語', '"\\', '\u0001\u001b[31m', 'event: x\ndata: y\n\n', '\r\n\r\nHTTP/1.1 200 OK\r\n', 'ab'.repeat(1000)];
  return `${chance.pick(texts)} LEAK ${chance.int(1, 1e9)} ${chance.pick(texts)}`;
}

function owned(chance: Chance, { ownerOf }: World): { user_id: number; session_id?: string | null } {
  if (chance.is(0.03)) return { user_id: chance.int(100, 110), ...(chance.is(0.5) && { session_id: null }) };
  const [session_id, user_id] = chance.pick([...ownerOf]);
  return { user_id: chance.is(0.1) ? chance.int(1, 200) : user_id, session_id: chance.is(0.05) ? `no-${chance.int(1, 99)}` : session_id };
}

function wrongFields(chance: Chance, world: World): Buffer {
  const values = [undefined, null, true, 0, -1, 1.5, 2 ** 53, 1e300, '', ' \t', 'x', 'LEAK\0', '../LEAK', '\ud800 LEAK', 'x'.repeat(200), [], ['LEAK'], {}, { LEAK: 1 }];
  const names = ['prompt', 'user_id', 'session_id', 'sesion_id', '__proto__', 'constructor', 'toString', '', '\r\nX-Evil: 1', 'ż'];
  const wrong = Array.from({ length: chance.int(1, 3) }, () => `${JSON.stringify(chance.pick(names))}:${JSON.stringify(chance.pick(values)) ?? 'null'}`);
  return Buffer.from(JSON.stringify({ prompt: prompt(chance), ...owned(chance, world) }).replace(/\}$/, `,${wrong.join(',')}}`));
}

function mutated(chance: Chance, bytes: Buffer): Buffer {
  for (let i = chance.int(1, 4); i > 0; i -= 1) {
    const at = chance.int(0, bytes.length);
    const end = Math.min(bytes.length, at + chance.int(0, 4));
    const added = Buffer.from(Array.from({ length: chance.int(0, 2) }, () => (chance.is(0.5) ? chance.int(0, 255) : chance.pick([...Buffer.from('{}[]":,\\ 0e-')]))));
    bytes = Buffer.concat([bytes.subarray(0, at), added, bytes.subarray(chance.is(0.2) ? Math.max(0, end - 10) : end)]);
  }
  return bytes;
}

function noJson(chance: Chance, good: Buffer): Buffer[] {
  const texts = ['{', '[]', 'null', '"LEAK"', '5', "{'prompt':1}", 'prompt=LEAK&user_id=1', '['.repeat(9000), '{"a":'.repeat(3000), `${good.toString()}{}`, '\0', '\uFEFF'];
  return [
    Buffer.alloc(0),
    ...texts.map((text) => Buffer.from(text)),
    good.subarray(0, chance.int(0, good.length - 1)),
    Buffer.from(good.toString(), 'utf16le'),
    Buffer.from(Array.from({ length: chance.int(1, 200) }, () => chance.int(0, 255))),
    Buffer.from(good.toString().padEnd(maxBodyBytes + chance.int(-1, 3))),
    Buffer.alloc(maxBodyBytes * chance.int(1, 10), chance.pick(['[', ' ', '\0'])),
  ];
}

/** The right answers to these bytes as a chat's body, thought out without the server's own code. */
export function verdictOf(bytes: Buffer, { ownerOf }: World): BodyVerdict {
  if (bytes.length > maxBodyBytes) return { right: ['413 body_too_large'] };
  const body = jsonIn(bytes);
  if (typeof body !== 'object' || body === null || Array.isArray(body)) return { right: ['400 malformed_json'] };
  const { prompt: said, user_id: userId, session_id: sessionId = null, ...others } = body as Record<string, unknown>;
  const isText = typeof said === 'string' && /[^\s]/.test(said) && !said.includes('\0') && Buffer.from(said).toString() === said;
  const isUser = typeof userId === 'number' && Number.isSafeInteger(userId) && userId > 0;
  const isSession = sessionId === null || (typeof sessionId === 'string' && /^[A-Za-z0-9]/.test(sessionId) && !/[^A-Za-z0-9_-]/.test(sessionId) && sessionId.length <= 128);
  if (!isText || !isUser || !isSession || Object.keys(others).length > 0) return { right: ['422 invalid_request'] };
  if (sessionId !== null && ownerOf.get(sessionId) !== userId) return { right: ['404 session_not_found'] };
  // A prompt that begins like a command of the CLI gets a blank before it.
  const [right, content] = scenarios[said] ?? ['200', new RegExp(`^you said: ${said.replace(/^\//, ' /').replace(/[$()*+./?[\\\]^{|}]/g, '\\$&')}$`)];
  return { right: [right], content };
}

function jsonIn(bytes: Buffer): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch {
    return undefined;
  }
}
