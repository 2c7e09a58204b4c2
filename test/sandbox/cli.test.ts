import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { chmod, readFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { initializeLine, userLine } from '../../src/cli/protocol.ts';
import { inside } from '../../src/sandbox/sandbox.ts';
import { callTools, holds, promptsOf, say, startMessagesApi, toolResultsOf, type Json, type MessagesApi } from '../messages-api.ts';
import { testWithRealClis, until } from '../running-server.ts';
import { makeSandboxedUsers, noSandbox, runningWith, testSandboxed, unlike, type Inside, type SandboxedUsers } from '../sandboxed.ts';

/** The API proxy's place taken by a plain wire to the stand-in: what comes through the user's socket goes there. */
async function wire(t: TestContext, users: SandboxedUsers, api: MessagesApi, userId = 1): Promise<void> {
  const server = createServer((socket) => {
    const upstream = connect(Number(new URL(api.url).port), '127.0.0.1');
    socket.pipe(upstream).pipe(socket);
    socket.on('error', () => upstream.destroy());
    upstream.on('error', () => socket.destroy());
  });
  const path = join(users.folders(userId).api ?? '', 's');
  server.listen(path);
  await once(server, 'listening');
  await chmod(path, 0o777);
  t.after(() => server.close());
}

const cliOptions = ['-p', '--input-format=stream-json', '--output-format=stream-json', '--verbose', '--permission-mode=bypassPermissions'];

function startCli(users: SandboxedUsers, options: readonly string[], userId = 1): Inside {
  const process = users.start([inside.claude, ...cliOptions, ...options], userId);
  process.child.stdin.write(initializeLine);
  return process;
}

/** The next result line after this prompt. */
async function turn(cli: Inside, prompt: string): Promise<Json> {
  const results = (): Json[] => cli.stdout.split('\n').slice(0, -1).map((line) => JSON.parse(line) as Json).filter((line) => line['type'] === 'result');
  const before = results().length;
  cli.child.stdin.write(userLine(prompt));
  return until(`a result of ${prompt}`, () => results()[before], 30_000).catch((error: unknown) => assert.fail(`${String(error)}\n${cli.stderr}`));
}

async function leave(cli: Inside): Promise<void> {
  cli.child.stdin.end();
  assert.equal((await cli.ended()).code, 0);
}

testSandboxed('the fake CLI runs inside and takes its orders from the prompt', async (t) => {
  const users = await makeSandboxedUsers(t);
  const cli = startCli(users, []);
  assert.equal((await turn(cli, 'hello'))['result'], 'you said: hello');
  assert.equal((await turn(cli, 'play pid'))['result'], '2');
  cli.child.stdin.write(userLine('play crash'));
  assert.equal((await cli.ended()).code, 1);
});

if (noSandbox === false) testWithRealClis('the real CLI inside', async (t, binary) => {
  const users = await makeSandboxedUsers(t, binary);
  const api = await startMessagesApi(t);
  await wire(t, users, api);
  await wire(t, users, api, 2);
  const sessionId = randomUUID();

  await t.test('answers through the socket alone, and its Bash works behind the same walls', async () => {
    const command = 'id -un; pwd; echo $HOME; wc -l </proc/net/route; env | grep -i -c key; ls /; echo made >file.txt; git init -q . && git status --short';
    api.script = (request) => (toolResultsOf(request).length === 0 ? callTools([{ name: 'Bash', input: { command } }]) : say('done'));
    const cli = startCli(users, [`--session-id=${sessionId}`]);
    const result = await turn(cli, 'do it');
    assert.deepEqual([result['result'], result['session_id'], result['is_error']], ['done', sessionId, false]);
    const [{ text = '' } = {}] = toolResultsOf(api.turns.at(-1) ?? assert.fail('asked'));
    assert.match(text, /^claude\n\/work\n\/home\/claude\n1\n0\nbin\n/);
    assert.match(text, /\?\? file\.txt$/);
    assert.equal(await readFile(join(users.folders(1).work, 'file.txt'), 'utf8'), 'made\n');
    assert.ok(!holds(api.turns[0] ?? assert.fail('asked'), users.stateDir), 'no folder of the host is in a request');
    await leave(cli);
    await readFile(join(users.folders(1).home, 'projects/work', `${sessionId}.jsonl`));
  });

  await t.test('goes on with its own dialogue in another process, and knows no other user\'s', async () => {
    api.script = () => say('again');
    const cli = startCli(users, [`--resume=${sessionId}`]);
    assert.equal((await turn(cli, 'and now?'))['result'], 'again');
    assert.deepEqual(promptsOf(api.turns.at(-1) ?? assert.fail('asked')).filter((prompt) => /do it|and now/.test(prompt)), ['do it', 'and now?']);
    await leave(cli);
    const other = startCli(users, [`--resume=${sessionId}`], 2);
    const result = await turn(other, 'what did they say?');
    assert.match(String(result['errors']), /No conversation found/);
    await other.ended();
  });

  await t.test('what Bash left running is gone with it', async () => {
    const command = `setsid -f env -i sleep ${unlike(21)} >/dev/null 2>&1 </dev/null; echo left`;
    api.script = (request) => (toolResultsOf(request).length === 0 ? callTools([{ name: 'Bash', input: { command } }]) : say('done'));
    const cli = startCli(users, [`--session-id=${randomUUID()}`]);
    assert.equal((await turn(cli, 'leave something'))['result'], 'done');
    assert.notDeepEqual(await runningWith(`sleep ${unlike(21)}`), [], 'while the CLI is warm it lives');
    await leave(cli);
    await until('nothing left', async () => ((await runningWith(`sleep ${unlike(21)}`)).length === 0 ? true : undefined), 1000);
  });
});
