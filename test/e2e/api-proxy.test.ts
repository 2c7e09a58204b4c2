import assert from 'node:assert/strict';
import { spawn, type ChildProcessWithoutNullStreams } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type IncomingHttpHeaders } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { TestContext } from 'node:test';
import type { ProxySocket } from '../../src/sandbox/api-socket.ts';
import { createApiProxy } from '../../src/sandbox/api-proxy.ts';
import { cannedLogin, createCannedApi } from '../../src/sandbox/canned-api.ts';
import { createCredentials } from '../../src/sandbox/credentials.ts';
import { createLoginFile } from '../../src/sandbox/login-file.ts';
import { forwardedHeaders } from '../../src/sandbox/request-head.ts';
import { setStage, type ApiStage } from '../api-stage.ts';
import { callTools, cut, refuse, say, startMessagesApi, toolResultsOf, type ApiReply, type MessagesApi } from '../messages-api.ts';
import { testWithRealClis, until, within } from '../running-server.ts';

type Json = Readonly<Record<string, unknown>>;

const model = 'claude-sonnet-4-5';

/** A CLI that has nothing but the socket, and no login. */
class Cli {
  readonly work: string;
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #results: Json[] = [];
  #taken = 0;

  constructor(binary: string, home: string, socket: Pick<ProxySocket, 'path'>, env: Readonly<Record<string, string>>, args: readonly string[]) {
    this.work = join(home, 'work');
    const all = ['-p', '--input-format=stream-json', '--output-format=stream-json', '--verbose', `--model=${model}`, '--allowedTools=Bash,Read,Agent,WebSearch', ...args];
    const fixed = { PATH: process.env['PATH'] ?? '', HOME: home, ANTHROPIC_UNIX_SOCKET: socket.path, CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1', CLAUDE_CODE_MAX_RETRIES: '2' };
    this.#child = spawn(binary, all, { cwd: this.work, env: { ANTHROPIC_BASE_URL: 'http://api.anthropic.com', ...fixed, ...env } });
    this.#child.stderr.resume();
    this.#child.stdin.on('error', () => {});
    createInterface({ input: this.#child.stdout }).on('line', (line) => {
      const event = JSON.parse(line) as Json;
      if (event['type'] === 'result') this.#results.push(event);
    });
  }

  async turn(prompt: string): Promise<Json> {
    this.#child.stdin.write(`${JSON.stringify({ type: 'user', message: { role: 'user', content: prompt } })}\n`);
    const result = await until(`the result of ${prompt}`, () => this.#results[this.#taken], 30_000);
    this.#taken += 1;
    return result;
  }

  async end(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill('SIGKILL');
    await within('the end of the CLI', 10_000, once(this.#child, 'exit'));
  }
}

interface Scene {
  readonly api: MessagesApi;
  readonly stage: ApiStage;
  readonly socket: ProxySocket;
  readonly cli: Cli;
}

async function play(t: TestContext, binary: string, { env = {}, args = [], isWebSearchAllowed = true }: { env?: Readonly<Record<string, string>>; args?: readonly string[]; isWebSearchAllowed?: boolean } = {}): Promise<Scene> {
  const home = await mkdtemp(join(tmpdir(), 'api-proxy-cli-'));
  await mkdir(join(home, 'work'));
  const api = await startMessagesApi(t);
  const stage = await setStage(t, { upstreamUrl: api.url, rules: { models: [model], isWebSearchAllowed } });
  const socket = await stage.open();
  const cli = new Cli(binary, home, socket, { ANTHROPIC_AUTH_TOKEN: 'placeholder', ...env }, args);
  t.after(async () => {
    await cli.end();
    await rm(home, { recursive: true, force: true });
  });
  return { api, stage, socket, cli };
}

/** One turn with the proxy's account of it, and the input tokens the CLI says it had. */
async function turn({ stage, socket, cli }: Scene, prompt: string) {
  socket.beginTurn(stage.limits());
  const result = await cli.turn(prompt);
  const told = Object.values((result['model_usage_since_last_result'] ?? {}) as Readonly<Record<string, { readonly inputTokens: number }>>);
  return { result, report: socket.endTurn(), toldInput: told.reduce((sum, { inputTokens }) => sum + inputTokens, 0) };
}

/** The replies in this order, the last one for ever; a web search's inner request aside. */
function script(api: MessagesApi, ...replies: readonly ApiReply[]): void {
  let made = 0;
  api.script = ({ body }) => {
    if (JSON.stringify(body['tools'] ?? []).includes('web_search_2')) return say('found nothing');
    made += 1;
    return replies[made - 1] ?? replies.at(-1) ?? say('ok');
  };
}

testWithRealClis('the CLI with nothing but the API proxy', async (t, binary) => {
  await t.test('turns, tools, a subagent, a web search and a large file work, and the tokens are those the CLI has', async (t) => {
    const scene = await play(t, binary);
    const { api, stage, cli } = scene;
    await writeFile(join(cli.work, 'big.txt'), 'word '.repeat(18_000).replace(/(.{100})/g, '$1\n'));
    const startedAt = performance.now();
    script(api, say('hello'));
    const first = await turn(scene, 'one');
    assert.equal(first.result['result'], 'hello');
    assert.ok(performance.now() - startedAt < 10_000, 'no waiting for the settings of an organisation');
    assert.deepEqual(first.report.tokens, { input: 1000, output: 100, cacheWrite: 0, cacheRead: 0 });

    script(api, callTools([{ name: 'Bash', input: { command: 'echo from the shell' } }]), callTools([{ name: 'Read', input: { file_path: join(cli.work, 'big.txt') } }]), say('two'));
    const second = await turn(scene, 'two');
    assert.equal(second.result['result'], 'two');
    assert.deepEqual([second.report.tokens.input, second.toldInput], [3000, 3000]);
    assert.match(JSON.stringify(api.turns.map(toolResultsOf)), /from the shell/);
    assert.ok(api.requests.some(({ path }) => path.endsWith('count_tokens')));

    script(api, callTools([{ name: 'WebSearch', input: { query: 'what is it' } }]), say('three'));
    const third = await turn(scene, 'three');
    assert.deepEqual([third.report.tokens.input, third.toldInput], [3000, 3000]);
    const agents = Array.from({ length: 6 }, (_, i) => ({ name: 'Agent', input: { description: `d${i}`, prompt: `sub ${i}`, subagent_type: 'general-purpose' } }));
    script(api, callTools(agents), say('four'));
    const fourth = await turn(scene, 'four');
    assert.equal(fourth.result['result'], 'four');
    assert.deepEqual([fourth.report.tokens.input, fourth.toldInput], [8000, 8000]);
    assert.deepEqual(stage.refused, []);
    assert.ok(api.requests.every(({ headers }) => headers['x-api-key'] === 'sk-ant-made-up' && headers['authorization'] === undefined));
    // What the proxy leaves out is nothing that this CLI asks for.
    assert.deepEqual(stage.lines, []);
  });

  await t.test('the CLI sends no header that the proxy would leave out, but for its login and what belongs to the connection', async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'api-proxy-headers-'));
    await mkdir(join(folder, 'work'));
    const heads: IncomingHttpHeaders[] = [];
    const server = createServer((req, res) => {
      heads.push(req.headers);
      req.resume().on('end', () => res.writeHead(400, { 'content-type': 'application/json' }).end('{"type":"error","error":{"type":"invalid_request_error","message":"no"}}'));
    });
    const path = join(folder, 's');
    server.listen(path);
    await once(server, 'listening');
    const cli = new Cli(binary, folder, { path }, { ANTHROPIC_AUTH_TOKEN: 'placeholder' }, []);
    t.after(async () => {
      await cli.end();
      server.close();
      server.closeAllConnections();
      await rm(folder, { recursive: true, force: true });
    });
    await cli.turn('go');
    for (const headers of heads) {
      const kept = Object.keys(forwardedHeaders(headers).headers);
      const leftOut = Object.keys(headers).filter((name) => !kept.includes(name));
      assert.deepEqual(leftOut.sort(), ['authorization', 'connection', 'content-length', 'host']);
    }
    assert.ok(heads.length > 0);
  });

  await t.test('a failure of the API is told as it is, and the proxy knows its status, type and wait', async (t) => {
    const scene = await play(t, binary);
    const cases: Array<[ApiReply, RegExp, unknown, number]> = [
      [refuse(529, 'overloaded_error', 'too much'), /529|[Oo]verloaded/, { status: 529, type: 'overloaded_error', retryAfterSeconds: undefined }, 3],
      [refuse(429, 'rate_limit_error', 'slow down', { 'retry-after': '3600' }), /429|rate limit/i, { status: 429, type: 'rate_limit_error', retryAfterSeconds: 3600 }, 1],
      [refuse(401, 'authentication_error', 'who are you'), /401|authenticat/i, { status: 401, type: 'authentication_error', retryAfterSeconds: undefined }, 1],
      [refuse(400, 'invalid_request_error', 'Your credit balance is too low'), /[Cc]redit balance/, { status: 400, type: 'invalid_request_error', retryAfterSeconds: undefined }, 1],
    ];
    for (const [reply, text, expected, leastRequests] of cases) {
      script(scene.api, reply);
      const { result, report } = await turn(scene, 'go');
      assert.equal(result['is_error'], true);
      assert.match(String(result['result']), text);
      assert.deepEqual(report.lastFailure, expected);
      assert.ok(report.requests >= leastRequests, `${report.requests} requests`);
      t.diagnostic(`${JSON.stringify(expected)}: ${report.requests} requests, "${String(result['result']).slice(0, 90)}"`);
    }
    script(scene.api, say('well again'));
    assert.equal((await turn(scene, 'and now')).result['result'], 'well again');
  });

  await t.test('a stream that breaks and an overloaded API are tried again by the CLI, as without the proxy', async (t) => {
    const scene = await play(t, binary);
    for (const fault of [cut('half'), refuse(529, 'overloaded_error', 'too much')]) {
      script(scene.api, fault, say('whole'));
      const { result, report } = await turn(scene, 'go');
      assert.equal(result['result'], 'whole');
      assert.equal(report.requests, 2);
    }
  });

  await t.test('what the proxy refuses is told in its own words, once', async (t) => {
    const scene = await play(t, binary, { args: ['--model=claude-opus-4-8'] });
    const { result, report } = await turn(scene, 'go');
    assert.match(String(result['result']), /402 .*the model claude-opus-4-8/);
    assert.deepEqual([report.requests, report.refusals, scene.api.requests.length], [1, 1, 0]);
    const search = await play(t, binary, { isWebSearchAllowed: false });
    script(search.api, callTools([{ name: 'WebSearch', input: { query: 'what is it' } }]), say('no search'));
    const second = await turn(search, 'go');
    assert.equal(second.result['result'], 'no search');
    assert.deepEqual(search.stage.refused, ['the tool web_search_20250305']);
  });

  await t.test('no tokens left for the day ends the turn at once', async (t) => {
    const scene = await play(t, binary);
    scene.socket.beginTurn(scene.stage.limits({ hasTokensLeft: () => false }));
    const result = await scene.cli.turn('go');
    const report = scene.socket.endTurn();
    assert.equal(result['is_error'], true);
    assert.deepEqual([report.isOutOfTokens, report.requests, scene.api.requests.length], [true, 1, 0]);
  });

  await t.test('a subscription looks like one inside, and starts as fast', async (t) => {
    const credentials = createCredentials({ CLAUDE_CODE_OAUTH_TOKEN: 'a-setup-token' }, createLoginFile('/nowhere', async () => {}));
    const scene = await play(t, binary, { env: { ANTHROPIC_AUTH_TOKEN: '', ...(await credentials.placeholders()) } });
    const startedAt = performance.now();
    script(scene.api, say('hello'));
    assert.equal((await turn(scene, 'go')).result['result'], 'hello');
    assert.ok(performance.now() - startedAt < 10_000);
    assert.match(String(scene.api.turns[0]?.headers['anthropic-beta']), /oauth-2025-04-20/);
  });

  await t.test('the trial at the start costs nothing and shows the model that will be used', async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'api-proxy-trial-'));
    await mkdir(join(folder, 'work'));
    const upstream = createCannedApi('ready');
    const rules = { models: undefined, isWebSearchAllowed: false };
    const proxy = createApiProxy({ upstream, credentials: cannedLogin, rules: () => rules, log: () => {} });
    const socket = await proxy.open(join(folder, 'socket'));
    const cli = new Cli(binary, folder, socket, { ANTHROPIC_AUTH_TOKEN: 'placeholder' }, ['--model=haiku']);
    t.after(async () => {
      await cli.end();
      await socket.close();
      proxy.close();
      await rm(folder, { recursive: true, force: true });
    });
    socket.beginTurn({ maxRequests: 10, onTooManyRefusals: () => {} });
    assert.equal((await cli.turn('hello'))['result'], 'ready');
    assert.deepEqual(socket.endTurn().tokens.input, 0);
    assert.match([...upstream.models].join(' '), /^claude-haiku-[\w-]+$/);
  });

  await t.test('a gateway looks like one inside', async (t) => {
    const scene = await play(t, binary, { env: { ANTHROPIC_BASE_URL: 'http://gateway.invalid' } });
    script(scene.api, say('hello'));
    assert.equal((await turn(scene, 'go')).result['result'], 'hello');
    assert.deepEqual(scene.stage.lines, []);
  });
});
