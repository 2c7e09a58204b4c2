import assert from 'node:assert/strict';
import { cliEnv, holds, promptsOf, say, hang, startMessagesApi } from '../messages-api.ts';
import { makeHome, processesOf, startServer, testWithRealClis, until } from '../running-server.ts';

testWithRealClis('a dialogue', async (t, binary) => {
  const api = await startMessagesApi(t);
  const home = await makeHome(t);
  const env = cliEnv(binary, api);
  api.script = (request) => {
    const prompts = promptsOf(request);
    return prompts.at(-1) === 'lost' ? hang('half an ans') : say(`answer ${prompts.at(-1)}`);
  };
  const heardBefore = (): string[] => promptsOf(api.turns.at(-1) ?? assert.fail('nothing was asked')).slice(0, -1);

  let server = await startServer(t, env, home);
  const first = await server.chat({ prompt: 'word-one' });
  const sessionId = String(first.body['session_id']);
  const cost = Number(first.body['cost']);
  const goOn = async (prompt: string): Promise<void> => {
    const reply = await server.chat({ prompt, session_id: sessionId });
    assert.equal(reply.status, 200, JSON.stringify(reply.body));
    assert.equal(reply.body['content'], `answer ${prompt}`);
    assert.equal(reply.body['session_id'], sessionId);
    assert.equal(reply.body['cost'], cost, 'the turn alone is charged');
  };

  await t.test('a first prompt is answered with content, session, cost and duration', () => {
    assert.equal(first.status, 200, JSON.stringify(first.body));
    assert.deepEqual(Object.keys(first.body).sort(), ['content', 'cost', 'duration_ms', 'session_id']);
    assert.equal(first.body['content'], 'answer word-one');
    assert.ok(cost > 0, `cost ${cost}`);
    assert.ok(Number.isInteger(first.body['duration_ms']) && Number(first.body['duration_ms']) > 0);
    assert.deepEqual(heardBefore(), []);
  });

  await t.test('the second turn knows the first', async () => {
    await goOn('word-two');
    assert.deepEqual(heardBefore(), ['word-one']);
  });

  await t.test('another dialogue of the same user knows nothing of it', async () => {
    const other = await server.chat({ prompt: 'elsewhere' });
    assert.equal(other.status, 200);
    assert.notEqual(other.body['session_id'], sessionId);
    assert.equal(other.body['cost'], cost);
    assert.deepEqual(heardBefore(), []);
  });

  await t.test('another user with the session_id gets what an unknown one gets, and starts nothing', async () => {
    const askedBefore = api.requests.length;
    const foreign = await server.chat({ prompt: 'what did they say?', user_id: 2, session_id: sessionId });
    const unknown = await server.chat({ prompt: 'what did they say?', user_id: 2, session_id: '0d9f7a4e-52b3-4a43-9a62-0a4d3c1f7b11' });
    assert.equal(foreign.status, 404);
    assert.equal(foreign.body['code'], 'session_not_found');
    assert.deepEqual(foreign.body, unknown.body);
    const headersOf = ({ headers }: typeof foreign): string[] => [...headers.keys()].sort();
    assert.deepEqual(headersOf(foreign), headersOf(unknown));
    assert.equal(api.requests.length, askedBefore);
    const own = await server.chat({ prompt: 'hello', user_id: 2 });
    assert.equal(own.status, 200);
    assert.ok(!api.requests.slice(askedBefore).some((request) => holds(request, 'word-one') || holds(request, sessionId)), 'something of it was sent');
  });

  await t.test('two prompts at once are taken one after another, and none is lost', async () => {
    const replies = await Promise.all(['word-three', 'word-four'].map((prompt) => server.chat({ prompt, session_id: sessionId })));
    assert.deepEqual(replies.map((reply) => [reply.status, reply.body['content'], reply.body['cost']]), [[200, 'answer word-three', cost], [200, 'answer word-four', cost]]);
    assert.deepEqual(heardBefore(), ['word-one', 'word-two', 'word-three']);
  });

  await t.test('it goes on after a restart', async () => {
    assert.equal(await server.end('SIGTERM'), 0);
    server = await startServer(t, env, home);
    await goOn('word-five');
    assert.deepEqual(heardBefore(), ['word-one', 'word-two', 'word-three', 'word-four']);
    await goOn('word-six');
  });

  await t.test('it goes on after the server was killed in the middle of a turn, and its CLI went with it', async () => {
    const lost = server.chat({ prompt: 'lost', session_id: sessionId }).then(() => 'answered', () => 'cut off');
    const request = await api.asked('lost');
    await server.end('SIGKILL');
    await until('the CLI of a killed server to go', async () => ((await processesOf(home)).length === 0 ? true : undefined));
    assert.equal(await lost, 'cut off');
    await until('the request of the killed CLI to break', () => request.isAborted || undefined);
    server = await startServer(t, env, home);
    await goOn('word-seven');
    assert.deepEqual(heardBefore().filter((prompt) => prompt !== 'lost'), ['word-one', 'word-two', 'word-three', 'word-four', 'word-five', 'word-six']);
    await goOn('word-eight');
  });
});
