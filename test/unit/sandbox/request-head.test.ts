import assert from 'node:assert/strict';
import { test } from 'node:test';
import { answeredHeaders, forwardedHeaders, targetOf } from '../../../src/sandbox/request-head.ts';

// What the CLI sends and reads, word by word: here a name that comes or goes shows.
const sent = `
  accept user-agent anthropic-version anthropic-dangerous-direct-browser-access x-app x-client-request-id x-claude-1p-request-class
  x-claude-code-session-id x-claude-code-agent-id x-claude-code-agent-type x-claude-code-parent-agent-id x-claude-code-prev-tool-durations
  x-claude-code-prompt-id x-claude-code-request-class x-claude-code-auxiliary-type x-claude-code-sandy-plover x-claude-code-compaction
  x-claude-code-context-compacted x-claude-code-hook-deny x-stainless-arch x-stainless-lang x-stainless-os x-stainless-package-version
  x-stainless-retry-count x-stainless-runtime x-stainless-runtime-version x-stainless-timeout x-stainless-helper x-stainless-helper-method
`.trim().split(/\s+/);
const betas = `
  claude-code-20250219 oauth-2025-04-20 interleaved-thinking-2025-05-14 redact-thinking-2026-02-12 thinking-token-count-2026-05-13
  thinking-binding-controls-2026-08-01 thinking-display-updates-2026-08-18 thinking-resumption-2026-07-17 context-1m-2025-08-07
  context-management-2025-06-27 token-counting-2024-11-01 prompt-caching-scope-2026-01-05 prompt-caching-evict-2026-05-12
  extended-cache-ttl-2025-04-11 cache-diagnosis-2026-04-07 mid-conversation-system-2026-04-07 mid-conversation-system-clear-at-2026-08-21
  mid-conversation-tool-changes-2026-07-01 per-turn-control-2026-07-01 effort-2025-11-24 task-budgets-2026-03-13 structured-outputs-2025-12-15
  advanced-tool-use-2025-11-20 tool-search-tool-2025-10-19 tool-provenance-2026-10-26 web-search-2025-03-05 web-search-results-only-2026-11-15
`.trim().split(/\s+/);
const answered = `
  content-type content-length retry-after retry-after-ms request-id x-request-id x-should-retry anthropic-ratelimit-requests-remaining
`.trim().split(/\s+/);

const resembling = (names: readonly string[]): string[] => names.flatMap((name) => [`x${name}`, `${name}x`]);
const headersOf = (names: readonly string[]): Record<string, string> => Object.fromEntries(names.map((name) => [name, `of ${name}`]));
const fixed = { 'content-type': 'application/json', 'accept-encoding': 'identity' };

test('two addresses of the API, with and without the beta, are all there are', () => {
  for (const query of ['', '?beta=true']) {
    assert.equal(targetOf({ method: 'POST', url: `/v1/messages${query}` }), 'messages');
    assert.equal(targetOf({ method: 'POST', url: `/v1/messages/count_tokens${query}` }), 'count_tokens');
  }
  for (const url of ['/v1/files', '/v1/messages?', undefined]) assert.equal(targetOf({ method: 'POST', url }), undefined);
});

test('the headers and betas of the list go on, and nothing that resembles one', () => {
  const given = { ...headersOf([...sent, ...resembling(sent)]), 'anthropic-beta': [...betas, ...resembling(betas)].join(', ') };
  const { headers, droppedBetas } = forwardedHeaders(given);
  assert.deepEqual(headers, { ...headersOf(sent), 'anthropic-beta': betas.join(','), ...fixed });
  assert.deepEqual(droppedBetas, resembling(betas));
  assert.deepEqual(forwardedHeaders({}), { headers: fixed, droppedBetas: [] });
  assert.deepEqual(forwardedHeaders({}, 'of-the-login').headers, { 'anthropic-beta': 'of-the-login', ...fixed });
});

test('the headers of an answer that the CLI reads come back, and nothing that resembles one', () => {
  const others = [...resembling(answered), 'anthropic-organization-id'].filter((name) => !name.endsWith('remainingx')); // any limit may be told
  const given = { ...headersOf([...answered, ...others]), 'set-cookie': ['a=b'] };
  assert.deepEqual(answeredHeaders(given), headersOf(answered));
});
