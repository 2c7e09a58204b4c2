import assert from 'node:assert/strict';
import { EventEmitter } from 'node:events';
import http, { type ClientRequestArgs } from 'node:http';
import https from 'node:https';
import { syncBuiltinESMExports } from 'node:module';
import { test } from 'node:test';
import { createAgent, proxyFor } from '../../../src/sandbox/tunnel.ts';

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

test('the proxy is asked at its own host and port, in its own protocol, with its own login', (t) => {
  const asked: string[] = [];
  for (const [protocol, module] of [['http', http], ['https', https]] as const) {
    t.mock.method(module, 'request', ({ host, port, method, path, timeout, headers }: ClientRequestArgs) => {
      asked.push([protocol, host, port, method, path, timeout, JSON.stringify(headers)].join(' '));
      return Object.assign(new EventEmitter(), { end: () => {} });
    });
  }
  syncBuiltinESMExports();
  t.after(() => (t.mock.restoreAll(), syncBuiltinESMExports()));
  for (const proxy of ['http://p.example', 'https://p.example', 'http://p.example:3128', 'http://[::1]:3128', 'http://me:p%40ss@p.example']) {
    createAgent(api, new URL(proxy), undefined).createConnection({ host: 'api.anthropic.com', port: 443 }, () => {});
  }
  const target = 'CONNECT api.anthropic.com:443 30000 {"host":"api.anthropic.com:443"';
  assert.deepEqual(asked, [
    `http p.example 80 ${target}}`, `https p.example 443 ${target}}`, `http p.example 3128 ${target}}`, `http ::1 3128 ${target}}`,
    `http p.example 80 ${target},"proxy-authorization":"Basic ${Buffer.from('me:p@ss').toString('base64')}"}`,
  ]);
});
