import assert from 'node:assert/strict';
import { test } from 'node:test';
import { hasHost, isHostName, parseHostList } from '../../../src/host/host-list.ts';

test('a list of hosts has those hosts, and by *. all that are below one but not itself', () => {
  const list = parseHostList('github.com, *.npmjs.org,*.Example.COM') ?? [];
  const cases: readonly (readonly [string, boolean])[] = [
    ['github.com', true], ['GitHub.com', true], ['github.com.', true], ['api.github.com', false], ['notgithub.com', false], ['github.com.evil.example', false],
    ['registry.npmjs.org', true], ['a.b.npmjs.org', true], ['npmjs.org', false], ['evilnpmjs.org', false], ['.npmjs.org', true], ['www.example.com', true],
    ['', false], ['.', false], ['*.npmjs.org', true], ['com', false], ['140.82.121.3', false], ['public', false], ['none', false],
  ];
  for (const [host, isIn] of cases) assert.equal(hasHost(list, host), isIn, host);
});

test('a host whose last label is a number is none, in capitals either', () => {
  for (const name of ['a.12', 'a.0xff', 'a.0XFF']) assert.ok(!isHostName(name), name);
});

test('public has every host, none has no host', () => {
  assert.equal(parseHostList('public'), 'public');
  assert.ok(hasHost('public', 'anything.example'));
  assert.deepEqual(parseHostList('none'), []);
  assert.equal(hasHost([], 'anything.example'), false);
});

for (const text of [
  '*', '*.', 'localhost', 'com', '*.*.com', 'a*.com', '*com', 'github.com,', ',', 'github.com public', 'public,github.com', 'none,github.com', 'https://github.com', 'github.com:443',
  'github.com/x', '-a.com', 'a-.com', 'a..com', '.com', '127.0.0.1', '10.1', '8.8.8.8', '1.2.3', '0x7f.0x1', '[::1]', '::1', 'bücher.example', 'a.com;b.com', `${'a'.repeat(64)}.com`,
  `${'a.'.repeat(125)}coma`, '*.127.0.0.1', '*xy.com', 'a.12', 'a.0x', 'a.0xff', 'a.0XFF',
]) {
  test(`no list of hosts: ${text.slice(0, 30)}`, () => assert.equal(parseHostList(text), undefined));
}

for (const text of [`${'a.'.repeat(125)}com`, '1.example', 'a.1.example', 'a.1b', 'a.b1', 'a.0xg', '0x1.com']) {
  test(`a list of hosts: ${text.slice(0, 30)}`, () => assert.deepEqual(parseHostList(text), [text]));
}
