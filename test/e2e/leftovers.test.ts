import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import { callTools, cliEnv, hang, promptsOf, say, startMessagesApi, toolResultsOf } from '../messages-api.ts';
import { makeHome, noneLeft, processesOf, startServer, testWithRealClis, until, type RunningServer } from '../running-server.ts';

const commands: Readonly<Record<string, { readonly command: string; readonly process: RegExp }>> = {
  'a command': { command: 'sleep 300', process: /^\d+ sleep 300 $/ },
  'a command in the background': { command: 'nohup sleep 301 & sleep 300', process: /^\d+ sleep 301 $/ },
  'a command in a session of its own': { command: 'setsid sleep 302 & sleep 300', process: /^\d+ sleep 302 $/ },
  'a command that ignores SIGTERM and SIGINT': { command: "sh -c 'trap \"\" TERM INT HUP; sleep 303; sleep 304'", process: /^\d+ sleep 303 $/ },
};
const withBash = { CLAUDE_TOOLS: 'default', CLAUDE_ALLOWED_TOOLS: 'Bash', CLAUDE_PERMISSION_MODE: 'acceptEdits', CLAUDE_WARM_SECONDS: '0' };

function bash(command: string) {
  return callTools([{ name: 'Bash', input: { command, timeout: 600_000 } }]);
}

testWithRealClis('what the tools of a turn started', async (t, binary) => {
  // The limit must leave the CLI time to start beside the others.
  const limited = { ...withBash, CLAUDE_TIMEOUT_SECONDS: '15' };

  const assertEndsWithItsTurn = async (t: TestContext, name: string, more: Readonly<Record<string, string>> = {}): Promise<void> => {
    const { command, process } = commands[name] ?? assert.fail(name);
    const api = await startMessagesApi(t);
    api.script = (request) => (promptsOf(request).at(-1) === name && toolResultsOf(request).length === 0 ? bash(command) : say('all is well'));
    const server = await startServer(t, { ...cliEnv(binary, api), ...limited, ...more });
    const answer = server.chat({ prompt: name });
    await until(`${name} to run`, async () => (await server.leftovers()).find((line) => process.test(line)), 15_000);
    const reply = await answer;
    assert.equal(reply.status, 504, JSON.stringify(reply.body));
    assert.equal(reply.body['code'], 'claude_timeout');
    await noneLeft(server.home, server.pid);
    const next = await server.chat({ prompt: 'still there?', session_id: reply.body['session_id'] });
    assert.equal(next.status, 200, JSON.stringify(next.body));
  };

  await Promise.all([
    ...Object.keys(commands).map((name) => t.test(`${name} ends with a turn that takes too long`, (t) => assertEndsWithItsTurn(t, name))),
    t.test('a command the CLI allows by itself ends with a turn that takes too long', (t) => {
      return assertEndsWithItsTurn(t, 'a command', { CLAUDE_ALLOWED_TOOLS: '' });
    }),
    t.test('what a finished turn left in the background ends with its process', async (t) => {
      const api = await startMessagesApi(t);
      const command = 'nohup sleep 305 >/dev/null 2>&1 & echo started';
      api.script = (request) => (toolResultsOf(request).length > 0 ? say('started') : bash(command));
      const server = await startServer(t, { ...cliEnv(binary, api), ...limited });
      const reply = await server.chat({ prompt: 'start something' });
      assert.equal(reply.status, 200, JSON.stringify(reply.body));
      const [result] = toolResultsOf(api.turns.at(-1) ?? assert.fail('nothing was asked'));
      assert.equal(result?.isError, false, result?.text);
      await noneLeft(server.home, server.pid);
    }),
  ]);
});

testWithRealClis('a server killed in the middle of a turn', async (t, binary) => {
  const api = await startMessagesApi(t);
  const home = await makeHome(t);
  const env = { ...cliEnv(binary, api), ...withBash };
  const isCli = (line: string): boolean => line.includes('--input-format=stream-json');
  const startTurn = (server: RunningServer): Promise<string> => server.chat({ prompt: 'hello' }).then(() => 'answered', () => 'cut off');

  await t.test('takes its CLI along', async (t) => {
    api.script = () => hang('So');
    const server = await startServer(t, env, home);
    const answer = startTurn(server);
    await api.asked('hello');
    assert.ok((await server.leftovers()).some(isCli), 'the CLI runs');
    await server.end('SIGKILL');
    await until('the CLI to go', async () => ((await processesOf(home)).some(isCli) ? undefined : true));
    assert.equal(await answer, 'cut off');
  });

  await t.test('and what is left of a tool ends when the server starts again', async (t) => {
    api.script = () => bash('setsid sleep 306 & sleep 300');
    const server = await startServer(t, env, home);
    const answer = startTurn(server);
    await until('the tool to run', async () => (await server.leftovers()).find((line) => /^\d+ sleep 306 $/.test(line)));
    await server.end('SIGKILL');
    assert.equal(await answer, 'cut off');
    const next = await startServer(t, env, home);
    await noneLeft(home, next.pid);
  });
});
