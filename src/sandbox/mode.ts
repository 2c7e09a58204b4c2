import { lstatSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Settings } from '../host/settings.ts';
import type { Trial } from './trial.ts';

/** What is known when the server decides whether its CLIs run in a sandbox. */
export interface Circumstances {
  /** CLAUDE_SANDBOX. */
  readonly setting: Settings['sandbox'];
  /** Whether a sandboxed process ever ran on this state folder. */
  readonly hasEverRun: boolean;
  readonly isRoot: boolean;
  /** The variable that chooses a provider whose login the API proxy cannot add, such as CLAUDE_CODE_USE_BEDROCK. */
  readonly provider: string | undefined;
  /** undefined = not tried yet. */
  readonly trial: Trial | undefined;
}

/** How the CLIs run, or why the server does not. Reasons are whole sentences for log, `/health` and standard error. */
export type Decision =
  | { readonly kind: 'try' }
  | { readonly kind: 'on' }
  /** The five file tools and their rules; with `off`, whatever the operator opens. */
  | { readonly kind: 'without'; readonly reason: string }
  /** 78 (EX_CONFIG of sysexits.h): it will not be otherwise at the next start. */
  | { readonly kind: 'end'; readonly exitCode: 1 | 78; readonly reason: string };

/**
 * Decides from what is known; `try` asks for the trial, after which it decides again. What ran in a sandbox once never
 * runs without: a user may have planted something that acts only outside.
 */
export function decideSandbox({ setting, hasEverRun, isRoot, provider, trial }: Circumstances): Decision {
  if (setting === 'off') return hasEverRun ? end(neverBack) : { kind: 'without', reason: 'CLAUDE_SANDBOX is off.' };
  const without = (reason: string, exitCode: 1 | 78 = 78): Decision => {
    if (setting === 'required') return end(`CLAUDE_SANDBOX is required, and there is no sandbox: ${reason}`, exitCode);
    return hasEverRun ? end(`There is no sandbox: ${reason} ${neverBack}`, exitCode) : { kind: 'without', reason };
  };
  if (isRoot) return without('a server that runs as root has none; run it as an ordinary user, as install.sh does.');
  if (provider !== undefined) return without(`the login of ${provider} cannot be kept outside of it.`);
  if (trial === undefined) return { kind: 'try' };
  return trial.works ? { kind: 'on' } : without(trial.reason, trial.isLasting ? 78 : 1);
}

function end(reason: string, exitCode: 1 | 78 = 78): Decision {
  return { kind: 'end', exitCode, reason };
}

const neverBack =
  'The users of this state folder had a sandbox, and what one of them planted in it would act outside: ' +
  'make the sandbox work, or begin with a new CLAUDE_STATE_DIR.';

const markerFile = 'sandboxed';

/** Whether `rememberSandbox` was ever called for this state folder. What cannot be looked at counts as yes. */
export function hasEverBeenSandboxed(stateDir: string): boolean {
  try {
    return lstatSync(join(stateDir, markerFile), { throwIfNoEntry: false }) !== undefined;
  } catch {
    return true;
  }
}

/** Writes down, before the first sandboxed process of any user, that there is one. Throws the system's error. */
export function rememberSandbox(stateDir: string): void {
  if (hasEverBeenSandboxed(stateDir)) return;
  const text = 'Processes of end users ran here in a sandbox: without one claude-api does not start on this folder.\n';
  writeFileSync(join(stateDir, markerFile), text, { mode: 0o400, flush: true });
}
