import assert from 'node:assert/strict';
import { anthropicKey, callTools, cliEnv, hang, MessagesApi, promptsOf, refuse, say, startMessagesApi, type ApiReply } from '../messages-api.ts';
import { apiKey, makeHome, noneLeft, startServer, testWithRealClis, until, type Reply, type RunningServer } from '../running-server.ts';

/** Long enough for the CLI's start and its two retries on a busy machine; its own three minutes of them are not. */
const secondsAllowed = 20;
/** Every process goes with its turn, so that what is left after one would be a fault. */
const cold = { CLAUDE_WARM_SECONDS: '0' };

interface Failure {
  readonly reply: ApiReply;
  readonly status: number;
  readonly code: string;
  readonly detail: RegExp;
  /** The least seconds Retry-After must say; the CLI adds some of its own. */
  readonly retryAfter?: number;
}

const failures: Readonly<Record<string, Failure>> = {
  '401': {
    reply: refuse(401, 'authentication_error', 'invalid x-api-key'),
    status: 503,
    code: 'claude_not_authenticated',
    detail: /^Claude CLI is not authenticated/,
  },
  '403': {
    reply: refuse(403, 'permission_error', 'OAuth token has been revoked'),
    status: 503,
    code: 'claude_not_authenticated',
    detail: /^Claude CLI is not authenticated/,
  },
  '429 without retry-after': { reply: refuse(429, 'rate_limit_error', 'slow down'), status: 429, code: 'claude_rate_limited', detail: /./ },
  '429 with a short retry-after': {
    reply: refuse(429, 'rate_limit_error', 'slow down', { 'retry-after': '2' }),
    status: 429,
    code: 'claude_rate_limited',
    detail: /./,
    retryAfter: 2,
  },
  '429 with a retry-after of half a minute': {
    reply: refuse(429, 'rate_limit_error', 'slow down', { 'retry-after': '30' }),
    status: 429,
    code: 'claude_rate_limited',
    detail: /./,
    retryAfter: 30,
  },
  '429 with a long retry-after': {
    reply: refuse(429, 'rate_limit_error', 'slow down', { 'retry-after': '3600' }),
    status: 429,
    code: 'claude_rate_limited',
    detail: /./,
  },
  '500': { reply: refuse(500, 'api_error', 'Internal server error'), status: 502, code: 'claude_api_error', detail: /500/ },
  '529': { reply: refuse(529, 'overloaded_error', 'Overloaded'), status: 503, code: 'claude_overloaded', detail: /overloaded/ },
  'an unknown model': { reply: refuse(404, 'not_found_error', 'model: claude-made-up'), status: 502, code: 'claude_api_error', detail: /model/ },
  'no credit left': {
    reply: refuse(400, 'invalid_request_error', 'Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.'),
    status: 502,
    code: 'claude_api_error',
    detail: /[Cc]redit balance is too low/,
  },
  'a prompt that is too long': {
    reply: refuse(400, 'invalid_request_error', 'prompt is too long: 1234567 tokens > 1000000 maximum'),
    status: 422,
    code: 'prompt_too_long',
    detail: /shorten the prompt/,
  },
};

/** What every failed turn owes its caller: the status and code of the table, a session to go on with, no secrets, and soon. */
function assertFailed(reply: Reply, server: RunningServer, status: number, code: string, startedAt: number): void {
  const text = JSON.stringify(reply.body);
  assert.equal(reply.status, status, text);
  assert.equal(reply.body['code'], code, text);
  assert.equal(reply.body['status'], status);
  assert.equal(reply.headers.get('content-type'), 'application/problem+json');
  assert.match(String(reply.body['session_id']), /^[A-Za-z0-9-]{8,}$/, text);
  assert.ok(Date.now() - startedAt < secondsAllowed * 1000, `it took ${Date.now() - startedAt} ms`);
  for (const secret of [server.home, anthropicKey, apiKey]) assert.ok(!text.includes(secret), text);
}

async function assertUsable(server: RunningServer, sessionId: unknown): Promise<void> {
  const next = await server.chat({ prompt: 'and now?', session_id: sessionId });
  assert.equal(next.status, 200, JSON.stringify(next.body));
  assert.equal(next.body['content'], 'all is well');
  assert.equal(next.body['session_id'], sessionId);
}

testWithRealClis('what Anthropic refuses', async (t, binary) => {
  const api = await startMessagesApi(t);
  const server = await startServer(t, { ...cliEnv(binary, api), ...cold });
  api.script = (request) => failures[promptsOf(request).at(-1) ?? '']?.reply ?? say('all is well');

  // The time goes into the CLI's own retries: side by side they cost little.
  await Promise.all(
    Object.entries(failures).map(([name, { status, code, detail, retryAfter }]) =>
      t.test(`${name}: ${status} ${code}, and the session goes on`, async () => {
        const startedAt = Date.now();
        const reply = await server.chat({ prompt: name });
        assertFailed(reply, server, status, code, startedAt);
        assert.match(String(reply.body['detail']), detail);
        const retrySeconds = Number(reply.headers.get('retry-after'));
        if (retryAfter !== undefined) assert.ok(retrySeconds >= retryAfter && retrySeconds <= 2 * retryAfter, `Retry-After: ${retrySeconds}`);
        await assertUsable(server, reply.body['session_id']);
      }),
    ),
  );
  await t.test('no process is left', () => noneLeft(server.home, server.pid));
});

testWithRealClis('a turn that goes wrong', async (t, binary) => {
  await t.test('without a login: 503, and one that appears is used', async (t) => {
    const api = await startMessagesApi(t);
    api.script = () => say('all is well');
    const home = await makeHome(t);
    const { ANTHROPIC_API_KEY: _login, ...withoutLogin } = cliEnv(binary, api);
    const server = await startServer(t, { ...withoutLogin, ...cold }, home);
    const startedAt = Date.now();
    const reply = await server.chat({ prompt: 'hello' });
    assertFailed(reply, server, 503, 'claude_not_authenticated', startedAt);
    assert.match(String(reply.body['detail']), /^Claude CLI is not authenticated/);
    assert.deepEqual(api.turns, []);
    await noneLeft(home, server.pid);
    await server.end();
    await assertUsable(await startServer(t, { ...cliEnv(binary, api), ...cold }, home), reply.body['session_id']);
  });

  await t.test('nobody listens at the address: 502', async (t) => {
    const gone = new MessagesApi();
    await gone.listen();
    const { port } = new URL(gone.url);
    const env = { ...cliEnv(binary, gone), ...cold };
    gone.close();
    const server = await startServer(t, env);
    const startedAt = Date.now();
    const reply = await server.chat({ prompt: 'hello' });
    assertFailed(reply, server, 502, 'claude_api_error', startedAt);
    await noneLeft(server.home, server.pid);
    const api = await startMessagesApi(t, Number(port));
    api.script = () => say('all is well');
    await assertUsable(server, reply.body['session_id']);
  });

  for (const [name, silence] of [['from the first byte', hang()], ['in the middle of the text', hang('So far ', 'so')]] as const) {
    await t.test(`the model is silent ${name}: 504`, async (t) => {
      const api = await startMessagesApi(t);
      const home = await makeHome(t);
      const env = { ...cliEnv(binary, api), ...cold };
      api.script = (request) => (promptsOf(request).at(-1) === 'hello' ? silence : say('all is well'));
      // Only the silent turn has the short limit, in which the CLI starts as well.
      const patient = await startServer(t, env, home);
      const { body: begun } = await patient.chat({ prompt: 'begin' });
      await patient.end();
      const hasty = await startServer(t, { ...env, CLAUDE_TIMEOUT_SECONDS: '8' }, home);
      const startedAt = Date.now();
      const [request, reply] = await Promise.all([api.asked('hello', 20_000), hasty.chat({ prompt: 'hello', session_id: begun['session_id'] })]);
      assertFailed(reply, hasty, 504, 'claude_timeout', startedAt);
      assert.equal(reply.body['session_id'], begun['session_id']);
      assert.ok(Date.now() - startedAt >= 7_900 && Date.now() - startedAt < 18_000, `it took ${Date.now() - startedAt} ms`);
      await noneLeft(home, hasty.pid);
      await until('the request to Anthropic to break', () => request.isAborted || undefined);
      await hasty.end();
      await assertUsable(await startServer(t, env, home), reply.body['session_id']);
    });
  }

  await t.test('more rounds than CLAUDE_MAX_TURNS: 422 with what it cost', async (t) => {
    const api = await startMessagesApi(t);
    const server = await startServer(t, { ...cliEnv(binary, api), ...cold, CLAUDE_MAX_TURNS: '2' });
    api.script = (request) => {
      return promptsOf(request).at(-1) === 'hello' ? callTools([{ name: 'Glob', input: { pattern: '*' } }], 'looking') : say('all is well');
    };
    const startedAt = Date.now();
    const reply = await server.chat({ prompt: 'hello' });
    assertFailed(reply, server, 422, 'max_turns_reached', startedAt);
    assert.equal(api.turns.length, 2);
    assert.ok(Number(reply.body['cost']) > 0, `cost ${reply.body['cost']}`);
    assert.ok(Number(reply.body['duration_ms']) > 0);
    await noneLeft(server.home, server.pid);
    await assertUsable(server, reply.body['session_id']);
  });
});
