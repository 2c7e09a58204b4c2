import assert from 'node:assert/strict';
import { test } from 'node:test';
import { lastWords, sentence } from '../../../src/cli/words.ts';

test('sentence: the first line is kept, without blanks around', () => {
  assert.equal(sentence('  Credit balance is too low\nat foo (/srv/cli.js:1)\n'), 'Credit balance is too low');
  assert.equal(sentence('\n\nfirst\nsecond'), 'first');
  assert.equal(sentence(''), '');
});

test('lastWords: the last line that is no stack frame, without what may be a prompt, a path or a secret', () => {
  assert.equal(lastWords('first\nTypeError: no /srv/app/cli.js\n    at main (/srv/app/cli.js:1)\n\n'), 'TypeError: no <path>');
  for (const end of ['"}', '\u2028more"}', '"}\r', ' [x]\r']) assert.equal(lastWords(`bad input {"content":"my prompt${end}`), 'bad input');
  assert.equal(lastWords('key abcdefghijklmnopqrstuvwxyz012345'), 'key <secret>');
  assert.equal(lastWords(' \n'), undefined);
});

test('sentence: a key that somebody upstream quotes is not told', () => {
  assert.equal(sentence('invalid x-api-key: sk-ant-api03-AAAA_bbbb-1234'), 'invalid x-api-key: <secret>');
});

test('sentence: long words are cut at 300 characters', () => {
  assert.equal(sentence('x'.repeat(5000)), 'x'.repeat(300));
});

const pathsIn: ReadonlyArray<readonly [string, string]> = [
  ['Cannot read /home/claude/.claude.json now', 'Cannot read <path> now'],
  ["ENOENT: open '/var/lib/x'", "ENOENT: open '<path>'"],
  ['open "/var/lib/x" failed', 'open "<path>" failed'],
  ['failed (/srv/cli.js:12:3)', 'failed (<path>)'],
  ['file=/etc/passwd', 'file=<path>'],
  ['see ~/.claude/settings.json', 'see <path>'],
  ['rule Read(//var/lib/x/sessions) of //home/x/y', 'rule Read(<path>) of <path>'],
  ['see https://example.org/a/b', 'see https://example.org/a/b'],
  ["open '/home/my user/secret dir/x' and '/b/c'", "open '<path>' and '<path>'"],
  ['in ./a/b and ../c/d', 'in <path> and <path>'],
  ['/etc/passwd', '<path>'],
];

for (const [text, expected] of pathsIn) {
  test(`sentence: ${JSON.stringify(text)} loses its path`, () => {
    assert.equal(sentence(text), expected);
  });
}

test('sentence: paths after other marks are lost too', () => {
  assert.equal(sentence('open `/var/lib/x` failed'), 'open `<path>` failed');
  assert.equal(sentence('[/srv/cli.js] failed'), '[<path>] failed');
  assert.equal(sentence('ENOENT:/srv/cli.js'), 'ENOENT:<path>');
  assert.ok(!sentence('at file:///srv/cli.js:1').includes('srv'));
});

test('sentence: a line that ends with CR LF ends before the CR', () => {
  assert.equal(sentence('Credit balance is too low\r\nat foo'), 'Credit balance is too low');
});

test('sentence: addresses, fractions and dates are no paths', () => {
  for (const text of ['see https://console.anthropic.com/settings/keys', 'used 3/4 of it', 'input/output error', '24/7', 'a / b']) assert.equal(sentence(text), text);
});
