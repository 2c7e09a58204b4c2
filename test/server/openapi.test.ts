import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { problemCodes } from '../../src/problem.ts';
import { badKeys, invalid, malformed, refusedTypes } from '../bad-requests.ts';
import { openConnection, requestBytes } from '../http-client.ts';
import { assertDescribed, at, seen } from '../openapi.ts';
import { apiKey, startServer, until, type RunningServer } from '../running-server.ts';

const withKey = `Authorization: Bearer ${apiKey}`;
const asJson = 'Content-Type: application/json';
const asStream = 'Accept: text/event-stream';
const [chatPath, healthPath] = ['/api/v1/chat', '/health'];
let answers = 0;

interface Answered {
  readonly status: number;
  readonly body: string;
}

/** Asks a server, and holds the answer against openapi.json as one of this path's. */
async function ask(t: TestContext, server: RunningServer, bytes: Buffer, path: string, method = path === chatPath ? 'POST' : 'GET'): Promise<Answered> {
  const connection = await openConnection(t, server.port);
  connection.send(bytes);
  const answer = await connection.answer(`an answer to ${bytes.subarray(0, 200).toString()}`);
  connection.hangUp();
  assertDescribed(method, path, answer);
  answers += 1;
  return answer;
}

function chatBytes(body: unknown, headers: readonly string[] = [withKey, asJson]): Buffer {
  const text = typeof body === 'string' || Buffer.isBuffer(body) ? body : JSON.stringify(body);
  return requestBytes(`POST ${chatPath}`, headers, text);
}

const scenarios = [
  ...['no-login', '401', '403', '400', '404', '413', '429', 'session', '500', '529', 'refused', 'reset', 'timeout', 'refusal', 'credit', 'long'].map((kind) => `api ${kind}`),
  ...['another-init', 'another-result', 'no-session', 'cost-negative', 'cost-huge', 'cost-text', 'cost-nan'].map((kind) => `forge ${kind}`),
  ...['limit 90', 'budget', 'crash', 'killed', 'silent', 'crlf', 'die-idle', 'denied', 'empty', 'argv', 'garbage', 'history', 'huge 100000', 'interrupted'],
  ...['retry', 'wait-429 30', 'max-turns', 'noise', 'no-result', 'think 10', 'slow 10', 'split-utf8', 'stream 300', 'tool', 'truncated', 'u2028'],
];

test('hundreds of answers, of every code that can be had by asking, are as openapi.json says', { timeout: 180_000 }, async (t) => {
  const server = await startServer(t, { MAX_BODY_BYTES: '4096', CORS_ORIGINS: '*', RATE_LIMIT_PER_MINUTE: '2' });
  let users = 0;
  const turn = (prompt: string, more: object = {}, headers: readonly string[] = []): Promise<Answered> => {
    users += 1;
    return ask(t, server, chatBytes({ prompt, user_id: users, ...more }, [withKey, asJson, ...headers]), chatPath);
  };
  await t.test('turns, in one piece and as streams', async () => {
    for (const scenario of scenarios) for (const headers of [[], [asStream]]) await turn(`play ${scenario}`, {}, headers);
  });
  await t.test('a dialogue that goes on, one that is not there, and one turn too many', async () => {
    const { body } = await turn('hello', { user_id: 900 });
    const { session_id: sessionId } = JSON.parse(body) as { session_id: string };
    for (const headers of [[], [asStream]]) {
      await turn('hello', { user_id: 900, session_id: sessionId }, headers);
      await turn('hello', { session_id: sessionId }, headers);
    }
  });
  await t.test('files, in and out, and more of them than an answer takes', async () => {
    const file = (name: string, data = 'aGk='): object => ({ name, data });
    for (const headers of [[], [asStream]]) {
      await turn('', { files: [file('a.txt')] }, headers);
      await turn('play give a.txt:2 b.txt:9000000', {}, headers);
      for (const files of [7, [], [1], [file('..')], [file('a', '!')], [{ ...file('a'), x: 1 }], [file('a'), file('a')], Array(21).fill(file('a'))]) await turn('x', { files }, headers);
    }
  });
  await t.test('retries with a key', async () => {
    const key = 'Idempotency-Key: 1';
    for (const headers of [[key], [key], [key, asStream], ['Idempotency-Key: a b'], ['X-User-Id: 1']]) await turn('hello', { user_id: 901 }, headers);
    await turn('another', { user_id: 901 }, [key]);
  });
  await t.test('wrong requests', async () => {
    for (const [, headers] of badKeys) {
      await ask(t, server, chatBytes({ prompt: 'x', user_id: 1 }, [asJson, ...headers.filter((line) => !line.includes('e2a7c9d1'))]), chatPath);
    }
    for (const headers of refusedTypes) await ask(t, server, chatBytes({ prompt: 'x', user_id: 1 }, [withKey, ...headers]), chatPath);
    const bodies = [...Object.values(malformed), ...invalid.map(([, body]) => body)];
    for (const body of bodies) for (const accept of ['Accept: */*', asStream]) await ask(t, server, chatBytes(body, [withKey, asJson, accept]), chatPath);
    await ask(t, server, chatBytes({ prompt: 'x'.repeat(5000), user_id: 1 }), chatPath);
  });
  await t.test('what is no request of a route', async () => {
    for (const path of [chatPath, healthPath]) {
      for (const method of ['PUT', 'DELETE', 'PATCH']) await ask(t, server, requestBytes(`${method} ${path}`), path);
      await ask(t, server, requestBytes(path === chatPath ? `GET ${path}` : `POST ${path}`), path);
      await ask(t, server, requestBytes(`GET ${path}/`), path);
      await ask(t, server, requestBytes(`GET ${path}`, [`X: ${'x'.repeat(20_000)}`]), path);
      await ask(t, server, Buffer.from('nonsense\r\n\r\n'), path);
    }
  });
  await t.test('/health', async () => {
    await until('the version', async () => ((await server.request(healthPath).then((r) => r.text())).includes('2.1.') ? true : undefined));
    const accepts = ['Accept: */*', 'Accept: text/plain', 'Accept: application/json', 'Accept: application/openmetrics-text'];
    for (const headers of [[], [withKey], ...accepts.map((accept) => [withKey, accept]), ['Authorization: Bearer wrong-key']]) {
      for (const origin of [[], ['Origin: https://example.com']]) await ask(t, server, requestBytes(`GET ${healthPath}`, [...headers, ...origin]), healthPath);
    }
  });
});

// What must be wrong with a server, and what it then answers to `prompt`.
const troubles: ReadonlyArray<readonly [Record<string, string>, string]> = [
  [{ CLAUDE_BINARY_PATH: '/nonexistent/claude' }, 'hello'],
  [{ CLAUDE_CODE_FAKE_VERSION: '2.1.100' }, 'hello'],
  [{ CLAUDE_TIMEOUT_SECONDS: '1' }, 'play hang'],
];

test('the answers of a server in trouble, of a busy and of a stopping one are as openapi.json says', { timeout: 60_000 }, async (t) => {
  for (const [env, prompt] of troubles) {
    const server = await startServer(t, env);
    for (const headers of [[], [asStream]]) await ask(t, server, chatBytes({ prompt, user_id: 1 }, [withKey, asJson, ...headers]), chatPath);
    for (const headers of [[], [withKey]]) await ask(t, server, requestBytes(`GET ${healthPath}`, headers), healthPath);
  }
  const server = await startServer(t, { CLAUDE_MAX_CONCURRENT_REQUESTS: '1', CLAUDE_QUEUE_LIMIT: '0', SHUTDOWN_SECONDS: '6' });
  const hanging = ask(t, server, chatBytes({ prompt: 'play hang', user_id: 1 }, [withKey, asJson, asStream]), chatPath);
  await until('the turn to run', async () => (JSON.parse(await server.request(healthPath).then((r) => r.text())) as { running: number }).running === 1 || undefined);
  await ask(t, server, chatBytes({ prompt: 'hello', user_id: 2 }), chatPath);
  const ended = server.end();
  await until('the server to drain', async () => (await ask(t, server, requestBytes(`GET ${healthPath}`), healthPath)).status === 503 || undefined);
  await ask(t, server, chatBytes({ prompt: 'hello', user_id: 2 }), chatPath);
  await hanging;
  assert.equal(await ended, 0);
});

// What only a broken machine, a full disk or a slow caller brings about; their shape is every problem's.
const notAskedFor = ['request_timeout', 'internal_error', 'sandbox_unavailable', 'storage_unavailable', 'user_storage_full'];

test('nearly all that openapi.json describes was seen', () => {
  assert.ok(answers > 250, `${answers} answers`);
  const codes = problemCodes.filter((code) => ![...seen].some((what) => what.endsWith(` ${code}`)));
  assert.deepEqual(codes.sort(), [...notAskedFor].sort());
  const events = Object.keys(at('paths', chatPath, 'post', 'responses', '200', 'content', 'text/event-stream', 'x-events'));
  assert.deepEqual(events.filter((name) => !seen.has(`event ${name}`)), []);
  assert.deepEqual(Object.keys(at('components', 'headers')).filter((name) => !seen.has(`header ${name}`)), []);
  for (const schema of ['ChatAnswer', 'File', 'Problem', 'Health']) {
    const members = Object.keys(at('components', 'schemas', schema, 'properties')).filter((name) => !['detail', 'tokens'].includes(name));
    assert.deepEqual(members.filter((name) => !seen.has(`member ${name}`)), [], schema);
  }
  for (const what of ['200 application/json', '200 text/event-stream', '200 text/plain', '503 application/json']) assert.ok(seen.has(what), what);
});
