import type { IncomingHttpHeaders, IncomingMessage } from 'node:http';

/** One of the two things a sandbox may ask of the API. Only `messages` costs tokens. */
export type Target = 'messages' | 'count_tokens';

// Whole request lines, compared as they stand: absolute forms, dots, encodings and other queries match none of them.
const targets: ReadonlyMap<string, Target> = new Map([
  ['POST /v1/messages?beta=true', 'messages'],
  ['POST /v1/messages', 'messages'],
  ['POST /v1/messages/count_tokens?beta=true', 'count_tokens'],
  ['POST /v1/messages/count_tokens', 'count_tokens'],
]);

/** The path the proxy sends for each target: its own words, never the client's. */
export const pathOf: Readonly<Record<Target, string>> = {
  messages: '/v1/messages?beta=true',
  count_tokens: '/v1/messages/count_tokens?beta=true',
};

/** What this request line asks for; undefined for anything that is not on the list. */
export function targetOf({ method, url }: Pick<IncomingMessage, 'method' | 'url'>): Target | undefined {
  return targets.get(`${method} ${url}`);
}

// What the CLI sends (fact 44). Both login headers, cookies and what belongs to one hop are not among them; lengths and
// encodings are the proxy's own.
const headerNames = new RegExp(
  `^(?:${[
    'accept|user-agent|anthropic-version|anthropic-dangerous-direct-browser-access',
    'x-app|x-client-request-id|x-claude-1p-request-class',
    'x-claude-code-(?:session-id|agent-id|agent-type|parent-agent-id|prev-tool-durations|prompt-id|request-class)',
    'x-claude-code-(?:auxiliary-type|sandy-plover|compaction|context-compacted|hook-deny)',
    'x-stainless-(?:arch|lang|os|package-version|retry-count|runtime|runtime-version|timeout|helper|helper-method)',
  ].join('|')})$`,
);

// The same runs' betas, and those the same CLIs hold ready for other models. What opens files, tools that run at
// Anthropic, dearer speed or another model is not among them.
const betaNames: ReadonlySet<string> = new Set([
  'claude-code-20250219', 'oauth-2025-04-20', 'interleaved-thinking-2025-05-14', 'redact-thinking-2026-02-12',
  'thinking-token-count-2026-05-13', 'thinking-binding-controls-2026-08-01', 'thinking-display-updates-2026-08-18',
  'thinking-resumption-2026-07-17', 'context-1m-2025-08-07', 'context-management-2025-06-27', 'token-counting-2024-11-01',
  'prompt-caching-scope-2026-01-05', 'prompt-caching-evict-2026-05-12', 'extended-cache-ttl-2025-04-11', 'cache-diagnosis-2026-04-07',
  'mid-conversation-system-2026-04-07', 'mid-conversation-system-clear-at-2026-08-21', 'mid-conversation-tool-changes-2026-07-01',
  'per-turn-control-2026-07-01', 'effort-2025-11-24', 'task-budgets-2026-03-13', 'structured-outputs-2025-12-15',
  'advanced-tool-use-2025-11-20', 'tool-search-tool-2025-10-19', 'tool-provenance-2026-10-26',
  'web-search-2025-03-05', 'web-search-results-only-2026-11-15',
]);

/** A request's headers as they go on: those of the list, and which betas were left out. */
export interface Forwarded {
  readonly headers: Readonly<Record<string, string>>;
  readonly droppedBetas: readonly string[];
}

/** The client's headers reduced to the list, without any login. `loginBeta`: a beta the login needs besides. */
export function forwardedHeaders(incoming: IncomingHttpHeaders, loginBeta?: string): Forwarded {
  const betas = [incoming['anthropic-beta'] ?? []].flat().flatMap((list) => list.split(/[\s,]+/)).filter((beta) => beta !== '');
  const kept = new Set([...betas.filter((beta) => betaNames.has(beta)), ...(loginBeta === undefined ? [] : [loginBeta])]);
  return {
    headers: {
      ...pick(incoming, headerNames),
      ...(kept.size > 0 && { 'anthropic-beta': [...kept].join(',') }),
      'content-type': 'application/json',
      // Anything else would hide the usage from the proxy.
      'accept-encoding': 'identity',
    },
    droppedBetas: betas.filter((beta) => !betaNames.has(beta)),
  };
}

const answerNames = /^(?:content-(?:type|length)|retry-after(?:-ms)?|(?:x-)?request-id|x-should-retry|anthropic-ratelimit-[a-z0-9-]+)$/;

/** The API's headers reduced to what the CLI reads: no cookies, no account ids, nothing of one hop. */
export function answeredHeaders(headers: IncomingHttpHeaders): Record<string, string> {
  return pick(headers, answerNames);
}

function pick(headers: IncomingHttpHeaders, names: RegExp): Record<string, string> {
  const pairs = Object.entries(headers).flatMap(([name, value]) => (names.test(name) && typeof value === 'string' ? [[name, value]] : []));
  return Object.fromEntries(pairs);
}
