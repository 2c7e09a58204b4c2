import type { Fields } from '../log.ts';
import { addTokens, noTokens, type Tokens } from './usage.ts';

/** What one turn may ask of the API, and who hears of it. */
export interface TurnLimits {
  /** Requests in the whole turn, refused ones included. */
  readonly maxRequests: number;
  /** Asked before each request; false = the user has had the tokens of the day. */
  readonly hasTokensLeft?: () => boolean;
  /** Told the tokens of each request when it has ended. */
  readonly onTokens?: (tokens: Tokens) => void;
  /** What a line of the log says of the turn: its request, its user. */
  readonly logFields?: Fields;
  /** Called once, when so much was refused that nobody honest can be behind it: the turn must end. */
  readonly onTooManyRefusals: () => void;
}

/** Why the API, or the way to it, failed one request. */
interface ApiFailure {
  /** The API's own status; 200 for an error in the midst of a stream; undefined where no answer came. */
  readonly status: number | undefined;
  /** The API's own word, such as `overloaded_error`, or `connection_error`; undefined where it gave none. */
  readonly type: string | undefined;
  /** From `retry-after`, whole seconds. */
  readonly retryAfterSeconds: number | undefined;
}

/** What a turn did. */
export interface TurnReport {
  readonly tokens: Tokens;
  readonly requests: number;
  readonly refusals: number;
  /** The last request that failed, whatever came after it. */
  readonly lastFailure: ApiFailure | undefined;
  /** Whether a request was turned away because `hasTokensLeft` said no. */
  readonly isOutOfTokens: boolean;
}

const maxRefusals = 20;

/** One turn as the proxy sees it: what it may do and what it did. */
export class ApiTurn {
  readonly #limits: TurnLimits;
  readonly #end = new AbortController();
  #tokens = noTokens;
  #requests = 0;
  #refusals = 0;
  #lastFailure: ApiFailure | undefined;
  #isOutOfTokens = false;

  constructor(limits: TurnLimits) {
    this.#limits = limits;
  }

  get logFields(): Fields | undefined {
    return this.#limits.logFields;
  }

  /** Aborted when the turn is over. */
  get ended(): AbortSignal {
    return this.#end.signal;
  }

  /** Counts a request; false for one too many. */
  countRequest(): boolean {
    this.#requests += 1;
    return this.#requests <= this.#limits.maxRequests;
  }

  countRefusal(): void {
    this.#refusals += 1;
    if (this.#refusals === maxRefusals) this.#limits.onTooManyRefusals();
  }

  /** Whether nothing of this turn is looked at any more; its owner has been told to end it. */
  get isSpoilt(): boolean {
    return this.#refusals >= maxRefusals;
  }

  hasTokensLeft(): boolean {
    const hasLeft = this.#limits.hasTokensLeft?.() ?? true;
    this.#isOutOfTokens ||= !hasLeft;
    return hasLeft;
  }

  addTokens(tokens: Tokens): void {
    this.#tokens = addTokens(this.#tokens, tokens);
    this.#limits.onTokens?.(tokens);
  }

  fail(failure: ApiFailure): void {
    this.#lastFailure = failure;
  }

  /** Ends what the turn still has open, and tells what it did. */
  end(): TurnReport {
    this.#end.abort(new Error('the turn is over'));
    return {
      tokens: this.#tokens,
      requests: this.#requests,
      refusals: this.#refusals,
      lastFailure: this.#lastFailure,
      isOutOfTokens: this.#isOutOfTokens,
    };
  }
}
