import assert from 'node:assert/strict';
import { EventEmitter, once } from 'node:events';
import http, { createServer, type RequestOptions } from 'node:http';
import https from 'node:https';
import { syncBuiltinESMExports } from 'node:module';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import { createUpstream } from '../../../src/sandbox/upstream.ts';

test('an address that is no http or https URL is an error that names the setting', () => {
  for (const baseUrl of ['ftp://x.example', 'xhttp://x.example', 'file:///x', 'httpsx://x.example']) {
    assert.throws(() => createUpstream({ baseUrl, env: {} }), /^TypeError: ANTHROPIC_BASE_URL: /, baseUrl);
  }
});

test("a gateway's own path stands before the API's, with a slash at its end or without", async (t) => {
  const server = createServer((req, res) => res.end(req.url)).listen(0, '127.0.0.1');
  t.after(() => server.close());
  await once(server, 'listening');
  for (const path of ['/a/b', '/a/b/']) {
    const upstream = createUpstream({ baseUrl: `http://127.0.0.1:${(server.address() as AddressInfo).port}${path}`, env: {} });
    const { body } = await upstream.send({ path: '/v1/messages?beta=true', headers: {}, body: Buffer.from('{}') }, new AbortController().signal);
    assert.equal(String(await body.setEncoding('utf8').toArray()), '/a/b/v1/messages?beta=true');
    upstream.close();
  }
});

test('the API is asked at its own host and port, with the headers that the operator adds', (t) => {
  const asked: string[] = [];
  let sent: unknown;
  for (const [protocol, module] of [['http', http], ['https', https]] as const) {
    t.mock.method(module, 'request', ({ host, port, headers }: RequestOptions) => {
      asked.push([protocol, host, port].join(' '));
      sent = headers;
      return Object.assign(new EventEmitter(), { end: () => {}, destroy: () => {} });
    });
  }
  syncBuiltinESMExports();
  t.after(() => (t.mock.restoreAll(), syncBuiltinESMExports()));
  const env = { ANTHROPIC_CUSTOM_HEADERS: 'X-One: a: b \n\nno header\n x_two :c\n' };
  for (const baseUrl of ['https://x.example', 'http://x.example', 'http://[::1]:8080']) {
    const answer = createUpstream({ baseUrl, env, firstByteMs: 1 }).send({ path: '/', headers: { 'x-app': 'cli' }, body: Buffer.from('{}') }, new AbortController().signal);
    void answer.catch(() => {});
  }
  assert.deepEqual(asked, ['https x.example 443', 'http x.example 80', 'http ::1 8080']);
  assert.deepEqual(sent, { 'x-app': 'cli', 'x-one': 'a: b', x_two: 'c', host: '[::1]:8080', 'content-length': '2' });
});
