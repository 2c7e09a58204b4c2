import { isIP } from 'node:net';
import { isAbsolute } from 'node:path';
import { isHostName, parseHostList, type HostList } from './host-list.ts';

/** What a rule makes of a text. `expected` is written before any text is seen, so a message made of it cannot show one. */
type Parsed<T> = { readonly value: T } | { readonly expected: string };
type Rule<T> = (text: string) => Parsed<T>;

/** One setting of the server. */
interface Setting<T> {
  readonly name: string;
  /** As an operator would write it; '' where it is not a value of the setting's own kind. */
  readonly defaultText: string;
  readonly rule: Rule<T>;
  readonly defaultValue: T;
  /** Its line in README.md. */
  readonly doc: string;
}

/** Every setting of the server. A name that ends in _SECONDS counts seconds, its value milliseconds. */
export const settings = {
  apiKey: setting('CLAUDE_API_KEY', '', optional(keyRule), 'the key your callers send; make one with `openssl rand -hex 32`'),
  port: setting('PORT', '8001', integer(0, 65_535), 'the port to listen on; 0 takes any free one'),
  host: setting(
    'HOST', '0.0.0.0', hostRule,
    'the address to listen on; 127.0.0.1 without a key, and in the `.env` that `install.sh` makes',
  ),
  turnTimeoutMs: setting('CLAUDE_TIMEOUT_SECONDS', '300', seconds(1, 86_400), 'the longest a turn may run'),
  maxTurns: setting('CLAUDE_MAX_TURNS', '50', integer(1, 10_000), 'the most agent rounds in one turn'),
  claudeBinary: setting(
    'CLAUDE_BINARY_PATH', 'claude',
    matching(/^[^-~\0][^\0]*$/, 'a command name or a path that does not begin with - or ~'),
    'a name on PATH, or a path',
  ),
  maxWorkers: setting('CLAUDE_MAX_CONCURRENT_REQUESTS', '', optional(integer(1, 1_000)), 'the most processes there may be; see Capacity'),
  queueLimit: setting('CLAUDE_QUEUE_LIMIT', '100', integer(0, 100_000), 'turns that may wait; more are `busy`'),
  queueTimeoutMs: setting('CLAUDE_QUEUE_SECONDS', '60', seconds(1, 3_600), 'the longest a turn may wait'),
  warmMs: setting(
    'CLAUDE_WARM_SECONDS', '300', seconds(0, 86_400), 'how long an idle dialogue keeps its process; 0 keeps none, and no spare',
  ),
  models: setting(
    'CLAUDE_MODEL', '', modelsRule,
    'such as `sonnet`; of several, separated by commas, the first is used, and in the sandbox the others are allowed',
  ),
  sandbox: setting(
    'CLAUDE_SANDBOX', 'auto', oneOf('auto', 'required', 'off'),
    'a wall of the kernel around each end user: `auto` where it works, `required` or the server does not start, `off` none',
  ),
  network: setting(
    'CLAUDE_NETWORK', 'none', networkRule,
    'what tools in the sandbox may fetch from, by HTTPS: hosts such as `github.com,*.npmjs.org`, or `public` for all of the internet',
  ),
  tools: chosenBySandbox('CLAUDE_TOOLS', toolsRule, 'the tools Claude has; `default` for all, empty for none'),
  allowedTools: setting('CLAUDE_ALLOWED_TOOLS', '', toolsRule, 'tools that need no permission; a bare `Read` means anywhere on disk'),
  permissionMode: chosenBySandbox(
    'CLAUDE_PERMISSION_MODE',
    oneOf('default', 'acceptEdits', 'plan', 'dontAsk', 'auto', 'bypassPermissions'),
    "one of the CLI's modes",
  ),
  settingSources: chosenBySandbox(
    'CLAUDE_SETTING_SOURCES', settingSourcesRule,
    "with `project,local` the settings and CLAUDE.md in a user's `work` count, with `user` those in their `home`",
  ),
  userDiskBytes: setting(
    'CLAUDE_USER_DISK_MB', '2048', integer(1, 10_000_000, 1024 * 1024),
    "MiB that a user's folder may hold, in 200,000 files at most",
  ),
  userTokensPerDay: setting(
    'CLAUDE_USER_TOKENS_PER_DAY', '', optional(integer(1, 1_000_000_000)),
    'tokens a day (UTC) and `user_id`, cached ones included; counted in the sandbox',
  ),
  systemPromptFile: setting(
    'CLAUDE_SYSTEM_PROMPT_FILE', '', optional(absolutePathRule), 'a file of text that Claude is told in every dialogue',
  ),
  mcpConfigFile: setting('CLAUDE_MCP_CONFIG', '', optional(absolutePathRule), 'a file of MCP servers for every dialogue'),
  keepDays: setting('CLAUDE_KEEP_DAYS', '30', integer(1, 36_500), 'days a dialogue is kept after its last turn'),
  stateDir: setting(
    'CLAUDE_STATE_DIR', '',
    optional(absolutePathRule),
    'under systemd its state directory; one server per state folder',
  ),
  corsOrigins: setting('CORS_ORIGINS', '', corsOriginsRule, 'comma-separated origins, or `*`'),
  rateLimitPerMinute: setting('RATE_LIMIT_PER_MINUTE', '0', integer(0, 100_000), 'turns per minute and `user_id`; 0 sets no limit'),
  // 8 MiB of files are 11 MB of base64. The API itself takes 32 MiB.
  maxBodyBytes: setting('MAX_BODY_BYTES', '16777216', integer(1_024, 33_554_432), 'the largest body of a request'),
  drainTimeoutMs: setting(
    'SHUTDOWN_SECONDS', '30', seconds(0, 3_600), 'how long running turns may finish when the server is told to stop',
  ),
} as const;

/** The values of all settings, checked. */
export type Settings = {
  readonly [F in keyof typeof settings]: (typeof settings)[F] extends Setting<infer T> ? T : never;
};

/** The value of every setting, and what is wrong with any, each as `NAME: expected …` without its value. */
export function readSettings(values: ReadonlyMap<string, string>): { readonly settings: Settings; readonly problems: readonly string[] } {
  const problems: string[] = [];
  const read = <T>({ name, rule, defaultValue }: Setting<T>): T => {
    const text = values.get(name)?.trim();
    if (text === undefined) return defaultValue;
    const parsed = rule(text);
    if ('value' in parsed) return parsed.value;
    // Empty counts as unset, but for the rules that give '' a meaning.
    if (text !== '') problems.push(`${name}: expected ${parsed.expected}`);
    return defaultValue;
  };
  const entries = Object.entries(settings).map(([field, one]) => [field, read<unknown>(one)]);
  // The compiler does not follow a table into a record: each field's value comes from that field's own rule.
  return { settings: Object.fromEntries(entries) as Settings, problems };
}

function setting<T>(name: string, defaultText: string, rule: Rule<T>, doc: string): Setting<T> {
  const parsed = rule(defaultText);
  if ('expected' in parsed) throw new Error(`${name}: its own default is refused`);
  return { name, defaultText, rule, defaultValue: parsed.value, doc };
}

/** A setting that is undefined unless it is set: what it is then depends on whether there is a sandbox. */
function chosenBySandbox<T>(name: string, rule: Rule<T>, doc: string): Setting<T | undefined> {
  return { name, defaultText: '', rule, defaultValue: undefined, doc };
}

/** Empty means that there is none. */
function optional<T>(rule: Rule<T>): Rule<T | undefined> {
  return (text) => (text === '' ? { value: undefined } : rule(text));
}

function integer(min: number, max: number, factor = 1): Rule<number> {
  const isInRange = (text: string): boolean => /^\d+$/.test(text) && Number(text) >= min && Number(text) <= max;
  return (text) => (isInRange(text) ? { value: Number(text) * factor } : { expected: `a whole number from ${min} to ${max}` });
}

/** Seconds in the text, milliseconds as the value. */
function seconds(min: number, max: number): Rule<number> {
  return integer(min, max, 1000);
}

function oneOf<T extends string>(...choices: readonly T[]): Rule<T> {
  return (text) => {
    const value = choices.find((choice) => choice === text);
    return value === undefined ? { expected: `one of ${choices.join(', ')}` } : { value };
  };
}

function matching(pattern: RegExp, expected: string): Rule<string> {
  return (text) => (pattern.test(text) ? { value: text } : { expected });
}

// Six letters and more: none is in one of a million random base64 keys.
const placeholderWords = /change|example|password|placeholder|replace|secret|your[-_ ]/i;

function keyRule(key: string): Parsed<string> {
  if (!/^[\x21-\x7E]+$/.test(key)) return { expected: 'printable ASCII characters without blanks: it travels in a header' };
  if (key.length < 16) return { expected: '16 characters or more; `openssl rand -hex 32` prints 64' };
  if (placeholderWords.test(key)) return { expected: 'a random key, not a placeholder; `openssl rand -hex 32` prints one' };
  return { value: key };
}

function hostRule(text: string): Parsed<string> {
  return isIP(text) !== 0 || isHostName(text) ? { value: text } : { expected: 'an IP address or a host name' };
}

function networkRule(text: string): Parsed<HostList> {
  const hosts = parseHostList(text);
  const expected = 'none, public, or host names such as github.com,*.npmjs.org, separated by commas';
  return hosts === undefined ? { expected } : { value: hosts };
}

function modelsRule(text: string): Parsed<readonly string[]> {
  const names = splitList(text);
  const isRight = names.every((name) => /^[A-Za-z0-9][A-Za-z0-9._:@/[\]-]*$/.test(name));
  return isRight ? { value: names } : { expected: 'a model name such as sonnet or claude-sonnet-4-5, or several, separated by commas' };
}

function toolsRule(text: string): Parsed<string> {
  // Blanks may stand in a rule's parentheses, as in Bash(git log:*).
  const names = text.replace(/\(.*?\)(?=\s*(?:,|$))/g, '').split(',').map((name) => name.trim());
  const isRight = !/\p{Cc}/u.test(text) && !names.some((name) => /\s/.test(name));
  return isRight ? { value: text } : { expected: 'tool names separated by commas, without blanks or control characters in them' };
}

function settingSourcesRule(text: string): Parsed<string> {
  const sources = splitList(text);
  const isRight = sources.every((source) => /^(?:user|project|local)$/.test(source));
  return isRight ? { value: sources.join(',') } : { expected: 'any of user, project, local, separated by commas, or nothing' };
}

function absolutePathRule(text: string): Parsed<string> {
  const isRight = isAbsolute(text) && !text.includes('\0');
  return isRight ? { value: text } : { expected: 'an absolute path (~ and $HOME are not expanded)' };
}

function corsOriginsRule(text: string): Parsed<readonly string[]> {
  const origins = splitList(text).map((origin) => origin.replace(/\/$/, ''));
  if (origins.every((origin) => origin === '*' || isOrigin(origin))) return { value: origins.includes('*') ? ['*'] : origins };
  const form = 'lower case, no path, no default port';
  return { expected: `origins such as https://app.example.com (${form}), separated by commas, or *` };
}

function splitList(text: string): string[] {
  return text.split(',').map((part) => part.trim()).filter((part) => part !== '');
}

function isOrigin(text: string): boolean {
  // A browser's Origin is compared as text, so `https://*.example.com` would be valid here and match nobody.
  if (!URL.canParse(text) || text.includes('*')) return false;
  const { protocol, host } = new URL(text); // not .origin: that is "null" for capacitor:// and its like
  return host !== '' && `${protocol}//${host}` === text;
}
