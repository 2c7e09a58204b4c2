import assert from 'node:assert/strict';
import { openConnection, requestBytes, type Connection } from '../http-client.ts';
import { asJson, chatPath } from '../http-stage.ts';
import { callTools, cliEnv, promptsOf, say, startMessagesApi } from '../messages-api.ts';
import { apiKey, startServer, testWithRealClis, until } from '../running-server.ts';

testWithRealClis('a retry with a key', async (t, binary) => {
  const api = await startMessagesApi(t);
  const server = await startServer(t, cliEnv(binary, api));
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
});
