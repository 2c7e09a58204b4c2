import assert from 'node:assert/strict';
import { rm, writeFile } from 'node:fs/promises';
import { test, type TestContext } from 'node:test';
import { attempt, anthropicKey, say, startMessagesApi, type Json } from '../messages-api.ts';
import { greeter, operatorsWords, writeOperatorFiles } from '../operator-files.ts';
import { makeHome, RunningServer, startServer, testWithRealClis, until } from '../running-server.ts';
import { makeSandboxedHome, noSandbox, startSandboxedServer, testSandboxed, unlike } from '../sandboxed.ts';

/** What the fake CLI was told about the operator's files. */
function operatorsArguments(content: unknown): string[] {
  return (JSON.parse(String(content)) as string[]).filter((argument) => /^--(?:append-system-prompt|mcp-config|allowedTools)=/.test(argument));
}

test('without the sandbox the CLI is told the operator\'s words and servers, and needs no permission for these', async (t) => {
  const home = await makeHome(t);
  const files = await writeOperatorFiles(home, { greeter, other: { command: 'x', env: { TOKEN: 'secret' } } });
  const server = await startServer(t, { ...files, CLAUDE_SANDBOX: 'off', CLAUDE_ALLOWED_TOOLS: 'Bash(ls)' }, home);
  await rm(files.CLAUDE_MCP_CONFIG); // read once
  const [words = '', config = '', allowed] = operatorsArguments((await server.chat({ prompt: 'play argv' })).body['content']);
  assert.ok(words.includes(operatorsWords));
  assert.deepEqual(JSON.parse(config.replace('--mcp-config=', '')), { mcpServers: { greeter, other: { command: 'x', env: { TOKEN: 'secret' } } } });
  assert.equal(allowed, '--allowedTools=Bash(ls),mcp__greeter,mcp__other');
});

test('a file that is not right ends the server with 78 before anything runs', async (t) => {
  const home = await makeHome(t);
  const files = await writeOperatorFiles(home, { other: { command: 'x', env: { TOKEN: 'secret' } } });
  await rm(files.CLAUDE_SYSTEM_PROMPT_FILE);
  const server = new RunningServer(home, { ...files, CLAUDE_SANDBOX: 'auto' });
  assert.equal(await server.ended(), 78);
  assert.match(server.stderr, /^claude-api: CLAUDE_SYSTEM_PROMPT_FILE: the file cannot be read \(ENOENT\)\nclaude-api: CLAUDE_MCP_CONFIG: expected no env, headers, headersHelper or login in a url/);
});

testSandboxed('in the sandbox the CLI is told the same', async (t) => {
  const home = await makeSandboxedHome(t);
  const server = await startSandboxedServer(t, await writeOperatorFiles(home), home);
  const [words = '', config = ''] = operatorsArguments((await server.chat({ prompt: 'play argv' })).body['content']);
  assert.ok(words.includes(operatorsWords));
  assert.deepEqual(JSON.parse(config.replace('--mcp-config=', '')), { mcpServers: { greeter } });
});

/** A turn that greets by the operator's server, a look a second later, and where the next turn's process came from. */
async function greetTwice(t: TestContext, start: (env: Record<string, string>, home: string) => Promise<RunningServer>, home: string): Promise<void> {
  const api = await startMessagesApi(t);
  const server = await start({ ...(await writeOperatorFiles(home)), ANTHROPIC_BASE_URL: api.url, ANTHROPIC_API_KEY: anthropicKey }, home);
  const { results, sessionId } = await attempt(api, server, [{ name: 'mcp__greeter__greet', input: { name: 'Ada' } }]);
  assert.match(results[0]?.text ?? '', /hello Ada, says the operator's server/);
  assert.ok(JSON.stringify(api.turns[0]?.body['system']).includes(JSON.stringify(operatorsWords).slice(1, -1)));
  assert.equal(await nextProcess(api, server, sessionId), 'warm');
}

/** Where the process of this dialogue's next turn comes from, a second and a half from now. */
async function nextProcess(api: { script: unknown }, server: RunningServer, sessionId: string): Promise<unknown> {
  const endedAt = performance.now();
  await until('what is looked at a second later', () => (performance.now() - endedAt > 1500 ? true : undefined));
  api.script = () => say('ok');
  const turns = (): Json[] => server.lines.filter((line) => line.event === 'turn' && line['session'] === sessionId);
  const before = turns().length;
  await server.chat({ prompt: 'again', session_id: sessionId });
  await until('a line of the log', () => (turns().length > before ? true : undefined));
  return turns().at(-1)?.['process'];
}

testWithRealClis('the real CLI with the operator\'s files', async (t, binary) => {
  await t.test('uses the servers and heeds the words without the sandbox', async (t) => {
    await greetTwice(t, (env, home) => startServer(t, { ...env, CLAUDE_SANDBOX: 'off', CLAUDE_BINARY_PATH: binary }, home), await makeHome(t));
  });

  await t.test('keeps a dialogue to the words it began with', async (t) => {
    const api = await startMessagesApi(t);
    const home = await makeHome(t);
    const env = { ...(await writeOperatorFiles(home)), CLAUDE_SANDBOX: 'off', CLAUDE_BINARY_PATH: binary, ANTHROPIC_BASE_URL: api.url, ANTHROPIC_API_KEY: anthropicKey };
    const server = await startServer(t, env, home);
    const { body } = await server.chat({ prompt: 'hello' });
    await server.end();
    await writeFile(env.CLAUDE_SYSTEM_PROMPT_FILE, 'Other words.');
    const next = await startServer(t, env, home);
    await next.chat({ prompt: 'and now?', session_id: body['session_id'] });
    await next.chat({ prompt: 'hello' });
    const words = api.turns.map((request) => ['Words of the operator', 'Other words'].filter((text) => JSON.stringify(request.body['system']).includes(text)).join());
    assert.deepEqual(words, ['Words of the operator', 'Words of the operator', 'Other words']);
  });

  if (noSandbox !== false) return;
  await t.test('does so in the sandbox, and its process stays warm', async (t) => {
    await greetTwice(t, (env, home) => startSandboxedServer(t, { ...env, CLAUDE_BINARY_PATH: binary }, home), await makeSandboxedHome(t));
  });

  await t.test('is stopped all the same when a turn leaves something running beside the servers', async (t) => {
    const api = await startMessagesApi(t);
    const home = await makeSandboxedHome(t);
    const server = await startSandboxedServer(t, { ...(await writeOperatorFiles(home)), CLAUDE_BINARY_PATH: binary, ANTHROPIC_BASE_URL: api.url }, home);
    const command = `setsid -f sleep ${unlike(41)} >/dev/null 2>&1 </dev/null; echo left`;
    const { results, sessionId } = await attempt(api, server, [{ name: 'Bash', input: { command } }]);
    assert.equal(results[0]?.text, 'left');
    assert.equal(await nextProcess(api, server, sessionId), 'cold');
  });
});
