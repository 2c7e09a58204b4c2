import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { amount, randomOf } from '../random.ts';
import { makeHome, noneLeft, startServer, until, within, type Reply, type RunningServer } from '../running-server.ts';

const capacity = 4;
const callers = 10;
const users = 30;

/** What the CLI does, and what the caller may hear of it: `status code`. A `left` one is hung up on by its caller. */
const scenarios: Readonly<Record<string, readonly string[]>> = {
  'play slow 50': ['200'],
  'play tool': ['200'],
  'play stream 200': ['200'],
  'play huge 300000': ['200'],
  'play crlf': ['200'],
  'play noise': ['200'],
  'play u2028': ['200'],
  'play split-utf8': ['200'],
  'play flood-stderr': ['200'],
  'play die-idle': ['200'],
  'play unasked': ['200'],
  'play exit-1': ['200'],
  'play max-turns': ['422 max_turns_reached'],
  'play api long': ['422 prompt_too_long'],
  'play api 413': ['422 prompt_too_long'],
  'play crash': ['502 claude_failed'],
  'play killed': ['502 claude_failed'],
  'play garbage': ['502 claude_failed'],
  'play silent': ['502 claude_failed'],
  'play truncated': ['502 claude_failed'],
  'play no-result': ['502 claude_failed'],
  'play api 401': ['503 claude_not_authenticated'],
  'play api 404': ['502 claude_api_error'],
  'play api 429': ['429 claude_rate_limited'],
  'play limit 30': ['429 claude_rate_limited'],
  'play wait-429 60': ['429 claude_rate_limited'],
  'play api 500': ['502 claude_api_error'],
  'play api 529': ['503 claude_overloaded'],
  'play api credit': ['502 claude_api_error'],
  'play hang': ['left'],
  'play deaf': ['left'],
  'play grandchild': ['left'],
  'play clean-child': ['left'],
};
const faults = Object.keys(scenarios);

interface Dialogue {
  readonly userId: number;
  sessionId: string | undefined;
  /** The prompts that were answered, in order; others may stand between them. */
  answered: string[];
}

test('whatever the CLI does, every turn gets a right answer, and nothing is lost or left', async (t) => {
  const random = randomOf(t);
  const home = await makeHome(t);
  const env = { CLAUDE_MAX_CONCURRENT_REQUESTS: String(capacity), CLAUDE_QUEUE_SECONDS: '600' };
  let server = await startServer(t, env, home);
  const startedAt = performance.now();
  const endsAt = startedAt + amount(60, 600) * 1000;
  const dialogues: Dialogue[] = Array.from({ length: users }, (_, i) => ({ userId: i + 1, sessionId: undefined, answered: [] }));
  const taken = new Set<Dialogue>();
  const seen: Record<string, number> = {};
  let turns = 0;
  let kills = 0;
  let isPaused = false;

  async function oneTurn(dialogue: Dialogue): Promise<void> {
    const number = (turns += 1);
    const scenario = random() < 0.6 ? 'plain' : (faults[Math.floor(random() * faults.length)] ?? 'plain');
    const prompt = scenario === 'plain' ? `turn ${number}` : scenario;
    const allowed = scenarios[scenario] ?? ['200'];
    const caller = new AbortController();
    const leaves = allowed.includes('left') || random() < 0.03;
    if (leaves) setTimeout(() => caller.abort(), 5 + random() * 150);
    const body = { prompt, user_id: dialogue.userId, ...(dialogue.sessionId !== undefined && { session_id: dialogue.sessionId }) };
    const killsBefore = kills;
    const asked = random() < 0.3 ? streamed(server, body, caller.signal) : server.chat(body, { signal: caller.signal });
    const reply = await within(`turn ${number} (${scenario})`, 120_000, asked).catch((error: unknown) => {
      assert.ok(caller.signal.aborted, `turn ${number} (${scenario}): ${String(error)}`);
      return undefined;
    });
    seen[scenario] = (seen[scenario] ?? 0) + 1;
    if (reply === undefined) {
      // Nobody knows how far it came: the dialogue may have begun without its user hearing of it.
      return;
    }
    const { status, body: answer } = reply;
    const what = `turn ${number} (${scenario}): ${status} ${JSON.stringify(answer).slice(0, 300)}`;
    const outcome = status === 200 ? '200' : `${status} ${String(answer['code'])}`;
    // A process ended from outside fails the turn that ran in it, whatever that was.
    assert.ok(allowed.includes(outcome) || (kills > killsBefore && outcome === '502 claude_failed'), what);
    if (scenario === 'plain' && status === 200) assert.equal(answer['content'], `you said: ${prompt}`, what);
    if (status === 200) assert.equal(answer['cost'], 0.25, what);
    if (status !== 200 && answer['session_id'] !== undefined) assert.equal(typeof answer['cost'], 'number', what);
    if (dialogue.sessionId !== undefined) assert.equal(answer['session_id'], dialogue.sessionId, what);
    else if (typeof answer['session_id'] === 'string') dialogue.sessionId = answer['session_id'];
    if (status === 200) dialogue.answered.push(prompt);
  }

  async function call(): Promise<void> {
    while (performance.now() < endsAt) {
      const dialogue = dialogues[Math.floor(random() * dialogues.length)];
      if (isPaused || dialogue === undefined || taken.has(dialogue)) {
        await new Promise((resolve) => setTimeout(resolve, 5));
        continue;
      }
      taken.add(dialogue);
      await oneTurn(dialogue).finally(() => taken.delete(dialogue));
    }
  }

  /** Looks at places, queue, processes, records and descriptors while all goes on; now and then ends a process. */
  async function watch(): Promise<void> {
    let restarts = 0;
    while (performance.now() < endsAt) {
      await new Promise((resolve) => setTimeout(resolve, 300));
      const { running, queued, warm } = await statusOf(server);
      assert.ok(Number(running) + Number(warm) <= capacity && Number(queued) <= callers, JSON.stringify({ running, queued, warm }));
      const clis = (await server.leftovers()).filter((line) => line.includes('stream-json'));
      assert.ok(clis.length <= capacity, clis.join('\n'));
      assert.ok((await readdir(`/proc/${server.pid}/fd`)).length < 150);
      const victim = clis[Math.floor(random() * clis.length * 4)];
      if (victim !== undefined) {
        kills += 1;
        try {
          process.kill(Number.parseInt(victim, 10), 'SIGKILL');
        } catch {
          // It was on its way out.
        }
      }
      if (performance.now() < startedAt + ((restarts + 1) * (endsAt - startedAt)) / 3 || restarts === 2) continue;
      isPaused = true;
      await until('the callers to pause', () => (taken.size === 0 ? true : undefined), 60_000);
      assertNoBug(server);
      await server.end(restarts === 0 ? 'SIGTERM' : 'SIGKILL');
      await noneLeft(home);
      server = await startServer(t, env, home);
      restarts += 1;
      isPaused = false;
    }
  }

  await Promise.all([watch(), ...Array.from({ length: callers }, call)]);
  const idle = await until('every place to be free', async () => {
    const status = await statusOf(server);
    return status['running'] === 0 && status['queued'] === 0 ? status : undefined;
  }, 30_000);
  assert.ok(Number(idle['warm']) <= capacity);
  t.diagnostic(`${turns} turns, ${kills} processes ended; ${JSON.stringify(seen)}`);

  for (const { userId, sessionId, answered } of dialogues) {
    if (sessionId === undefined) continue;
    const record = JSON.parse(await readFile(join(home, 'state/sessions', `${sessionId}.json`), 'utf8')) as Record<string, unknown>;
    assert.equal(record['user_id'], userId);
    const reply = await server.chat({ prompt: 'play history', user_id: userId, session_id: sessionId });
    assert.equal(reply.status, 200, JSON.stringify(reply.body));
    const history = JSON.parse(String(reply.body['content'])) as string[];
    let at = -1;
    for (const prompt of answered) {
      at = history.indexOf(prompt, at + 1);
      assert.notEqual(at, -1, `${prompt} is not in its place in ${history.join(' | ')}`);
    }
  }
  const strangers = (await readdir(join(home, 'state/sessions'))).filter((name) => !name.endsWith('.json'));
  assert.deepEqual(strangers, []);
  assertNoBug(server);
  assert.equal(await server.end(), 0);
  await noneLeft(home);
});

function assertNoBug(server: RunningServer): void {
  assert.deepEqual(server.lines.filter((line) => line.event === 'bug' || line['code'] === 'internal_error'), []);
  assert.equal(server.stderr, '');
}

async function statusOf(server: RunningServer): Promise<Record<string, unknown>> {
  return (await (await server.request('/health')).json()) as Record<string, unknown>;
}

/** A streamed turn as if it had been answered in one piece. */
async function streamed(server: RunningServer, body: Record<string, unknown>, signal: AbortSignal): Promise<Reply> {
  let session: unknown;
  for await (const { name, data } of server.stream(body, { signal })) {
    if (name === 'session') session = data['session_id'];
    if (name !== 'result' && name !== 'error') continue;
    if (session !== undefined && data['session_id'] !== undefined) assert.equal(data['session_id'], session);
    return { status: name === 'result' ? 200 : Number(data['status']), headers: new Headers(), body: data };
  }
  assert.fail('the stream ended without a last event');
}
