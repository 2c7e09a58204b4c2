import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { EnvSyntaxError, parseEnv } from '../../src/host/dotenv.ts';
import { ConfigError, loadConfig, settingNames } from '../../src/env.ts';
import { amount, randomOf } from '../random.ts';

type Parsed = { readonly values: Map<string, string> } | { readonly errorLine: number };

/** The grammar once more, a character at a time, as slow and plain as can be. */
function reference(content: string): Parsed {
  const text = content.replaceAll('\r\n', '\n').replaceAll('\r', '\n');
  const lineOf = (at: number): number => text.slice(0, at).split('\n').length;
  const values = new Map<string, string>();
  if (text.includes('\0')) return { errorLine: lineOf(text.indexOf('\0')) };
  let at = 0;
  const isBlank = (): boolean => at < text.length && text[at] !== '\n' && text.charAt(at).trim() === '';
  const skipBlanks = (): void => {
    while (isBlank()) at += 1;
  };
  const readName = (): string => {
    const from = at;
    if (/[A-Za-z_]/.test(text.charAt(at))) while (/[A-Za-z0-9_.-]/.test(text.charAt(at))) at += 1;
    return text.slice(from, at);
  };
  const skipLine = (): void => {
    while (at < text.length && text[at] !== '\n') at += 1;
    at += 1;
  };

  while (at < text.length) {
    const begin = at;
    skipBlanks();
    if (at >= text.length || text[at] === '\n' || text[at] === '#') {
      skipLine();
      continue;
    }
    let name = readName();
    const afterName = at;
    if (name === 'export' && isBlank()) {
      skipBlanks();
      const exported = readName();
      if (exported === '') at = afterName;
      else name = exported;
    }
    skipBlanks();
    if (name === '' || text[at] !== '=') return { errorLine: lineOf(begin) };
    at += 1;
    skipBlanks();

    const quote = text.charAt(at);
    if (quote !== '' && '"\'`'.includes(quote)) {
      const opened = at;
      let value = '';
      for (at += 1; at < text.length; at += 1) {
        if (text[at] === quote && !(quote === '"' && text[at - 1] === '\\' && at - 1 > opened)) break;
        value += text[at];
      }
      if (at >= text.length) return { errorLine: lineOf(begin) };
      const closed = at;
      at += 1;
      skipBlanks();
      if (at < text.length && text[at] !== '\n' && text[at] !== '#') return { errorLine: lineOf(closed) };
      if (quote === '"') value = value.split('\\n').join('\n').split('\\r').join('\r');
      values.set(name, value);
    } else {
      let value = '';
      for (; at < text.length && text[at] !== '\n' && text[at] !== '#'; at += 1) value += text[at];
      values.set(name, value.trim());
    }
    skipLine();
  }
  return { values };
}

const pieces = [
  'A', 'B_1', 'CLAUDE_API_KEY', 'PORT', 'export', '__proto__', 'constructor', 'a.b-c', '9', '=', '=', '=', ' = ', '\t', ' ', '  ', '\n', '\n', '\r\n', '\r',
  '"', '"', "'", '`', '#', ' #', '\\', '\\n', '\\r', '\\"', '\\\\', '\0', '\uFEFF', '\u00A0', '\u2028', '\u0085', '\x0B', '$X', '${A}', ':', ';', ',',
  'value', 'sécret', '🔑', '\uD800', 'x'.repeat(300), '0', '-', '/', '{"a":1}', 'b4d7c19e08f35a62', '\n# comment\n', '\nKEY=value\n', 'QUOTED="two\nlines"\n',
];
const whole = ['.env.example'].map((name) => readFileSync(new URL(`../../${name}`, import.meta.url), 'utf8'));

function generate(random: () => number): string {
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)] as T;
  if (random() < 0.1) {
    // A real file with a few places changed.
    let text = pick(whole);
    for (let i = 0; i < 1 + random() * 3; i += 1) {
      const at = Math.floor(random() * text.length);
      text = text.slice(0, at) + pick(pieces) + text.slice(at + Math.floor(random() * 3));
    }
    return text;
  }
  const some = (length: number): string => Array.from({ length: Math.floor(random() * length) }, () => pick(pieces)).join('');
  if (random() < 0.3) return some(24);
  // Lines that are mostly right.
  return Array.from({ length: Math.floor(random() * 6) }, () => {
    const quote = pick(['', '', '"', "'", '`']);
    const value = quote === '' ? some(4).replace(/[\n\r"'`\0]/g, '') : some(4).replaceAll(quote, '').replaceAll('\0', '');
    return `${pick(['', ' ', 'export '])}${pick(['A', 'B_1', 'PORT', '__proto__', 'export'])}${pick(['=', ' = '])}${quote}${value}${quote}${pick(['', ' # remark', '\t'])}${random() < 0.03 ? pick(pieces) : ''}`;
  }).join(pick(['\n', '\r\n', '\r', '\n\n']));
}

test('.env texts of every kind are read as the grammar says, or refused with the line', (t) => {
  const random = randomOf(t);
  let refused = 0;
  for (let i = 0; i < amount(50_000, 1_000_000); i += 1) {
    const text = generate(random);
    const expected = reference(text);
    let actual: Parsed;
    try {
      actual = { values: parseEnv(text).values };
    } catch (error) {
      assert.ok(error instanceof EnvSyntaxError, `${String(error)} for ${JSON.stringify(text)}`);
      assert.match(error.message, /^line \d+: (?:NUL character|expected NAME=value|expected a closing ["'`]|text after the closing ["'`] of the value begun on line \d+)$/);
      actual = { errorLine: error.line };
      refused += 1;
    }
    assert.deepEqual(actual, expected, JSON.stringify(text));
  }
  t.diagnostic(`${refused} refused`);
  assert.ok(refused > 100, 'some are wrong');
});

test('what can be written in quotes comes back as it was, whatever stands around it', (t) => {
  const random = randomOf(t);
  const values = [...pieces, 'a b # c', '', '  ', "it's", 'say "x"', '`', 'a\nb'].filter((value) => !value.includes('\0') && !value.includes('\r'));
  for (let i = 0; i < amount(20_000, 200_000); i += 1) {
    const entries = Array.from({ length: 1 + Math.floor(random() * 5) }, (_, n) => {
      const value = Array.from({ length: Math.floor(random() * 4) }, () => values[Math.floor(random() * values.length)]).join('');
      const quote = ["'", '`'].find((mark) => !value.includes(mark));
      return quote === undefined ? [`K${n}`, 'plain', 'plain'] as const : [`K${n}`, value, `${quote}${value}${quote}`] as const;
    });
    const text = entries.map(([name, , written]) => `${random() < 0.5 ? 'export ' : ''}${name} = ${written}${random() < 0.5 ? ' # remark "\'`' : ''}\n`).join(random() < 0.5 ? '# between\n\n' : '');
    assert.deepEqual([...parseEnv(text).values], entries.map(([name, value]) => [name, value]), JSON.stringify(text));
  }
});

test('what install.sh writes comes back, under every line ending', (t) => {
  const random = randomOf(t);
  for (let i = 0; i < amount(1000, 20_000); i += 1) {
    const key = Array.from({ length: 64 }, () => Math.floor(random() * 16).toString(16)).join('');
    const port = String(1024 + Math.floor(random() * 64_512));
    const lines = ['# The settings of claude-api.', `CLAUDE_API_KEY=${key}`, `PORT=${port}`, '# ANTHROPIC_API_KEY=', '# CLAUDE_CODE_OAUTH_TOKEN=', ''];
    const { values, warnings } = parseEnv(lines.join(random() < 0.5 ? '\n' : '\r\n'));
    assert.deepEqual([Object.fromEntries(values), warnings], [{ CLAUDE_API_KEY: key, PORT: port }, []]);
    assert.equal(loadConfig({ HOME: '/home/claude' }, values).apiKey, key);
  }
});

test('settings of every kind are taken, or refused by name, all at once and without a value', (t) => {
  const random = randomOf(t);
  const secrets = ['sécret-value-9', '-1', '1e9', '0x10', '99999999999999999999', 'http://user:pass@x/', '../..', '~', '*', 'a,b', ' ', '', '0', '1', '8001', '127.0.0.1', '::', 'default', 'user,project', '\n', '🔑', 'NaN', 'x'.repeat(5000)];
  let refused = 0;
  for (let i = 0; i < amount(2000, 50_000); i += 1) {
    const values = new Map<string, string>(settingNames.flatMap((name) => (random() < 0.3 ? [[name, secrets[Math.floor(random() * secrets.length)] ?? ''] as const] : [])));
    const load = (part: ReadonlyMap<string, string>): readonly string[] => {
      try {
        loadConfig({ HOME: '/home/claude' }, part);
        return [];
      } catch (error) {
        assert.ok(error instanceof ConfigError, String(error));
        return error.problems;
      }
    };
    const problems = load(values);
    refused += problems.length > 0 ? 1 : 0;
    for (const problem of problems) {
      const name = /^([A-Z_]+): /.exec(problem)?.[1] ?? assert.fail(problem);
      assert.ok((settingNames as readonly string[]).includes(name), problem);
      const value = values.get(name) ?? '';
      if (/sécret|user:pass|x{9}/.test(value)) assert.ok(!problem.includes(value), problem);
    }
    // Each one that is wrong by itself is named in the list of all.
    for (const [name, value] of values) {
      const [alone] = load(new Map<string, string>([[name, value]]));
      if (alone?.startsWith(`${name}: `) && name !== 'HOST') assert.ok(problems.includes(alone), `${alone} is missing of ${problems.join(' | ')}`);
    }
  }
  assert.ok(refused > 100);
});
