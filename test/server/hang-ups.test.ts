import assert from 'node:assert/strict';
import { test } from 'node:test';
import { requestBytes } from '../http-client.ts';
import { answer, asJson, chat, good, start, untilAborted, withKey } from '../http-stage.ts';
import { until } from '../running-server.ts';

test('a caller who hangs up aborts its turn, which is logged as 499', async (t) => {
  const stage = await start(t, { run: untilAborted });
  const connection = await stage.connect();
  connection.send(chat({ prompt: 'LEAK', user_id: 7, session_id: 's-7' }, [withKey, asJson, 'X-Request-Id: r-1']));
  const signal = await until('the turn', () => stage.signals[0]);
  assert.equal(signal.aborted, false);
  connection.hangUp();
  await until('the abort', () => (signal.aborted ? true : undefined));
  const line = await until('the log line', () => stage.lines[0]);
  assert.deepEqual([line.event, line['level'], line['status'], line['code'], line['request'], line['user'], line['session']], ['turn', 'info', 499, 'caller_gone', 'r-1', 7, 's-7']);
  assert.equal(stage.lines.length, 1);
});

test('a caller who ends its side is taken for gone, as nothing else tells one that was killed, but has its answer where that takes no time', async (t) => {
  const stage = await start(t, { run: untilAborted });
  const connection = await stage.connect({ allowHalfOpen: true });
  connection.send(chat());
  const signal = await until('the turn', () => stage.signals[0]);
  connection.endSide();
  await until('the abort', () => (signal.aborted ? true : undefined));
  assert.equal(await connection.ended(), '');
  for (const [bytes, status] of [[requestBytes('GET /health'), 200], [requestBytes('GET /nothing'), 404], [chat(good, [asJson]), 401]] as const) {
    const brief = await stage.connect({ allowHalfOpen: true });
    brief.send(bytes);
    brief.endSide();
    assert.equal((await brief.answer('an answer')).status, status);
    await brief.ended();
  }
});

test('a caller who hangs up aborts every turn it asked for without waiting', async (t) => {
  const stage = await start(t, { run: untilAborted });
  const connection = await stage.connect();
  connection.send(Buffer.concat([chat(), chat(), chat()]));
  await until('three turns', () => (stage.signals.length === 3 ? true : undefined));
  connection.hangUp();
  await until('three aborts', () => (stage.signals.every((signal) => signal.aborted) ? true : undefined));
  await until('three log lines', () => (stage.lines.length === 3 ? true : undefined));
  assert.deepEqual(stage.lines.map((line) => line['code']), Array(3).fill('caller_gone'));
});

test('a turn that ended normally is never aborted, not even when the connection ends', async (t) => {
  for (const accept of [[], ['Accept: text/event-stream']]) {
    const stage = await start(t, {
      run: async (_request, _signal, onEvent) => {
        onEvent({ type: 'session', sessionId: 's-1' });
        return answer;
      },
    });
    const connection = await stage.connect();
    connection.send(chat(good, [withKey, asJson, 'Connection: close', ...accept]));
    assert.equal((await connection.answer('the answer')).status, 200);
    await connection.ended();
    await stage.ask(requestBytes('GET /health'));
    assert.equal(stage.signals[0]?.aborted, false);
    assert.deepEqual(stage.lines.map((line) => line['status']), [200]);
  }
});

test('a turn that outlives its caller is not spoilt by what it tells afterwards', async (t) => {
  const stage = await start(t, {
    run: async (_request, signal, onEvent) => {
      onEvent({ type: 'session', sessionId: 's-1' });
      await until('the abort', () => (signal.aborted ? true : undefined));
      for (let i = 0; i < 100; i += 1) onEvent({ type: 'delta', text: 'x'.repeat(10_000) });
      return answer;
    },
  });
  for (const [i, accept] of [[], ['Accept: text/event-stream']].entries()) {
    const connection = await stage.connect();
    connection.send(chat(good, [withKey, asJson, ...accept]));
    await until('the turn', () => stage.signals[i]);
    if (accept.length > 0) await connection.received('event: session');
    connection.hangUp();
  }
  // The answer was there though nobody heard it: the money is spent, and the line says so.
  await until('both log lines', () => (stage.lines.length === 2 ? true : undefined));
  assert.deepEqual(stage.lines.map((line) => [line['status'], line['cost']]), Array(2).fill([200, 0.25]));
  assert.equal((await fetch(`${stage.url}/health`)).status, 200);
});
