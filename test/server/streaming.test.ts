import assert from 'node:assert/strict';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { test, type TestContext } from 'node:test';
import { Problem } from '../../src/problem.ts';
import { requestBytes } from '../http-client.ts';
import { answer, answerJson, apiKey, asJson, assertProblem, chat, chatPath, eventsOf, good, latch, start, streaming, textOf, untilAborted, withKey } from '../http-stage.ts';
import { until, within } from '../running-server.ts';

test('a stream has the session, the text and tools in order, then the result', async (t) => {
  const stage = await start(t, {
    run: async (_request, _signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      onEvent({ type: 'delta', text: 'two\nand\r\n\u2028' });
      onEvent({ type: 'tool', name: 'Read' });
      onEvent({ type: 'delta', text: ' 🦊' });
      return answer;
    },
  });
  const { status, headers, body } = await stage.ask(chat(good, streaming));
  assert.equal(status, 200);
  assert.equal(headers.get('content-type'), 'text/event-stream; charset=utf-8');
  assert.equal(headers.get('cache-control'), 'no-cache');
  assert.equal(headers.get('x-accel-buffering'), 'no');
  assert.match(headers.get('x-request-id') ?? '', /./);
  assert.equal(
    body,
    'event: session\ndata: {"session_id":"s-1"}\n\n' +
      'event: delta\ndata: {"text":"two\\nand\\r\\n\u2028"}\n\n' +
      'event: tool\ndata: {"name":"Read"}\n\n' +
      'event: delta\ndata: {"text":" 🦊"}\n\n' +
      `event: result\ndata: ${JSON.stringify(answerJson)}\n\n`,
  );
});

test('events come as they happen, not at the end', async (t) => {
  const turn = latch();
  const stage = await start(t, {
    run: async (_request, _signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      onEvent({ type: 'delta', text: 'first' });
      await turn.opened;
      return answer;
    },
  });
  const connection = await stage.connect();
  connection.send(chat(good, streaming));
  await connection.received('data: {"text":"first"}\n\n');
  turn.open();
  assert.deepEqual(eventsOf((await connection.answer('the stream')).body).map(({ name }) => name), ['session', 'delta', 'result']);
  connection.send(requestBytes('GET /health'));
  assert.equal((await connection.answer('the next answer')).status, 200);
});

test('a stream without text is still a stream, with the one result', async (t) => {
  const stage = await start(t);
  const { headers, body } = await stage.ask(chat(good, streaming));
  assert.equal(headers.get('content-type'), 'text/event-stream; charset=utf-8');
  assert.deepEqual(eventsOf(body), [{ name: 'result', data: answerJson }]);
});

test('an error after the first event is the last event, and the only one of its kind', async (t) => {
  const stage = await start(t, {
    run: async (_request, _signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      onEvent({ type: 'delta', text: 'so far' });
      throw new Problem('claude_overloaded', 'Try again.', { sessionId: 's-1', costUsd: 0.5, durationMs: 9, retryAfterSeconds: 30 });
    },
  });
  const { status, body } = await stage.ask(chat(good, streaming));
  const events = eventsOf(body);
  assert.equal(status, 200);
  assert.deepEqual(events.map(({ name }) => name), ['session', 'delta', 'error']);
  assert.deepEqual(events.at(-1)?.data, {
    type: 'urn:claude-api:problem:claude_overloaded',
    title: 'Anthropic is overloaded',
    status: 503,
    detail: 'Try again.',
    code: 'claude_overloaded',
    session_id: 's-1',
    cost: 0.5,
    duration_ms: 9,
    retry_after_seconds: 30,
  });
});

test('a bug after the first event is an error event without a word of it', async (t) => {
  const stage = await start(t, {
    run: async (_request, _signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      throw new Error('secret /etc/path');
    },
  });
  const { body } = await stage.ask(chat(good, streaming));
  assert.equal(eventsOf(body).at(-1)?.data['code'], 'internal_error');
  assert.doesNotMatch(body, /secret|etc/);
});

test('an error before the first event is an ordinary answer', async (t) => {
  const stage = await start(t, {
    run: async () => {
      throw new Problem('busy', 'Later.', { retryAfterSeconds: 5 });
    },
  });
  const { reply } = await assertProblem(stage, chat(good, streaming), 503, 'busy');
  assert.equal(reply.headers.get('retry-after'), '5');
  await assertProblem(stage, chat({}, streaming), 422, 'invalid_request');
  await assertProblem(stage, chat(good, streaming.slice(1)), 401, 'missing_api_key');
});

test('a stream shows its head as soon as its turn has a process, though nothing is said yet', async (t) => {
  const turn = latch();
  const stage = await start(t, {
    run: async (_request, _signal, onEvent) => {
      onEvent({ type: 'admitted', origin: 'cold' });
      await turn.opened;
      throw new Problem('claude_failed', 'Try again.');
    },
  });
  const connection = await stage.connect();
  connection.send(chat(good, streaming));
  await connection.received('text/event-stream');
  turn.open();
  assert.deepEqual(eventsOf((await connection.answer('the stream')).body).map(({ data }) => data['code']), ['claude_failed']);
});

test('a stream that waits long for a process shows its head and comment lines, and what then goes wrong is an event', async (t) => {
  const turn = latch();
  const stage = await start(t, {
    timeouts: { headAfterMs: 50, heartbeatMs: 20 },
    run: async () => {
      await turn.opened;
      throw new Problem('busy', 'Later.', { retryAfterSeconds: 5 });
    },
  });
  const connection = await stage.connect();
  connection.send(chat(good, streaming));
  await connection.received(': still working\n\n');
  turn.open();
  const { status, body } = await connection.answer('the stream');
  assert.deepEqual([status, eventsOf(body).map(({ name, data }) => [name, data['code'], data['retry_after_seconds']])], [200, [['error', 'busy', 5]]]);
  connection.send(requestBytes('GET /health'));
  assert.equal((await connection.answer('the next answer')).body, '{"status":"ok"}');
});

test('by default that is after 10 s', async (t) => {
  const turn = latch();
  const stage = await start(t, { run: async () => turn.opened.then(() => assert.fail('nobody waits')) });
  const connection = await stage.connect();
  const startedAt = performance.now();
  connection.send(chat(good, streaming));
  await new Promise((resolve) => setTimeout(resolve, 5000));
  await connection.received('text/event-stream');
  assert.ok(performance.now() - startedAt > 9_900);
  turn.open();
});

test('a stream that failed at once, behind another answer, is not begun when its time for a head comes', async (t) => {
  const turn = latch();
  const stage = await start(t, {
    timeouts: { headAfterMs: 20 },
    run: async ({ prompt }) => {
      if (prompt === 'busy') throw new Problem('busy', 'Later.');
      await turn.opened;
      return answer;
    },
  });
  const connection = await stage.connect();
  connection.send(Buffer.concat([chat(), chat({ ...good, prompt: 'busy' }, streaming)]));
  await until('the log line', () => stage.lines[0]);
  const later = await stage.connect();
  later.send(chat(good, streaming));
  await later.received('text/event-stream');
  turn.open();
  assert.deepEqual([(await connection.answer('the first')).status, (await connection.answer('the second')).status], [200, 503]);
});

test('an answer that is no stream waits without a head, however long', async (t) => {
  const turn = latch();
  const stage = await start(t, { timeouts: { headAfterMs: 1, heartbeatMs: 1 }, run: () => turn.opened.then(() => answer) });
  const connection = await stage.connect();
  connection.send(chat());
  const other = await stage.connect();
  other.send(chat(good, streaming));
  await other.received(': still working');
  turn.open();
  assert.equal((await connection.answer('the answer')).body, JSON.stringify(answerJson));
});

for (const accept of ['text/event-stream', 'Text/Event-Stream', 'text/event-stream; charset=utf-8', 'application/json, text/event-stream', 'text/event-stream, */*', '*/*;q=0.1, text/event-stream;q=0.2']) {
  test(`Accept: ${accept} streams`, async (t) => {
    const stage = await start(t);
    assert.match((await stage.ask(chat(good, [withKey, asJson, `Accept: ${accept}`]))).headers.get('content-type') ?? '', /^text\/event-stream/);
  });
}

for (const accept of ['', 'application/json', '*/*', 'text/*', 'text/html', 'text/event-streams', 'application/json, text/event-stream;q=0', 'application/json, text/event-stream;q=0.1', 'text/event-stream;q=0.9, */*', 'application/json;q=0.1, text/*']) {
  test(`Accept: ${accept} gets JSON`, async (t) => {
    const stage = await start(t, {
      run: async (_request, _signal, onEvent) => {
        onEvent({ type: 'session', sessionId: 's-1' });
        return answer;
      },
    });
    const reply = await stage.ask(chat(good, [withKey, asJson, `Accept: ${accept}`]));
    assert.equal(reply.headers.get('content-type'), 'application/json');
    assert.deepEqual(JSON.parse(reply.body), answerJson);
  });
}

test('a silent stream has comment lines, so that no proxy takes it for dead', async (t) => {
  const turn = latch();
  const stage = await start(t, {
    timeouts: { heartbeatMs: 10 },
    run: async (_request, _signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      await turn.opened;
      return answer;
    },
  });
  const connection = await stage.connect();
  connection.send(chat(good, streaming));
  await connection.received(': still working\n\n');
  turn.open();
  assert.deepEqual(eventsOf((await connection.answer('the stream')).body).map(({ name }) => name), ['session', 'result']);
  // Nothing may follow the end of the stream, or it would be taken for the next answer.
  connection.send(requestBytes('GET /health'));
  assert.equal((await connection.answer('the next answer')).body, '{"status":"ok"}');
});

test('a caller who hangs up in mid-stream aborts its turn', async (t) => {
  const stage = await start(t, {
    timeouts: { heartbeatMs: 5 },
    run: (request, signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      return untilAborted(request, signal, onEvent);
    },
  });
  const connection = await stage.connect();
  connection.send(chat(good, streaming));
  await connection.received('event: session');
  connection.hangUp();
  await until('the abort', () => (stage.signals[0]?.aborted ? true : undefined));
  const line = await until('the log line', () => stage.lines[0]);
  assert.deepEqual([line['status'], line['code']], [499, 'caller_gone']);
});

test('no timer is left of a stream whose caller has gone, though its turn goes on', async (t) => {
  const timers = (): number => process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length;
  const turn = latch();
  t.after(turn.open);
  let told = 0;
  const stage = await start(t, {
    run: async ({ prompt }, signal, onEvent) => {
      if (prompt === 'early') onEvent({ type: 'session', sessionId: 's-1' });
      await until('the abort', () => (signal.aborted ? true : undefined));
      if (prompt === 'late') onEvent({ type: 'session', sessionId: 's-1' });
      told += 1;
      await turn.opened;
      return answer;
    },
  });
  const before = timers();
  for (const prompt of ['early', 'late', 'silent', 'behind another']) {
    const connection = await stage.connect();
    if (prompt === 'behind another') connection.send(chat());
    connection.send(chat({ prompt, user_id: 1 }, streaming));
    const signal = await until('the turn', () => (stage.requests.at(-1)?.prompt === prompt ? stage.signals.at(-1) : undefined));
    if (prompt === 'early') await connection.received('event: session');
    connection.hangUp();
    await until('the abort', () => (signal.aborted ? true : undefined));
  }
  await until('the turns to have told everything', () => (told === 5 ? true : undefined));
  await until('the timers to be cleared', () => (timers() <= before ? true : undefined));
});

test('a reader who catches up hears on while the turn runs', async (t) => {
  const turn = latch();
  const stage = await start(t, {
    run: async (_request, _signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      // All in one breath: no reader can keep up.
      for (let i = 0; i < 100; i += 1) onEvent({ type: 'delta', text: 'x'.repeat(10_000) });
      onEvent({ type: 'delta', text: 'caught up' });
      await turn.opened;
      return answer;
    },
  });
  const connection = await stage.connect();
  connection.send(chat(good, streaming));
  await connection.received('caught up');
  turn.open();
  assert.equal(textOf(eventsOf((await connection.answer('the stream')).body)), `${'x'.repeat(1_000_000)}caught up`);
});

test('a slow reader gets every letter in far fewer events, and nobody waits for it', async (t) => {
  const count = 20_000;
  const pieces = Array.from({ length: count }, (_, i) => `${i}:${'x'.repeat(1000)}|`);
  const told = latch();
  const stage = await start(t, {
    run: async (_request, _signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      for (const [i, text] of pieces.entries()) {
        onEvent({ type: 'delta', text });
        if (i === count / 2) onEvent({ type: 'tool', name: 'Read' });
        if (i % 100 === 0) await new Promise((resolve) => setImmediate(resolve));
      }
      told.open();
      return answer;
    },
  });
  // Its answer is not read from: the bytes stay in the socket.
  const response = await paused(t, stage.port, JSON.stringify(good));
  await within('the turn to end although nobody reads', 20_000, told.opened);
  assert.equal((await stage.ask(requestBytes('GET /health'))).status, 200);
  await until('the log line', () => stage.lines[0]);

  const parts: Buffer[] = [];
  await within('the whole stream', 20_000, (async () => {
    for await (const part of response) parts.push(part as Buffer);
  })());
  const events = eventsOf(Buffer.concat(parts).toString());
  assert.ok(textOf(events) === pieces.join(''), 'letters are missing, or in another order');
  const beforeTool = events.slice(0, events.findIndex(({ name }) => name === 'tool'));
  assert.ok(textOf(beforeTool) === pieces.slice(0, count / 2 + 1).join(''), 'the tool came at another place');
  assert.deepEqual(events.at(-1), { name: 'result', data: answerJson });
  assert.equal(events.filter(({ name }) => ['result', 'error'].includes(name)).length, 1);
  assert.ok(events.length < count / 2, `${events.length} events`);
});

test('comment lines do not pile up before a reader who takes nothing', async (t) => {
  const turn = latch();
  const stage = await start(t, {
    timeouts: { heartbeatMs: 2 },
    run: async ({ prompt }, _signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      if (prompt === 'deaf') onEvent({ type: 'delta', text: 'x'.repeat(20_000_000) });
      await turn.opened;
      return answer;
    },
  });
  const response = await paused(t, stage.port, JSON.stringify({ ...good, prompt: 'deaf' }));
  const other = await stage.connect();
  other.send(chat(good, streaming));
  await other.received('11\r\n: still working\n\n\r\n'.repeat(50));
  turn.open();
  const parts: Buffer[] = [];
  await within('the whole stream', 20_000, (async () => {
    for await (const part of response) parts.push(part as Buffer);
  })());
  const comments = Buffer.concat(parts).toString().split(': still working').length - 1;
  assert.ok(comments < 25, `${comments} comment lines`);
});

for (const accept of ['application/json', 'text/event-stream']) {
  test(`a caller who never reads its finished answer (${accept}) is cut off, though not while the turn runs`, async (t) => {
    const turn = latch();
    const stage = await start(t, {
      timeouts: { keepAliveMs: 100 },
      run: async (_request, _signal, onEvent) => {
        onEvent({ type: 'session', sessionId: 's-1' });
        onEvent({ type: 'delta', text: 'x'.repeat(20_000_000) });
        await turn.opened;
        return { ...answer, content: 'x'.repeat(20_000_000) };
      },
    });
    const connection = await stage.connect();
    connection.stopReading();
    connection.send(chat(good, [withKey, asJson, `Accept: ${accept}`]));
    const signal = await until('the turn', () => stage.signals[0]);
    // Five idle connections one after another are cut off meanwhile.
    for (let i = 0; i < 5; i += 1) await (await stage.connect()).ended();
    assert.equal(signal.aborted, false);
    turn.open();
    await until('the connection to be closed', () => (stage.connections === 0 ? true : undefined));
  });
}

test('a caller who reads a finished answer slowly gets all of it', async (t) => {
  const content = 'x'.repeat(40_000_000);
  const stage = await start(t, { timeouts: { keepAliveMs: 3000 }, run: async () => ({ ...answer, content }) });
  const response = await paused(t, stage.port, JSON.stringify(good));
  let bytes = 0;
  let pauses = 0;
  await within('the whole answer', 30_000, (async () => {
    for await (const part of response) {
      bytes += (part as Buffer).length;
      // Together the pauses are longer than the time limit.
      if (bytes < 2_500_000 * (pauses + 1)) continue;
      pauses += 1;
      await new Promise((resolve) => setTimeout(resolve, 250));
    }
  })());
  assert.ok(bytes > content.length && pauses > 14, `${bytes} bytes, ${pauses} pauses`);
});

/** The streamed answer to a chat, with nothing of it read yet. */
function paused(t: TestContext, port: number, body: string): Promise<IncomingMessage> {
  const response = new Promise<IncomingMessage>((resolve, reject) => {
    const headers = { Authorization: `Bearer ${apiKey}`, 'Content-Type': 'application/json', Accept: 'text/event-stream', 'Content-Length': body.length };
    const request = httpRequest({ host: '127.0.0.1', port, path: chatPath, method: 'POST', headers, agent: false }, resolve).on('error', reject);
    t.after(() => request.destroy());
    request.end(body);
  });
  return within('the head of the stream', 10_000, response);
}
