import { access, constants } from 'node:fs/promises';
import { join } from 'node:path';
import type { Log } from '../log.ts';

/** The variables that hold a login themselves, in the order the CLI looks at them (fact 29). */
export const keyVariables = ['ANTHROPIC_API_KEY', 'ANTHROPIC_AUTH_TOKEN', 'CLAUDE_CODE_OAUTH_TOKEN'] as const;
const providers = ['BEDROCK', 'VERTEX', 'FOUNDRY', 'MANTLE', 'ANTHROPIC_AWS', 'ANTHROPIC_GOOGLE_CLOUD'];
const providerSwitches = providers.map((name) => `CLAUDE_CODE_USE_${name}`);

/** What an operator without a login has to do, in one sentence; the 503 and the start-up line share it. */
export const howToLogIn =
  'Claude CLI is not authenticated: set ANTHROPIC_API_KEY in .env, or set CLAUDE_CODE_OAUTH_TOKEN to what "claude setup-token" prints, ' +
  'or run "claude" once as the service user and log in.';

/**
 * Where the CLI would find its login with this environment, in its own order (fact 29): a variable's name, or the
 * credentials file; undefined when none is to be found. Looks at the file anew each time, never opens it for more than
 * that, and never throws.
 */
export async function findLogin(childEnv: Readonly<Record<string, string>>): Promise<string | undefined> {
  const named = keyVariables.find((name) => childEnv[name]) ?? findProvider(childEnv);
  if (named !== undefined) return named;
  const readable = await access(loginFilePath(childEnv), constants.R_OK).then(() => true, () => false);
  return readable ? 'credentials file' : undefined;
}

/** The variable that has the CLI log in at a provider of its own, such as CLAUDE_CODE_USE_BEDROCK; undefined when none does. */
export function findProvider(childEnv: Readonly<Record<string, string>>): string | undefined {
  return providerSwitches.find((name) => isOn(childEnv[name]));
}

/** Whether the CLI takes a switch for one that is on (read in 2.1.330). */
function isOn(value: string | undefined): boolean {
  return /^\s*(?:1|true|yes|on)\s*$/i.test(value ?? '');
}

/** Logs where the CLI will find its login, or what to do when it will find none. */
export async function logLogin(childEnv: Readonly<Record<string, string>>, log: Log): Promise<void> {
  const login = await findLogin(childEnv);
  if (login === undefined) log('warning', 'login', { message: howToLogIn });
  else log('info', 'login', { login });
}

/** The folder where the operator's own CLI keeps its login. */
export function loginFolder(childEnv: Readonly<Record<string, string>>): string {
  return childEnv['CLAUDE_SECURESTORAGE_CONFIG_DIR'] || childEnv['CLAUDE_CONFIG_DIR'] || join(childEnv['HOME'] ?? '/', '.claude');
}

/** The login file in it; it need not be there. */
export function loginFilePath(childEnv: Readonly<Record<string, string>>): string {
  return join(loginFolder(childEnv), '.credentials.json');
}
