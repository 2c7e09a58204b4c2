import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sandboxEnv } from '../../../src/sandbox/environment.ts';

test('of the operator\'s variables only models, limits, switches and locale go inside; the others are named', () => {
  const names = `
    LANG LANGUAGE LC_TIME TZ ANTHROPIC_MODEL ANTHROPIC_SMALL_FAST_MODEL ANTHROPIC_DEFAULT_HAIKU_MODEL CLAUDE_CODE_SUBAGENT_MODEL CLAUDE_CODE_EFFORT_LEVEL
    MAX_THINKING_TOKENS MAX_MCP_OUTPUT_TOKENS CLAUDE_CODE_MAX_OUTPUT_TOKENS CLAUDE_CODE_FILE_READ_MAX_OUTPUT_TOKENS CLAUDE_CODE_MAX_RETRIES API_TIMEOUT_MS
    MCP_TIMEOUT MCP_TOOL_TIMEOUT BASH_DEFAULT_TIMEOUT_MS BASH_MAX_TIMEOUT_MS BASH_MAX_OUTPUT_LENGTH DISABLE_AUTOUPDATER CLAUDE_CODE_DISABLE_CRON
    CLAUDE_CODE_EAGER_FLUSH ENABLE_TOOL_SEARCH BUN_JSC_useBaselineJIT MIMALLOC_PURGE_DELAY
  `.trim().split(/\s+/);
  const passed = Object.fromEntries(names.map((name) => [name, `of ${name}`]));
  const resembling = Object.fromEntries(names.flatMap((name) => [[`X_${name}`, 's'], [`${name}_x`, 's']]));
  const kept = {
    ANTHROPIC_CUSTOM_HEADERS: 'x-secret: 1', AWS_SECRET_ACCESS_KEY: 's', CLAUDE_CODE_USE_BEDROCK: '1', CLAUDE_CODE_EXTRA_BODY: '{}', CLAUDE_CODE_SUBSCRIPTION_TYPE: 'pro',
    CLAUDE_SECURESTORAGE_CONFIG_DIR: '/s', GOOGLE_APPLICATION_CREDENTIALS: '/k', HTTPS_PROXY: 'http://user:pw@proxy', NODE_EXTRA_CA_CERTS: '/ca', https_proxy: 'x',
    OTEL_EXPORTER_OTLP_HEADERS: 'k', NODE_OPTIONS: '--require=/x', LD_PRELOAD: '/x', IS_SANDBOX: '1',
    X_ANTHROPIC_API_KEY: 's', ANTHROPIC_API_KEY_X: 's', ...resembling,
  };
  const { env, leftOut } = sandboxEnv({ ...kept, ...passed }, {}, false);
  for (const [name, value] of Object.entries(passed)) assert.equal(env[name], value, name);
  for (const name of Object.keys(kept)) assert.equal(env[name], undefined, name);
  assert.deepEqual(leftOut, Object.keys(kept).sort());
});

test('what the CLI needs of its surroundings is the sandbox\'s own, and that it is replaced is no news', () => {
  const outer = { PATH: '/home/op/bin', HOME: '/home/op', USER: 'op', LOGNAME: 'op', TMPDIR: '/op', CLAUDE_CONFIG_DIR: '/op/.claude', ANTHROPIC_API_KEY: 'sk', ANTHROPIC_AUTH_TOKEN: 'a', CLAUDE_CODE_OAUTH_TOKEN: 'o', ANTHROPIC_BASE_URL: 'https://api.anthropic.com' };
  assert.deepEqual(sandboxEnv(outer, { ANTHROPIC_AUTH_TOKEN: 'placeholder' }, false), {
    env: {
      LANG: 'C.UTF-8', PATH: '/opt/bin:/usr/local/bin:/usr/bin:/bin', HOME: '/home/claude', USER: 'claude', LOGNAME: 'claude', SHELL: '/bin/bash', TMPDIR: '/tmp',
      CLAUDE_CONFIG_DIR: '/home/claude', CLAUDE_CODE_PROJECT_DIR_NAME: 'work', ANTHROPIC_BASE_URL: 'http://api.anthropic.com', ANTHROPIC_UNIX_SOCKET: '/run/api/s',
      ANTHROPIC_AUTH_TOKEN: 'placeholder',
    },
    leftOut: [],
  });
});

test('an operator\'s own gateway does not pass for Anthropic, and its address stays outside', () => {
  const { env } = sandboxEnv({ ANTHROPIC_BASE_URL: 'https://gateway.example/key' }, {}, true);
  assert.equal(env['ANTHROPIC_BASE_URL'], 'http://gateway.invalid');
});
