import assert from 'node:assert/strict';
import { copyFile, mkdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { anthropicKey, refuse, startMessagesApi } from '../messages-api.ts';
import { fakeClaude, makeHome, RunningServer, startServer, until, within } from '../running-server.ts';
import { asUserScript, chownAll, makeSandboxedHome, noneWith, runningWith, startSandboxedServer, testSandboxed, unlike } from '../sandboxed.ts';

/** A server that is expected to end by itself: its exit code and what it says. */
async function endOf(home: string, env: Readonly<Record<string, string | undefined>>, wrapper: readonly string[] = [asUserScript]): Promise<[number | null, string]> {
  const server = new RunningServer(home, { ANTHROPIC_API_KEY: anthropicKey, ...env }, wrapper);
  const code = await server.ended();
  return [code, server.stderr];
}

/** A PATH with what the fake CLI needs, and without bubblewrap. */
async function pathWithoutBwrap(home: string): Promise<string> {
  const folder = join(home, 'few-programs');
  await mkdir(folder);
  await symlink(process.execPath, join(folder, 'node'));
  for (const name of ['bash', 'env', 'flock', 'unshare', 'realpath', 'dirname', 'find', 'mount', 'umount', 'mkdir', 'id', 'setpriv', 'sh', 'cat']) {
    await symlink(`/usr/bin/${name}`, join(folder, name));
  }
  return folder;
}

testSandboxed('a dialogue goes on in its warm process, and after a restart', async (t) => {
  const home = await makeSandboxedHome(t);
  const server = await startSandboxedServer(t, {}, home);
  const first = await server.chat({ prompt: 'hello' });
  assert.equal(first.body['content'], 'you said: hello', JSON.stringify(first.body));
  const sessionId = first.body['session_id'];
  assert.equal((await server.chat({ prompt: 'play pid', session_id: sessionId })).body['content'], '2', 'the second process inside');
  assert.equal((await server.chat({ prompt: 'hello', session_id: sessionId, user_id: 2 })).body['code'], 'session_not_found');
  await server.end();
  await noneWith(home);
  const next = await startSandboxedServer(t, {}, home);
  const history = await next.chat({ prompt: 'play history', session_id: sessionId });
  assert.deepEqual(JSON.parse(String(history.body['content'])), ['hello', 'play pid', 'play history']);
});

testSandboxed('the API is reached with the login that no sandbox has, and its failures are told as they were', async (t) => {
  const api = await startMessagesApi(t);
  const server = await startSandboxedServer(t, { ANTHROPIC_BASE_URL: api.url, CLAUDE_MODEL: 'claude-fake' });
  assert.equal(api.requests.length, 0, 'the trial costs nothing');
  const first = await server.chat({ prompt: 'play ask hello' });
  assert.equal(first.body['content'], 'ok', JSON.stringify(first.body));
  const [request] = api.turns;
  assert.equal(request?.headers['x-api-key'], anthropicKey);
  assert.equal(request?.headers['authorization'], undefined);
  api.script = () => refuse(429, 'rate_limit_error', 'slow down', { 'retry-after': '17' });
  const limited = await server.chat({ prompt: 'play ask-error 429' });
  assert.deepEqual([limited.body['code'], limited.headers.get('retry-after')], ['claude_rate_limited', '17']);
});

testSandboxed('a turn asks the API ten times as often as the CLI may, for the server\'s models, and to search the web only where it may', async (t) => {
  const api = await startMessagesApi(t);
  const program = `const all = []; (async () => { for (const body of JSON.parse(atob(process.argv[1]))) all.push(await new Promise((done) =>
    require("node:http").request({ socketPath: "/run/api/s", method: "POST", path: "/v1/messages", agent: false }, (res) => done(res.resume().statusCode)).end(JSON.stringify(body))));
    console.log(JSON.stringify(all)); })()`;
  const own = { model: 'claude-fake', max_tokens: 10, messages: [{ role: 'user', content: 'x' }] };
  const search = { ...own, tools: [{ type: 'web_search_20250305', name: 'web_search', max_uses: 8 }] };
  const bodies = [{ ...own, model: 'claude-dear' }, search, ...Array<unknown>(9).fill(own)];
  // Without a name the server's models are those that its trial showed.
  for (const [tools, model, ofSearch] of [['Bash', undefined, 402], ['Bash,WebSearch', 'claude-fake', 200]] as const) {
    const server = await startSandboxedServer(t, { ANTHROPIC_BASE_URL: api.url, CLAUDE_MODEL: model, CLAUDE_MAX_TURNS: '1', CLAUDE_TOOLS: tools });
    const { body } = await server.chat({ prompt: `play sh node -e '${program}' ${btoa(JSON.stringify(bodies))}` });
    assert.equal(body['content'], JSON.stringify([402, ofSearch, ...Array<number>(8).fill(200), 402]));
  }
});

testSandboxed('tokens are counted by the API, and a user who has had those of the day has no turn until it ends', async (t) => {
  const api = await startMessagesApi(t);
  const server = await startSandboxedServer(t, { ANTHROPIC_BASE_URL: api.url, CLAUDE_MODEL: 'claude-fake', CLAUDE_USER_TOKENS_PER_DAY: '2000' });
  for (let i = 0; i < 2; i += 1) assert.equal((await server.chat({ prompt: 'play ask hello' })).body['content'], 'ok');
  const refused = await server.chat({ prompt: 'play ask hello' });
  assert.deepEqual([refused.status, refused.body['code'], api.turns.length], [429, 'rate_limited', 2]);
  const untilMidnight = 86_400 - (Date.now() / 1000) % 86_400;
  assert.ok(Math.abs(Number(refused.headers.get('retry-after')) - untilMidnight) < 60, refused.headers.get('retry-after') ?? '');
  assert.equal((await server.chat({ prompt: 'play ask hello', user_id: 2 })).body['content'], 'ok', 'others are not concerned');
  const health = (await (await server.request('/health')).json()) as Record<string, unknown>;
  assert.deepEqual(health['tokens'], { input: 3000, output: 300, cache_creation: 0, cache_read: 0 });
});

testSandboxed('what may be seen of the sandbox in /health and the log', async (t) => {
  const server = await startSandboxedServer(t, { CLAUDE_CODE_EXTRA_BODY: '{}', HTTPS_PROXY: 'http://127.0.0.1:1', DISABLE_TELEMETRY: '1' });
  const health = (await (await server.request('/health')).json()) as Record<string, unknown>;
  assert.deepEqual([health['sandbox'], health['claude_version']], ['on', '2.1.331']);
  const line = await server.logged('sandbox');
  assert.deepEqual([line['sandbox'], line['left_out']], ['on', 'CLAUDE_CODE_EXTRA_BODY,HTTPS_PROXY']);
});

testSandboxed('a tool that the CLI does not name is warned of by the trial, before anybody asks', async (t) => {
  const server = await startSandboxedServer(t, { CLAUDE_TOOLS: 'Read,Raed' });
  assert.equal((await server.logged('config'))['message'], 'CLAUDE_TOOLS: the CLI has no tool of the name Raed');
});

testSandboxed('nothing is left of turns that hang, go deaf or leave something behind', async (t) => {
  const home = await makeSandboxedHome(t);
  const server = await startSandboxedServer(t, { CLAUDE_TIMEOUT_SECONDS: '1', CLAUDE_WARM_SECONDS: '0' }, home);
  for (const [userId, prompt] of [[1, 'play hang'], [2, 'play deaf'], [3, 'play grandchild'], [4, 'play clean-child']] as const) {
    const reply = await within(prompt, 20_000, server.chat({ prompt, user_id: userId }));
    assert.equal(reply.body['code'], 'claude_timeout', prompt);
    await noneWith(`${home}/state/users/${userId}/home`);
  }
});

testSandboxed('a process that leaves a program running is not kept warm, and the dialogue goes on all the same', async (t) => {
  const server = await startSandboxedServer(t);
  const first = await server.chat({ prompt: `play leave ${unlike(41)}` });
  assert.equal(first.body['content'], 'left');
  const { body } = await server.chat({ prompt: 'hello', user_id: 2 });
  await until('nothing left of it', async () => ((await runningWith(`sleep ${unlike(41)}`)).length === 0 ? true : undefined));
  const next = await server.chat({ prompt: 'play history', session_id: first.body['session_id'] });
  assert.deepEqual(JSON.parse(String(next.body['content'])), [`play leave ${unlike(41)}`, 'play history']);
  await server.chat({ prompt: 'hello again', session_id: body['session_id'], user_id: 2 });
  assert.equal((await server.logged('turn', (line) => line['user'] === 2 && line['process'] !== 'cold'))['process'], 'warm', 'an honest one is');
});

testSandboxed('a server that is killed takes all sandboxes along', async (t) => {
  const home = await makeSandboxedHome(t);
  const server = await startSandboxedServer(t, {}, home);
  const word = `sleep ${unlike(42)}`;
  const turn = server.chat({ prompt: `play sh setsid -f ${word} >/dev/null 2>&1; ${word}` }).catch(() => {});
  // What runs inside: bubblewrap itself is there before its sandbox is.
  await until('a running turn', async () => ((await runningWith(word)).length > 0 ? true : undefined));
  await server.end('SIGKILL');
  await turn;
  for (const text of [home, word]) await noneWith(text);
});

testSandboxed('a folder that is removed under a warm process makes the turn start anew, and a planted one starts nothing', async (t) => {
  const home = await makeSandboxedHome(t);
  const server = await startSandboxedServer(t, {}, home);
  const work = join(home, 'state/users/1/work');
  const first = await server.chat({ prompt: 'hello' });
  await rm(work, { recursive: true });
  const next = await server.chat({ prompt: 'play history', session_id: first.body['session_id'] });
  assert.deepEqual(JSON.parse(String(next.body['content'])), ['hello', 'play history']);
  await rename(work, `${work}.old`);
  await symlink('/etc', work);
  const planted = await server.chat({ prompt: 'hello', session_id: first.body['session_id'] });
  assert.deepEqual([planted.status, planted.body['code']], [503, 'storage_unavailable']);
});

testSandboxed('a sandbox that cannot be made fails the turn, three in a row make the server unavailable, and it heals', async (t) => {
  const home = await makeSandboxedHome(t);
  const server = await startSandboxedServer(t, {}, home);
  const ownFiles = join(home, 'state/sandbox');
  for (let i = 0; i < 3; i += 1) {
    assert.equal((await server.request('/health')).status, 200);
    await rm(join(ownFiles, 'seccomp'), { force: true });
    const reply = await server.chat({ prompt: 'hello', user_id: 10 + i });
    assert.deepEqual([reply.status, reply.body['code']], [503, 'sandbox_unavailable'], JSON.stringify(reply.body));
  }
  assert.equal((await server.request('/health')).status, 503);
  await until('the server to find that it works again', async () => ((await server.request('/health')).status === 200 ? true : undefined), 45_000);
  assert.equal((await server.chat({ prompt: 'hello', user_id: 20 })).status, 200);
});

testSandboxed('a CLI that was updated is tried again before it is used, and never run without the sandbox', async (t) => {
  const home = await makeSandboxedHome(t);
  const binary = join(home, 'claude');
  await copyFile(fakeClaude, binary);
  const server = await startSandboxedServer(t, { CLAUDE_BINARY_PATH: binary }, home);
  assert.equal((await server.chat({ prompt: 'hello' })).status, 200);
  const replace = async (text: string): Promise<void> => {
    await writeFile(`${binary}.new`, text, { mode: 0o755 });
    await rename(`${binary}.new`, binary);
  };
  await replace('#!/bin/sh\nexit 3\n');
  const broken = await server.chat({ prompt: 'hello', user_id: 2 });
  assert.deepEqual([broken.status, broken.body['code']], [503, 'sandbox_unavailable']);
  await replace(`${await readFile(fakeClaude, 'utf8')}\n// newer\n`);
  assert.equal((await server.chat({ prompt: 'hello', user_id: 2 })).status, 200);
});

testSandboxed('a login of another kind is tried before it is used', async (t) => {
  const home = await makeSandboxedHome(t);
  const binary = join(home, 'claude');
  const lines = (await readFile(fakeClaude, 'utf8')).split('\n');
  await writeFile(binary, [lines[0], `if (process.env.CLAUDE_CODE_SUBSCRIPTION_TYPE === 'pro') process.exit(3);`, ...lines.slice(1)].join('\n'), { mode: 0o755 });
  const server = await startSandboxedServer(t, { CLAUDE_BINARY_PATH: binary, ANTHROPIC_API_KEY: '' }, home);
  assert.equal((await server.chat({ prompt: 'hello' })).status, 200);
  const login = { accessToken: 'made-up', expiresAt: Date.now() + 3_600_000, subscriptionType: 'pro' };
  await mkdir(join(home, '.claude'), { recursive: true });
  await writeFile(join(home, '.claude/.credentials.json'), JSON.stringify({ claudeAiOauth: login }));
  await chownAll(join(home, '.claude'));
  const broken = await server.chat({ prompt: 'hello', user_id: 2 });
  assert.deepEqual([broken.status, broken.body['code']], [503, 'sandbox_unavailable']);
});

testSandboxed('without bubblewrap auto gives the five tools and says why, required ends the server', async (t) => {
  const home = await makeSandboxedHome(t);
  const PATH = await pathWithoutBwrap(home);
  const server = await startSandboxedServer(t, { PATH, CLAUDE_SANDBOX: 'auto', CLAUDE_TOOLS: 'Bash,Read', CLAUDE_ALLOWED_TOOLS: 'Bash' }, home);
  const health = (await (await server.request('/health')).json()) as Record<string, unknown>;
  assert.equal(health['sandbox'], 'bubblewrap is not installed (apt install bubblewrap).');
  const argv = JSON.parse(String((await server.chat({ prompt: 'play argv' })).body['content'])) as string[];
  assert.ok(argv.includes('--tools=Read') && argv.includes('--permission-mode=acceptEdits') && argv.includes('--setting-sources='), argv.join(' '));
  assert.ok(!argv.some((argument) => argument.startsWith('--allowedTools')), 'what only a sandbox makes harmless');
  await server.end();
  assert.deepEqual(await endOf(home, { PATH, CLAUDE_SANDBOX: 'required' }), [
    78, 'claude-api: CLAUDE_SANDBOX is required, and there is no sandbox: bubblewrap is not installed (apt install bubblewrap).\n',
  ]);
});

testSandboxed('where a sandboxed process ever ran there is no way back', async (t) => {
  const home = await makeSandboxedHome(t);
  const server = await startSandboxedServer(t, {}, home);
  await server.chat({ prompt: 'hello' });
  await server.end();
  const [offCode, offWords] = await endOf(home, { CLAUDE_SANDBOX: 'off' });
  assert.deepEqual([offCode, /a new CLAUDE_STATE_DIR/.test(offWords)], [78, true], offWords);
  const [autoCode, autoWords] = await endOf(home, { CLAUDE_SANDBOX: 'auto', PATH: await pathWithoutBwrap(home) });
  assert.deepEqual([autoCode, /bubblewrap is not installed.*a new CLAUDE_STATE_DIR/.test(autoWords)], [78, true], autoWords);
});

testSandboxed('from the five tools into the sandbox a dialogue goes on', async (t) => {
  const home = await makeSandboxedHome(t);
  const before = await startSandboxedServer(t, { CLAUDE_SANDBOX: 'off' }, home);
  const first = await before.chat({ prompt: 'hello' });
  await before.end();
  const server = await startSandboxedServer(t, {}, home);
  const reply = await server.chat({ prompt: 'play history', session_id: first.body['session_id'] });
  assert.deepEqual(JSON.parse(String(reply.body['content'])), ['hello', 'play history']);
});

testSandboxed('a socket whose path is too long for the kernel is said at the start', async (t) => {
  const home = await makeSandboxedHome(t);
  const [code, words] = await endOf(home, { CLAUDE_SANDBOX: 'required', RUNTIME_DIRECTORY: join(home, 'x'.repeat(80)) });
  assert.deepEqual([code, /socket has \d+ bytes/.test(words)], [78, true], words);
});

testSandboxed('chats that come while the sandbox is tried wait for it, and /health says so', async (t) => {
  const home = await makeSandboxedHome(t);
  const slow = join(home, 'claude');
  const fake = await readFile(fakeClaude, 'utf8');
  const [head = '', rest = ''] = [fake.slice(0, fake.indexOf('\n') + 1), fake.slice(fake.indexOf('\n') + 1)];
  // No sandbox has this file: the server's own look at the version waits for it.
  const hold = join(home, 'hold');
  await writeFile(hold, '');
  const wait = `if (process.argv[2] === '--version') while (existsSync(${JSON.stringify(hold)})) await new Promise((resolve) => setTimeout(resolve, 20));\n`;
  await writeFile(slow, `${head}${wait}${rest}`, { mode: 0o755 });
  const server = await startServer(t, { CLAUDE_SANDBOX: 'required', CLAUDE_BINARY_PATH: slow, ANTHROPIC_API_KEY: anthropicKey }, home, [asUserScript]);
  const waiting = server.chat({ prompt: 'hello' });
  const response = await server.request('/health');
  const { status, detail } = (await response.json()) as Record<string, unknown>;
  assert.deepEqual([response.status, status, /is trying its sandbox/.test(String(detail))], [503, 'unavailable', true]);
  await rm(hold);
  assert.equal((await waiting).body['content'], 'you said: hello');
  assert.equal((await server.request('/health')).status, 200);
});

test('root has no sandbox', { skip: process.getuid?.() !== 0 && 'needs root: how a server of root refuses' }, async (t: TestContext) => {
  const home = await makeHome(t);
  const [code, words] = await endOf(home, { CLAUDE_SANDBOX: 'required' }, ['env']);
  assert.deepEqual([code, /run it as an ordinary user/.test(words)], [78, true], words);
});
