import { BlockList, isIP } from 'node:net';
import { userInfo } from 'node:os';
import { isAbsolute, join } from 'node:path';
import { EnvSyntaxError, parseEnv } from './host/dotenv.ts';
import { hasHost } from './host/host-list.ts';
import { readSettings, settings, type Settings } from './host/settings.ts';

/** Settings the server cannot start with. The message has a line for each warning and each problem. */
export class ConfigError extends Error {
  override name = 'ConfigError';
  /** sysexits.h: systemd does not restart on it. */
  readonly exitCode = 78;
  /** All of them, each `NAME: expected …`, never with the value. */
  readonly problems: readonly string[];
  /** What is doubtful besides, and may be the cause. */
  readonly warnings: readonly string[];

  constructor(problems: readonly string[], warnings: readonly string[] = []) {
    super([...warnings.map((warning) => `warning: ${warning}`), ...problems].join('\n'));
    this.problems = problems;
    this.warnings = warnings;
  }
}

/** The server's settings, checked. Without an `apiKey` the server makes one for this run, and `host` is loopback. */
export interface Config extends Settings {
  /** Absolute path; need not exist yet. */
  readonly stateDir: string;
  /** Absolute path of a folder for sockets; need not exist yet. */
  readonly runtimeDir: string;
  /** What the CLI may see of the environment: never a setting of this server, and so never its key. */
  readonly childEnv: Readonly<Record<string, string>>;
  /** Sentences for the log, without values. */
  readonly warnings: readonly string[];
}

/** The names of all settings. */
export const settingNames: readonly string[] = Object.values(settings).map(({ name }) => name);

/** The process environment, completed with what a service manager may have left out and the CLI needs. */
export function machineEnv(env: Readonly<Record<string, string | undefined>>): Record<string, string | undefined> {
  return {
    PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    ...account(),
    LANG: 'C.UTF-8',
    ...env,
  };
}

/** What the list of accounts says of this one; a container's may have no name for it. */
function account(): Record<string, string> {
  try {
    const { username, homedir } = userInfo();
    return { HOME: homedir, USER: username, LOGNAME: username };
  } catch {
    return {};
  }
}

/** `loadConfig` for the text of a .env file. Throws ConfigError when it is not .env syntax either. */
export function parseConfig(env: Readonly<Record<string, string | undefined>>, envFile: string, isRoot = false): Config {
  const { values, warnings } = readEnvFile(envFile);
  return loadConfig(env, values, isRoot, warnings.map((warning) => `.env ${warning}`));
}

function readEnvFile(text: string): ReturnType<typeof parseEnv> {
  try {
    return parseEnv(text);
  } catch (error) {
    if (error instanceof EnvSyntaxError) throw new ConfigError([`.env ${error.message}`]);
    throw error;
  }
}

/**
 * Checks the settings of `env` and of a .env file; a name in `env` wins, even when it is empty there. `isRoot`: the
 * CLI will run as root. `fileWarnings`: what is doubtful in the file already. Throws ConfigError with all problems at once.
 * Reads nothing but its arguments.
 */
export function loadConfig(
  env: Readonly<Record<string, string | undefined>>,
  fileValues: ReadonlyMap<string, string> = new Map(),
  isRoot = false,
  fileWarnings: readonly string[] = [],
): Config {
  const values = new Map(fileValues);
  for (const [name, value] of Object.entries(env)) if (value !== undefined) values.set(name, value);

  const read = readSettings(values);
  const hasKey = values.has('CLAUDE_API_KEY');
  const isHostRefused = read.problems.some((problem) => problem.startsWith('HOST:'));
  const host = hasKey || (values.get('HOST')?.trim() && !isHostRefused) ? read.settings.host : '127.0.0.1';
  const stateDir = read.settings.stateDir ?? defaultStateDir(values);
  const problems = [...read.problems, ...combinationProblems(values, { ...read.settings, host, stateDir }, isRoot)];
  const warnings = [...fileWarnings, ...weakKeyWarnings(read.settings.apiKey), ...unknownNameWarnings(fileValues.keys())];
  if (problems.length > 0 || stateDir === undefined) throw new ConfigError(problems, warnings);
  return { ...read.settings, host, stateDir, runtimeDir: runtimeDirOf(values, stateDir), childEnv: pickChildEnv(values), warnings };
}

// Where the state folder is without CLAUDE_STATE_DIR.
const placeNames = ['STATE_DIRECTORY', 'XDG_STATE_HOME', 'RUNTIME_DIRECTORY', 'XDG_RUNTIME_DIR'];

/** undefined when nothing says where. */
function defaultStateDir(values: ReadonlyMap<string, string>): string | undefined {
  const given = values.get('STATE_DIRECTORY')?.split(':')[0] ?? ''; // systemd lists all of the unit's, joined by colons
  const state = values.get('XDG_STATE_HOME') ?? '';
  const home = values.get('HOME') ?? '';
  if (isAbsolute(given)) return given;
  if (isAbsolute(state)) return join(state, 'claude-api');
  return isAbsolute(home) ? join(home, '.local/state/claude-api') : undefined;
}

/** Where the kernel forgets them at a reboot, if there is such a place. */
function runtimeDirOf(values: ReadonlyMap<string, string>, stateDir: string): string {
  const given = values.get('RUNTIME_DIRECTORY')?.split(':')[0] ?? '';
  const user = values.get('XDG_RUNTIME_DIR') ?? '';
  if (isAbsolute(given)) return given;
  return isAbsolute(user) ? join(user, 'claude-api') : join(stateDir, 'run');
}

/** What several settings together decide. */
function combinationProblems(
  values: ReadonlyMap<string, string>, { host, network, permissionMode, stateDir }: Settings, isRoot: boolean,
): string[] {
  const key = values.get('CLAUDE_API_KEY');
  const problems: [boolean, string][] = [
    [key?.trim() === '', 'CLAUDE_API_KEY: is empty; set a key, or remove the line to get a temporary key for each run'],
    [
      key === undefined && !isLoopback(host),
      'HOST: without CLAUDE_API_KEY the server listens on 127.0.0.1 only; set CLAUDE_API_KEY or leave HOST out',
    ],
    [
      network !== 'public' && apiHosts(values).some((name) => hasHost(network, name)),
      "CLAUDE_NETWORK: expected hosts other than the API's: whoever has an API key of their own could carry data out there",
    ],
    [
      permissionMode === 'bypassPermissions' && isRoot && values.get('IS_SANDBOX') !== '1',
      'CLAUDE_PERMISSION_MODE: expected another mode, or another user: the CLI refuses bypassPermissions as root',
    ],
    [stateDir === undefined, 'HOME: expected the absolute path of a home directory; set it, or CLAUDE_STATE_DIR'],
  ];
  return problems.flatMap(([isProblem, sentence]) => (isProblem ? [sentence] : []));
}

function apiHosts(values: ReadonlyMap<string, string>): string[] {
  const gateway = values.get('ANTHROPIC_BASE_URL') ?? '';
  return ['api.anthropic.com', ...(URL.canParse(gateway) ? [new URL(gateway).hostname] : [])];
}

function isLoopback(host: string): boolean {
  if (isIP(host) === 0) return host.toLowerCase() === 'localhost';
  const loopback = new BlockList(); // knows the other spellings too, such as 0:0:0:0:0:0:0:1
  loopback.addSubnet('127.0.0.0', 8);
  loopback.addAddress('::1', 'ipv6');
  return loopback.check(host, isIP(host) === 6 ? 'ipv6' : 'ipv4');
}

const childNames = new RegExp(
  `^(?:${[
    'PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_.+|TZ|TMPDIR',
    'HTTP_PROXY|HTTPS_PROXY|NO_PROXY|ALL_PROXY|http_proxy|https_proxy|no_proxy|all_proxy',
    'NODE_EXTRA_CA_CERTS|SSL_CERT_FILE|SSL_CERT_DIR',
    'ANTHROPIC_.+|CLAUDE_CODE_.+|CLAUDE_CONFIG_DIR|CLAUDE_SECURESTORAGE_CONFIG_DIR',
    'AWS_.+|GOOGLE_.+|GCLOUD_.+|CLOUDSDK_.+|CLOUD_ML_REGION|VERTEX_REGION_.+|AZURE_.+',
    'DISABLE_.+|BASH_DEFAULT_TIMEOUT_MS|BASH_MAX_TIMEOUT_MS|BASH_MAX_OUTPUT_LENGTH|MCP_TIMEOUT|MCP_TOOL_TIMEOUT',
    'MAX_THINKING_TOKENS|MAX_MCP_OUTPUT_TOKENS|API_TIMEOUT_MS|IS_SANDBOX|ENABLE_TOOL_SEARCH|BUN_JSC_useBaselineJIT|MIMALLOC_PURGE_DELAY',
  ].join('|')})$`,
);

// A server started from inside a Claude Code session has these; its CLIs are not part of that session.
const outerSessionNames = /^CLAUDE_CODE_(?:ENTRYPOINT|SESSION_ID|SSE_PORT|EXECPATH)$/;

const loginNames = /^(?:ANTHROPIC_API_KEY|ANTHROPIC_AUTH_TOKEN|CLAUDE_CODE_OAUTH_TOKEN)$/;

function pickChildEnv(values: ReadonlyMap<string, string>): Readonly<Record<string, string>> {
  // A blank one is no login to the CLI (fact 30): it must be none to us either.
  const visible = [...values].filter(([name, value]) => isForCli(name) && !(loginNames.test(name) && value.trim() === ''));
  return Object.fromEntries(visible);
}

function isForCli(name: string): boolean {
  return childNames.test(name) && !outerSessionNames.test(name);
}

/** A sentence for a key that is accepted, but short. */
function weakKeyWarnings(key: string | undefined): string[] {
  if (key === undefined || key.length >= 32) return [];
  return ['CLAUDE_API_KEY has fewer than 32 characters; `openssl rand -hex 32` prints a stronger one'];
}

function unknownNameWarnings(fileNames: Iterable<string>): string[] {
  const unknown = [...fileNames].filter((name) => !settingNames.includes(name) && !isForCli(name) && !placeNames.includes(name));
  return unknown.map((name) => `${name} in .env is neither a setting nor passed on to the CLI: it has no effect`);
}
