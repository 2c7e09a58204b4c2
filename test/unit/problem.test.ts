import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Problem, problemBody, problemCodes, problemHeaders, toProblem, type ProblemCode } from '../../src/problem.ts';

// Written out, so that a status can only change on purpose: clients branch on it.
const statusOf: Readonly<Record<ProblemCode, number>> = {
  malformed_request: 400,
  malformed_json: 400,
  missing_api_key: 401,
  invalid_api_key: 401,
  not_found: 404,
  session_not_found: 404,
  method_not_allowed: 405,
  request_timeout: 408,
  body_too_large: 413,
  unsupported_media_type: 415,
  invalid_request: 422,
  idempotency_conflict: 422,
  max_turns_reached: 422,
  prompt_too_long: 422,
  rate_limited: 429,
  claude_rate_limited: 429,
  headers_too_large: 431,
  internal_error: 500,
  claude_failed: 502,
  claude_api_error: 502,
  busy: 503,
  shutting_down: 503,
  claude_not_found: 503,
  claude_too_old: 503,
  claude_not_authenticated: 503,
  sandbox_unavailable: 503,
  storage_unavailable: 503,
  claude_overloaded: 503,
  claude_timeout: 504,
  user_storage_full: 507,
};

test('the codes are these and no others', () => {
  assert.deepEqual([...problemCodes].sort(), Object.keys(statusOf).sort());
});

for (const code of problemCodes) {
  test(`${code} has its status, a type of its own and a title`, () => {
    const body = problemBody(new Problem(code, 'What to do.'));
    assert.deepEqual(Object.keys(body), ['type', 'title', 'status', 'detail', 'code']);
    assert.equal(body['status'], statusOf[code]);
    assert.equal(body['type'], `urn:claude-api:problem:${code}`);
    assert.equal(body['detail'], 'What to do.');
    assert.equal(body['code'], code);
    assert.match(String(body['title']), /^[A-Z].{5,}[^.]$/);
  });
}

test('no two codes share a title', () => {
  const titles = problemCodes.map((code) => problemBody(new Problem(code, '')).title);
  assert.equal(new Set(titles).size, titles.length);
});

test('session, cost, duration and field errors are told under the names of the answer', () => {
  const errors = [{ field: 'prompt', detail: 'is required' }];
  const body = problemBody(new Problem('max_turns_reached', 'x', { sessionId: 's-1', costUsd: 0, durationMs: 0, errors }));
  const { session_id, cost, duration_ms } = body;
  assert.deepEqual({ session_id, cost, duration_ms }, { session_id: 's-1', cost: 0, duration_ms: 0 });
  assert.deepEqual(body['errors'], errors);
});

test('when to come back is told in the body as well as in the header, for those who get no header', () => {
  const problem = new Problem('busy', 'x', { retryAfterSeconds: 5 });
  assert.equal(problemBody(problem)['retry_after_seconds'], 5);
  assert.equal(problemHeaders(problem)['Retry-After'], '5');
  assert.ok(!('retry_after_seconds' in problemBody(new Problem('busy', 'x'))));
});

test('the cause is never told', () => {
  const problem = new Problem('internal_error', 'x', { cause: new Error('LEAK') });
  assert.ok(!JSON.stringify({ ...problemBody(problem), ...problemHeaders(problem) }).includes('LEAK'));
  assert.equal((problem.cause as Error).message, 'LEAK');
});

test('more can be said about a problem, without losing what was said', () => {
  const before = new Problem('busy', 'Try again.', { retryAfterSeconds: 5, sessionId: 'old' });
  const after = before.with({ sessionId: 's-1', costUsd: 1 });
  assert.deepEqual([after.code, after.message], ['busy', 'Try again.']);
  assert.deepEqual(after.extras, { retryAfterSeconds: 5, sessionId: 's-1', costUsd: 1 });
  assert.deepEqual(before.extras, { retryAfterSeconds: 5, sessionId: 'old' });
});

test('a thrown problem stays itself', () => {
  const problem = new Problem('busy', 'x');
  assert.equal(toProblem(problem), problem);
});

test('anything else thrown is an internal error that says nothing of it', () => {
  for (const thrown of [new Error('LEAK'), 'LEAK', undefined, null, { detail: 'LEAK' }]) {
    const problem = toProblem(thrown);
    assert.equal(problem.code, 'internal_error');
    assert.equal(problem.extras.cause, thrown);
    assert.ok(!JSON.stringify(problemBody(problem)).includes('LEAK'));
  }
});

test('headers say how to authenticate, when to come back and that the connection ends', () => {
  assert.deepEqual(problemHeaders(new Problem('missing_api_key', '')), { 'WWW-Authenticate': 'Bearer' });
  assert.deepEqual(problemHeaders(new Problem('invalid_api_key', '')), { 'WWW-Authenticate': 'Bearer' });
  assert.deepEqual(problemHeaders(new Problem('busy', '', { retryAfterSeconds: 5 })), { 'Retry-After': '5' });
  assert.deepEqual(problemHeaders(new Problem('shutting_down', '', { retryAfterSeconds: 1 })), { 'Retry-After': '1', Connection: 'close' });
  assert.deepEqual(problemHeaders(new Problem('not_found', '')), {});
});
