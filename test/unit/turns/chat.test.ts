import assert from 'node:assert/strict';
import { getEventListeners } from 'node:events';
import { test } from 'node:test';
import type { TurnEnd } from '../../../src/cli/dialogue.ts';
import type { Worker } from '../../../src/cli/worker.ts';
import { Problem, type ProblemCode } from '../../../src/problem.ts';
import { until } from '../../running-server.ts';
import { createChat, type Chat, type ChatEvent } from '../../../src/turns/chat.ts';
import { KeyedTurns } from '../../../src/turns/keyed.ts';

const ownId = 'f1b19141-9e1d-4e8d-a902-a05c85145ac0';
const answered: TurnEnd = { wasHeard: true, costUsd: 0.25, outcome: { content: 'hello' } };

function failed(code: ProblemCode, wasHeard: boolean): TurnEnd {
  return { wasHeard, costUsd: wasHeard ? 0.25 : 0, outcome: { problem: new Problem(code, 'It failed.') } };
}

/** A chat over one process, whose turns end as `ends` says, one after the other; without any left, only by their signal. */
class Stage {
  origin: 'warm' | 'spare' | 'cold' = 'cold';
  isKept = true;
  isStorageGone = false;
  renewals = 0;
  retirements = 0;
  releases = 0;
  note: string | undefined;
  endByDisk: (problem: Problem) => void = () => {};
  readonly prompts: string[] = [];
  readonly closing = new AbortController();
  readonly ends: Array<TurnEnd | Promise<TurnEnd>>;
  readonly chat: Chat;

  constructor(ends: Stage['ends'], hasOwnLogin = true) {
    this.ends = ends;
    const turn: Worker['turn'] = ({ prompt }, signal, onEvent) => {
      this.prompts.push(prompt);
      onEvent({ type: 'session', sessionId: ownId });
      const end = this.ends.shift();
      if (end !== undefined) return Promise.resolve(end);
      if (signal.aborted) return Promise.resolve(failed('claude_failed', false));
      return new Promise((resolve) => signal.addEventListener('abort', () => resolve(failed('claude_failed', true))));
    };
    // A chat asks no more of it.
    const worker = { turn, hasOwnLogin } as Pick<Worker, 'turn' | 'hasOwnLogin'> as Worker;
    const renew = async (): Promise<void> => void (this.renewals += 1);
    const release = (): void => void (this.releases += 1);
    this.chat = createChat({
      pool: {
        acquire: async () => ({ worker, sessionId: ownId, origin: this.origin, renew, release }),
        retireAll: () => void (this.retirements += 1),
      },
      hasSession: () => this.isKept,
      turnTimeoutMs: 5_000,
      checkStorage: () => {
        if (this.isStorageGone) throw new Problem('storage_unavailable', 'It is gone.');
      },
      takeTurn: () => () => {},
      keyed: new KeyedTurns(),
      disk: {
        admit: async () => this.note,
        begin: (_userId, end) => {
          this.endByDisk = end;
          return () => {};
        },
      },
      closing: this.closing.signal,
      onAdmitted: () => {},
      onTurnEnd: () => {},
    });
  }

  /** What a turn that fails is answered with. */
  async failure(sessionId?: string, onEvent: (event: ChatEvent) => void = () => {}): Promise<Problem> {
    const turn = this.chat.run({ prompt: 'hello', userId: 1, sessionId }, new AbortController().signal, onEvent);
    const error: unknown = await turn.then(() => assert.fail('it was answered'), (reason: unknown) => reason);
    assert.equal(this.releases, 1, 'its process is given back');
    return error instanceof Problem ? error : assert.fail(String(error));
  }
}

test('a session that the CLI no longer knows is told as an unknown one is: without cost, time and id', async () => {
  const { extras } = await new Stage([failed('session_not_found', false)]).failure(ownId);
  assert.deepEqual([extras.sessionId, extras.costUsd, extras.durationMs], [undefined, undefined, undefined]);
});

test('a new dialogue that never began has cost nothing and has no id', async () => {
  const { extras } = await new Stage([failed('claude_not_found', false)]).failure();
  assert.deepEqual([extras.sessionId, extras.costUsd, extras.durationMs], [undefined, undefined, undefined]);
});

test('a turn that failed tells its session only where that can go on', async () => {
  const kept = new Stage([failed('claude_failed', true)]);
  assert.equal((await kept.failure()).extras.sessionId, ownId);
  const lost = new Stage([failed('claude_failed', true)]);
  lost.isKept = false;
  const { extras } = await lost.failure();
  assert.deepEqual([extras.sessionId, extras.costUsd], [undefined, 0.25]);
});

test('only a process that was there already is replaced when it never heard the prompt', async () => {
  for (const [origin, wasHeard, renewals] of [['warm', false, 1], ['spare', false, 1], ['cold', false, 0], ['warm', true, 0]] as const) {
    const stage = new Stage([failed('claude_failed', wasHeard), failed('claude_api_error', true)]);
    stage.origin = origin;
    await stage.failure();
    assert.equal(stage.renewals, renewals, `${origin}, heard: ${String(wasHeard)}`);
  }
});

test('a turn that is begun anew has what is left of its time', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  let end = (_end: TurnEnd): void => {};
  const stage = new Stage([new Promise<TurnEnd>((resolve) => (end = resolve))]);
  stage.origin = 'warm';
  const failure = stage.failure();
  const tried = async (times: number): Promise<void> => {
    while (stage.prompts.length < times) await new Promise((resolve) => setImmediate(resolve));
  };
  await tried(1);
  t.mock.timers.tick(4_000);
  end(failed('claude_failed', false));
  await tried(2);
  t.mock.timers.tick(1_000);
  assert.equal((await failure).code, 'claude_timeout');
});

test('a login that failed and folders that went away retire the processes that are there; other failures do not', async () => {
  for (const [code, hasOwnLogin, retirements] of [
    ['claude_not_authenticated', true, 1],
    // In a sandbox an end user may say so in the CLI's place.
    ['claude_not_authenticated', false, 0],
    ['claude_api_error', true, 0],
  ] as const) {
    const stage = new Stage([failed(code, true)], hasOwnLogin);
    await stage.failure();
    assert.equal(stage.retirements, retirements, `${code}, own login: ${String(hasOwnLogin)}`);
  }
  const stage = new Stage([answered]);
  stage.isStorageGone = true;
  await assert.rejects(stage.chat.run({ prompt: 'hello', userId: 1 }, new AbortController().signal, () => {}), { code: 'storage_unavailable' });
  assert.deepEqual([stage.retirements, stage.ends.length], [1, 1]);
});

test('a turn whose events cannot be told is ended', async () => {
  const gone = new Problem('claude_overloaded', 'Nobody can be told.');
  const problem = await new Stage([]).failure(undefined, ({ type }) => {
    if (type === 'session') throw gone;
  });
  assert.equal(problem, gone);
});

test('a turn that is over leaves nothing on the signal of the server’s end', async () => {
  const stage = new Stage([answered]);
  await stage.chat.run({ prompt: 'hello', userId: 1 }, new AbortController().signal, () => {});
  assert.equal(getEventListeners(stage.closing.signal, 'abort').length, 0);
});

test('a turn that gets its process when the server must end already is ended at once', async () => {
  const stage = new Stage([]);
  stage.origin = 'warm';
  stage.closing.abort(new Problem('shutting_down', 'It stops.'));
  assert.equal((await stage.failure()).code, 'shutting_down');
  assert.equal(stage.renewals, 0, 'it is not begun again');
});

test('a user has a turn under way from its beginning to its end, however many they have and however it ends', async () => {
  const stage = new Stage([]);
  const callers = [7, 7, 9].map((userId) => {
    const caller = new AbortController();
    return { caller, turn: stage.chat.run({ prompt: 'hello', userId }, caller.signal, () => {}).catch(() => {}) };
  });
  assert.deepEqual(stage.chat.users(), [7, 9]);
  for (const [i, left] of [[7, 9], [9], []].entries()) {
    callers[i]?.caller.abort(new Problem('request_timeout', 'It is gone.'));
    await callers[i]?.turn;
    assert.deepEqual(stage.chat.users(), left);
  }
});

test('what the server has to say of the disk stands under the prompt', async () => {
  const stage = new Stage([answered, answered]);
  const ask = async () => stage.chat.run({ prompt: 'hello', userId: 1 }, new AbortController().signal, () => {});
  await ask();
  stage.note = '(Make room.)';
  await ask();
  assert.deepEqual(stage.prompts, ['hello', 'hello\n\n(Make room.)']);
});

test('a turn that fills the disk is ended, with its session', async () => {
  const stage = new Stage([]);
  const problem = stage.failure();
  await until('a turn that is watched', () => (stage.prompts.length > 0 ? true : undefined));
  stage.endByDisk(new Problem('user_storage_full', 'It is full.'));
  assert.deepEqual([(await problem).code, (await problem).extras.sessionId], ['user_storage_full', ownId]);
});
