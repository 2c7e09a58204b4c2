import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { realpath } from 'node:fs/promises';
import { promisify } from 'node:util';
import { claudeNotFound, findProgram, versionOf, type Command } from './cli/program.ts';
import { endMarked, markerName } from './cli/strays.ts';
import { openUsers, projectName, type UserFolders, type Users } from './cli/users.ts';
import { Worker } from './cli/worker.ts';
import type { Config } from './env.ts';
import { loginFolder } from './host/login.ts';
import { Problem } from './problem.ts';

/** What the CLI gets unless the operator says otherwise; each closes a hole or saves time. */
const defaultEnv: Readonly<Record<string, string>> = {
  // Without it the CLI itself puts any file named as @path into the request, with no permission check (fact 4).
  CLAUDE_CODE_DISABLE_ATTACHMENTS: '1',
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
};

type CliConfig = Pick<
  Config,
  | 'allowedTools' | 'childEnv' | 'claudeBinary' | 'keepDays' | 'maxTurns'
  | 'model' | 'permissionMode' | 'settingSources' | 'stateDir' | 'tools'
>;

/** The session a process is started for. */
export interface StartSession {
  readonly userId: number;
  /** Chosen by the server, also for a session that begins. */
  readonly sessionId: string;
  /** Whether it begins with this process; else its transcript is there to be resumed. */
  readonly isNew: boolean;
}

/** Starts CLI processes as configured. */
export interface Claude {
  /** All that is kept of end users. */
  readonly users: Users;
  /**
   * A started process for this session, in the user's own folders (made on first use). It exists but is not known to work
   * before its first turn. Throws Problem `claude_not_found` when there is no such program, `claude_too_old` when the
   * last probe found so, `storage_unavailable` when a folder cannot be made, and `busy` when the machine has no room for
   * a process.
   */
  start(session: StartSession): Promise<Worker>;
  /** The CLI's version from `claude --version`. Throws Problem `claude_not_found` when it cannot be run, `claude_too_old`. */
  probeVersion(): Promise<string>;
  /** What the markers of all processes of this state folder begin with; the server's pid and a point follow. */
  readonly markerPrefix: string;
}

/** The CLI as configured, for one state folder. Starts nothing yet. Throws when the state folder cannot be made. */
export async function createClaude(config: CliConfig): Promise<Claude> {
  const users = await openUsers(config.stateDir);
  const pathVariable = config.childEnv['PATH'] ?? '';
  const setpriv = await findSetpriv(pathVariable);
  const markerPrefix = createHash('sha256').update(await realpath(config.stateDir)).digest('hex').slice(0, 16) + '.';
  // How many processes each user has, and the emptying of their `tmp` when the last one is gone.
  const processes = new Map<number, number>();
  const emptying = new Map<number, Promise<void>>();
  let started = 0;
  let tooOld: Problem | undefined;

  async function commandLine(): Promise<Command> {
    const binary = await findProgram(config.claudeBinary, pathVariable);
    if (binary === undefined) throw claudeNotFound();
    // With setpriv the kernel ends the CLI when the server dies, even by SIGKILL; it execs, so the pid stays the CLI's.
    return setpriv === undefined ? { command: binary, args: [] } : { command: setpriv, args: ['--pdeathsig', 'KILL', '--', binary] };
  }

  async function launch({ userId, sessionId, isNew }: StartSession): Promise<Worker> {
    const { command, args } = await commandLine();
    if (tooOld !== undefined) throw tooOld;
    await emptying.get(userId);
    const folders = await users.prepare(userId);
    started += 1;
    return new Worker({
      command,
      args: [...args, ...cliArguments(config), isNew ? `--session-id=${sessionId}` : `--resume=${sessionId}`],
      env: cliEnvironment(config.childEnv, folders),
      cwd: folders.work,
      marker: `${markerPrefix}${process.pid}.${started}.`,
      sessionId,
      isInPlace: folders.isUnchanged,
    });
  }

  function countProcess(userId: number, change: 1 | -1): void {
    const count = (processes.get(userId) ?? 0) + change;
    if (count > 0) {
      processes.set(userId, count);
      return;
    }
    processes.delete(userId);
    emptying.set(userId, users.emptyTmp(userId).finally(() => emptying.delete(userId)));
  }

  return {
    users,
    markerPrefix,

    async start(session) {
      countProcess(session.userId, 1);
      try {
        const worker = await launch(session);
        void worker.exited.then(() => worker.stop()).then(() => countProcess(session.userId, -1));
        return worker;
      } catch (error) {
        countProcess(session.userId, -1);
        throw error;
      }
    },

    async probeVersion() {
      // Like every process of ours it carries a marker: a wrapper that hangs is not ended with what it started.
      const marker = `${markerPrefix}${process.pid}.0.`;
      tooOld = undefined;
      try {
        return await versionOf(await commandLine(), { ...config.childEnv, ...defaultEnv, [markerName]: marker });
      } catch (error) {
        await endMarked(marker);
        if (error instanceof Problem && error.code === 'claude_too_old') tooOld = error;
        throw error;
      }
    },
  };
}

/** The CLI's arguments but for the session. Each is one token, so that no value is taken for another option. Never the prompt. */
export function cliArguments(config: CliConfig): string[] {
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
    `--settings=${JSON.stringify({ cleanupPeriodDays: config.keepDays })}`,
    `--max-turns=${config.maxTurns}`,
    ...(config.model === undefined ? [] : [`--model=${config.model}`]),
    ...(config.allowedTools === '' ? [] : [`--allowedTools=${config.allowedTools}`]),
  ];
}

/**
 * The CLI's environment: the operator's variables over our defaults, and over both where this user's files are. The login
 * stays where the operator's own CLI keeps it.
 */
export function cliEnvironment(
  childEnv: Readonly<Record<string, string>>,
  { home, tmp }: Pick<UserFolders, 'home' | 'tmp'>,
): Record<string, string> {
  return {
    ...defaultEnv,
    ...childEnv,
    CLAUDE_CONFIG_DIR: home,
    CLAUDE_SECURESTORAGE_CONFIG_DIR: loginFolder(childEnv),
    CLAUDE_CODE_PROJECT_DIR_NAME: projectName,
    CLAUDE_CODE_TMPDIR: tmp,
    TMPDIR: tmp,
  };
}

/** util-linux's setpriv, or undefined where there is none or a sandbox does not let it work (fact 35). */
async function findSetpriv(pathVariable: string): Promise<string | undefined> {
  const setpriv = await findProgram('setpriv', pathVariable);
  if (setpriv === undefined) return undefined;
  const works = promisify(execFile)(setpriv, ['--pdeathsig', 'KILL', '--', setpriv, '--version'], { timeout: 10_000 });
  return works.then(() => setpriv, () => undefined);
}
