import { howToLogIn } from '../host/login.ts';
import { machineExhausted } from '../host/memory.ts';
import { Problem, type ProblemCode } from '../problem.ts';
import type { TurnReport } from '../sandbox/api-turn.ts';
import { outOfTokens } from '../sandbox/token-count.ts';
import type { TurnEnd } from './dialogue.ts';
import { claudeNotFound } from './program.ts';
import type { CliResult } from './protocol.ts';
import { sentence } from './words.ts';

/** How a process ended: with a code, by a signal, or never begun. */
export type ExitStatus = { readonly code: number | null; readonly signal: NodeJS.Signals | null; readonly spawnError?: string };

/** What was heard about Anthropic's answers before the result; the result alone does not always name the cause. */
export interface ApiTrouble {
  errorClass?: string;
  lastRetry?: { status: number | undefined; delayMs: number };
  resetsAtSeconds?: number;
}

/**
 * What a result line means to the caller: undefined when it is an answer, else the problem. The result's own flags
 * decide, never the exit code: API errors come with `subtype:"success"`, and answers with exit code 1 (fact 9).
 */
export function problemOf(result: CliResult, trouble: ApiTrouble, nowSeconds: number): Problem | undefined {
  if (!result.isError) {
    if (result.text !== undefined) return undefined;
    return new Problem('claude_failed', 'The Claude CLI ended the turn without an answer; try again.');
  }
  if (result.subtype === 'success') return apiProblem(result, trouble, nowSeconds);
  const [firstError = ''] = result.errors;
  if (result.subtype === 'error_max_turns') {
    return new Problem('max_turns_reached', 'Claude reached CLAUDE_MAX_TURNS; send another prompt with this session_id to go on.');
  }
  if (/^No conversation found|^--resume requires/.test(firstError)) return sessionNotFound();
  if (result.subtype === 'error_during_execution') {
    return new Problem('claude_failed', 'The Claude CLI aborted the turn; try again with this session_id.');
  }
  return new Problem('claude_api_error', sentence(firstError) || 'The Claude CLI refused the turn.');
}

/** The one answer for a session that is unknown, another user's, or forgotten by the CLI: indistinguishable on purpose. */
export function sessionNotFound(): Problem {
  return new Problem('session_not_found', 'There is no such session for this user; leave session_id out to start a new dialogue.');
}

function apiProblem(result: CliResult, trouble: ApiTrouble, nowSeconds: number): Problem {
  const text = result.text ?? '';
  const status = result.apiStatus ?? trouble.lastRetry?.status;
  const isTooLong = ['prompt_too_long', 'blocking_limit'].includes(result.terminalReason ?? '') || /^Prompt is too long/.test(text);
  if (isTooLong || status === 413) {
    const detail = 'The dialogue with this prompt is longer than the model takes; shorten the prompt or start a new dialogue.';
    return new Problem('prompt_too_long', detail);
  }
  if (trouble.errorClass === 'authentication_failed') return new Problem('claude_not_authenticated', howToLogIn);
  if (status === 529 || (status === undefined && /\b529\b|overloaded/i.test(text))) {
    return overloaded();
  }
  if (status === 429 || trouble.errorClass === 'rate_limit') {
    return new Problem('claude_rate_limited', sentence(text) || 'Anthropic is rate-limiting this account at the moment.', {
      retryAfterSeconds: retryAfterSeconds(trouble, nowSeconds),
    });
  }
  return new Problem('claude_api_error', sentence(text) || 'Anthropic did not answer.');
}

function retryAfterSeconds(trouble: ApiTrouble, nowSeconds: number): number | undefined {
  if (trouble.resetsAtSeconds !== undefined) return Math.max(1, Math.ceil(trouble.resetsAtSeconds - nowSeconds));
  // The CLI waits as long as Anthropic's own retry-after says (fact 11).
  return trouble.lastRetry && Math.max(1, Math.ceil(trouble.lastRetry.delayMs / 1000));
}

/** The problem of a turn given up on because Anthropic asks for a long wait. */
export function claudeRateLimited(delayMs: number): Problem {
  return new Problem('claude_rate_limited', 'Anthropic is rate-limiting this account; try again after retry_after_seconds.', {
    retryAfterSeconds: Math.ceil(delayMs / 1000),
  });
}

/**
 * What it means that a turn gets no result line: the process ended, or, without `exit`, printed what cannot be trusted.
 * `hasBegun`: whether the CLI ever began a turn, so that its program is known to run.
 */
export function problemOfEnd(exit: ExitStatus | undefined, hasBegun: boolean): Problem {
  if (exit === undefined) return new Problem('claude_failed', 'The Claude CLI printed something that is not its protocol; try again.');
  if (!hasBegun && isLaunchFailure(exit)) return claudeNotFound('The Claude CLI cannot be run');
  if (exit.spawnError !== undefined) return machineExhausted();
  const how = exit.signal === null ? `ended with exit code ${exit.code}` : `was ended by ${exit.signal}`;
  return new Problem('claude_failed', `The Claude CLI ${how} before it answered; try again.`);
}

/** The problem of a turn whose sandbox could not be made, although it could at the start. There is no way without it. */
export function sandboxUnavailable(): Problem {
  const detail = 'The sandbox for this turn could not be made, as the log of the server says; try again in a while.';
  return new Problem('sandbox_unavailable', detail, { retryAfterSeconds: 10 });
}

/** The problem of a turn in which so much was refused that something else than the CLI must have asked for it. */
export function tooManyRefusals(): Problem {
  return new Problem('claude_failed', 'Too many requests of this turn to the API were refused; the turn was stopped.');
}

// What the CLI says of these is its reading of an answer that the API proxy has seen itself.
const toldByApi: ReadonlySet<ProblemCode> = new Set([
  'claude_api_error', 'claude_rate_limited', 'claude_overloaded', 'claude_not_authenticated',
]);

/** The end of a turn, with what the API proxy knows better than the CLI told: why Anthropic, or the way to it, failed. */
export function withApiReport(end: TurnEnd, { lastFailure, isOutOfTokens }: TurnReport): TurnEnd {
  if (!('problem' in end.outcome) || !toldByApi.has(end.outcome.problem.code)) return end;
  const told = end.outcome.problem;
  const known = isOutOfTokens ? outOfTokens(Date.now()) : problemOfApi(told, lastFailure);
  return { ...end, outcome: { problem: known.with({ cause: told.extras.cause }) } };
}

function problemOfApi(told: Problem, failure: TurnReport['lastFailure']): Problem {
  const { status, type, retryAfterSeconds } = failure ?? {};
  if (status === 401) return new Problem('claude_not_authenticated', howToLogIn);
  if (status === 529 || type === 'overloaded_error') return overloaded(retryAfterSeconds);
  if (status !== 429) return told;
  const limited = told.code === 'claude_rate_limited' ? told : claudeRateLimited(0);
  return limited.with({ retryAfterSeconds: retryAfterSeconds ?? limited.extras.retryAfterSeconds });
}

function overloaded(retryAfterSeconds = 30): Problem {
  return new Problem('claude_overloaded', 'Anthropic is overloaded at the moment; try again in a while.', { retryAfterSeconds });
}

/** Whether the program could not be run at all: missing, not executable, no interpreter. */
function isLaunchFailure(exit: ExitStatus): boolean {
  const launchErrors = ['ENOENT', 'EACCES', 'ENOEXEC', 'ENOTDIR', 'EPERM', 'ELOOP', 'ETXTBSY'];
  if (exit.spawnError !== undefined) return launchErrors.includes(exit.spawnError);
  // setpriv and env answer a program they cannot run with these, as a shell does.
  return exit.code === 126 || exit.code === 127;
}
