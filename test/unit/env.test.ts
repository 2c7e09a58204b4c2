import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ConfigError, loadConfig, parseConfig, settingNames } from '../../src/env.ts';
import type { Config } from '../../src/env.ts';
import { seededRandom } from '../random.ts';

const hexKey = '9f3c1a7be04d5528c6f1907eab34d2815b60cc97e8f14a23d7905eb1c82f6a4d';
const home = { HOME: '/home/claude' };


test('without any setting the defaults hold and the server stays on loopback', () => {
  assert.deepEqual(loadConfig(home), {
    apiKey: undefined, host: '127.0.0.1', port: 8001, turnTimeoutMs: 300_000, maxTurns: 50, claudeBinary: 'claude',
    maxWorkers: undefined, queueLimit: 100, queueTimeoutMs: 60_000, warmMs: 300_000, models: [],
    sandbox: 'auto', network: [], tools: undefined, allowedTools: '', permissionMode: undefined, settingSources: undefined, systemPromptFile: undefined, mcpConfigFile: undefined, keepDays: 30, userDiskBytes: 2_147_483_648, userTokensPerDay: undefined,
    runtimeDir: '/home/claude/.local/state/claude-api/run',
    stateDir: '/home/claude/.local/state/claude-api', corsOrigins: [], rateLimitPerMinute: 0,
    maxBodyBytes: 16_777_216, drainTimeoutMs: 30_000, childEnv: { HOME: '/home/claude' }, warnings: [],
  } satisfies Config);
});

const ranges: readonly (readonly [string, keyof Config, number, number, number])[] = [
  ['PORT', 'port', 0, 65_535, 1],
  ['CLAUDE_TIMEOUT_SECONDS', 'turnTimeoutMs', 1, 86_400, 1000],
  ['CLAUDE_MAX_TURNS', 'maxTurns', 1, 10_000, 1],
  ['CLAUDE_MAX_CONCURRENT_REQUESTS', 'maxWorkers', 1, 1_000, 1],
  ['CLAUDE_QUEUE_LIMIT', 'queueLimit', 0, 100_000, 1],
  ['CLAUDE_QUEUE_SECONDS', 'queueTimeoutMs', 1, 3_600, 1000],
  ['CLAUDE_WARM_SECONDS', 'warmMs', 0, 86_400, 1000],
  ['CLAUDE_USER_DISK_MB', 'userDiskBytes', 1, 10_000_000, 1_048_576],
  ['CLAUDE_USER_TOKENS_PER_DAY', 'userTokensPerDay', 1, 1_000_000_000, 1],
  ['CLAUDE_KEEP_DAYS', 'keepDays', 1, 36_500, 1],
  ['RATE_LIMIT_PER_MINUTE', 'rateLimitPerMinute', 0, 100_000, 1],
  ['MAX_BODY_BYTES', 'maxBodyBytes', 1_024, 33_554_432, 1],
  ['SHUTDOWN_SECONDS', 'drainTimeoutMs', 0, 3_600, 1000],
];

for (const [name, field, min, max, factor] of ranges) {
  test(`${name} takes whole numbers from ${min} to ${max} and nothing else`, () => {
    assert.equal(loadConfig({ ...home, [name]: String(min) })[field], min * factor);
    assert.equal(loadConfig({ ...home, [name]: ` ${max}\t` })[field], max * factor);
    assert.deepEqual(loadConfig({ ...home, [name]: '' })[field], loadConfig(home)[field]);
    const wrong = [
      min - 1, max + 1, `${max}.5`, `${min}.0`, `+${max}`, `${max}a`, '1e3', '0x400', '-0', '٣', 'NaN', 'Infinity',
      '1 024', '9'.repeat(400),
    ];
    for (const value of wrong) {
      const problems = problemsOf({ ...home, [name]: String(value) });
      assert.deepEqual(problems, [`${name}: expected a whole number from ${min} to ${max}`]);
    }
  });
}

const textSettings: readonly (readonly [string, keyof Config, readonly string[], readonly string[]])[] = [
  [
    'CLAUDE_BINARY_PATH',
    'claudeBinary',
    ['claude', '/opt/a b/claude', './claude'],
    ['-x', '--help', '~/bin/claude', 'a\0b'],
  ],
  ['CLAUDE_SANDBOX', 'sandbox', ['auto', 'required', 'off'], ['on', 'none', 'Auto', 'auto,off']],
  ['CLAUDE_TOOLS', 'tools', ['', 'default', 'Read, Bash(git log:*)', 'Bash(a b, c), Read', 'mcp__x__y'], ['Bash Read', 'Read\nBash', 'a\0b', 'a\u0085b']],
  ['CLAUDE_ALLOWED_TOOLS', 'allowedTools', ['', 'Read,Bash(npm test)', 'Bash(echo (a b) c)'], ['Bash(a b) Read', 'Read\nBash', 'a\u001bb']],
  [
    'CLAUDE_PERMISSION_MODE',
    'permissionMode',
    ['default', 'acceptEdits', 'plan', 'dontAsk', 'auto', 'bypassPermissions'],
    ['acceptedits', 'Plan', 'default,plan', 'bypass'],
  ],
  [
    'CLAUDE_SETTING_SOURCES',
    'settingSources',
    ['', 'user', 'project,local', 'user,project,local'],
    ['users', 'user;local', 'user project'],
  ],
  [
    'CLAUDE_STATE_DIR',
    'stateDir',
    ['/', '/var/lib/claude api'],
    ['state', './state', '~/state', '$HOME/state', '/a\0b'],
  ],
];

for (const [name, field, right, wrong] of textSettings) {
  test(`${name} takes what it should and refuses the rest`, () => {
    for (const value of right) assert.equal(loadConfig({ ...home, [name]: value })[field], value);
    for (const value of wrong) {
      const problems = problemsOf({ ...home, [name]: value });
      assert.equal(problems.length, 1, JSON.stringify(value));
      assert.match(problems[0] ?? '', new RegExp(`^${name}: expected `));
    }
  });
}

test('an empty value counts as unset, but means none for tools and setting sources', () => {
  const empty = Object.fromEntries(settingNames.filter((name) => name !== 'CLAUDE_API_KEY').map((name) => [name, ' ']));
  assert.deepEqual(loadConfig({ ...home, ...empty }), { ...loadConfig(home), tools: '', settingSources: '' });
});

test('blanks around the parts of a list are dropped', () => {
  const lists = { CLAUDE_SETTING_SOURCES: ' user , local,', CORS_ORIGINS: ' https://a.example , http://b:81/ ,' };
  const config = loadConfig({ ...home, ...lists });
  assert.equal(config.settingSources, 'user,local');
  assert.deepEqual(config.corsOrigins, ['https://a.example', 'http://b:81']);
});

test('CLAUDE_MODEL takes one model, or several', () => {
  const models = (value: string): readonly string[] => loadConfig({ ...home, CLAUDE_MODEL: value }).models;
  for (const name of ['sonnet', 'claude-opus-4-1[1m]', 'us.anthropic.claude:0', 'arn:aws/x@20250101']) assert.deepEqual(models(name), [name]);
  assert.deepEqual(models('sonnet, opus,'), ['sonnet', 'opus']);
  for (const value of ['-m', 'a b', 'ä', '[x', 'a\nb', 'sonnet, -m']) assert.match(problemsOf({ ...home, CLAUDE_MODEL: value })[0] ?? '', /^CLAUDE_MODEL: expected /);
});

test('sockets are where systemd or the session has such a place, else in the state folder', () => {
  const env = { ...home, CLAUDE_STATE_DIR: '/state' };
  assert.equal(loadConfig({ ...env, RUNTIME_DIRECTORY: '/run/claude-api', XDG_RUNTIME_DIR: '/run/user/1' }).runtimeDir, '/run/claude-api');
  assert.equal(loadConfig({ ...env, XDG_RUNTIME_DIR: '/run/user/1' }).runtimeDir, '/run/user/1/claude-api');
  assert.equal(loadConfig({ ...env, XDG_RUNTIME_DIR: 'x' }).runtimeDir, '/state/run');
});

test('CORS_ORIGINS takes origins as a browser sends them, and * for all', () => {
  const origins = (value: string): readonly string[] => loadConfig({ ...home, CORS_ORIGINS: value }).corsOrigins;
  assert.deepEqual(origins('http://localhost:3000,capacitor://localhost,http://[::1]:81'), [
    'http://localhost:3000', 'capacitor://localhost', 'http://[::1]:81',
  ]);
  assert.deepEqual(origins('https://a.example,*'), ['*']);
  assert.deepEqual(origins(','), []);
  const wrong = [
    'a.example', 'https://a.example/path', 'https://a.example//', 'https://A.example', 'https://a.example:443',
    'https://a.example?x', 'https://u:p@a.example', 'https://*.a.example', 'file:///', 'null', '**', '*,a.example',
    'https://a.example https://b.example',
  ];
  for (const value of wrong) {
    assert.match(problemsOf({ ...home, CORS_ORIGINS: value }).join(), /^CORS_ORIGINS: expected /, value);
  }
});

test('HOST takes addresses and host names', () => {
  const keyed = { ...home, CLAUDE_API_KEY: hexKey };
  assert.equal(loadConfig(keyed).host, '0.0.0.0');
  for (const host of ['127.0.0.1', '::', 'fe80::1', '10.0.0.7', 'localhost', 'my-host.example.com', '9to5.example']) {
    assert.equal(loadConfig({ ...keyed, HOST: host }).host, host);
  }
  for (const host of [
    '256.1.1.1', '1.2.3', '8001', 'a b', '[::1]', '-a', 'a-', 'a..b', 'http://a', 'a:80', 'ä', 'a'.repeat(64),
    'a.'.repeat(127) + 'ab',
  ]) {
    assert.deepEqual(problemsOf({ ...keyed, HOST: host }), ['HOST: expected an IP address or a host name'], host);
  }
});

test('CLAUDE_NETWORK takes none, public and hosts, but not the API\'s', () => {
  const networkOf = (text: string, env = {}) => loadConfig({ ...home, ...env, CLAUDE_NETWORK: text }).network;
  assert.deepEqual([networkOf(''), networkOf('none'), networkOf('public'), networkOf(' GitHub.com, *.npmjs.org ')], [[], [], 'public', ['github.com', '*.npmjs.org']]);
  assert.deepEqual(problemsOf({ ...home, CLAUDE_NETWORK: 'https://github.com' }), ['CLAUDE_NETWORK: expected none, public, or host names such as github.com,*.npmjs.org, separated by commas']);
  for (const text of ['api.anthropic.com', 'github.com,API.anthropic.com', '*.anthropic.com']) assert.match(problemsOf({ ...home, CLAUDE_NETWORK: text }).join(), /^CLAUDE_NETWORK: expected hosts other than the API's/, text);
  const gateway = { ANTHROPIC_BASE_URL: 'https://llm.example.com/v1' };
  assert.match(problemsOf({ ...home, ...gateway, CLAUDE_NETWORK: '*.example.com' }).join(), /^CLAUDE_NETWORK/);
  assert.deepEqual(networkOf('docs.anthropic.com,www.example.com', gateway), ['docs.anthropic.com', 'www.example.com']);
});

test('without a key only a loopback HOST is taken', () => {
  for (const host of ['127.0.0.1', '127.8.9.10', '::1', '0:0:0:0:0:0:0:1', 'localhost', 'LOCALHOST']) {
    assert.equal(loadConfig({ ...home, HOST: host }).host, host);
  }
  for (const host of [
    '0.0.0.0', '::', '128.0.0.1', '10.0.0.1', 'localhost.example.com', '::ffff:10.0.0.1', 'fe80::1%eth0',
  ]) {
    const problems = problemsOf({ ...home, HOST: host });
    assert.equal(problems.length, 1, host);
    assert.match(problems.join(), /^HOST: without CLAUDE_API_KEY the server listens on 127\.0\.0\.1 only; /);
  }
});

test('a random key is taken, whatever its alphabet', () => {
  const random = seededRandom(7);
  for (let round = 0; round < 5_000; round++) {
    const bytes = Buffer.from(Array.from({ length: 32 }, () => Math.floor(random() * 256)));
    for (const key of [
      bytes.toString('hex'), bytes.toString('base64'), bytes.toString('base64url'), bytes.toString('hex', 0, 16),
    ]) {
      assert.equal(loadConfig({ ...home, CLAUDE_API_KEY: key }).apiKey, key);
      assert.deepEqual(loadConfig({ ...home, CLAUDE_API_KEY: key }).warnings, []);
    }
  }
});

test('a key of words that ask for no replacement is taken', () => {
  for (const key of [
    'correct-horse-battery-staple-42', 'claude-api-9f3c1a7be04d5528', 'bot.internal:9f3c1a7be04d55',
    'flourish-mayor-yourself-4417',
  ]) {
    assert.equal(loadConfig({ ...home, CLAUDE_API_KEY: key }).apiKey, key);
  }
});

test('a placeholder is refused as a key', () => {
  const placeholders = [
    'ChangeMe-please-now!', 'change_me_to_a_random_value', 'your-secure-api-key-here', 'sk-your-key-goes-in-this',
    'example-key-0123456789', 'placeholder-placeholder', 'replace-with-a-random-string', 'my-secret-key-for-claude',
    'PASSWORD12345678',
  ];
  for (const key of placeholders) {
    const problems = problemsOf({ ...home, CLAUDE_API_KEY: key });
    assert.match(problems.join(), /^CLAUDE_API_KEY: expected a random key, not a placeholder/, key);
  }
});

test('a key that is empty, short or cannot travel in a header is refused with that reason', () => {
  const reason = (key: string): string => problemsOf({ ...home, CLAUDE_API_KEY: key }).join();
  for (const key of ['', ' ']) assert.match(reason(key), /^CLAUDE_API_KEY: is empty; set a key, or remove the line/);
  assert.match(reason('k7Qz1mPx93LwRt5'), /^CLAUDE_API_KEY: expected 16 characters or more/);
  for (const key of [
    `k7Qz1mPx\t93LwRt5vB`, `k7Qz1mPx93LwRt5vB🦊`, 'k7Qz1mPxé93LwRt5vB', `${hexKey}\u007f`,
  ]) {
    assert.match(reason(key), /^CLAUDE_API_KEY: expected printable ASCII/, JSON.stringify(key));
  }
});

test('a key under 32 characters is warned about, from 32 on it is not', () => {
  const warnings = (length: number): readonly string[] =>
    loadConfig({ ...home, CLAUDE_API_KEY: hexKey.slice(0, length) }).warnings;
  assert.equal(warnings(16).length, 1);
  assert.match(warnings(31).join(), /^CLAUDE_API_KEY has fewer than 32 characters/);
  assert.deepEqual(warnings(32), []);
});

test('a refused key does not bring a complaint about HOST along', () => {
  assert.equal(problemsOf({ ...home, CLAUDE_API_KEY: 'short', HOST: '0.0.0.0' }).length, 1);
});

test('every wrong setting is reported at once, by name and never with its value', () => {
  const bad = '-LEAKED\0~ 41';
  const env = Object.fromEntries(settingNames.map((name) => [name, bad]));
  const problems = problemsOf(env, new Map(), true);
  const names = problems.map((problem) => problem.split(':')[0]);
  assert.deepEqual([...names].sort(), ['HOME', ...settingNames].sort());
  assert.doesNotMatch(problems.join('\n'), /LEAKED|41/);
});

test('the message of a ConfigError has one line for each problem', () => {
  assert.throws(() => loadConfig({ ...home, PORT: 'x', HOST: '?' }), (error) => {
    assert.ok(error instanceof ConfigError);
    assert.equal(error.name, 'ConfigError');
    assert.equal(error.message, error.problems.join('\n'));
    assert.equal(error.problems.length, 2);
    return true;
  });
});

test('bypassPermissions is refused as root unless IS_SANDBOX=1', () => {
  const env = { ...home, CLAUDE_PERMISSION_MODE: 'bypassPermissions' };
  assert.match(problemsOf(env, new Map(), true).join(), /^CLAUDE_PERMISSION_MODE: .*root/);
  assert.equal(problemsOf({ ...env, IS_SANDBOX: '0' }, new Map(), true).length, 1);
  assert.equal(loadConfig({ ...env, IS_SANDBOX: '1' }, new Map(), true).permissionMode, 'bypassPermissions');
  assert.equal(loadConfig(env, new Map([['IS_SANDBOX', '1']]), true).childEnv['IS_SANDBOX'], '1');
  assert.equal(loadConfig(env, new Map(), false).permissionMode, 'bypassPermissions');
  assert.equal(loadConfig(home, new Map(), true).permissionMode, undefined);
});

test('the environment wins over the file, even with an empty value', () => {
  const file = { PORT: '9000', CLAUDE_MAX_TURNS: '7', CLAUDE_MODEL: 'opus', ANTHROPIC_BASE_URL: 'http://file' };
  const env = { PORT: '9001', CLAUDE_MAX_TURNS: undefined, CLAUDE_MODEL: '', ANTHROPIC_BASE_URL: 'http://env' };
  const config = loadConfig({ ...home, ...env }, new Map(Object.entries(file)));
  assert.equal(config.port, 9001);
  assert.equal(config.maxTurns, 7);
  assert.deepEqual(config.models, []);
  assert.equal(config.childEnv['ANTHROPIC_BASE_URL'], 'http://env');
});

test('the state directory comes from the setting, then systemd, then XDG, then HOME', () => {
  const env = { CLAUDE_STATE_DIR: '/a', STATE_DIRECTORY: '/b:/c', XDG_STATE_HOME: '/d', HOME: '/e' };
  const stateDir = (change: Record<string, string | undefined>): string => loadConfig({ ...env, ...change }).stateDir;
  assert.equal(stateDir({}), '/a');
  assert.equal(stateDir({ CLAUDE_STATE_DIR: '' }), '/b');
  assert.equal(stateDir({ CLAUDE_STATE_DIR: undefined, STATE_DIRECTORY: '' }), '/d/claude-api');
  const relative = { CLAUDE_STATE_DIR: undefined, STATE_DIRECTORY: 'b', XDG_STATE_HOME: 'd' };
  assert.equal(stateDir(relative), '/e/.local/state/claude-api');
});

test('without any place for its state the server names HOME', () => {
  assert.match(problemsOf({}).join(), /^HOME: expected .*CLAUDE_STATE_DIR$/);
  assert.match(problemsOf({ HOME: 'relative' }).join(), /^HOME: expected /);
  assert.equal(loadConfig({ CLAUDE_STATE_DIR: '/a' }).stateDir, '/a');
});

test('the CLI sees the variables it needs', () => {
  const names = [
    'PATH', 'HOME', 'USER', 'LOGNAME', 'LANG', 'LANGUAGE', 'LC_ALL', 'LC_CTYPE', 'TZ', 'TMPDIR', 'HTTP_PROXY',
    'HTTPS_PROXY', 'NO_PROXY', 'ALL_PROXY', 'http_proxy', 'https_proxy', 'no_proxy', 'all_proxy',
    'NODE_EXTRA_CA_CERTS', 'SSL_CERT_FILE', 'SSL_CERT_DIR', 'ANTHROPIC_API_KEY', 'ANTHROPIC_AUTH_TOKEN',
    'ANTHROPIC_BASE_URL', 'CLAUDE_CODE_OAUTH_TOKEN', 'CLAUDE_CODE_USE_BEDROCK', 'CLAUDE_CONFIG_DIR',
    'CLAUDE_SECURESTORAGE_CONFIG_DIR', 'AWS_REGION', 'GOOGLE_APPLICATION_CREDENTIALS', 'GCLOUD_PROJECT',
    'CLOUDSDK_CONFIG', 'CLOUD_ML_REGION', 'VERTEX_REGION_CLAUDE_4_0_OPUS', 'AZURE_CLIENT_ID', 'DISABLE_TELEMETRY',
    'BASH_DEFAULT_TIMEOUT_MS', 'BASH_MAX_TIMEOUT_MS', 'BASH_MAX_OUTPUT_LENGTH', 'MCP_TIMEOUT', 'MCP_TOOL_TIMEOUT',
    'MAX_THINKING_TOKENS', 'MAX_MCP_OUTPUT_TOKENS', 'API_TIMEOUT_MS', 'IS_SANDBOX', 'ENABLE_TOOL_SEARCH', 'BUN_JSC_useBaselineJIT', 'MIMALLOC_PURGE_DELAY',
  ];
  const env = Object.fromEntries(names.map((name) => [name, `/${name}`]));
  assert.deepEqual(loadConfig(env).childEnv, env);
  assert.deepEqual(loadConfig({}, new Map(Object.entries(env))).childEnv, env);
});

test('the CLI never sees a setting of ours, a stranger, or the session the server was started from', () => {
  const valid = {
    CLAUDE_API_KEY: hexKey, PORT: '1', HOST: '::',
    CLAUDE_TIMEOUT_SECONDS: '1', CLAUDE_MAX_TURNS: '1', CLAUDE_BINARY_PATH: 'c',
    CLAUDE_MAX_CONCURRENT_REQUESTS: '1', CLAUDE_QUEUE_LIMIT: '1', CLAUDE_QUEUE_SECONDS: '1', CLAUDE_WARM_SECONDS: '1',
    CLAUDE_MODEL: 'm', CLAUDE_TOOLS: 't', CLAUDE_ALLOWED_TOOLS: 't', CLAUDE_PERMISSION_MODE: 'plan',
    CLAUDE_SANDBOX: 'auto', CLAUDE_NETWORK: 'none', CLAUDE_SETTING_SOURCES: 'user', CLAUDE_SYSTEM_PROMPT_FILE: '/s', CLAUDE_MCP_CONFIG: '/m', CLAUDE_KEEP_DAYS: '1', CLAUDE_USER_DISK_MB: '1', CLAUDE_USER_TOKENS_PER_DAY: '1', CLAUDE_STATE_DIR: '/s', CORS_ORIGINS: '*', RATE_LIMIT_PER_MINUTE: '1',
    MAX_BODY_BYTES: '2048', SHUTDOWN_SECONDS: '1',
  };
  assert.deepEqual(Object.keys(valid).sort(), [...settingNames].sort());
  const strangers = Object.fromEntries(
    [
      'CLAUDECODE', 'CLAUDE_CODE_ENTRYPOINT', 'CLAUDE_CODE_SESSION_ID', 'CLAUDE_CODE_SSE_PORT', 'CLAUDE_CODE_EXECPATH',
      'CLAUDE_EFFORT', 'DATABASE_URL', 'GITHUB_TOKEN', 'NODE_OPTIONS', 'LD_PRELOAD', 'MY_ANTHROPIC_API_KEY', 'XPATH',
      'PATHS', 'STATE_DIRECTORY', 'XDG_STATE_HOME', 'NOTIFY_SOCKET', '__proto__', 'Home',
    ].map((name) => [name, 'x']),
  );
  assert.deepEqual(loadConfig({ ...valid, ...strangers }).childEnv, {});
  assert.deepEqual(loadConfig({}, new Map(Object.entries({ ...valid, ...strangers }))).childEnv, {});
});

test('an empty login variable is dropped, other empty variables are passed on', () => {
  const file = new Map([['ANTHROPIC_API_KEY', 'from the file']]);
  const env = { ...home, ANTHROPIC_API_KEY: '', ANTHROPIC_AUTH_TOKEN: ' ', CLAUDE_CODE_OAUTH_TOKEN: '', no_proxy: '' };
  assert.deepEqual(loadConfig(env, file).childEnv, { ...home, no_proxy: '' });
});

test('a name in the file that nobody reads is warned about, whatever it resembles', () => {
  const names = ['PRT', 'RATE_LIMIT', 'CORS_ORIGIN', 'ANTHROPC_API_KEY', 'CLAUDE_TIMEOUT', 'claude_model', 'CLAUDE_CODE_ENTRYPOINT'];
  const expected = names.map((name) => `${name} in .env is neither a setting nor passed on to the CLI: it has no effect`);
  assert.deepEqual(loadConfig(home, new Map(names.map((name) => [name, 'LEAK']))).warnings, expected);
});

test('names that are read, the CLI\'s own, and those of the process environment bring no warning', () => {
  const names = [
    'CLAUDE_MODEL', 'CLAUDE_CODE_MAX_TURNS', 'CLAUDE_CONFIG_DIR', 'ANTHROPIC_MODEL', 'ANTHROPIC_API_KEY', 'HTTPS_PROXY', 'XDG_STATE_HOME',
  ];
  assert.deepEqual(loadConfig(home, new Map(names.map((name) => [name, name === 'ANTHROPIC_API_KEY' ? '' : 'x']))).warnings, []);
  assert.deepEqual(loadConfig({ ...home, CLAUDE_MAX_TURN: '1' }).warnings, []);
});

test('a .env file brings its own warnings along, also when it is refused', () => {
  const cut = '.env line 1: the value of CLAUDE_API_KEY ends before a #; quote it if the # belongs to it';
  assert.deepEqual(parseConfig(home, `CLAUDE_API_KEY=${hexKey}#x\nPRT=1\n`).warnings, [
    cut, 'PRT in .env is neither a setting nor passed on to the CLI: it has no effect',
  ]);
  assert.throws(() => parseConfig(home, 'CLAUDE_API_KEY=abc#def0123456789012345\n'), (error) => {
    assert.ok(error instanceof ConfigError);
    assert.match(error.problems.join(), /^CLAUDE_API_KEY: expected 16 characters or more/);
    assert.deepEqual(error.warnings, [cut]);
    return true;
  });
  assert.throws(() => parseConfig(home, 'PORT\n'), { name: 'ConfigError', message: '.env line 1: expected NAME=value' });
});

function problemsOf(...args: Parameters<typeof loadConfig>): readonly string[] {
  try {
    loadConfig(...args);
  } catch (error) {
    assert.ok(error instanceof ConfigError);
    return error.problems;
  }
  assert.fail(`no problem found in ${JSON.stringify(args[0])}`);
}
