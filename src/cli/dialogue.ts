import { Deltas } from './deltas.ts';
import { claudeRateLimited, problemOf, problemOfEnd, type ApiTrouble, type ExitStatus } from './outcome.ts';
import type { Problem } from '../problem.ts';
import { carriesCostOver, costOfTurn, type CliEvent, type CliResult } from './protocol.ts';
import { sessionIdPattern } from '../turns/sessions.ts';

/** What a turn tells while it runs. */
export type TurnEvent =
  | { readonly type: 'session'; readonly sessionId: string }
  | { readonly type: 'delta'; readonly text: string }
  | { readonly type: 'tool'; readonly name: string };

/** How a turn ended: with an answer or a problem, and what it cost either way. */
export interface TurnEnd {
  readonly sessionId: string | undefined;
  /** Whether the CLI took the prompt up; when not, it can be sent again without being said twice. */
  readonly wasHeard: boolean;
  readonly costUsd: number;
  /** The CLI's running total, where a process that resumes the session goes on from it and its turns do not name their own cost. */
  readonly totalCostUsd: number | undefined;
  readonly outcome: { readonly content: string } | { readonly problem: Problem };
}

interface Turn {
  readonly settle: (end: TurnEnd) => void;
  readonly onEvent: (event: TurnEvent) => void;
  readonly deltas: Deltas;
  readonly trouble: ApiTrouble;
  wasHeard: boolean;
  /** Why it was ended before its result, which then only brings what it cost. */
  givenUp?: Problem;
}

// The CLI waits out Anthropic's retry-after, twice, with the caller in the dark; a longer wait is the caller's to decide.
const maxRateLimitWaitMs = 5000;

/** What one CLI process says, understood: its session, its running total of costs, and the turn that goes on. */
export class Dialogue {
  readonly #resumedTotalUsd: number;
  readonly #onGivenUp: () => void;
  #turn: Turn | undefined;
  #totalCostUsd: number | undefined;
  #sessionId: string | undefined;
  #version = '';
  #isSound = true;

  /** `resumedTotalUsd`: the total the session had before. `onGivenUp` is called when a turn is not worth its wait. */
  constructor(resumedTotalUsd: number, onGivenUp: () => void) {
    this.#resumedTotalUsd = resumedTotalUsd;
    this.#onGivenUp = onGivenUp;
  }

  /** Whether another turn may begin: none goes on, and nothing went wrong so far. */
  get isReady(): boolean {
    return this.#isSound && this.#turn === undefined;
  }

  /** The turn whose prompt is sent next: resolves with its end, never rejects. Throws when one goes on already. */
  begin(onEvent: (event: TurnEvent) => void): Promise<TurnEnd> {
    if (this.#turn !== undefined) throw new Error('one turn at a time');
    return new Promise((settle) => {
      this.#turn = { settle, onEvent, deltas: new Deltas(), trouble: {}, wasHeard: false };
    });
  }

  /** Takes what the CLI says next. Throws when it names a session by what is no id. */
  hear(event: CliEvent): void {
    const turn = this.#turn;
    if (turn === undefined) {
      // A turn nobody asked for (a background task's, say) must not be taken for the next one.
      if (event.type === 'init' || event.type === 'result') this.#isSound = false;
      return;
    }
    switch (event.type) {
      case 'init':
        this.#onInit(turn, event.sessionId, event.version);
        return;
      case 'tool':
        turn.onEvent({ type: 'tool', name: event.name });
        return;
      case 'api_error':
        turn.trouble.errorClass = event.errorClass;
        return;
      case 'api_retry':
        turn.trouble.lastRetry = event;
        if (event.status === 429 && event.delayMs > maxRateLimitWaitMs) {
          turn.givenUp ??= claudeRateLimited(event.delayMs);
          this.#onGivenUp();
        }
        return;
      case 'limit_reached':
        turn.trouble.resetsAtSeconds = event.resetsAtSeconds;
        return;
      case 'result':
        this.#onResult(turn, event);
        return;
      default: {
        // Claude speaks again: what was tried again is over, and not the cause of what may still fail.
        if (event.type === 'message_start') delete turn.trouble.lastRetry;
        const text = turn.deltas.push(event);
        if (text !== '') turn.onEvent({ type: 'delta', text });
      }
    }
  }

  /** Ends the turn that will get no result line, if there is one; no other may begin. `cause` is for the log. */
  fail(exit: ExitStatus | undefined, cause: string | undefined): void {
    this.#isSound = false;
    const problem = this.#turn?.givenUp ?? problemOfEnd(exit, this.#sessionId !== undefined);
    this.#settle({ costUsd: 0, totalCostUsd: undefined, outcome: { problem: problem.with({ cause }) } });
  }

  #onInit(turn: Turn, sessionId: string, version: string): void {
    if (!sessionIdPattern.test(sessionId)) throw new Error('not a session id');
    this.#version = version;
    this.#sessionId = sessionId;
    turn.wasHeard = true;
    turn.onEvent({ type: 'session', sessionId });
  }

  #onResult(turn: Turn, result: CliResult): void {
    if (!turn.wasHeard && this.#totalCostUsd !== undefined) {
      // Each turn begins with an init line (measured); before ours, a result belongs to a turn nobody asked for.
      this.#isSound = false;
      return;
    }
    const isCarriedOver = carriesCostOver(this.#version);
    const startedFromUsd = this.#totalCostUsd ?? (isCarriedOver ? this.#resumedTotalUsd : 0);
    const problem = turn.givenUp ?? problemOf(result, turn.trouble, Date.now() / 1000);
    this.#totalCostUsd = result.totalCostUsd;
    if (problem !== undefined) this.#isSound = false;
    this.#settle({
      costUsd: costOfTurn(result, startedFromUsd),
      totalCostUsd: isCarriedOver && result.turnCostUsd === undefined ? result.totalCostUsd : undefined,
      outcome: problem === undefined ? { content: result.text ?? '' } : { problem },
    });
  }

  #settle(end: Omit<TurnEnd, 'sessionId' | 'wasHeard'>): void {
    const turn = this.#turn;
    this.#turn = undefined;
    turn?.settle({ sessionId: this.#sessionId, wasHeard: turn.wasHeard, ...end });
  }
}
