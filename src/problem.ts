/** Every failure a caller can meet: its HTTP status and title. The set is closed; docs/api.md explains each code. */
const kinds = {
  malformed_request: [400, 'The request is not valid HTTP'],
  malformed_json: [400, 'The body is not a JSON object'],
  missing_api_key: [401, 'An API key is required'],
  invalid_api_key: [401, 'The API key is wrong'],
  not_found: [404, 'There is nothing at this address'],
  session_not_found: [404, 'The session does not exist'],
  method_not_allowed: [405, 'The method is not allowed here'],
  request_timeout: [408, 'The request did not arrive in time'],
  body_too_large: [413, 'The body is too large'],
  unsupported_media_type: [415, 'The body must be JSON'],
  invalid_request: [422, 'The request has invalid fields'],
  idempotency_conflict: [422, 'The idempotency key belongs to another request'],
  max_turns_reached: [422, 'Claude reached CLAUDE_MAX_TURNS'],
  prompt_too_long: [422, 'The prompt is too long'],
  rate_limited: [429, 'Too many requests from this user'],
  claude_rate_limited: [429, 'Anthropic is rate-limiting this account'],
  headers_too_large: [431, 'The request headers are too large'],
  internal_error: [500, 'The server failed'],
  claude_failed: [502, 'The Claude CLI failed'],
  claude_api_error: [502, 'Anthropic refused the request'],
  busy: [503, 'The server is busy'],
  shutting_down: [503, 'The server is stopping'],
  claude_not_found: [503, 'The Claude CLI cannot be run'],
  claude_too_old: [503, 'The Claude CLI is too old'],
  claude_not_authenticated: [503, 'The Claude CLI is not logged in'],
  sandbox_unavailable: [503, 'The sandbox could not be made'],
  storage_unavailable: [503, 'The server cannot store dialogues'],
  claude_overloaded: [503, 'Anthropic is overloaded'],
  claude_timeout: [504, 'Claude took too long'],
  user_storage_full: [507, "This user's folder is full"],
} as const satisfies Record<string, readonly [status: number, title: string]>;

/** One of the closed set of failures; clients branch on it. */
export type ProblemCode = keyof typeof kinds;

/** All codes, for tests that compare them with the documentation. */
export const problemCodes = Object.keys(kinds) as readonly ProblemCode[];

/** What a problem may carry besides its code and sentence. */
interface ProblemExtras {
  readonly sessionId?: string | undefined;
  /** US dollars this turn cost all the same. */
  readonly costUsd?: number | undefined;
  readonly durationMs?: number | undefined;
  /** What is wrong with each field of the request. */
  readonly errors?: ReadonlyArray<{ field: string; detail: string }> | undefined;
  readonly retryAfterSeconds?: number | undefined;
  /** The bug behind an `internal_error`, or the CLI's own last words: for the log only, never in an answer. */
  readonly cause?: unknown;
}

/** A failure meant for the caller. `detail` is a sentence that says what to do, free of secrets, paths and prompts. */
export class Problem extends Error {
  readonly code: ProblemCode;
  readonly extras: ProblemExtras;

  constructor(code: ProblemCode, detail: string, extras: ProblemExtras = {}) {
    super(detail, { cause: extras.cause });
    this.name = 'Problem';
    this.code = code;
    this.extras = extras;
  }

  /** The same problem with more said about it. */
  with(extras: ProblemExtras): Problem {
    return new Problem(this.code, this.message, { ...this.extras, ...extras });
  }

  get status(): number {
    return kinds[this.code][0];
  }
}

/** Any thrown value as a Problem: itself, or an `internal_error` that keeps it as the cause for the log. */
export function toProblem(error: unknown): Problem {
  if (error instanceof Problem) return error;
  return new Problem('internal_error', 'Something went wrong inside the server; its log names the request id.', { cause: error });
}

/** The `application/problem+json` members of a problem (RFC 9457), ready for JSON. */
export function problemBody(problem: Problem): Record<string, unknown> {
  const { sessionId, costUsd, durationMs, errors, retryAfterSeconds } = problem.extras;
  return {
    type: `urn:claude-api:problem:${problem.code}`,
    title: kinds[problem.code][1],
    status: problem.status,
    detail: problem.message,
    code: problem.code,
    ...(sessionId !== undefined && { session_id: sessionId }),
    ...(costUsd !== undefined && { cost: costUsd }),
    ...(durationMs !== undefined && { duration_ms: durationMs }),
    ...(errors !== undefined && { errors }),
    ...(retryAfterSeconds !== undefined && { retry_after_seconds: retryAfterSeconds }),
  };
}

/** The headers a problem's status asks for: how to authenticate, when to come back, whether the connection ends. */
export function problemHeaders(problem: Problem): Record<string, string> {
  return {
    ...(problem.status === 401 && { 'WWW-Authenticate': 'Bearer' }),
    ...(problem.extras.retryAfterSeconds !== undefined && { 'Retry-After': String(problem.extras.retryAfterSeconds) }),
    ...(problem.code === 'shutting_down' && { Connection: 'close' }),
  };
}

/** The code of a system error, such as ENOENT; undefined for any other thrown value. */
export function errorCode(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error ? String(error.code) : undefined;
}

/** What a thrown value says of itself, fit for the log: its kind and message, cut short, without stack and paths. */
export function describeBug(error: unknown): string | undefined {
  return error === undefined ? undefined : String(error).replace(/\/[^\s'":]+/g, '<path>').slice(0, 300);
}

/** The problem of whatever comes, or waits, while the server stops. */
export function shuttingDown(detail = 'The server is stopping; try again in a while.'): Problem {
  return new Problem('shutting_down', detail, { retryAfterSeconds: 10 });
}
