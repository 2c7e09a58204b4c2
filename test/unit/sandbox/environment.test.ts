import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sandboxEnv } from '../../../src/sandbox/environment.ts';

test('of the operator\'s variables only models, limits, switches and locale go inside; the others are named', () => {
  const passed = {
    LANG: 'de_DE.UTF-8', LC_TIME: 'C', TZ: 'Europe/Berlin', ANTHROPIC_MODEL: 'sonnet', ANTHROPIC_DEFAULT_HAIKU_MODEL: 'h', CLAUDE_CODE_SUBAGENT_MODEL: 's',
    CLAUDE_CODE_MAX_OUTPUT_TOKENS: '1000', MAX_THINKING_TOKENS: '1', BASH_MAX_TIMEOUT_MS: '1', DISABLE_AUTOUPDATER: '1', CLAUDE_CODE_DISABLE_CRON: '1',
    CLAUDE_CODE_EAGER_FLUSH: '1', CLAUDE_CODE_MAX_RETRIES: '2',
  };
  const kept = {
    ANTHROPIC_CUSTOM_HEADERS: 'x-secret: 1', AWS_SECRET_ACCESS_KEY: 's', CLAUDE_CODE_USE_BEDROCK: '1', CLAUDE_CODE_EXTRA_BODY: '{}', CLAUDE_CODE_SUBSCRIPTION_TYPE: 'pro',
    CLAUDE_SECURESTORAGE_CONFIG_DIR: '/s', GOOGLE_APPLICATION_CREDENTIALS: '/k', HTTPS_PROXY: 'http://user:pw@proxy', NODE_EXTRA_CA_CERTS: '/ca', https_proxy: 'x',
    OTEL_EXPORTER_OTLP_HEADERS: 'k', NODE_OPTIONS: '--require=/x', LD_PRELOAD: '/x', IS_SANDBOX: '1',
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
