import assert from 'node:assert/strict';
import { join } from 'node:path';
import { readdir } from 'node:fs/promises';
import { test } from 'node:test';
import { callTools, cliEnv, promptsOf, say, startMessagesApi, toolResultsOf } from '../messages-api.ts';
import { needs } from '../needs.ts';
import { apiKey, realClis } from '../running-server.ts';
import { noSandbox } from '../sandboxed.ts';
import { Front, Machine, noMoves } from './front.ts';

type Json = Record<string, unknown>;

const [newest = '', oldest = newest] = [realClis().at(0), realClis().at(-1)];
const noCli = newest === '' && 'needs the Claude CLI, on PATH or named in CLAUDE_TEST_CLIS: what only the real one can show';
const skip = noMoves || noSandbox || needs(['root'], 'looks for processes in the sandboxes of another user') || noCli;

test('a dialogue of the real CLI, in its sandbox, moves to a machine with the newest CLI and goes on there', { skip }, async (t) => {
  const api = await startMessagesApi(t);
  api.script = (request) => {
    const prompt = promptsOf(request).at(-1) ?? '';
    const results = toolResultsOf(request).length;
    if (prompt === 'write' && results === 0) return callTools([{ name: 'Bash', input: { command: 'echo from-before > kept.txt' } }]);
    if (prompt === 'read' && results === 1) return callTools([{ name: 'Bash', input: { command: 'cat kept.txt' } }]);
    return say(`answer ${prompt}`);
  };
  const machines = [await Machine.startSandboxed(t, 1, cliEnv(oldest, api)), await Machine.startSandboxed(t, 2, cliEnv(newest, api))];
  const front = await Front.start(t, machines);
  const [old, next] = [machines[0] ?? assert.fail(), machines[1] ?? assert.fail()];

  const turn = async (body: Json): Promise<Json> => {
    const headers = { Authorization: `Bearer ${apiKey}`, 'Content-Type': 'application/json' };
    const response = await fetch(`${front.url}/api/v1/chat`, { method: 'POST', headers, body: JSON.stringify({ user_id: 64, ...body }) });
    const answer = (await response.json()) as Json;
    assert.equal(response.status, 200, JSON.stringify(answer));
    return answer;
  };
  const { session_id } = await turn({ prompt: 'write' });
  assert.equal((await turn({ prompt: 'second', session_id }))['content'], 'answer second');
  const warmOnOld = async (): Promise<unknown> => {
    const health = await fetch(`${front.url}/health/m1`, { headers: { Authorization: `Bearer ${apiKey}` } });
    return ((await health.json()) as Json)['warm'];
  };
  assert.deepEqual(await old.users(), [64]);
  assert.notEqual(await warmOnOld(), 0);

  await front.startBuckets('move', '0', 'm2').done();
  assert.deepEqual([await old.users(), await next.users()], [[], [64]]);
  assert.equal(await warmOnOld(), 0, 'no process of theirs is left in its sandbox there');
  assert.equal((await turn({ prompt: 'read', session_id }))['content'], 'answer read');
  const last = api.turns.at(-1) ?? assert.fail();
  assert.deepEqual(promptsOf(last), ['write', 'second', 'read'], 'the dialogue goes on where it was');
  assert.match(toolResultsOf(last).at(-1)?.text ?? '', /from-before/, 'and finds its files');
  assert.ok((await readdir(join(next.home, 'state'))).includes('sandboxed'), 'from now on there is no way back there either');
});
