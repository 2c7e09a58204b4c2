import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, readdir, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { LineMemory, LineSplitter } from '../../src/cli/ndjson.ts';
import { interruptLine, readinessLine, userLine } from '../../src/cli/protocol.ts';
import { anthropicKey, hang, imagesOf, promptsOf, startMessagesApi, type Json } from '../messages-api.ts';
import { png } from '../pictures.ts';
import { makeHome, testWithRealClis, until } from '../running-server.ts';

// What docs/cli-facts.md says of the CLI and no test of the whole server shows: the CLI alone, driven over its stdin.

/** A CLI process and every line it printed. */
class Cli {
  readonly lines: Json[] = [];
  readonly #child;
  readonly #exited: Promise<unknown>;

  constructor(binary: string, env: Env, ...args: readonly string[]) {
    const always = ['-p', '--input-format=stream-json', '--output-format=stream-json', '--verbose', '--tools=Read', '--setting-sources='];
    this.#child = spawn(binary, [...always, ...args], { cwd: env['PWD'], env, stdio: ['pipe', 'pipe', 'ignore'] });
    this.#exited = once(this.#child, 'exit');
    this.#child.stdin.on('error', () => {});
    const splitter = new LineSplitter(new LineMemory(2 * 1024 * 1024));
    this.#child.stdout.on('data', (chunk: Buffer) => this.lines.push(...splitter.push(chunk).map((line) => JSON.parse(line) as Json)));
  }

  send(line: string): void {
    this.#child.stdin.write(line);
  }

  /** Sends a prompt and waits for the `nth` result. */
  async turn(prompt: string, nth = 1): Promise<Json> {
    this.send(userLine({ prompt }, '/inbox'));
    return until('the result', () => this.lines.filter(({ type }) => type === 'result')[nth - 1], 20_000);
  }

  /** Ends it by the end of its stdin, or by a signal, and waits until it is gone. */
  async end(signal?: 'SIGKILL'): Promise<void> {
    if (signal === undefined) this.#child.stdin.end();
    else this.#child.kill(signal);
    await this.#exited;
  }
}

type Env = Readonly<Record<string, string>>;

/** What a test of the CLI alone needs; the processes it starts end with it. */
async function setUp(t: TestContext, binary: string) {
  const clis: Cli[] = [];
  // Before the hook of the home, which looks for what is left.
  t.after(() => Promise.all(clis.map((cli) => cli.end('SIGKILL'))));
  const [api, home] = [await startMessagesApi(t), await makeHome(t)];
  const base = {
    PATH: process.env['PATH'] ?? '',
    HOME: home,
    // Where it is started, too.
    PWD: '/',
    ANTHROPIC_BASE_URL: api.url,
    CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1',
    CLAUDE_CODE_EAGER_FLUSH: '1',
  };
  const start = (env: Env = { ANTHROPIC_API_KEY: anthropicKey }, ...args: readonly string[]): Cli => {
    const cli = new Cli(binary, { ...base, ...env }, ...args);
    clis.push(cli);
    return cli;
  };
  return { api, home, start };
}

testWithRealClis('the CLI by itself', async (t, binary) => {
  await Promise.all([
    t.test('passes half a picture on, and makes a large one smaller', async (t) => {
      const { api, start } = await setUp(t, binary);
      const half = png(300, 300).subarray(0, 80);
      const large = png(2400, 30);
      const cli = start();
      const image = (data: Buffer) => ({ type: 'image', source: { type: 'base64', media_type: 'image/png', data: data.toString('base64') } });
      cli.send(JSON.stringify({ type: 'user', message: { role: 'user', content: [image(half), image(large), { type: 'text', text: 'look' }] } }) + '\n');
      await until('the result', () => cli.lines.find(({ type }) => type === 'result'), 20_000);
      const [first = Buffer.alloc(0), second = Buffer.alloc(24)] = imagesOf(api.turns.at(-1) ?? assert.fail('asked')).map(({ bytes }) => bytes);
      assert.deepEqual(first, half);
      assert.deepEqual([second.readUInt32BE(16), second.readUInt32BE(20)], [2000, 25]);
    }),

    t.test('prints nothing before its first message but the answer to a control request', async (t) => {
      const { api, start } = await setUp(t, binary);
      const cli = start();
      cli.send(readinessLine);
      await until('the answer', () => cli.lines[0], 20_000);
      assert.deepEqual(cli.lines.map(({ type }) => type), ['control_response']);
      assert.deepEqual(api.turns, []);
    }),

    t.test('answers a control request before an MCP server does, for which the init line of the first turn waits', async (t) => {
      const { start } = await setUp(t, binary);
      const silent = { command: process.execPath, args: ['-e', 'process.stdin.resume()'] };
      const cli = start(undefined, `--mcp-config=${JSON.stringify({ mcpServers: { silent } })}`);
      cli.send(readinessLine);
      cli.send(userLine({ prompt: 'hello' }, ''));
      await until('the answer', () => cli.lines[0], 20_000);
      await new Promise((resolve) => setTimeout(resolve, 2000));
      assert.deepEqual(cli.lines.map(({ type }) => type), ['control_response']);
    }),

    t.test('begins each turn with an init line', async (t) => {
      const { start } = await setUp(t, binary);
      const cli = start();
      await cli.turn('one');
      await cli.turn('two', 2);
      const outline = cli.lines.flatMap(({ type, subtype }) => (subtype === 'init' || type === 'result' ? [subtype] : []));
      assert.deepEqual(outline, ['init', 'success', 'init', 'success']);
    }),

    t.test('has the turn on disk when its result is out', async (t) => {
      const { api, start } = await setUp(t, binary);
      const first = start();
      const { session_id: id } = await first.turn('remember');
      await first.end('SIGKILL');
      await start(undefined, `--resume=${String(id)}`).turn('and now?');
      assert.deepEqual(promptsOf(api.turns.at(-1) ?? assert.fail('nothing was asked')), ['remember', 'and now?']);
    }),

    t.test('answers where it can keep nothing, and not at all without room for temporary files', async (t) => {
      const { start } = await setUp(t, binary);
      const homeless = { ANTHROPIC_API_KEY: anthropicKey, HOME: '/dev/null/home' };
      const { is_error: isError, session_id: id } = await start(homeless).turn('hello');
      assert.equal(isError, false);
      const resumed = await start(homeless, `--resume=${String(id)}`).turn('hello');
      assert.match(JSON.stringify(resumed['errors']), /No conversation found/);
      const mute = start({ ANTHROPIC_API_KEY: anthropicKey, CLAUDE_CODE_TMPDIR: '/dev/null/tmp' });
      mute.send(userLine({ prompt: 'hello' }, '/inbox'));
      await mute.end();
      assert.deepEqual(mute.lines, []);
    }),

    t.test('takes the session id it is given, once', async (t) => {
      const { home, start } = await setUp(t, binary);
      const id = randomUUID();
      const first = start(undefined, `--session-id=${id}`);
      await first.turn('one');
      await first.turn('two', 2);
      assert.deepEqual([...new Set(first.lines.flatMap(({ session_id: named }) => named ?? []))], [id]);
      await first.end();
      assert.ok((await readdir(join(home, '.claude/projects'), { recursive: true })).some((path) => path.endsWith(`/${id}.jsonl`)));
      const again = start(undefined, `--session-id=${id}`);
      again.send(userLine({ prompt: 'three' }, '/inbox'));
      await again.end();
      assert.deepEqual(again.lines.filter(({ type }) => type === 'result'), []);
    }),

    t.test('keeps all of a user in CLAUDE_CONFIG_DIR, and finds a dialogue there from any folder', async (t) => {
      const { api, home, start } = await setUp(t, binary);
      const env = { ANTHROPIC_API_KEY: anthropicKey, CLAUDE_CONFIG_DIR: join(home, 'user'), CLAUDE_CODE_PROJECT_DIR_NAME: 'work' };
      const id = randomUUID();
      const first = start(env, `--session-id=${id}`);
      await first.turn('remember');
      await first.end();
      assert.ok((await readdir(join(home, 'user/projects/work'))).includes(`${id}.jsonl`));
      assert.deepEqual((await readdir(home)).filter((name) => name.startsWith('.claude')), []);
      await start({ ...env, PWD: '/tmp' }, `--resume=${id}`).turn('and now?');
      assert.deepEqual(promptsOf(api.turns.at(-1) ?? assert.fail('nothing was asked')), ['remember', 'and now?']);
    }),

    t.test('removes dialogues older than cleanupPeriodDays, and no younger ones', async (t) => {
      const { home, start } = await setUp(t, binary);
      const folder = join(home, 'user/projects/work');
      const env = { ANTHROPIC_API_KEY: anthropicKey, CLAUDE_CONFIG_DIR: join(home, 'user'), CLAUDE_CODE_PROJECT_DIR_NAME: 'work' };
      const ids = { old: randomUUID(), young: randomUUID() };
      for (const id of Object.values(ids)) {
        const cli = start(env, `--session-id=${id}`);
        await cli.turn('hello');
        await cli.end();
      }
      const daysAgo = (days: number): Date => new Date(Date.now() - days * 24 * 60 * 60 * 1000);
      await utimes(join(folder, `${ids.old}.jsonl`), daysAgo(8), daysAgo(8));
      await utimes(join(folder, `${ids.young}.jsonl`), daysAgo(6), daysAgo(6));
      await start(env, '--settings={"cleanupPeriodDays":7}').turn('hello');
      await until('the old one to go', async () => ((await readdir(folder)).includes(`${ids.old}.jsonl`) ? undefined : true), 60_000);
      assert.ok((await readdir(folder)).includes(`${ids.young}.jsonl`));
    }),

    t.test('names the cost of each turn, also after a resume and of one that was interrupted', async (t) => {
      const { api, start } = await setUp(t, binary);
      const costOf = (result: Json): number => {
        const usage = Object.values(result['model_usage_since_last_result'] as Record<string, { costUSD: number }>);
        return usage.reduce((sum, { costUSD }) => sum + costUSD, 0);
      };
      const first = start();
      const one = await first.turn('one');
      const two = await first.turn('two', 2);
      await first.end();
      const resumed = start(undefined, `--resume=${String(one['session_id'])}`, '--include-partial-messages');
      const three = await resumed.turn('three');
      assert.ok(costOf(one) > 0);
      assert.deepEqual([costOf(two), costOf(three)], [costOf(one), costOf(one)]);
      assert.ok(Number(three['total_cost_usd']) > 2.5 * costOf(one), 'the total goes on');
      api.script = () => hang('So far');
      resumed.send(userLine({ prompt: 'four' }, '/inbox'));
      // What is counted comes with the answer's beginning.
      await until('the first words', () => resumed.lines.find(({ event }) => JSON.stringify(event)?.includes('So far')));
      resumed.send(interruptLine);
      assert.ok(costOf(await until('the result', () => resumed.lines.filter(({ type }) => type === 'result')[1])) > 0);
    }),

    t.test('takes the first of its logins', async (t) => {
      const { api, home, start } = await setUp(t, binary);
      for (const [folder, token] of Object.entries({ '.claude': 'of-home', config: 'of-config', secure: 'of-secure' })) {
        const login = { claudeAiOauth: { accessToken: token, refreshToken: 'x', expiresAt: 4102444800000, scopes: ['user:inference'] } };
        await mkdir(join(home, folder), { recursive: true });
        await writeFile(join(home, folder, '.credentials.json'), JSON.stringify(login));
      }
      const loginUsed = async (env: Env): Promise<unknown> => {
        const cli = start(env);
        await cli.turn('hello');
        await cli.end();
        const { 'x-api-key': key, authorization } = api.turns.at(-1)?.headers ?? {};
        return [key, authorization];
      };
      const all = Object.entries({
        ANTHROPIC_API_KEY: 'of-key',
        ANTHROPIC_AUTH_TOKEN: 'of-token',
        CLAUDE_CODE_OAUTH_TOKEN: 'of-oauth',
        CLAUDE_SECURESTORAGE_CONFIG_DIR: join(home, 'secure'),
        CLAUDE_CONFIG_DIR: join(home, 'config'),
      });
      const used: unknown[] = [];
      for (let i = 0; i <= all.length; i += 1) used.push(await loginUsed(Object.fromEntries(all.slice(i))));
      const tokens = ['of-token', 'of-oauth', 'of-secure', 'of-config', 'of-home'].map((token) => [undefined, `Bearer ${token}`]);
      assert.deepEqual(used, [['of-key', 'Bearer of-token'], ...tokens]);
      const blank = { ANTHROPIC_API_KEY: ' ', ANTHROPIC_AUTH_TOKEN: '', CLAUDE_CODE_OAUTH_TOKEN: ' ' };
      assert.deepEqual(await loginUsed(blank), [undefined, 'Bearer of-home'], 'a blank variable is no login');
    }),
  ]);
});
