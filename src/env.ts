import { BlockList, isIP } from 'node:net';
import { homedir, userInfo } from 'node:os';
import { isAbsolute, join } from 'node:path';
import { keyProblems, weakKeyWarnings } from './auth.ts';

/** Settings the server cannot start with: all of them, each `NAME: expected …`, never with the value. */
export class ConfigError extends Error {
  override name = 'ConfigError';
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    super(problems.join('\n'));
    this.problems = problems;
  }
}

/** The server's settings, checked. Times are milliseconds, though the variables they come from count seconds. */
export interface Config {
  /** The callers' bearer key; undefined = the server makes one for this run, and `host` is then loopback. */
  readonly apiKey: string | undefined;
  readonly host: string;
  /** 0 = any free port. */
  readonly port: number;
  /** Limit of one turn. */
  readonly turnTimeoutMs: number;
  /** Agent rounds in one turn. */
  readonly maxTurns: number;
  /** A name on PATH or a path. */
  readonly claudeBinary: string;
  /** Running and warm processes together; undefined = by memory. */
  readonly maxWorkers: number | undefined;
  /** Turns that may wait; 0 = none. */
  readonly queueLimit: number;
  readonly queueTimeoutMs: number;
  /** How long an idle process is kept; 0 = neither warm processes nor a spare. */
  readonly warmMs: number;
  /** undefined = the CLI's own choice. */
  readonly model: string | undefined;
  /** Comma-separated; '' = no tools, 'default' = all of the CLI's. */
  readonly tools: string;
  /** Comma-separated tools that need no permission; '' = none. */
  readonly allowedTools: string;
  readonly permissionMode: string;
  /** Comma-separated; '' = none. */
  readonly settingSources: string;
  /** Absolute path; need not exist yet. */
  readonly stateDir: string;
  /** As browsers send them, or exactly ['*']; [] = no CORS. */
  readonly corsOrigins: readonly string[];
  /** Turns per user_id; 0 = no limit. */
  readonly rateLimitPerMinute: number;
  readonly maxBodyBytes: number;
  /** How long running turns may finish after SIGTERM. */
  readonly drainTimeoutMs: number;
  /** What the CLI may see of the environment: never a setting of this server, and so never its key. */
  readonly childEnv: Readonly<Record<string, string>>;
  /** Sentences for the log, without values. */
  readonly warnings: readonly string[];
}

/** The process environment, completed with what a service manager may have left out and the CLI needs. */
export function machineEnv(env: Readonly<Record<string, string | undefined>>): Record<string, string | undefined> {
  const { username } = userInfo();
  return {
    PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    HOME: homedir(),
    USER: username,
    LOGNAME: username,
    LANG: 'C.UTF-8',
    ...env,
  };
}

/** Every setting of the server; README.md and .env.example name each of them. */
export const settingNames = [
  'CLAUDE_API_KEY', 'PORT', 'HOST', 'CLAUDE_TIMEOUT_SECONDS', 'CLAUDE_MAX_TURNS', 'CLAUDE_BINARY_PATH',
  'CLAUDE_MAX_CONCURRENT_REQUESTS', 'CLAUDE_QUEUE_LIMIT', 'CLAUDE_QUEUE_SECONDS', 'CLAUDE_WARM_SECONDS',
  'CLAUDE_MODEL', 'CLAUDE_TOOLS', 'CLAUDE_ALLOWED_TOOLS', 'CLAUDE_PERMISSION_MODE', 'CLAUDE_SETTING_SOURCES',
  'CLAUDE_STATE_DIR', 'CORS_ORIGINS', 'RATE_LIMIT_PER_MINUTE', 'MAX_BODY_BYTES', 'SHUTDOWN_SECONDS',
] as const;

/**
 * Checks the settings of `env` and of a .env file; a name in `env` wins, even when it is empty there. `isRoot`: the
 * CLI will run as root. Throws ConfigError with all problems at once. Reads nothing but its arguments.
 */
export function loadConfig(
  env: Readonly<Record<string, string | undefined>>,
  fileValues: ReadonlyMap<string, string> = new Map(),
  isRoot = false,
): Config {
  const values = new Map(fileValues);
  for (const [name, value] of Object.entries(env)) if (value !== undefined) values.set(name, value);

  const problems: string[] = [];
  const settings = readSettings(values, isRoot, problems);
  if (problems.length > 0) throw new ConfigError(problems);
  return {
    ...settings,
    childEnv: pickChildEnv(values),
    warnings: [...weakKeyWarnings(settings.apiKey), ...misspeltNameWarnings(fileValues.keys())],
  };
}

type SettingName = (typeof settingNames)[number];

/** `expected` is written before any value is seen, so a message made of it cannot show one. */
interface Rule<T> {
  readonly expected: string;
  /** undefined = refused. */
  readonly parse: (text: string) => T | undefined;
}

function readSettings(
  values: ReadonlyMap<string, string>,
  isRoot: boolean,
  problems: string[],
): Omit<Config, 'childEnv' | 'warnings'> {
  const read = <T, F>(name: SettingName, fallback: F, rule: Rule<T>): T | F => {
    const text = values.get(name)?.trim();
    const value = text === undefined ? undefined : rule.parse(text);
    // Empty counts as unset, but for the rules that give '' a meaning.
    if (text && value === undefined) problems.push(`${name}: expected ${rule.expected}`);
    return value ?? fallback;
  };
  problems.push(...keyProblems(values.get('CLAUDE_API_KEY')));
  const settings = {
    apiKey: values.get('CLAUDE_API_KEY'),
    host: read('HOST', values.has('CLAUDE_API_KEY') ? '0.0.0.0' : '127.0.0.1', hostRule),
    port: read('PORT', 8001, integer(0, 65_535)),
    turnTimeoutMs: read('CLAUDE_TIMEOUT_SECONDS', 300_000, seconds(1, 86_400)),
    maxTurns: read('CLAUDE_MAX_TURNS', 50, integer(1, 10_000)),
    claudeBinary: read('CLAUDE_BINARY_PATH', 'claude', binaryRule),
    maxWorkers: read('CLAUDE_MAX_CONCURRENT_REQUESTS', undefined, integer(1, 1_000)),
    queueLimit: read('CLAUDE_QUEUE_LIMIT', 100, integer(0, 100_000)),
    queueTimeoutMs: read('CLAUDE_QUEUE_SECONDS', 60_000, seconds(1, 3_600)),
    warmMs: read('CLAUDE_WARM_SECONDS', 300_000, seconds(0, 86_400)),
    model: read('CLAUDE_MODEL', undefined, modelRule),
    tools: read('CLAUDE_TOOLS', 'Read,Write,Edit,Glob,Grep', toolsRule),
    allowedTools: read('CLAUDE_ALLOWED_TOOLS', '', toolsRule),
    permissionMode: read('CLAUDE_PERMISSION_MODE', 'acceptEdits', permissionModeRule),
    settingSources: read('CLAUDE_SETTING_SOURCES', 'user', settingSourcesRule),
    stateDir: read('CLAUDE_STATE_DIR', undefined, stateDirRule) ?? defaultStateDir(values),
    corsOrigins: read('CORS_ORIGINS', [], corsOriginsRule),
    rateLimitPerMinute: read('RATE_LIMIT_PER_MINUTE', 0, integer(0, 100_000)),
    maxBodyBytes: read('MAX_BODY_BYTES', 10_485_760, integer(1_024, 33_554_432)), // the API itself takes 32 MiB
    drainTimeoutMs: read('SHUTDOWN_SECONDS', 30_000, seconds(0, 3_600)),
  };
  problems.push(...combinationProblems(settings, isRoot && values.get('IS_SANDBOX') !== '1'));
  return { ...settings, stateDir: settings.stateDir ?? '' }; // '' goes nowhere: without a place there is a problem
}

function integer(min: number, max: number, factor = 1): Rule<number> {
  const isInRange = (text: string): boolean => /^\d+$/.test(text) && Number(text) >= min && Number(text) <= max;
  return {
    expected: `a whole number from ${min} to ${max}`,
    parse: (text) => (isInRange(text) ? Number(text) * factor : undefined),
  };
}

/** Seconds in the text, milliseconds as the value. */
function seconds(min: number, max: number): Rule<number> {
  return integer(min, max, 1000);
}

function oneOf(...choices: readonly string[]): Rule<string> {
  return { expected: `one of ${choices.join(', ')}`, parse: (text) => choices.find((choice) => choice === text) };
}

function matching(pattern: RegExp, expected: string): Rule<string> {
  return { expected, parse: (text) => (pattern.test(text) ? text : undefined) };
}

const binaryRule = matching(/^[^-~\0][^\0]*$/, 'a command name or a path that does not begin with - or ~');
const modelRule = matching(/^[A-Za-z0-9][A-Za-z0-9._:@/[\]-]*$/, 'a model name such as sonnet or claude-sonnet-4-5');
const toolsRule = matching(/^\P{Cc}*$/u, 'tool names separated by commas, without control characters');
const permissionModeRule = oneOf('default', 'acceptEdits', 'plan', 'dontAsk', 'auto', 'bypassPermissions');

const hostRule: Rule<string> = {
  expected: 'an IP address or a host name',
  parse: (text) => (isIP(text) !== 0 || isHostName(text) ? text : undefined),
};

function isHostName(text: string): boolean {
  const labels = text.split('.');
  const isLabel = (label: string): boolean => /^(?!-)[A-Za-z0-9-]{1,63}(?<!-)$/.test(label);
  // Digits at the end make it an IPv4 address with a mistake in it.
  return text.length <= 253 && labels.every(isLabel) && !/^\d+$/.test(labels.at(-1) ?? '');
}

const settingSourcesRule: Rule<string> = {
  expected: 'any of user, project, local, separated by commas, or nothing',
  parse: (text) => {
    const sources = splitList(text);
    return sources.every((source) => /^(?:user|project|local)$/.test(source)) ? sources.join(',') : undefined;
  },
};

const stateDirRule: Rule<string> = {
  expected: 'an absolute path (~ and $HOME are not expanded)',
  parse: (text) => (isAbsolute(text) && !text.includes('\0') ? text : undefined),
};

const corsOriginsRule: Rule<readonly string[]> = {
  expected: 'origins such as https://app.example.com (lower case, no path, no default port), separated by commas, or *',
  parse: (text) => {
    const origins = splitList(text).map((origin) => origin.replace(/\/$/, ''));
    if (!origins.every((origin) => origin === '*' || isOrigin(origin))) return undefined;
    return origins.includes('*') ? ['*'] : origins;
  },
};

function splitList(text: string): string[] {
  return text.split(',').map((part) => part.trim()).filter((part) => part !== '');
}

function isOrigin(text: string): boolean {
  // A browser's Origin is compared as text, so `https://*.example.com` would be valid here and match nobody.
  if (!URL.canParse(text) || text.includes('*')) return false;
  const { protocol, host } = new URL(text); // not .origin: that is "null" for capacitor:// and its like
  return host !== '' && `${protocol}//${host}` === text;
}

/** undefined when nothing says where. */
function defaultStateDir(values: ReadonlyMap<string, string>): string | undefined {
  const given = values.get('STATE_DIRECTORY')?.split(':')[0] ?? ''; // systemd lists all of the unit's, joined by colons
  const state = values.get('XDG_STATE_HOME') ?? '';
  const home = values.get('HOME') ?? '';
  if (isAbsolute(given)) return given;
  if (isAbsolute(state)) return join(state, 'claude-api');
  return isAbsolute(home) ? join(home, '.local/state/claude-api') : undefined;
}

type Combined = Pick<Config, 'apiKey' | 'host' | 'permissionMode'> & { readonly stateDir: string | undefined };

function combinationProblems({ apiKey, host, permissionMode, stateDir }: Combined, isRefusedRoot: boolean): string[] {
  const problems: [boolean, string][] = [
    [
      apiKey === undefined && !isLoopback(host),
      'HOST: without CLAUDE_API_KEY the server listens on 127.0.0.1 only; set CLAUDE_API_KEY or leave HOST out',
    ],
    [
      permissionMode === 'bypassPermissions' && isRefusedRoot,
      'CLAUDE_PERMISSION_MODE: expected another mode, or another user: the CLI refuses bypassPermissions as root',
    ],
    [stateDir === undefined, 'HOME: expected the absolute path of a home directory; set it, or CLAUDE_STATE_DIR'],
  ];
  return problems.flatMap(([isProblem, sentence]) => (isProblem ? [sentence] : []));
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
    'MAX_THINKING_TOKENS|MAX_MCP_OUTPUT_TOKENS|API_TIMEOUT_MS|IS_SANDBOX|ENABLE_TOOL_SEARCH',
  ].join('|')})$`,
);

// A server started from inside a Claude Code session has these; its CLIs are not part of that session.
const outerSessionNames = /^CLAUDE_CODE_(?:ENTRYPOINT|SESSION_ID|SSE_PORT|EXECPATH)$/;

const loginNames = /^(?:ANTHROPIC_API_KEY|ANTHROPIC_AUTH_TOKEN|CLAUDE_CODE_OAUTH_TOKEN)$/;

function pickChildEnv(values: ReadonlyMap<string, string>): Readonly<Record<string, string>> {
  const visible = [...values].filter(([name, value]) => {
    // An empty login variable makes the CLI say "Not logged in" although a login file is there.
    if (loginNames.test(name) && value.trim() === '') return false;
    return childNames.test(name) && !outerSessionNames.test(name);
  });
  return Object.fromEntries(visible);
}

function misspeltNameWarnings(fileNames: Iterable<string>): string[] {
  const known: readonly string[] = settingNames;
  return [...fileNames].flatMap((name) => {
    if (!/^CLAUDE_/i.test(name) || known.includes(name)) return [];
    const meant = known.find((setting) => resembles(name, setting));
    return meant === undefined ? [] : [`${name} in .env is not a setting; did you mean ${meant}?`];
  });
}

function resembles(name: string, setting: string): boolean {
  if (!setting.startsWith('CLAUDE_')) return name === `CLAUDE_${setting}`; // the short ones resemble too much
  const letters = (text: string): string => text.replaceAll('_', '').toUpperCase();
  return letters(name) === letters(setting) || setting.startsWith(`${name}_`) || isWithinEdits(name, setting, 2);
}

function isWithinEdits(a: string, b: string, editsLeft: number): boolean {
  if (Math.abs(a.length - b.length) > editsLeft) return false;
  let same = 0;
  while (same < a.length && a[same] === b[same]) same++;
  const [restA, restB] = [a.slice(same), b.slice(same)];
  if (restA === restB) return true;
  if (editsLeft === 0) return false;
  return (
    isWithinEdits(restA.slice(1), restB, editsLeft - 1) ||
    isWithinEdits(restA, restB.slice(1), editsLeft - 1) ||
    isWithinEdits(restA.slice(1), restB.slice(1), editsLeft - 1)
  );
}
