import type { TurnEnd, TurnEvent } from '../cli/dialogue.ts';
import { sessionNotFound } from '../cli/outcome.ts';
import { storageUnavailable } from '../host/storage.ts';
import type { Log } from '../log.ts';
import type { Lease, Pool } from './pool.ts';
import { describeBug, Problem, toProblem, type ProblemCode } from '../problem.ts';
import type { SessionRecord, Sessions } from './sessions.ts';
import type { Worker } from '../cli/worker.ts';

/** One prompt of one end user, already validated. */
export interface ChatRequest {
  readonly prompt: string;
  readonly userId: number;
  /** Absent for a new dialogue. */
  readonly sessionId?: string | undefined;
}

/** What the caller gets for a turn that went well. */
export interface ChatAnswer {
  readonly content: string;
  readonly sessionId: string;
  /** US dollars of this turn alone. */
  readonly costUsd: number;
  /** The whole turn as the caller felt it, waiting included. */
  readonly durationMs: number;
}

/** What is told of a turn while it goes on: that it has a process, and then what the CLI says. */
export type ChatEvent = { readonly type: 'admitted'; readonly origin: Lease<Worker>['origin'] } | TurnEvent;

interface ChatOptions {
  readonly pool: Pick<Pool<Worker>, 'acquire' | 'retireAll'>;
  readonly sessions: Sessions;
  readonly turnTimeoutMs: number;
  /** Throws Problem `storage_unavailable` when a turn could not be kept. */
  readonly checkStorage: () => void;
  /** Counts a turn of this user until it is given back; throws Problem `rate_limited` when it is one too many. */
  readonly takeTurn: (userId: number) => () => void;
  /** Aborts, with a Problem as its reason, when running turns must end because the server does. */
  readonly closing: AbortSignal;
  /** Hears of every turn asked for, once, when it is over: what it failed with, or undefined for an answer. */
  readonly onTurnEnd: (problem: Problem | undefined) => void;
  readonly log: Log;
}

/** Turns as the HTTP side knows them. */
export interface Chat {
  /**
   * Runs one turn to its end. `onEvent` hears of the session once its owner is on record, then of text and tools.
   * Throws a Problem, with session id, cost and duration wherever the CLI had named its session. On abort a waiting
   * turn is dropped and a running one interrupted, and the Problem is the signal's reason.
   */
  run(request: ChatRequest, signal: AbortSignal, onEvent: (event: ChatEvent) => void): Promise<ChatAnswer>;
}

/** Turns over the pool's processes: whose session it is, how long a turn may take, what it cost. */
export function createChat({ pool, sessions, turnTimeoutMs, checkStorage, takeTurn, closing, onTurnEnd, log }: ChatOptions): Chat {
  return {
    run(request, signal, onEvent) {
      const turn = answer(request, signal, onEvent);
      turn.then(() => onTurnEnd(undefined), (error: unknown) => onTurnEnd(toProblem(error)));
      return turn;
    },
  };

  async function answer(request: ChatRequest, signal: AbortSignal, onEvent: (event: ChatEvent) => void): Promise<ChatAnswer> {
    const startedAt = performance.now();
    try {
      checkStorage();
    } catch (error) {
      // When the folders come back, they may be others than those the processes work in.
      pool.retireAll();
      throw error;
    }
    const record = await ownRecord(request);
    const giveBack = takeTurn(request.userId);
    const lease = await pool.acquire(request.userId, request.sessionId, signal).catch((error: unknown) => {
      giveBack();
      throw error;
    });
    let end: TurnEnd | undefined;
    try {
      onEvent({ type: 'admitted', origin: lease.origin });
      end = await runTurn(lease, request, record, signal, onEvent);
      // A process that died while it was idle never heard the prompt; the caller need not know.
      if (lease.origin !== 'cold' && !end.wasHeard && problemCodeOf(end) === 'claude_failed') {
        await lease.renew();
        end = await runTurn(lease, request, record, signal, onEvent);
      }
    } finally {
      // The session's next turn may need what is kept here; this answer need not wait for it.
      void keep(request, end).finally(() => lease.release());
    }
    return answerOf(request, end, Math.round(performance.now() - startedAt));
  }

  async function ownRecord({ sessionId, userId }: ChatRequest): Promise<SessionRecord | undefined> {
    if (sessionId === undefined) return undefined;
    const record = await sessions.find(sessionId);
    if (record?.userId !== userId) throw sessionNotFound();
    // Before the turn: a record that is about to be too old must not be swept away during it.
    sessions.touch(sessionId);
    return record;
  }

  async function runTurn(
    lease: Lease<Worker>,
    request: ChatRequest,
    record: SessionRecord | undefined,
    signal: AbortSignal,
    onEvent: (event: ChatEvent) => void,
  ): Promise<TurnEnd> {
    const limit = new AbortController();
    const timer = setTimeout(() => limit.abort(tookTooLong()), turnTimeoutMs);
    let told = Promise.resolve();
    const tell = (event: TurnEvent): void => {
      if (event.type === 'session' && record === undefined) {
        lease.bind(event.sessionId);
        // Nobody hears of a session before its owner is on disk: a crash must not leave an id that is nobody's.
        told = sessions.add(event.sessionId, { userId: request.userId, totalCostUsd: 0 }).catch((cause: unknown) => {
          throw storageUnavailable(cause);
        });
      }
      told = told.then(() => onEvent(event));
      told.catch((error: unknown) => limit.abort(error));
    };
    // Not AbortSignal.any: it leaves something behind on a signal that lives as long as the server does.
    const forward = (): void => limit.abort(signal.aborted ? signal.reason : closing.reason);
    for (const source of [signal, closing]) source.addEventListener('abort', forward);
    if (signal.aborted || closing.aborted) forward();
    try {
      const end = await lease.worker.turn(request.prompt, limit.signal, tell);
      // An answer whose session nobody may continue is none: without its record the turn has failed.
      const isRecorded = await told.then(() => true, () => false);
      if (problemCodeOf(end) === 'claude_not_authenticated') pool.retireAll();
      const outcome = limit.signal.aborted ? { problem: toProblem(limit.signal.reason) } : end.outcome;
      if (!isRecorded) return { ...end, sessionId: undefined, outcome };
      return 'content' in end.outcome ? end : { ...end, outcome };
    } finally {
      clearTimeout(timer);
      for (const source of [signal, closing]) source.removeEventListener('abort', forward);
    }
  }

  /** Keeps the session's total where its next turn needs it. */
  async function keep({ userId, sessionId: asked }: ChatRequest, end: TurnEnd | undefined): Promise<void> {
    const { sessionId = asked, totalCostUsd } = end ?? {};
    if (sessionId === undefined || totalCostUsd === undefined) return;
    await sessions.update(sessionId, { userId, totalCostUsd }).catch((error: unknown) => {
      log('error', 'record_not_kept', { session: sessionId, message: 'the next turn may tell too high a cost', cause: describeBug(storageUnavailable(error).extras.cause) });
    });
  }
}

function answerOf(request: ChatRequest, end: TurnEnd, durationMs: number): ChatAnswer {
  const { costUsd, outcome } = end;
  const sessionId = request.sessionId ?? end.sessionId;
  if ('problem' in outcome) {
    // An id that is not to be told apart from an unknown one must not come back with extras.
    if (sessionId === undefined || outcome.problem.code === 'session_not_found') throw outcome.problem;
    throw outcome.problem.with({ sessionId, costUsd, durationMs });
  }
  if (sessionId === undefined) throw new Problem('claude_failed', 'The Claude CLI named no session; try again.');
  return { content: outcome.content, sessionId, costUsd, durationMs };
}

function problemCodeOf({ outcome }: TurnEnd): ProblemCode | undefined {
  return 'problem' in outcome ? outcome.problem.code : undefined;
}

function tookTooLong(): Problem {
  return new Problem('claude_timeout', 'Claude took longer than CLAUDE_TIMEOUT_SECONDS allows; the turn was stopped, and the session_id, where given, can go on.');
}
