import type { Given } from './boxes.ts';
import { Deltas } from './deltas.ts';
import { claudeRateLimited, problemOf, problemOfEnd, type ApiTrouble, type ExitStatus } from './outcome.ts';
import type { Problem } from '../problem.ts';
import { claudeTooOld, isTooOld } from './program.ts';
import type { CliEvent, CliResult } from './protocol.ts';

/** What a turn tells while it runs. */
export type TurnEvent =
  | { readonly type: 'session'; readonly sessionId: string }
  | { readonly type: 'delta'; readonly text: string }
  | { readonly type: 'tool'; readonly name: string };

/** How a turn ended: with an answer or a problem, and what it cost either way. */
export interface TurnEnd {
  /** Whether the CLI took the prompt up; when not, it can be sent again without being said twice. */
  readonly wasHeard: boolean;
  readonly costUsd: number;
  readonly outcome: { readonly content: string; readonly given?: Given | undefined } | { readonly problem: Problem };
}

interface Turn {
  readonly settle: (end: TurnEnd) => void;
  readonly onEvent: (event: TurnEvent) => void;
  readonly deltas: Deltas;
  readonly trouble: ApiTrouble;
  wasHeard: boolean;
  /** How much its caller has been told. */
  toldLength: number;
  /** Why it was ended before its result, which then only brings what it cost. */
  givenUp?: Problem;
}

// The CLI waits out Anthropic's retry-after, twice, with the caller in the dark; a longer wait is the caller's to decide.
const maxRateLimitWaitMs = 5000;

// No turn costs that much; what tells more would spoil every sum it goes into.
const maxCostUsd = 1000;

// Until its end all of it may stand in memory. No turn says so much; a program that speaks in the CLI's place has no end.
const maxToldLength = 32 * 1024 * 1024;

/**
 * What one CLI process says, understood: the turn that goes on, and how it ends. The session is the server's choice; what
 * the CLI says of it and of costs is checked, since an end user may speak through it.
 */
export class Dialogue {
  readonly #sessionId: string;
  readonly #isSandboxed: boolean;
  readonly #onGivenUp: () => void;
  #turn: Turn | undefined;
  #hasBegun = false;
  #isSound = true;

  /**
   * `isSandboxed`: an end user may speak in the CLI's place, so that what concerns everybody is not taken from it.
   * `onGivenUp` is called when a turn is not worth its wait.
   */
  constructor(sessionId: string, isSandboxed: boolean, onGivenUp: () => void) {
    this.#sessionId = sessionId;
    this.#isSandboxed = isSandboxed;
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
      this.#turn = { settle, onEvent, deltas: new Deltas(), trouble: {}, wasHeard: false, toldLength: 0 };
    });
  }

  /** Takes what the CLI says next. Throws when it names another session than its own, or a cost that cannot be, or goes on without end. */
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
        this.#tell(turn, { type: 'tool', name: event.name });
        return;
      case 'api_error':
        turn.trouble.errorClass = event.errorClass;
        return;
      case 'api_retry':
        turn.trouble.lastRetry = event;
        if (event.status === 429 && event.delayMs > maxRateLimitWaitMs) {
          this.giveUp(claudeRateLimited(event.delayMs));
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
        if (text !== '') this.#tell(turn, { type: 'delta', text });
      }
    }
  }

  /** Has the turn that goes on end with this problem, whatever the CLI still says. */
  giveUp(problem: Problem): void {
    if (this.#turn === undefined) return;
    this.#turn.givenUp ??= problem;
    this.#onGivenUp();
  }

  /**
   * Ends the turn that will get no result line, if there is one; no other may begin. `cause` is for the log;
   * `sandboxProblem`: why there was no CLI at all.
   */
  fail(exit: ExitStatus | undefined, cause: string | undefined, sandboxProblem?: Problem): void {
    this.#isSound = false;
    const problem = this.#turn?.givenUp ?? sandboxProblem ?? problemOfEnd(exit, this.#hasBegun || this.#isSandboxed);
    this.#settle({ costUsd: 0, outcome: { problem: problem.with({ cause }) } });
  }

  /** Whether the prompt was heard cannot be told: it must not be said again to another process. */
  doubt(): void {
    if (this.#turn !== undefined) this.#turn.wasHeard = true;
  }

  #onInit(turn: Turn, sessionId: string, version: string): void {
    this.#requireOwn(sessionId);
    this.#hasBegun = true;
    turn.wasHeard = true;
    if (!this.#isSandboxed && isTooOld(version)) this.giveUp(claudeTooOld(version));
    this.#tell(turn, { type: 'session', sessionId });
  }

  #tell(turn: Turn, event: TurnEvent): void {
    // Texts may be joined while they wait; of the others each is an object.
    turn.toldLength += event.type === 'delta' ? event.text.length : JSON.stringify(event).length;
    if (turn.toldLength > maxToldLength) throw new Error('more than a turn says');
    turn.onEvent(event);
  }

  #onResult(turn: Turn, result: CliResult): void {
    if (!turn.wasHeard && this.#hasBegun) {
      // Each turn begins with an init line (fact 5); before ours, a result belongs to a turn nobody asked for.
      this.#isSound = false;
      return;
    }
    this.#requireOwn(result.sessionId);
    if (!(result.costUsd >= 0 && result.costUsd <= maxCostUsd)) throw new Error('not a cost');
    const problem = turn.givenUp ?? problemOf(result, turn.trouble, Date.now() / 1000);
    if (problem !== undefined) this.#isSound = false;
    this.#settle({ costUsd: result.costUsd, outcome: problem === undefined ? { content: result.text ?? '' } : { problem } });
  }

  #requireOwn(sessionId: string): void {
    if (sessionId !== this.#sessionId) throw new Error('not the session it was started for');
  }

  #settle(end: Omit<TurnEnd, 'wasHeard'>): void {
    const turn = this.#turn;
    this.#turn = undefined;
    turn?.settle({ wasHeard: turn.wasHeard, ...end });
  }
}
