import assert from 'node:assert/strict';
import { test } from 'node:test';
import { proxyFor } from '../../../src/sandbox/tunnel.ts';

const api = new URL('https://api.anthropic.com');

test('the proxy is the first of the variables that is set, in the order of the CLI', () => {
  const of = (env: Record<string, string>): string | undefined => proxyFor(api, env)?.host;
  assert.equal(of({}), undefined);
  assert.equal(of({ HTTPS_PROXY: 'http://a:1', HTTP_PROXY: 'http://b:2' }), 'a:1');
  assert.equal(of({ HTTPS_PROXY: 'http://a:1', https_proxy: 'http://c:3' }), 'c:3');
  assert.equal(of({ HTTPS_PROXY: '', http_proxy: 'b:2' }), 'b:2');
  assert.equal(of({ ALL_PROXY: 'https://d' }), 'd');
});

test('NO_PROXY names hosts, domains, ports, or all', () => {
  const isProxied = (list: string, url = api): boolean => proxyFor(url, { HTTPS_PROXY: 'http://a:1', NO_PROXY: list }) !== undefined;
  for (const list of ['*', 'api.anthropic.com', 'anthropic.com', '.anthropic.com', '*.anthropic.com', 'x, API.anthropic.COM', 'x anthropic.com:443']) assert.equal(isProxied(list), false, list);
  for (const list of ['', 'com.', 'xanthropic.com', 'thropic.com', 'anthropic.com:80', 'api.anthropic.com.evil', ',']) assert.equal(isProxied(list), true, list);
  assert.equal(isProxied('127.0.0.1', new URL('http://127.0.0.1:8080')), false);
});

test('a value that names no proxy we can speak to is an error without the value', () => {
  for (const value of ['socks5://me:secret@a:1', 'ftp://secret']) {
    assert.throws(() => proxyFor(api, { HTTPS_PROXY: value }), (error: Error) => error instanceof TypeError && !error.message.includes('secret'));
  }
});
