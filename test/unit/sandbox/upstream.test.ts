import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
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
