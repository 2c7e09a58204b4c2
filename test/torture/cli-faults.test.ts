import assert from 'node:assert/strict';
import { mkdir, readdir, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { amount, randomOf } from '../random.ts';
import { eventsOf, fakeClaude, makeHome, noneLeft, startServer, until, within, type Reply, type RunningServer, type StreamEvent } from '../running-server.ts';
import { faults, outcomeOf } from './outcomes.ts';

const capacity = 4;
const callers = 10;
const users = 30;

interface Dialogue {
  readonly userId: number;
  sessionId: string | undefined;
  /** The prompts that were answered, in order; others may stand between them. */
  answered: string[];
  /** Its CLI could not save it. */
  isForgotten: boolean;
}

// What `npm test` has time for is a part of it; `npm run torture` plays it all.
const seconds = amount(20, 600);

test(`drawn at random for ${seconds} s: whatever the CLI does, every turn gets a right answer, and nothing is lost or left`, async (t) => {
  const random = randomOf(t);
  const home = await makeHome(t);
  const program = join(home, 'claude');
  await symlink(fakeClaude, program);
  await mkdir(join(home, '.fake-claude'));
  const env = { CLAUDE_BINARY_PATH: program, CLAUDE_MAX_CONCURRENT_REQUESTS: String(capacity), CLAUDE_QUEUE_SECONDS: '600' };
  let server = await startServer(t, env, home);
  const startedAt = performance.now();
  const endsAt = startedAt + seconds * 1000;
  const dialogues: Dialogue[] = Array.from({ length: users }, (_, i) => ({ userId: i + 1, sessionId: undefined, answered: [], isForgotten: false }));
  const taken = new Set<Dialogue>();
  const seen: Record<string, number> = {};
  let turns = 0;
  /** Processes ended or made to start badly from outside: each may cost one turn its answer. */
  let harm = 0;
  let harmed = 0;
  /** When the program was last put back in its place. */
  let awayUntil = 0;
  let isPaused = false;

  async function oneTurn(dialogue: Dialogue): Promise<void> {
    const number = (turns += 1);
    const scenario = random() < 0.6 ? 'plain' : (faults[Math.floor(random() * faults.length)] ?? 'plain');
    const prompt = scenario === 'plain' ? `turn ${number}` : `play ${scenario} #${number}`;
    const expected = outcomeOf.get(scenario) ?? '200';
    const caller = new AbortController();
    const leaves = expected === 'left' || random() < 0.03;
    if (leaves) setTimeout(() => caller.abort(), 5 + random() * 150);
    const body = { prompt, user_id: dialogue.userId, ...(dialogue.sessionId !== undefined && { session_id: dialogue.sessionId }) };
    const askedAt = performance.now();
    dialogue.isForgotten ||= scenario === 'forget';
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
    if (outcome === '404 session_not_found') {
      // A process ended before it had saved anything leaves a name and nothing said.
      assert.ok(dialogue.isForgotten || dialogue.answered.length === 0, what);
      Object.assign(dialogue, { sessionId: undefined, answered: [], isForgotten: false });
      return;
    }
    if (outcome !== expected && !(outcome === '503 claude_not_found' && askedAt < awayUntil)) {
      assert.equal(outcome, '502 claude_failed', what);
      harmed += 1;
    }
    if (scenario === 'plain' && status === 200) assert.equal(answer['content'], `you said: ${prompt}`, what);
    if (status === 200) assert.equal(answer['cost'], 0.25, what);
    // The next turn may begin in its last moments.
    if (scenario === 'die-idle') harm += 1;
    if (status !== 200 && answer['session_id'] !== undefined) assert.equal(typeof answer['cost'], 'number', what);
    if (status !== 200) assert.doesNotMatch(String(answer['detail']), /\/tmp\/|\/opt\/|stream-json|\n/, what);
    if (dialogue.sessionId !== undefined && !dialogue.isForgotten && outcome !== '503 claude_not_found') assert.equal(answer['session_id'], dialogue.sessionId, what);
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

  /** What else may happen on a machine, at any moment: to one of these processes, to the next one, to the program. */
  async function meddle(pids: readonly number[]): Promise<void> {
    const luck = random();
    const pid = pids[Math.floor(random() * pids.length)];
    if (luck < 0.25 && pid !== undefined) {
      harm += 1;
      sendQuietly(pid, (['SIGKILL', 'SIGTERM', 'SIGSEGV', 'SIGINT'] as const)[Math.floor(random() * 4)] ?? 'SIGKILL');
    } else if (luck < 0.35 && pid !== undefined) {
      // As on a machine that swaps.
      sendQuietly(pid, 'SIGSTOP');
      setTimeout(() => sendQuietly(pid, 'SIGCONT'), 200);
    } else if (luck < 0.45) {
      harm += 1;
      await writeFile(join(home, '.fake-claude/next-start'), ['crash', 'silent', 'garbage', 'flood', 'slow'][Math.floor(random() * 5)] ?? 'crash');
    } else if (luck < 0.48) {
      // As during an update of the CLI: what is just starting may break.
      harm += capacity;
      awayUntil = Infinity;
      await rename(program, `${program}.away`);
      await new Promise((resolve) => setTimeout(resolve, random() * 150));
      await rename(`${program}.away`, program);
      awayUntil = performance.now();
    }
  }

  /** Looks at places, queue, processes, records and descriptors while all goes on. */
  async function watch(): Promise<void> {
    let restarts = 0;
    while (performance.now() < endsAt) {
      await new Promise((resolve) => setTimeout(resolve, 300));
      const { running, queued, warm } = await statusOf(server);
      assert.ok(Number(running) + Number(warm) <= capacity && Number(queued) <= callers, JSON.stringify({ running, queued, warm }));
      const clis = (await server.leftovers()).filter((line) => line.includes('stream-json'));
      assert.ok(clis.length <= capacity, clis.join('\n'));
      assert.ok((await readdir(`/proc/${server.pid}/fd`)).length < 150);
      await meddle(clis.map((line) => Number.parseInt(line, 10)));
      if (performance.now() < startedAt + ((restarts + 1) * (endsAt - startedAt)) / 3 || restarts === 2) continue;
      isPaused = true;
      await until('the callers to pause', () => (taken.size === 0 ? true : undefined), 60_000);
      assertNoBug(server);
      // Some callers have just left, and what their turns started has no end of its own.
      await until('the tools of those who left to end', async () => ((await server.leftovers()).some((line) => /^\d+ sleep /.test(line)) ? undefined : true), 20_000);
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
  t.diagnostic(`${turns} turns; ${harm} times harm from outside failed ${harmed} of them; ${JSON.stringify(seen)}`);
  assert.ok(harmed <= harm);

  await rm(join(home, '.fake-claude/next-start'), { force: true });
  for (const { userId, sessionId, answered, isForgotten } of dialogues) {
    if (sessionId === undefined || isForgotten) continue;
    const reply = await server.chat({ prompt: 'play history', user_id: userId, session_id: sessionId });
    assert.equal(reply.status, 200, JSON.stringify(reply.body));
    const history = JSON.parse(String(reply.body['content'])) as string[];
    let at = -1;
    for (const prompt of answered) {
      at = history.indexOf(prompt, at + 1);
      assert.notEqual(at, -1, `${prompt} is not in its place in ${history.join(' | ')}`);
    }
  }
  assertNoBug(server);
  assert.equal(await server.end(), 0);
  await noneLeft(home);
});

function sendQuietly(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It was on its way out.
  }
}

function assertNoBug(server: RunningServer): void {
  assert.deepEqual(server.lines.filter((line) => line.event === 'bug' || line['code'] === 'internal_error'), []);
  assert.equal(server.stderr, '');
}

async function statusOf(server: RunningServer): Promise<Record<string, unknown>> {
  return (await (await server.request('/health')).json()) as Record<string, unknown>;
}

/** A streamed turn as if it had been answered in one piece; it is where no process could be had for it. */
async function streamed(server: RunningServer, body: Record<string, unknown>, signal: AbortSignal): Promise<Reply> {
  const headers = { Accept: 'text/event-stream' };
  const response = await server.request('/api/v1/chat', { method: 'POST', body: JSON.stringify(body), headers, signal });
  if (response.status !== 200) return { status: response.status, headers: response.headers, body: (await response.json()) as Record<string, unknown> };
  const events: StreamEvent[] = [];
  for await (const event of eventsOf(response)) events.push(event);
  const [first, last] = [events[0], events.at(-1) ?? assert.fail('an empty stream')];
  if (first?.name === 'session' && last.data['session_id'] !== undefined) assert.equal(last.data['session_id'], first.data['session_id']);
  assert.deepEqual(events.filter(({ name }) => name === 'result' || name === 'error'), [last], 'the last event is the only end');
  return { status: last.name === 'result' ? 200 : Number(last.data['status']), headers: response.headers, body: last.data };
}
