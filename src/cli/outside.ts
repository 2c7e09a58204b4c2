import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { loginFolder } from '../host/login.ts';
import type { Log } from '../log.ts';
import { Problem } from '../problem.ts';
import { claudeNotFound, findProgram, versionOf, type Command } from './program.ts';
import { createToolCheck, rightsOutside } from './rights.ts';
import { endMarked, markerName } from './strays.ts';
import { projectName, type UserFolders } from './users.ts';
import { cliArguments, defaultEnv, type CliConfig, type Way } from './way.ts';

/** The CLI as an ordinary process of the service user. `marker` is what its probes carry. Starts nothing yet. */
export async function createOutside(config: CliConfig, marker: string, log: Log): Promise<Way> {
  // Otherwise all but the file tools are left out anyway.
  const onTools = config.sandbox === 'off' ? createToolCheck(config.tools, log) : undefined;
  const pathVariable = config.childEnv['PATH'] ?? '';
  const setpriv = await findSetpriv(pathVariable);
  let tooOld: Problem | undefined;

  async function commandLine(): Promise<Command> {
    const binary = await findProgram(config.claudeBinary, pathVariable);
    if (binary === undefined) throw claudeNotFound();
    // With setpriv the kernel ends the CLI when the server dies, even by SIGKILL; it execs, so the pid stays the CLI's.
    return setpriv === undefined ? { command: binary, args: [] } : { command: setpriv, args: ['--pdeathsig', 'KILL', '--', binary] };
  }

  return {
    async launch(options, folders) {
      const { command, args } = await commandLine();
      if (tooOld !== undefined) throw tooOld;
      const own = cliArguments(config, rightsOutside(config), folders.boxes);
      const { work: cwd, boxes } = folders;
      const env = outsideEnv(config.childEnv, folders);
      return { command, args: [...args, ...own, ...options], env, cwd, inbox: boxes.inbox, onTools };
    },

    async probeVersion() {
      tooOld = undefined;
      try {
        return await versionOf(await commandLine(), { ...config.childEnv, ...outsideDefaults, [markerName]: marker });
      } catch (error) {
        // A wrapper that hangs is not ended with what it started.
        await endMarked(marker);
        if (error instanceof Problem && error.code === 'claude_too_old') tooOld = error;
        throw error;
      }
    },

    walk: (folder, program) => program(folder),

    close() {},
  };
}

const outsideDefaults: Readonly<Record<string, string>> = {
  // Without it the CLI itself puts any file named as @path into the request, with no permission check (fact 4).
  CLAUDE_CODE_DISABLE_ATTACHMENTS: '1',
  ...defaultEnv,
};

/**
 * The CLI's environment: the operator's variables over our defaults, and over both where this user's files are. The login
 * stays where the operator's own CLI keeps it.
 */
export function outsideEnv(
  childEnv: Readonly<Record<string, string>>,
  { home, tmp }: Pick<UserFolders, 'home' | 'tmp'>,
): Record<string, string> {
  return {
    ...outsideDefaults,
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
