import type { Config } from '../env.ts';
import type { OperatorFiles } from '../host/operator-files.ts';
import type { Launch } from './launch.ts';
import type { UserFolders } from './users.ts';

/** One of the two ways the CLI is run: behind the walls of a sandbox, or as an ordinary process with rules of its own. */
export interface Way {
  /**
   * What this way has to say of one start: `number` is the process's own. `options` are the CLI's for the session. Throws
   * Problem `claude_not_found`, `claude_too_old` as the last probe found, and `sandbox_unavailable`.
   */
  launch(options: readonly string[], folders: UserFolders, number: number): Promise<WayLaunch>;
  /** The CLI's version, by starting it in this way. Throws Problem as `launch` does. */
  probeVersion(): Promise<string>;
  /** The command that has a program of the system's look at one folder, told where it finds that. */
  walk(folder: string, program: (path: string) => readonly [string, ...string[]]): readonly [string, ...string[]];
  /** Ends what the way itself has open. */
  close(): void;
}

type WayLaunch = Pick<Launch, 'command' | 'args' | 'env' | 'cwd' | 'inbox' | 'onTools' | 'sandbox'>;

/** What of the settings decides how the CLI is run. */
export type CliConfig = Pick<
  Config,
  | 'allowedTools' | 'childEnv' | 'claudeBinary' | 'keepDays' | 'maxTurns' | 'models' | 'network' | 'permissionMode' | 'runtimeDir'
  | 'sandbox' | 'settingSources' | 'stateDir' | 'tools' | 'userTokensPerDay'
> & OperatorFiles;

/** What the CLI may do, decided by the way it is run. */
export interface CliRights {
  readonly tools: string;
  readonly allowedTools: string;
  readonly permissionMode: string;
  readonly settingSources: string;
}

/** The CLI's environment in both ways unless the operator says otherwise; each saves time or closes a hole. */
export const defaultEnv: Readonly<Record<string, string>> = {
  // The transcript is on disk before the answer is out, so a crash right after loses nothing (fact 14).
  CLAUDE_CODE_EAGER_FLUSH: '1',
  CLAUDE_CODE_DISABLE_AUTO_MEMORY: '1',
  // No "git status" in the user's folder, and with it whatever a planted .git/config names as fsmonitor (fact 25).
  CLAUDE_CODE_DISABLE_GIT_INSTRUCTIONS: '1',
  // Both make results nobody asked for, in the middle of somebody else's turn (fact 6).
  CLAUDE_CODE_DISABLE_BACKGROUND_TASKS: '1',
  CLAUDE_CODE_DISABLE_CRON: '1',
  CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1',
  DISABLE_AUTOUPDATER: '1',
  // 401 and 5xx are tried for three minutes otherwise (fact 10).
  CLAUDE_CODE_MAX_RETRIES: '2',
  // A sixth less memory and a quicker start, for twice the CPU of long computations, of which a CLI has few (fact 75).
  BUN_JSC_useBaselineJIT: '0',
  MIMALLOC_PURGE_DELAY: '0',
};

/** Where a process finds what the user sends, and puts what the user gets, as it sees them itself. */
type BoxPaths = Readonly<Record<'inbox' | 'outbox', string>>;

/**
 * The CLI's arguments but for the session, with `settings` besides those of both ways. Each is one token, so that no value
 * is taken for another option. Never the prompt.
 */
export function cliArguments(
  { keepDays, maxTurns, models, systemPrompt, mcpServers }: Pick<CliConfig, 'keepDays' | 'maxTurns' | 'models' | keyof OperatorFiles>,
  rights: CliRights,
  boxes: BoxPaths,
  settings: Readonly<Record<string, unknown>> = {},
): string[] {
  const servers = Object.keys(mcpServers);
  // The operator's servers need no permission: that they are there is one (fact 73).
  const allowed = [rights.allowedTools, ...servers.map((name) => `mcp__${name}`)].filter((tools) => tools !== '').join(',');
  return [
    '-p',
    '--input-format=stream-json',
    '--output-format=stream-json',
    '--verbose',
    '--include-partial-messages',
    `--tools=${rights.tools}`,
    `--permission-mode=${rights.permissionMode}`,
    `--setting-sources=${rights.settingSources}`,
    '--strict-mcp-config',
    '--disable-slash-commands',
    `--settings=${JSON.stringify({ cleanupPeriodDays: keepDays, ...settings })}`,
    `--max-turns=${maxTurns}`,
    `--add-dir=${boxes.inbox}`,
    `--add-dir=${boxes.outbox}`,
    `--append-system-prompt=${[aboutFiles(boxes), systemPrompt].join('\n\n').trimEnd()}`,
    ...models.slice(0, 1).map((model) => `--model=${model}`),
    // What was checked at the start, not the file: whoever edits that is heard at the next start.
    ...(servers.length === 0 ? [] : [`--mcp-config=${JSON.stringify({ mcpServers })}`]),
    ...(allowed === '' ? [] : [`--allowedTools=${allowed}`]),
  ];
}

/** What Claude is told of files. In the sandbox the same for every process: what is equal is cached. */
function aboutFiles({ inbox, outbox }: BoxPaths): string {
  const coming = `Files that the user sends are in ${inbox}, for one turn only: copy what you need later.`;
  const going = `To give the user a file, put it into ${outbox} itself, not into a folder there: up to 20 files, 8 MiB together.`;
  return `${coming} ${going} They are sent with your answer; nothing else on this machine can be seen by the user.`;
}
