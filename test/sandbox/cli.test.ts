import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { userLine } from '../../src/cli/protocol.ts';
import { callTools, holds, promptsOf, say, startMessagesApi, toolResultsOf } from '../messages-api.ts';
import { testWithRealClis, until } from '../running-server.ts';
import { leave, startCli, turn, wire } from '../sandboxed-cli.ts';
import { makeSandboxedUsers, noSandbox, runningWith, testSandboxed, unlike } from '../sandboxed.ts';

testSandboxed('the fake CLI runs inside and takes its orders from the prompt', async (t) => {
  const users = await makeSandboxedUsers(t);
  const cli = startCli(users, []);
  assert.equal((await turn(cli, 'hello'))['result'], 'you said: hello');
  assert.equal((await turn(cli, 'play pid'))['result'], '2');
  cli.child.stdin.write(userLine({ prompt: 'play crash' }, '/inbox'));
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
    await until('nothing left', async () => ((await runningWith(`sleep ${unlike(21)}`)).length === 0 ? true : undefined));
  });
});
