import type { Given } from '../cli/boxes.ts';
import type { TurnEnd, TurnEvent } from '../cli/dialogue.ts';
import type { Message } from '../cli/protocol.ts';
import type { Worker } from '../cli/worker.ts';
import { Problem, toProblem, type ProblemCode } from '../problem.ts';
import type { DiskLimit } from './disk.ts';
import type { TurnStart } from './figures.ts';
import type { KeyedTurns, Replayed, RequestKey } from './keyed.ts';
import { Listeners } from './listeners.ts';
import type { Lease, Pool } from './pool.ts';

/** One prompt of one end user, already validated. */
export interface ChatRequest extends Message {
  readonly userId: number;
  /** Absent for a new dialogue. */
  readonly sessionId?: string | undefined;
  /** Absent where a retry would be a turn of its own. */
  readonly retryKey?: RequestKey | undefined;
}

/** What the caller gets for a turn that went well. */
export interface ChatAnswer {
  readonly content: string;
  /** What Claude gave besides. */
  readonly given?: Given | undefined;
  readonly sessionId: string;
  /** US dollars of this turn alone. */
  readonly costUsd: number;
  /** The whole turn as the caller felt it, waiting included. */
  readonly durationMs: number;
}

type TurnProgress = { readonly type: 'admitted'; readonly origin: Lease<Worker>['origin'] } | TurnEvent;

/** What is told of a turn while it goes on: whose it is, that it has a process, and then what the CLI says. */
export type ChatEvent = Replayed | TurnProgress;

/** The turns with a key. */
export type KeyedChats = KeyedTurns<ChatAnswer, TurnProgress>;

interface ChatOptions {
  readonly pool: Pick<Pool<Worker>, 'acquire' | 'retireAll'>;
  /** Whether this user has such a session on disk, so that it can be continued. */
  readonly hasSession: (userId: number, sessionId: string) => boolean;
  readonly turnTimeoutMs: number;
  /** Throws Problem `storage_unavailable` when a turn could not be kept. */
  readonly checkStorage: () => void;
  /** Counts a turn of this user until it is given back; throws Problem `rate_limited` when it is one too many. */
  readonly takeTurn: (userId: number) => () => void;
  readonly keyed: KeyedChats;
  readonly disk: DiskLimit;
  /** Aborts, with a Problem as its reason, when running turns must end because the server does. */
  readonly closing: AbortSignal;
  /** Hears of every turn that has its process: how it came by it, and how long it waited. */
  readonly onAdmitted: (start: TurnStart, waitedMs: number) => void;
  /** Hears of every turn asked for, once, when it is over: what it failed with, or undefined for an answer. */
  readonly onTurnEnd: (problem: Problem | undefined, durationMs: number) => void;
}

/** Turns as the HTTP side knows them. */
export interface Chat {
  /**
   * Runs one turn to its end. `onEvent` hears of the process, the session, text and tools. Throws a Problem, with cost and
   * duration wherever Claude had begun, and the session id where it can be continued. On abort a waiting turn is dropped
   * and a running one interrupted, and the Problem is the signal's reason; one with a key goes on (`KeyedTurns.run`).
   */
  run(request: ChatRequest, signal: AbortSignal, onEvent: (event: ChatEvent) => void): Promise<ChatAnswer>;
  /** The users who have a turn under way, waiting ones included; each once. */
  users(): readonly number[];
}

/** Turns over the pool's processes: how long one may take, and what becomes of its end. */
export function createChat(options: ChatOptions): Chat {
  const { pool, hasSession, turnTimeoutMs, checkStorage, takeTurn, keyed, disk, closing, onAdmitted, onTurnEnd } = options;
  const underWay = new Set<ChatRequest>();
  return {
    run(request, signal, onEvent) {
      const { userId, retryKey } = request;
      const start = (listeners: Listeners<TurnProgress>): Promise<ChatAnswer> => {
        const startedAt = performance.now();
        underWay.add(request);
        const turn = answer(request, listeners).finally(() => underWay.delete(request));
        const end = (problem?: Problem): void => onTurnEnd(problem, performance.now() - startedAt);
        turn.then(() => end(), (error: unknown) => end(toProblem(error)));
        return turn;
      };
      const listener = { signal, onEvent };
      return retryKey === undefined ? start(new Listeners(listener)) : keyed.run(userId, retryKey, listener, start);
    },
    users: () => [...new Set([...underWay].map(({ userId }) => userId))],
  };

  async function answer(request: ChatRequest, listeners: Listeners<TurnProgress>): Promise<ChatAnswer> {
    const startedAt = performance.now();
    requireStorage();
    const giveBack = takeTurn(request.userId);
    const { lease, message } = await admit(request, listeners.signal).catch((error: unknown) => {
      giveBack();
      throw error;
    });
    const start = lease.origin === 'cold' && request.sessionId !== undefined ? 'resumed' : lease.origin;
    onAdmitted(start, performance.now() - startedAt);
    const limit = limitTurn(turnTimeoutMs, [listeners.signal, closing]);
    const endWatch = disk.begin(request.userId, limit.abort);
    const tell = (event: TurnProgress): void => {
      try {
        listeners.tell(event);
      } catch (error) {
        limit.abort(error);
      }
    };
    try {
      tell({ type: 'admitted', origin: lease.origin });
      let end = await runTurn(lease, message, limit.signal, tell);
      // A process that died while it was idle never heard the prompt; the caller need not know.
      if (lease.origin !== 'cold' && !end.wasHeard && problemCodeOf(end) === 'claude_failed') {
        await lease.renew();
        end = await runTurn(lease, message, limit.signal, tell);
      }
      return answerOf(request, lease.sessionId, end, Math.round(performance.now() - startedAt));
    } finally {
      limit.end();
      endWatch();
      lease.release();
    }
  }

  /** What a turn needs to begin: a process, and the message with what the server has to say. */
  async function admit(request: ChatRequest, signal: AbortSignal): Promise<{ lease: Lease<Worker>; message: Message }> {
    const { userId, sessionId, prompt, files } = request;
    const note = await disk.admit(userId);
    const lease = await pool.acquire(userId, sessionId, signal);
    return { lease, message: { prompt: note === undefined ? prompt : `${prompt}\n\n${note}`, files } };
  }

  function requireStorage(): void {
    try {
      checkStorage();
    } catch (error) {
      // When the folders come back, they may be others than those the processes work in.
      pool.retireAll();
      throw error;
    }
  }

  async function runTurn(lease: Lease<Worker>, message: Message, signal: AbortSignal, tell: (event: TurnEvent) => void): Promise<TurnEnd> {
    const end = await lease.worker.turn(message, signal, tell);
    if (problemCodeOf(end) === 'claude_not_authenticated' && lease.worker.hasOwnLogin) pool.retireAll();
    if ('content' in end.outcome || !signal.aborted) return end;
    return { ...end, outcome: { problem: toProblem(signal.reason) } };
  }

  function answerOf({ userId, sessionId: asked }: ChatRequest, sessionId: string, end: TurnEnd, durationMs: number): ChatAnswer {
    const { costUsd, outcome, wasHeard } = end;
    if ('content' in outcome) return { ...outcome, sessionId, costUsd, durationMs };
    // An id that is not to be told apart from an unknown one must not come back with extras.
    if (outcome.problem.code === 'session_not_found' || (asked === undefined && !wasHeard)) throw outcome.problem;
    throw outcome.problem.with({ sessionId: hasSession(userId, sessionId) ? sessionId : undefined, costUsd, durationMs });
  }
}

/** A signal for one turn: aborts with a source's reason, or with Problem `claude_timeout` when the time is over. */
function limitTurn(timeoutMs: number, sources: readonly AbortSignal[]): { signal: AbortSignal; abort(reason: unknown): void; end(): void } {
  const limit = new AbortController();
  const abort = (reason: unknown): void => limit.abort(reason);
  const timer = setTimeout(() => abort(tookTooLong()), timeoutMs);
  // Not AbortSignal.any: on Node 20 it leaves something behind on a signal that lives as long as the server does.
  const forward = (): void => abort(sources.find((source) => source.aborted)?.reason);
  for (const source of sources) source.addEventListener('abort', forward);
  if (sources.some((source) => source.aborted)) forward();
  return {
    signal: limit.signal,
    abort,
    end() {
      clearTimeout(timer);
      for (const source of sources) source.removeEventListener('abort', forward);
    },
  };
}

function problemCodeOf({ outcome }: TurnEnd): ProblemCode | undefined {
  return 'problem' in outcome ? outcome.problem.code : undefined;
}

function tookTooLong(): Problem {
  const allowed = 'Claude took longer than CLAUDE_TIMEOUT_SECONDS allows';
  return new Problem('claude_timeout', `${allowed}; the turn was stopped, and the session_id, where given, can go on.`);
}
