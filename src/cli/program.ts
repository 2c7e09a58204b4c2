import { execFile } from 'node:child_process';
import { access, constants, stat } from 'node:fs/promises';
import { delimiter, join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { asObject } from '../json.ts';
import { errorCode, Problem } from '../problem.ts';
import { lastWords } from './words.ts';

/**
 * The oldest CLI that names a turn's own cost also when it was interrupted, and keeps a user's files in a folder of their
 * own. What the server promises is tested on this one and on the newest.
 */
const oldestVersion = '2.1.326';

// Where Node is older than 22 npm takes a version that is too old, unless it is told which (fact 74).
const install = '"npm install -g --allow-scripts=@anthropic-ai/claude-code @anthropic-ai/claude-code@latest"';
// A wrapper may take its time; the CLI itself answers in a fifth of a second.
const versionTimeoutMs = 10_000;

/** How a CLI is started: the program and the arguments in front of the CLI's own. */
export interface Command {
  readonly command: string;
  readonly args: readonly string[];
}

/** The executable file a name on PATH or a path stands for. A path counts from the server's working directory. */
export async function findProgram(nameOrPath: string, pathVariable: string): Promise<string | undefined> {
  const candidates = nameOrPath.includes('/')
    ? [resolve(nameOrPath)]
    : pathVariable.split(delimiter).filter((folder) => folder.startsWith('/')).map((folder) => join(folder, nameOrPath));
  for (const path of candidates) {
    const isFile = await stat(path).then((entry) => entry.isFile(), () => false);
    if (isFile && (await access(path, constants.X_OK).then(() => true, () => false))) return path;
  }
  return undefined;
}

/**
 * The version that `--version` tells. Throws Problem `claude_not_found` that says why it does not run and which line
 * cures that, or `claude_too_old`. The caller ends what a program that hangs has started.
 */
export async function versionOf({ command, args }: Command, env: Readonly<Record<string, string>>): Promise<string> {
  const options = { env, timeout: versionTimeoutMs, killSignal: 'SIGKILL' } as const;
  const { stdout } = await promisify(execFile)(command, [...args, '--version'], options).catch((error: unknown) => {
    throw claudeDoesNotRun(error);
  });
  const [version] = /^\d+\.\d+\.\d+/.exec(stdout) ?? [];
  if (version === undefined) throw claudeNotFound('What CLAUDE_BINARY_PATH names does not answer --version as the Claude CLI does');
  if (isTooOld(version)) throw claudeTooOld(version);
  return version;
}

/** Whether the server does not support this version of the CLI. */
export function isTooOld(version: string): boolean {
  return version.localeCompare(oldestVersion, 'en', { numeric: true }) < 0;
}

/** The problem of a CLI that is older than the server supports. */
export function claudeTooOld(version: string): Problem {
  const needed = `${oldestVersion} or newer is needed`;
  return new Problem('claude_too_old', `The Claude CLI ${version} is too old, ${needed}: update it with ${install}.`);
}

/** The problem of a server that has no CLI to run. `why` is the first half of a sentence. */
export function claudeNotFound(why = 'There is no Claude CLI'): Problem {
  return new Problem('claude_not_found', `${why}: install it with ${install}, or set CLAUDE_BINARY_PATH to where it is.`);
}

function claudeDoesNotRun(error: unknown): Problem {
  const code = errorCode(error);
  // 126 and 127 are what setpriv, env and shells answer for a program they cannot run.
  if (code === 'ENOENT' || code === '126' || code === '127') {
    return claudeNotFound('The Claude CLI is there, but what it is a wrapper for is gone or cannot be run');
  }
  const stderr = String(asObject(error)['stderr'] ?? '');
  if (/postinstall|install script|native binary/i.test(stderr)) {
    return claudeNotFound('The Claude CLI is a stub, since npm left out its install script');
  }
  const words = lastWords(stderr);
  return claudeNotFound(`The Claude CLI does not run${words === undefined ? '' : `, and says "${words}"`}`);
}
