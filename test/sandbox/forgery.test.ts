import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { endMarked } from '../../src/cli/strays.ts';
import { callTools, promptsOf, say, startMessagesApi, toolResultsOf } from '../messages-api.ts';
import { needs } from '../needs.ts';
import { testWithRealClis, until, type Reply } from '../running-server.ts';
import { makeSandboxedHome, makeSandboxedUsers, noSandbox, runningWith, startSandboxedServer } from '../sandboxed.ts';

const overMemory = readFileSync(new URL('../bin/over-memory.py', import.meta.url), 'utf8');
const noForging = noSandbox || (process.arch !== 'x64' && 'needs x86-64: writes machine code') || needs(['python3'], 'writes over memory');

/** A shell command that does this with the program above. */
function overwrite(...args: readonly string[]): string {
  return `cat >/tmp/over.py <<'END'\n${overMemory}\nEND\n/usr/bin/python3 /tmp/over.py ${args.join(' ')} 2>&1`;
}

test('nobody inside can teach the first process of a sandbox to outlive its end', { skip: noForging }, async (t) => {
  const users = await makeSandboxedUsers(t);
  const inside = users.start(['/bin/bash', '-c', `${overwrite('stay')}; sleep 300.42`]);
  const ofSandbox = (): number => inside.pid;
  t.after(() => {
    try {
      process.kill(ofSandbox(), 'SIGKILL');
    } catch {
      // It is gone, as it should be.
    }
  });
  await until('the program to be through', () => (inside.stdout.includes('stayed') ? true : undefined));
  assert.match(inside.stdout, /^\/proc\/1\/mem Permission denied\n\/proc\/1\/task\/1\/mem Permission denied\n/);
  inside.child.kill('SIGKILL');
  await inside.ended();
  // Whole numbers: those of other tests begin like them.
  const left = async (): Promise<string[]> => [...(await runningWith('sleep 300.41 ')), ...(await runningWith('sleep 300.42 '))];
  await until('nothing left', async () => ((await left()).length === 0 ? true : undefined));
  assert.equal(await endMarked(users.markerPrefix), 0);
});

if (noForging === false) testWithRealClis('an end user who speaks in the place of the real CLI', async (t, binary) => {
  const api = await startMessagesApi(t);
  const home = await makeSandboxedHome(t);
  const server = await startSandboxedServer(t, { CLAUDE_BINARY_PATH: binary, ANTHROPIC_BASE_URL: api.url, CLAUDE_MODEL: 'claude-sonnet-5-5' }, home);
  const commands = new Map<string, string>();
  // A prompt says which command the model calls; only the last message counts, so that turns may go on side by side.
  api.script = (request) => {
    const command = commands.get(promptsOf(request).at(-1) ?? '');
    const results = toolResultsOf(request);
    return command !== undefined && !results.some(({ text }) => text.includes('over')) ? callTools([{ name: 'Bash', input: { command } }]) : say('honest');
  };
  const victim = await server.chat({ prompt: 'hello', user_id: 1 });
  const victimId = String(victim.body['session_id']);

  /** A warm process of this user whose CLI writes this in the midst of a turn, while its tool goes on for a minute. */
  const forge = async (userId: number, bytes: (sessionId: string) => string): Promise<Reply> => {
    const { body } = await server.chat({ prompt: 'hello', user_id: userId });
    const sessionId = String(body['session_id']);
    const prompt = `forge ${userId}`;
    commands.set(prompt, `${overwrite('say', Buffer.from(bytes(sessionId)).toString('base64'))}; sleep 60.${userId}; echo over`);
    return server.chat({ prompt, user_id: userId, session_id: sessionId });
  };
  const result = (sessionId: string, costUSD: unknown): string => {
    const usage = { input_tokens: 1e6, output_tokens: 1e6 };
    const line = { type: 'result', subtype: 'success', is_error: false, result: 'forged', session_id: sessionId, usage, model_usage_since_last_result: { x: { costUSD } } };
    return `${JSON.stringify(line)}\n`;
  };

  await t.test('has a false answer at most, and their process is not kept while it works', async () => {
    const works = until('what works on', async () => ((await runningWith('sleep 60.2')).length > 0 ? true : undefined), 30_000);
    const [reply] = await Promise.all([forge(2, (own) => result(own, 7)), works]);
    assert.deepEqual([reply.status, reply.body['content'], reply.body['cost']], [200, 'forged', 7]);
    await until('the end of what goes on', async () => ((await runningWith('sleep 60.2')).length === 0 ? true : undefined), 20_000);
  });

  const refused: Readonly<Record<string, (own: string) => string>> = {
    'a result of another user': () => result(victimId, 0),
    'a dialogue of another user': () => `${JSON.stringify({ type: 'system', subtype: 'init', session_id: victimId, claude_code_version: '2.1.331' })}\n`,
    'a cost below nothing': (own) => result(own, -1),
    'a cost beyond reason': (own) => result(own, 1e300),
    'what is no number': (own) => result(own, '1'),
    'half a line': () => '{"type":\n',
  };
  for (const [i, [what, bytes]] of Object.entries(refused).entries()) {
    await t.test(`fails with ${what}`, async () => {
      const reply = await forge(10 + i, bytes);
      assert.deepEqual([reply.status, reply.body['code'], reply.body['content']], [502, 'claude_failed', undefined]);
      await until('the end of it', async () => ((await runningWith(`sleep 60.${10 + i}`)).length === 0 ? true : undefined));
    });
  }

  await t.test('changes nothing of anybody else', async () => {
    const next = await server.chat({ prompt: 'and now', user_id: 1, session_id: victimId });
    assert.deepEqual([next.body['content'], next.body['session_id'], next.body['cost']], ['honest', victimId, victim.body['cost']]);
    assert.deepEqual(promptsOf(api.turns.at(-1) ?? assert.fail('asked')), ['hello', 'and now']);
    const own = await server.chat({ prompt: 'and now', user_id: 10, session_id: victimId });
    assert.equal(own.body['code'], 'session_not_found');
  });
});
