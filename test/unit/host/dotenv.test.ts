import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseEnv as parseEnvAsNode } from 'node:util';
import { EnvSyntaxError, parseEnv } from '../../../src/host/dotenv.ts';
import { seededRandom } from '../../random.ts';


const accepted: readonly (readonly [string, string, Record<string, string>])[] = [
  ['an empty text has no values', '', {}],
  ['blank lines and comments are skipped', '\n   \n\t\n# A=1\n  # B=2\nC=3\n', { C: '3' }],
  ['the last line needs no newline', 'A=1\nB=2', { A: '1', B: '2' }],
  ['a BOM before the first name is ignored', '\uFEFFA=b', { A: 'b' }],
  ['a BOM before a comment is ignored', '\uFEFF# x\nA=b', { A: 'b' }],
  ['CRLF ends a line', 'A=1\r\nB="x"\r\n\r\nC=3\r\n', { A: '1', B: 'x', C: '3' }],
  ['a lone CR ends a line', 'A=1\rB=2', { A: '1', B: '2' }],
  ['CRLF inside quotes becomes LF', 'A="x\r\ny"\r\nB=2', { A: 'x\ny', B: '2' }],
  ['blanks around = and at the ends are dropped', '  A \t= \t b c \t\nB=d', { A: 'b c', B: 'd' }],
  [
    'export may stand before a name, with any blanks',
    'export A=1\nexport   B=2\nexport\tC=3\n  export D=4',
    { A: '1', B: '2', C: '3', D: '4' },
  ],
  ['export may be a name', 'export=1', { export: '1' }],
  ['names have letters, digits, _ . and -', '_a=1\nA.b-C_9=2', { _a: '1', 'A.b-C_9': '2' }],
  ['an empty value does not swallow the next line', 'PORT=   \nAPI_KEY=secret', { PORT: '', API_KEY: 'secret' }],
  [
    'an empty value does not swallow a quoted next line',
    "PORT=\t\r\nAPI_KEY='secret'",
    { PORT: '', API_KEY: 'secret' },
  ],
  ['an empty value at the end is empty', 'A=', { A: '' }],
  ['an empty quoted value is empty', 'A=""\nB=\'\'\nC=``', { A: '', B: '', C: '' }],
  ['only the first = separates', 'A=b=c==', { A: 'b=c==' }],
  ['an unquoted value ends before a comment', 'A=b # c\nB= # d\nC=e\t#f # g', { A: 'b', B: '', C: 'e' }],
  ['a quoted value may hold # and be followed by a comment', 'A="b # c" # d\nB=\'#\'#e', { A: 'b # c', B: '#' }],
  ['quotes inside an unquoted value stay', 'A=b"c"\nB=it\'s', { A: 'b"c"', B: "it's" }],
  ['other quotes inside quotes stay', `A="it's \`x\`"\nB='"'\nC=\`"'\``, { A: "it's `x`", B: '"', C: `"'` }],
  ['quoted values keep their blanks', 'A="  b "\nB=\' c\t\'', { A: '  b ', B: ' c\t' }],
  [
    'quoted values may span lines',
    'A="1\n2"\nB=\'3\n\n# 4\'\nC=`5\n`\nD=6',
    { A: '1\n2', B: '3\n\n# 4', C: '5\n', D: '6' },
  ],
  ['double quotes expand \\n and \\r and nothing else', 'A="a\\nb\\rc\\td\\\\e"', { A: 'a\nb\rc\\td\\\\e' }],
  [
    'single quotes, back quotes and no quotes expand nothing',
    "A='a\\nb'\nB=`a\\nb`\nC=a\\nb",
    { A: 'a\\nb', B: 'a\\nb', C: 'a\\nb' },
  ],
  ['\\" does not end a double-quoted value and keeps its backslash', 'A="b\\"c"\nB=1', { A: 'b\\"c', B: '1' }],
  ['nothing is interpolated', 'A=$HOME\nB="${HOME}"\nC=$(id)', { A: '$HOME', B: '${HOME}', C: '$(id)' }],
  ['the last of two equal names wins', 'A=1\nB=2\nA=3', { A: '3', B: '2' }],
  ['a backslash at the end of a line joins nothing', 'A=b\\\nC=d', { A: 'b\\', C: 'd' }],
  ['U+2028 does not end a line', 'A=b\u2028c\nD="e\u2028f"', { A: 'b\u2028c', D: 'e\u2028f' }],
  ['any Unicode may be a value', 'A=żółć 🦊', { A: 'żółć 🦊' }],
];

for (const [title, text, values] of accepted) {
  test(`parseEnv: ${title}`, () => {
    assert.deepEqual(Object.fromEntries(parseEnv(text).values), values);
    assert.deepEqual(parseEnv(text).warnings, []);
  });
}

const refused: readonly (readonly [string, string, number])[] = [
  ['a line without =', 'A=1\nLEAK\nB=2', 2],
  ['a line without = after CRLF lines', 'A=1\r\n\r\nLEAK', 3],
  ['a line without a name', '=LEAK', 1],
  ['a name that begins with a digit', 'A=1\n\n1LEAK=2', 3],
  ['a name with a blank inside', 'A LEAK=2', 1],
  ['a name with a character it may not have', 'ä=LEAK', 1],
  ['a colon for =', 'A: LEAK', 1],
  ['a semicolon comment', '; LEAK=1', 1],
  ['a second BOM-like character before the name', 'A=1\nx\uFEFFB=LEAK', 2],
  ['an unclosed double quote', 'B=1\nA="LEAK\nC=1\n', 2],
  ['an unclosed single quote at the end', "A=1\nB='LEAK", 2],
  ['an unclosed back quote', '\n\nA=`LEAK\n\n', 3],
  ['a double quote closed only by \\"', 'A="C:\\LEAK\\"\n', 1],
  ['text after a closing quote', 'A=1\nB="LEAK"LEAK', 2],
  ['a second quoted value after the first', "A='LEAK' 'LEAK'", 1],
  ['an apostrophe escaped inside single quotes', "A='LEAK\\'LEAK'", 1],
  ['text after a quote closed lines later', 'A=1\nB="LEAK\nC="LEAK"\n', 3],
  ['a line after a multi-line value is counted from the top', 'A="1\n2\n3"\nLEAK', 4],
  ['a NUL in a value', 'A=1\nB=LEAK\0', 2],
  ['a NUL in a comment', '# \0LEAK', 1],
  ['a NUL inside quotes', 'A="1\n2\n\0LEAK"', 3],
];

for (const [title, text, line] of refused) {
  test(`parseEnv refuses ${title}, with its line number and not its text`, () => {
    assert.throws(() => parseEnv(text), (error) => {
      assert.ok(error instanceof EnvSyntaxError);
      assert.equal(error.line, line);
      assert.equal(error.name, 'EnvSyntaxError');
      assert.match(error.message, new RegExp(`^line ${line}: .`));
      assert.doesNotMatch(error.message, /LEAK/);
      return true;
    });
  });
}

test('a value cut at a # without a blank before it is warned about, by name and line', () => {
  const { values, warnings } = parseEnv('A=1\nexport PASS=LEAK#LEAK\nB=#LEAK\nC="LEAK#"\nD=x #LEAK\nE="\n"\nF=x# y\n');
  assert.deepEqual(Object.fromEntries(values), { A: '1', PASS: 'LEAK', B: '', C: 'LEAK#', D: 'x', E: '\n', F: 'x' });
  assert.equal(warnings.length, 3);
  assert.match(warnings[0] ?? '', /^line 2: .*\bPASS\b/);
  assert.match(warnings[1] ?? '', /^line 3: .*\bB\b/);
  assert.match(warnings[2] ?? '', /^line 8: .*\bF\b/);
  assert.doesNotMatch(warnings.join('\n'), /LEAK/);
});

test('names of Object.prototype are ordinary names', () => {
  const { values } = parseEnv('__proto__=a\nconstructor=b\ntoString=c');
  assert.deepEqual([...values], [['__proto__', 'a'], ['constructor', 'b'], ['toString', 'c']]);
});

test('2,000 random plain files read as util.parseEnv reads them', () => {
  const random = seededRandom(20);
  for (let round = 0; round < 2_000; round++) {
    const text = randomEnvFile(random);
    assert.deepEqual(Object.fromEntries(parseEnv(text).values), { ...parseEnvAsNode(text) }, JSON.stringify(text));
  }
});

// util.parseEnv of at least one of Node 20, 22 and 24 reads each of these otherwise.
const unlikeNode: readonly (readonly [string, Record<string, string> | 'refused'])[] = [
  ['A=   \nB=1', { A: '', B: '1' }],
  ['\uFEFFA=b', { A: 'b' }],
  ['A=b\rB=c', { A: 'b', B: 'c' }],
  ['export\tA=b', { A: 'b' }],
  ['export  A=b', { A: 'b' }],
  ['A\t=\tb\t', { A: 'b' }],
  ['A="a\\rb"', { A: 'a\rb' }],
  ['A="b\\"c"', { A: 'b\\"c' }],
  ['A=\u00A0b\u00A0', { A: 'b' }],
  ['A\nB=1', 'refused'],
  ['A B=c', 'refused'],
  ['; x=1', 'refused'],
  ['A: b', 'refused'],
  ['A="b"c', 'refused'],
  ['A="b\nB=1', 'refused'],
  ["A='b", 'refused'],
  ['A=b\0', 'refused'],
];

test('where util.parseEnv guesses or swallows, the strict grammar reads as dotenv does or refuses', () => {
  for (const [text, expected] of unlikeNode) {
    if (expected === 'refused') assert.throws(() => parseEnv(text), EnvSyntaxError, JSON.stringify(text));
    else assert.deepEqual(Object.fromEntries(parseEnv(text).values), expected, JSON.stringify(text));
  }
});

test('10 MB of anything parses in linear time', () => {
  const tenMegabytes = (piece: string): string => piece.repeat(Math.ceil(1e7 / piece.length));
  const b = 'b'.repeat(40);
  const texts = [
    // Many lines: without quotes, cut at #, with quotes that open nothing, over two lines, never closed.
    tenMegabytes(`A=${b}\n`), tenMegabytes(`A=${b}#c\n`), tenMegabytes(`# ${b}"\n`), tenMegabytes(`A=${b}"\n`),
    tenMegabytes(`A="${b}\n"\n`), tenMegabytes(`A="${b}\n`), tenMegabytes(`A='${b}\nB=\`c\n`),
    `${tenMegabytes(`A=${b}\n`)}C="`, `${tenMegabytes(`A=${b}\n`)}C`, tenMegabytes(`\n${b}=\n`),
    // One long line, or one long value.
    tenMegabytes('A'), tenMegabytes(' '), `A${tenMegabytes(' ')}`, `export${tenMegabytes(' ')}`,
    `A=${tenMegabytes('#')}`,
    `A=b${tenMegabytes(' ')}c`, `A="${tenMegabytes('\\"')}`, `A="${tenMegabytes('\n')}`, `A="${tenMegabytes('\n')}" x`,
  ];
  for (const text of texts) {
    const start = performance.now();
    try {
      parseEnv(text);
    } catch (error) {
      assert.ok(error instanceof EnvSyntaxError);
    }
    // Each takes a tenth of a second; quadratic work would take minutes.
    assert.ok(performance.now() - start < 10_000, JSON.stringify(text.slice(0, 12)));
  }
});

/** Only what util.parseEnv of Node 20, 22 and 24 and the strict grammar all read alike. */
function randomEnvFile(random: () => number): string {
  const pick = (choices: readonly string[]): string => choices[Math.floor(random() * choices.length)] ?? '';
  const some = (min: number, max: number, part: () => string): string[] =>
    Array.from({ length: min + Math.floor(random() * (max - min + 1)) }, part);
  const word = (): string => some(1, 8, () => pick([...'abcXYZ019_./:@+,=$-'])).join('');
  const inside = (): string => some(0, 3, () => pick([word(), ' ', ' # ', '\n', '=', 'ż'])).join('');
  const value = (): string =>
    pick([
      word(), `${word()} ${word()}`, `"${inside()}"`, `'${inside()}'`, `\`${inside()}\``, `"${word()}\\n${word()}"`,
      `'it"s\\n'`,
    ]);
  const entry = (): string =>
    pick(['', 'export ']) + pick(['A', 'B_1', 'c', 'D']) + pick(['=', ' = ']) + value() + pick(['', '  ', ' # y']);
  return some(0, 8, () => pick(['', '# a comment = "x', entry(), entry()])).join('\n') + pick(['', '\n']);
}
