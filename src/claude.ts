import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { access, constants, mkdir, realpath, stat } from 'node:fs/promises';
import { delimiter, join, resolve } from 'node:path';
import { promisify } from 'node:util';
import type { Config } from './env.ts';
import { claudeNotFound } from './cli/outcome.ts';
import { endMarked, markerName } from './cli/strays.ts';
import { storageUnavailable } from './host/storage.ts';
import { errorCode } from './problem.ts';
import { Worker, type Launch } from './cli/worker.ts';

/** What the CLI gets unless the operator says otherwise; each closes a hole or saves time (measured). */
const defaultEnv: Readonly<Record<string, string>> = {
  // Without it the CLI itself puts any file named as @path into the request, with no permission check.
  CLAUDE_CODE_DISABLE_ATTACHMENTS: '1',
  // The transcript is on disk before the answer is out, so a crash right after loses nothing.
  CLAUDE_CODE_EAGER_FLUSH: '1',
  CLAUDE_CODE_DISABLE_AUTO_MEMORY: '1',
  // 2.1.197 runs "git status" in the user's folder, and with it whatever a planted .git/config names as fsmonitor.
  CLAUDE_CODE_DISABLE_GIT_INSTRUCTIONS: '1',
  // Both make results nobody asked for, in the middle of somebody else's turn.
  CLAUDE_CODE_DISABLE_BACKGROUND_TASKS: '1',
  CLAUDE_CODE_DISABLE_CRON: '1',
  CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1',
  DISABLE_AUTOUPDATER: '1',
  // 401 and 5xx are tried for three minutes otherwise.
  CLAUDE_CODE_MAX_RETRIES: '2',
};

type CliConfig = Pick<
  Config,
  'allowedTools' | 'childEnv' | 'claudeBinary' | 'maxTurns' | 'model' | 'permissionMode' | 'settingSources' | 'stateDir' | 'tools'
>;

/** Starts CLI processes as configured. */
export interface Claude {
  /**
   * A started process in the user's own folder (made on first use), resuming the given session. It exists but is not
   * known to work before its first turn. Throws Problem `claude_not_found` when there is no such program,
   * `storage_unavailable` when the folder cannot be made, and `busy` when the machine has no room for a process.
   */
  start(userId: number, resume?: { readonly sessionId: string; readonly totalCostUsd: number }): Promise<Worker>;
  /** The CLI's version from `claude --version`. Throws Problem `claude_not_found` when it cannot be run. */
  probeVersion(): Promise<string>;
  /** What the markers of all processes of this state folder begin with; the server's pid and a point follow. */
  readonly markerPrefix: string;
}

/** The CLI as configured, for one state folder. Starts nothing yet. Throws when the state folder cannot be made. */
export async function createClaude(config: CliConfig): Promise<Claude> {
  const usersDir = join(config.stateDir, 'users');
  await mkdir(usersDir, { recursive: true, mode: 0o700 });
  const pathVariable = config.childEnv['PATH'] ?? '';
  const setpriv = await findSetpriv(pathVariable);
  const realStateDir = await realpath(config.stateDir);
  const markerPrefix = createHash('sha256').update(realStateDir).digest('hex').slice(0, 16) + '.';
  const configDir = config.childEnv['CLAUDE_CONFIG_DIR'] || '~/.claude';
  const env = cliEnvironment(config.childEnv);
  let started = 0;

  return {
    markerPrefix,

    async start(userId, resume) {
      const binary = await findProgram(config.claudeBinary, pathVariable);
      if (binary === undefined) throw claudeNotFound();
      const cwd = join(usersDir, String(userId));
      // Not its parents: where these are gone, others must not come up in the place of a disk that is not mounted.
      await mkdir(cwd, { mode: 0o700 }).catch((error: unknown) => {
        if (errorCode(error) !== 'EEXIST') throw storageUnavailable(error);
      });
      started += 1;
      return new Worker({
        ...commandLine(setpriv, binary, cliArguments(config, deniedPaths(realStateDir, configDir, userId), resume?.sessionId)),
        env,
        cwd,
        marker: `${markerPrefix}${process.pid}.${started}.`,
        resumedTotalUsd: resume?.totalCostUsd ?? 0,
      });
    },

    async probeVersion() {
      const binary = await findProgram(config.claudeBinary, pathVariable);
      if (binary === undefined) throw claudeNotFound();
      const { command, args } = commandLine(setpriv, binary, ['--version']);
      // Like every process of ours it carries a marker: a wrapper that hangs is not ended with what it started.
      const marker = `${markerPrefix}${process.pid}.0.`;
      try {
        const options = { env: { ...env, [markerName]: marker }, timeout: 10_000, killSignal: 'SIGKILL' } as const;
        const { stdout } = await promisify(execFile)(command, args, options);
        const version = /^\d+\.\d+\.\d+/.exec(stdout)?.[0];
        if (version !== undefined) return version;
      } catch {
        await endMarked(marker);
      }
      throw claudeNotFound();
    },
  };
}

/**
 * Rules that keep one user's CLI from what all users share, whatever else is allowed. Without them the CLI by itself lets
 * everybody read and write `agent-memory`, read `tasks` and `teams`, and tells which files other users have (measured).
 * Not all of its folder: what it puts aside of long tool results lies in there too.
 */
export function deniedPaths(stateDir: string, configDir: string, userId: number): string[] {
  const shared = ['agent-memory', 'tasks', 'teams', '.credentials.json'].map((name) => join(configDir, name));
  const others = [join(stateDir, 'sessions'), ...otherNumbers(String(userId)).map((name) => join(stateDir, 'users', name))];
  const unread = [...shared, ...others];
  const unwritten = [...unread, join(configDir, 'projects')];
  return [...unread.map((path) => `Read(${rulePath(path)})`), ...unwritten.map((path) => `Edit(${rulePath(path)})`)];
}

/** Patterns for every number but this one; rules have no exceptions, and `[!1]` is not understood there (measured). */
function otherNumbers(own: string): string[] {
  const prefixes = Array.from(own, (_, i) => own.slice(0, i));
  return [...prefixes.slice(1), ...prefixes.map((prefix, i) => `${prefix}[${'0123456789'.replace(own[i] ?? '', '')}]*`), `${own}[0123456789]*`];
}

/** In a rule `//` is the root of the disk. */
function rulePath(path: string): string {
  return path.startsWith('/') ? `/${path}` : path;
}

/** The CLI's arguments. Each is one token, so that no value can be taken for another option. The prompt is never among them. */
export function cliArguments(config: CliConfig, denied: readonly string[], resumeId?: string): string[] {
  return [
    '-p',
    '--input-format=stream-json',
    '--output-format=stream-json',
    '--verbose',
    '--include-partial-messages',
    `--tools=${config.tools}`,
    `--permission-mode=${config.permissionMode}`,
    `--setting-sources=${config.settingSources}`,
    '--strict-mcp-config',
    '--disable-slash-commands',
    `--settings=${JSON.stringify({ permissions: { deny: denied } })}`,
    `--max-turns=${config.maxTurns}`,
    ...(config.model === undefined ? [] : [`--model=${config.model}`]),
    ...(config.allowedTools === '' ? [] : [`--allowedTools=${config.allowedTools}`]),
    ...(resumeId === undefined ? [] : [`--resume=${resumeId}`]),
  ];
}

/** The CLI's environment: the operator's variables over our defaults. Nothing else of the server's own gets in. */
export function cliEnvironment(childEnv: Readonly<Record<string, string>>): Record<string, string> {
  return { ...defaultEnv, ...childEnv };
}

/** With setpriv the kernel ends the CLI when the server dies, even by SIGKILL; it execs, so the pid stays the CLI's. */
function commandLine(setpriv: string | undefined, binary: string, args: readonly string[]): Pick<Launch, 'command' | 'args'> {
  if (setpriv === undefined) return { command: binary, args };
  return { command: setpriv, args: ['--pdeathsig', 'KILL', '--', binary, ...args] };
}

/** util-linux's setpriv, or undefined where there is none or a sandbox does not let it work (it calls capset, measured). */
async function findSetpriv(pathVariable: string): Promise<string | undefined> {
  const setpriv = await findProgram('setpriv', pathVariable);
  if (setpriv === undefined) return undefined;
  const works = promisify(execFile)(setpriv, ['--pdeathsig', 'KILL', '--', setpriv, '--version'], { timeout: 10_000 });
  return works.then(() => setpriv, () => undefined);
}

/** The executable file a name on PATH or a path stands for. A path counts from the server's working directory. */
async function findProgram(nameOrPath: string, pathVariable: string): Promise<string | undefined> {
  const candidates = nameOrPath.includes('/')
    ? [resolve(nameOrPath)]
    : pathVariable.split(delimiter).filter((folder) => folder.startsWith('/')).map((folder) => join(folder, nameOrPath));
  for (const path of candidates) {
    const isFile = await stat(path).then((entry) => entry.isFile(), () => false);
    if (isFile && (await access(path, constants.X_OK).then(() => true, () => false))) return path;
  }
  return undefined;
}
