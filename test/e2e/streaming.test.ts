import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { callTools, cliEnv, cut, hang, promptsOf, refuse, say, startMessagesApi, toolResultsOf, type ApiReply } from '../messages-api.ts';
import { startServer, testWithRealClis, until, within, type StreamEvent } from '../running-server.ts';

testWithRealClis('a streamed answer', async (t, binary) => {
  const api = await startMessagesApi(t);
  const server = await startServer(t, cliEnv(binary, api));
  const collect = async (body: Record<string, unknown>): Promise<StreamEvent[]> => {
    const events: StreamEvent[] = [];
    const read = async (): Promise<void> => {
      for await (const event of server.stream(body)) events.push(event);
    };
    await within('the stream to end', 20_000, read());
    return events;
  };
  /** The names of the events, runs of deltas as one. */
  const outlineOf = (events: readonly StreamEvent[]): string => {
    return events.map((event) => event.name).filter((name, i, names) => name !== 'delta' || names[i - 1] !== 'delta').join(' ');
  };
  const textOf = (events: readonly StreamEvent[]): string => {
    return events.flatMap((event) => (event.name === 'delta' ? [String(event.data['text'])] : [])).join('');
  };
  /** Replies by what the dialogue ends with: nth request of this script. */
  const inTurn = (...replies: readonly ApiReply[]): void => {
    let next = 0;
    api.script = () => replies[next++] ?? refuse(400, 'invalid_request_error', 'asked more often than scripted');
  };

  await t.test('is session, deltas, result, and the deltas together are the text', async () => {
    inTurn(say('Hel', 'lo, ', '語', '👋', '\u2028', '!'));
    const events = await collect({ prompt: 'hello' });
    assert.equal(outlineOf(events), 'session delta result');
    assert.ok(events.filter((event) => event.name === 'delta').length > 1, 'in more than one piece');
    const { data } = events.at(-1) ?? assert.fail('no event');
    assert.equal(textOf(events), 'Hello, 語👋\u2028!');
    assert.equal(data['content'], textOf(events));
    assert.deepEqual(Object.keys(data).sort(), ['content', 'cost', 'duration_ms', 'session_id']);
    assert.deepEqual(events[0]?.data, { session_id: data['session_id'] });
    assert.ok(Number(data['cost']) > 0, `cost ${data['cost']}`);
  });

  await t.test('is the same for a later turn', async () => {
    inTurn(say('one'), say('t', 'wo'));
    const first = await server.chat({ prompt: 'first' });
    const events = await collect({ prompt: 'second', session_id: first.body['session_id'] });
    assert.equal(outlineOf(events), 'session delta result');
    assert.deepEqual(events[0]?.data, { session_id: first.body['session_id'] });
    assert.equal(textOf(events), 'two');
    assert.equal(events.at(-1)?.data['cost'], first.body['cost']);
  });

  await t.test('names the tools between the texts around them', async () => {
    const folder = join(server.home, 'state/users/1/work');
    await writeFile(join(folder, 'note.txt'), 'remember the milk');
    inTurn(callTools([{ name: 'Read', input: { file_path: join(folder, 'note.txt') } }], 'Let me ', 'look.'), say('It says', ' milk.'));
    const events = await collect({ prompt: 'what does the note say?' });
    assert.equal(outlineOf(events), 'session delta tool delta result');
    assert.deepEqual(events.find((event) => event.name === 'tool')?.data, { name: 'Read' });
    assert.equal(textOf(events), 'Let me look.It says milk.');
    assert.equal(events.at(-1)?.data['content'], 'It says milk.');
    const [result] = toolResultsOf(api.turns.at(-1) ?? assert.fail('nothing was asked'));
    assert.match(result?.text ?? '', /remember the milk/);
  });

  await t.test('tells the session and the first words while the model is still at it', async () => {
    api.script = () => hang('First ', 'words');
    const leaving = new AbortController();
    const names: string[] = [];
    const read = async (): Promise<void> => {
      let text = '';
      for await (const { name, data } of server.stream({ prompt: 'go on for ever' }, { signal: leaving.signal })) {
        names.push(name);
        if (name === 'delta') text += String(data['text']);
        if (text === 'First words') leaving.abort();
      }
    };
    await within('the first words', 10_000, read().catch(() => {}));
    assert.deepEqual([...new Set(names)], ['session', 'delta']);
  });

  await t.test('that Anthropic cuts in the middle ends with one result all the same', async () => {
    inTurn(cut('Once upon ', 'a ti'), say('Once upon ', 'a time'));
    const events = await collect({ prompt: 'a story' });
    assert.equal(outlineOf(events), 'session delta result');
    assert.equal(events.at(-1)?.data['content'], 'Once upon a time');
    assert.equal(textOf(events), 'Once upon a time', 'nothing is said twice');
  });

  await t.test('that Anthropic refuses ends with one error, the same problem object as without streaming', async () => {
    api.script = () => refuse(400, 'invalid_request_error', 'Your credit balance is too low to access the Anthropic API.');
    const events = await collect({ prompt: 'hello' });
    const plain = await server.chat({ prompt: 'hello' });
    assert.equal(outlineOf(events), 'session error');
    const { session_id: sessionId, duration_ms: _streamedMs, ...streamed } = events.at(-1)?.data ?? {};
    const { session_id: _other, duration_ms: _plainMs, ...answered } = plain.body;
    assert.deepEqual(streamed, answered);
    assert.equal(sessionId, events[0]?.data['session_id']);
  });

  await t.test('in thousands of small pieces comes as fast as the CLI gives it', async () => {
    const pieces = Array.from({ length: 20_000 }, (_, i) => `word ${i} and so on `);
    inTurn(say(...pieces));
    const events = await collect({ prompt: 'everything' });
    assert.ok(textOf(events) === pieces.join(''), `${textOf(events).length} of ${pieces.join('').length} characters`);
    assert.equal((await within('an answer from /health', 10_000, server.request('/health'))).status, 200);
  });
});

testWithRealClis('a caller that hangs up', async (t, binary) => {
  const api = await startMessagesApi(t);
  const server = await startServer(t, cliEnv(binary, api));
  api.script = (request) => (promptsOf(request).at(-1)?.startsWith('for ever') ? hang('and so ', 'on') : say('ok'));
  const first = await server.chat({ prompt: 'hello' });
  const sessionId = first.body['session_id'];

  for (const accept of ['application/json', 'text/event-stream']) {
    await t.test(`ends the request to Anthropic, and the session goes on (${accept})`, async () => {
      const prompt = `for ever as ${accept}`;
      const leaving = new AbortController();
      const body = JSON.stringify({ prompt, user_id: 1, session_id: sessionId });
      const answer = server.request('/api/v1/chat', { method: 'POST', body, headers: { Accept: accept }, signal: leaving.signal });
      const left = answer.then((response) => response.text()).then(() => 'answered', () => 'left');
      const request = await api.asked(prompt);
      assert.ok(!request.isAborted, 'the turn runs');
      leaving.abort();
      await until('the request to Anthropic to break', () => request.isAborted || undefined);
      assert.equal(await left, 'left');
      const next = await server.chat({ prompt: `still there after ${accept}?`, session_id: sessionId });
      assert.equal(next.status, 200, JSON.stringify(next.body));
      assert.equal(next.body['cost'], first.body['cost']);
      const prompts = promptsOf(api.turns.at(-1) ?? assert.fail('nothing was asked'));
      assert.equal(prompts[0], 'hello');
      assert.equal(prompts.at(-1), `still there after ${accept}?`);
    });
  }
});
