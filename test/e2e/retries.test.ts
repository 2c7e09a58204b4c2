import assert from 'node:assert/strict';
import { askByCurl, startCutter } from '../cutting-proxy.ts';
import { openConnection, requestBytes, type Connection } from '../http-client.ts';
import { asJson, chatPath } from '../http-stage.ts';
import { callTools, cliEnv, promptsOf, say, startMessagesApi } from '../messages-api.ts';
import { apiKey, startServer, testWithRealClis, until } from '../running-server.ts';

testWithRealClis('a retry with a key', async (t, binary) => {
  const api = await startMessagesApi(t);
  const server = await startServer(t, { ...cliEnv(binary, api), CLAUDE_TOOLS: 'Bash,Glob', CLAUDE_ALLOWED_TOOLS: 'Bash' });
  const keyOf = (prompt: string): string => prompt.replaceAll(' ', '-');
  const begin = async (prompt: string): Promise<Connection> => {
    const connection = await openConnection(t, server.port);
    const headers = [`Authorization: Bearer ${apiKey}`, asJson, 'Accept: text/event-stream', `Idempotency-Key: ${keyOf(prompt)}`];
    connection.send(requestBytes(`POST ${chatPath}`, headers, JSON.stringify({ prompt, user_id: 1 })));
    return connection;
  };
  const stages: ReadonlyArray<readonly [string, (connection: Connection, prompt: string) => Promise<unknown>]> = [
    ['when it has its process', (connection) => connection.received('text/event-stream')],
    ['while the model is asked', (_connection, prompt) => api.asked(prompt)],
    ['in the midst of what it says', (connection) => connection.received('let me look')],
    ['when it has its answer', (connection) => connection.received('event: result')],
  ];
  for (const [stage, reached] of stages) {
    await t.test(`after a hang-up ${stage} gets the answer of the one turn that was paid for`, async () => {
      const requests = [callTools([{ name: 'Glob', input: { pattern: '*' } }], 'let me look'), say('seen')];
      api.script = () => requests.shift() ?? assert.fail('asked once more');
      const connection = await begin(stage);
      await reached(connection, stage);
      connection.hangUp();
      const reply = await server.chat({ prompt: stage }, { headers: { 'Idempotency-Key': keyOf(stage) }, signal: AbortSignal.timeout(20_000) });
      assert.deepEqual([reply.status, reply.body['content'], reply.headers.get('idempotency-replayed')], [200, 'seen', 'true']);
      assert.equal(api.turns.filter((request) => promptsOf(request).at(-1) === stage).length, 2, 'one before the tool, one after it');
      const line = await until('its line', () => server.lines.find(({ event, session }) => event === 'turn' && session === reply.body['session_id']));
      assert.deepEqual([line['status'], line['cost']], [200, reply.body['cost']]);
      assert.ok(Number(line['cost']) > 0);
    });
  }

  const sleeping = (seconds: number): void => {
    const requests = [callTools([{ name: 'Bash', input: { command: `sleep ${seconds}`, description: 'waits' } }]), say(`after ${seconds}`)];
    api.script = () => requests.shift() ?? assert.fail('asked once more');
  };

  await t.test('100 callers with one key at once have one turn, and 100 equal answers', async () => {
    sleeping(1);
    const ask = (user: number, prompt: string) => server.chat({ prompt, user_id: user }, { headers: { 'Idempotency-Key': 'k' }, signal: AbortSignal.timeout(20_000) });
    const replies = await Promise.all(Array.from({ length: 100 }, () => ask(2, 'a hundred times')));
    assert.equal(replies[0]?.body['content'], 'after 1');
    for (const { body } of replies) assert.deepEqual(body, replies[0]?.body);
    assert.equal(api.turns.filter((request) => promptsOf(request).at(-1) === 'a hundred times').length, 2);
    assert.equal((await ask(2, 'something else')).body['code'], 'idempotency_conflict');
    api.script = () => say('mine');
    assert.equal((await ask(3, 'a hundred times')).body['content'], 'mine');
  });

  await t.test('by curl, through a proxy that cuts every connection after 2 s, on a turn of 7 s: one turn, and its answer', async () => {
    sleeping(7);
    const proxy = await startCutter(t, server.port, 2000);
    assert.equal((await askByCurl(proxy.port, 'by curl'))['content'], 'after 7');
    assert.ok(proxy.connections() >= 3, `${proxy.connections()} connections`);
    assert.equal(api.turns.filter((request) => promptsOf(request).at(-1) === 'by curl').length, 2);
  });
});
