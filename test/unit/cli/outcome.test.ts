import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  claudeRateLimited, problemOf, problemOfEnd, sandboxUnavailable, sessionNotFound, tooManyRefusals, withApiReport, type ApiTrouble,
} from '../../../src/cli/outcome.ts';
import { howToLogIn } from '../../../src/host/login.ts';
import type { TurnEnd } from '../../../src/cli/dialogue.ts';
import { Problem, type ProblemCode } from '../../../src/problem.ts';
import type { TurnReport } from '../../../src/sandbox/api-turn.ts';
import { noTokens } from '../../../src/sandbox/usage.ts';
import type { CliResult } from '../../../src/cli/protocol.ts';

const nowSeconds = 1_700_000_000;
const answered: CliResult = {
  subtype: 'success', isError: false, text: 'hello', errors: [], apiStatus: undefined,
  terminalReason: 'completed', sessionId: 's', costUsd: 0,
};
const refused = (text: string, apiStatus?: number, terminalReason?: string): CliResult => ({ ...answered, isError: true, text, apiStatus, terminalReason });
const broken = (subtype: string, ...errors: string[]): CliResult => ({ ...answered, subtype, isError: true, text: undefined, errors, terminalReason: undefined });

test('problemOf: an answer is no problem, an empty one neither', () => {
  assert.equal(problemOf(answered, {}, nowSeconds), undefined);
  assert.equal(problemOf({ ...answered, text: '' }, {}, nowSeconds), undefined);
});

test('problemOf: trouble on the way to an answer is no problem', () => {
  const trouble: ApiTrouble = { errorClass: 'server_error', lastRetry: { status: 529, delayMs: 1000 }, resetsAtSeconds: nowSeconds + 5 };
  assert.equal(problemOf(answered, trouble, nowSeconds), undefined);
});

type Row = readonly [cause: string, result: CliResult, trouble: ApiTrouble, code: ProblemCode, detail: RegExp];
const noAuth: ApiTrouble = { errorClass: 'authentication_failed' };
const serverError: ApiTrouble = { errorClass: 'server_error' };

const rows: readonly Row[] = [
  ['a success without an answer', { ...answered, text: undefined }, {}, 'claude_failed', /try again/],
  ['the limit of rounds', broken('error_max_turns', 'Reached maximum number of turns (2)'), {}, 'max_turns_reached', /session_id/],
  ['the limit of money', broken('error_max_budget_usd', 'Reached maximum budget ($1)'), {}, 'claude_api_error', /^Reached maximum budget \(\$1\)$/],
  ['an interrupted turn', { ...broken('error_during_execution', '[ede_diagnostic] x'), terminalReason: 'aborted_tools' }, {}, 'claude_failed', /session_id/],
  ['a session the CLI does not know', broken('error_during_execution', 'No conversation found with session ID: x'), {}, 'session_not_found', /no such session/],
  ['an id the CLI does not take', broken('error_during_execution', '--resume requires a valid session ID or session title'), {}, 'session_not_found', /no such session/],
  ['a failure of a kind not known here', broken('error_new_kind', 'Something new'), {}, 'claude_api_error', /^Something new$/],
  ['a failure without words', broken('error_new_kind'), {}, 'claude_api_error', /./],
  ['no credentials', refused('Not logged in · Please run /login'), noAuth, 'claude_not_authenticated', /^Claude CLI is not authenticated/],
  ['401 with an API key', refused('Invalid API key · Fix external API key', 401), noAuth, 'claude_not_authenticated', /^Claude CLI is not authenticated/],
  ['401 after retries', refused('Failed to authenticate. API Error: 401 {}', 401), { ...noAuth, lastRetry: { status: 401, delayMs: 4000 } }, 'claude_not_authenticated', /CLAUDE_CODE_OAUTH_TOKEN/],
  ['401 with an OAuth token', refused('Failed to authenticate. API Error: 401 {}', 401), noAuth, 'claude_not_authenticated', /ANTHROPIC_API_KEY/],
  ['403', refused('Your account does not have access to Claude. Please login again', 403), noAuth, 'claude_not_authenticated', /run "claude"/],
  ['400', refused('API Error: 400 messages: bad', 400), { errorClass: 'unknown' }, 'claude_api_error', /^API Error: 400 messages: bad$/],
  ['400, credit used up', refused('Credit balance is too low', 400), { errorClass: 'billing_error' }, 'claude_api_error', /^Credit balance is too low$/],
  ['400, prompt too long', refused('The context is full', 400, 'prompt_too_long'), { errorClass: 'invalid_request' }, 'prompt_too_long', /shorten the prompt/],
  ['a prompt too long for the model, found without the API', refused('The context is full', undefined, 'blocking_limit'), {}, 'prompt_too_long', /shorten the prompt/],
  ['a prompt too long, without a reason', refused('Prompt is too long · 250000 tokens'), {}, 'prompt_too_long', /shorten the prompt/],
  ['404, unknown model', refused("There's an issue with the selected model (x).", 404), { errorClass: 'model_not_found' }, 'claude_api_error', /selected model \(x\)/],
  ['413', refused('Request too large (max 32MB)', 413, 'image_error'), { errorClass: 'invalid_request' }, 'prompt_too_long', /shorten the prompt/],
  ['429 with an API key', refused('API Error: Request rejected (429) x', 429), { errorClass: 'rate_limit' }, 'claude_rate_limited', /^API Error: Request rejected \(429\) x$/],
  ['429 with OAuth', refused('API Error: Server is temporarily limiting requests', 429), { errorClass: 'rate_limit' }, 'claude_rate_limited', /temporarily limiting/],
  ['429 of a subscription', refused("You've hit your session limit · resets 6:08pm (UTC)", 429), { errorClass: 'rate_limit', resetsAtSeconds: nowSeconds + 90 }, 'claude_rate_limited', /resets 6:08pm/],
  ['429 told by its retries alone', refused('Gave up'), { lastRetry: { status: 429, delayMs: 1000 } }, 'claude_rate_limited', /^Gave up$/],
  ['a rate limit without a status', refused('x'), { errorClass: 'rate_limit' }, 'claude_rate_limited', /^x$/],
  ...[500, 502, 503, 504].map((status): Row => [`${status} after retries`, refused(`API Error: ${status} {}`, status), { ...serverError, lastRetry: { status, delayMs: 1000 } }, 'claude_api_error', new RegExp(`^API Error: ${status}`)]),
  ['529 after retries', refused('API Error: Repeated 529 Overloaded errors'), { ...serverError, lastRetry: { status: 529, delayMs: 1000 } }, 'claude_overloaded', /overloaded/],
  ['529 told by its words alone', refused('API Error: Repeated 529 Overloaded errors'), serverError, 'claude_overloaded', /overloaded/],
  ['an overload told without its number', refused('API Error: Overloaded'), serverError, 'claude_overloaded', /overloaded/],
  ['529 told by its retries alone', refused('API Error'), { ...serverError, lastRetry: { status: 529, delayMs: 1000 } }, 'claude_overloaded', /overloaded/],
  ['529 without retries', refused('API Error: 529 {}', 529), serverError, 'claude_overloaded', /overloaded/],
  ['a refused connection', refused('API Error: Unable to connect to API (ConnectionRefused)'), { ...serverError, lastRetry: { status: undefined, delayMs: 1 } }, 'claude_api_error', /Unable to connect/],
  ['no first byte', refused('Request timed out'), serverError, 'claude_api_error', /^Request timed out$/],
  ['a refusal', refused('API Error: Claude Code is unable to respond to this request'), { errorClass: 'invalid_request' }, 'claude_api_error', /unable to respond/],
  ['an API error without words', { ...refused(''), text: undefined }, {}, 'claude_api_error', /./],
];

for (const [cause, result, trouble, code, detail] of rows) {
  test(`problemOf: ${cause} is ${code}`, () => {
    const problem = problemOf(result, trouble, nowSeconds);
    assert.equal(problem?.code, code);
    assert.match(problem.message, detail);
  });
}

test('problemOf: the status of the result counts more than that of an earlier retry', () => {
  const trouble: ApiTrouble = { ...serverError, lastRetry: { status: 529, delayMs: 1000 } };
  assert.equal(problemOf(refused('API Error: 500 {}', 500), trouble, nowSeconds)?.code, 'claude_api_error');
});

test('problemOf: a number 529 in the words of another error does not make Anthropic overloaded', () => {
  assert.equal(problemOf(refused('API Error: 400 max_tokens: 529 is too many', 400), { errorClass: 'unknown' }, nowSeconds)?.code, 'claude_api_error');
});

test('problemOf: a limit says when to come back, from its end or from the wait the CLI was told', () => {
  const limit = (trouble: ApiTrouble): number | undefined => problemOf(refused('x', 429), trouble, nowSeconds)?.extras.retryAfterSeconds;
  assert.equal(limit({ resetsAtSeconds: nowSeconds + 89.5 }), 90);
  assert.equal(limit({ resetsAtSeconds: nowSeconds - 5 }), 1);
  assert.equal(limit({ lastRetry: { status: 429, delayMs: 1500 } }), 2);
  assert.equal(limit({ lastRetry: { status: 429, delayMs: 0 } }), 1);
  assert.equal(limit({ lastRetry: { status: 429, delayMs: 2_000_000 } }), 2000);
  assert.deepEqual([1500, 2_000_000].map((delayMs) => claudeRateLimited(delayMs).extras.retryAfterSeconds), [2, 2000]);
  assert.equal(limit({ resetsAtSeconds: nowSeconds + 60, lastRetry: { status: 429, delayMs: 1500 } }), 60);
  assert.equal(limit({}), undefined);
  assert.ok((problemOf(refused('x', 529), {}, nowSeconds)?.extras.retryAfterSeconds ?? 0) > 0);
});

test('problemOf: the CLI must not tell an unknown session in other words than the server does', () => {
  const problem = problemOf(broken('error_during_execution', 'No conversation found with session ID: 0c6f'), {}, nowSeconds);
  assert.equal(problem?.message, sessionNotFound().message);
  assert.deepEqual(problem.extras, {});
});

test('problemOf: the advice to log in is the same everywhere', () => {
  assert.equal(problemOf(refused('Not logged in'), noAuth, nowSeconds)?.message, howToLogIn);
});

type ApiRow = readonly [told: ProblemCode, failure: TurnReport['lastFailure'], expected: ProblemCode, retryAfterSeconds?: number];
const failed = (status?: number, type?: string, retryAfterSeconds?: number): TurnReport['lastFailure'] => ({ status, type, retryAfterSeconds });
const apiRows: readonly ApiRow[] = [
  ['claude_api_error', failed(401), 'claude_not_authenticated'],
  ['claude_api_error', failed(429, 'rate_limit_error', 17), 'claude_rate_limited', 17],
  ['claude_rate_limited', failed(429, 'rate_limit_error'), 'claude_rate_limited', 3],
  ['claude_api_error', failed(529, 'overloaded_error'), 'claude_overloaded', 30],
  ['claude_api_error', failed(200, 'overloaded_error', 5), 'claude_overloaded', 5],
  ['claude_api_error', failed(500, 'api_error'), 'claude_api_error', 3],
  ['claude_api_error', undefined, 'claude_api_error', 3],
  ['claude_overloaded', failed(401), 'claude_not_authenticated'],
  ['claude_not_authenticated', failed(529), 'claude_overloaded', 30],
  // What the CLI says of itself stays: an earlier failure of the API is not its cause.
  ['max_turns_reached', failed(529), 'max_turns_reached', 3],
  ['claude_failed', failed(401), 'claude_failed', 3],
];

test('what the API proxy saw of a failure is truer than what the CLI makes of it', () => {
  const usual = { tokens: noTokens, requests: 1, refusals: 0, isOutOfTokens: false };
  const end = (problem: Problem): TurnEnd => ({ wasHeard: true, costUsd: 0.5, outcome: { problem } });
  for (const [told, lastFailure, expected, retryAfterSeconds] of apiRows) {
    const { outcome, costUsd } = withApiReport(end(new Problem(told, 'x', { retryAfterSeconds: 3 })), { ...usual, lastFailure });
    assert.ok('problem' in outcome);
    assert.deepEqual([outcome.problem.code, outcome.problem.extras.retryAfterSeconds, costUsd], [expected, retryAfterSeconds, 0.5]);
  }
  const spent = withApiReport(end(new Problem('claude_api_error', 'x')), { ...usual, lastFailure: undefined, isOutOfTokens: true });
  assert.equal('problem' in spent.outcome && spent.outcome.problem.code, 'rate_limited');
  const answer: TurnEnd = { wasHeard: true, costUsd: 0, outcome: { content: 'hello' } };
  assert.deepEqual(withApiReport(answer, { ...usual, lastFailure: failed(529) }), answer, 'the CLI got over it');
});

test('a turn without a result line is told by how its process ended', () => {
  const told = (exit: Parameters<typeof problemOfEnd>[0], hasBegun = true): string => {
    const { code, message } = problemOfEnd(exit, hasBegun);
    return `${code}: ${message}`;
  };
  assert.match(told(undefined), /^claude_failed: .*not its protocol/);
  assert.match(told({ code: 3, signal: null }), /^claude_failed: .* ended with exit code 3 /);
  assert.match(told({ code: null, signal: 'SIGKILL' }), /^claude_failed: .* was ended by SIGKILL /);
  for (const code of [126, 127]) assert.match(told({ code, signal: null }, false), /^claude_not_found: /);
  for (const code of [1, 125, 128]) assert.match(told({ code, signal: null }, false), /^claude_failed: /);
  assert.match(told({ code: 127, signal: null }), /^claude_failed: /);
  for (const spawnError of ['ENOENT', 'EACCES', 'ENOEXEC', 'ENOTDIR', 'EPERM', 'ELOOP', 'ETXTBSY']) {
    assert.match(told({ code: null, signal: null, spawnError }, false), /^claude_not_found: /);
  }
  for (const hasBegun of [true, false]) assert.match(told({ code: null, signal: null, spawnError: 'EAGAIN' }, hasBegun), /^busy: /);
  assert.deepEqual([sandboxUnavailable().code, sandboxUnavailable().extras.retryAfterSeconds, tooManyRefusals().code], ['sandbox_unavailable', 10, 'claude_failed']);
});
