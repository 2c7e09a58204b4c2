/** What the caller hears, as `status code`, and what the CLI does to bring it about. */
const outcomes: Readonly<Record<string, readonly string[]>> = {
  '200': [
    'slow 50', 'tool', 'stream 200', 'huge 300000', 'crlf', 'noise', 'u2028', 'split-utf8', 'flood-stderr', 'die-idle', 'unasked', 'exit-1', 'retry', 'empty', 'denied', 'forget', 'stubborn',
  ],
  '422 max_turns_reached': ['max-turns'],
  '422 prompt_too_long': ['api long', 'api 413'],
  '429 claude_rate_limited': ['api 429', 'api session', 'limit 30', 'wait-429 60'],
  '502 claude_failed': ['crash', 'killed', 'killed SIGSEGV', 'killed SIGTERM', 'garbage', 'silent', 'truncated', 'partial', 'no-result', 'interrupted'],
  '502 claude_api_error': ['budget', 'api 400', 'api 404', 'api 500', 'api refused', 'api reset', 'api timeout', 'api refusal', 'api credit'],
  '503 claude_not_authenticated': ['api 401', 'api 403', 'api revoked', 'api no-login'],
  '503 claude_overloaded': ['api 529'],
  // These do not end by themselves: their callers leave.
  left: ['hang', 'deaf', 'blind', 'quiet-end', 'grandchild', 'clean-child'],
};

/** How a turn with the prompt `play SCENARIO` ends. */
export const outcomeOf: ReadonlyMap<string, string> = new Map(Object.entries(outcomes).flatMap(([outcome, scenarios]) => scenarios.map((scenario) => [scenario, outcome] as const)));
export const faults: readonly string[] = [...outcomeOf.keys()];
