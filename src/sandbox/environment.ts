import { socketName } from './api-socket.ts';
import { inside } from './sandbox.ts';

// What the CLI may be told of the operator's: models, limits, switches, locale. None of these holds a secret.
const passedNames = new RegExp(
  `^(?:${[
    'LANG|LANGUAGE|LC_[A-Z]+|TZ',
    'ANTHROPIC_MODEL|ANTHROPIC_SMALL_FAST_MODEL|ANTHROPIC_DEFAULT_[A-Z]+_MODEL|CLAUDE_CODE_SUBAGENT_MODEL|CLAUDE_CODE_EFFORT_LEVEL',
    'MAX_THINKING_TOKENS|MAX_MCP_OUTPUT_TOKENS|CLAUDE_CODE_MAX_OUTPUT_TOKENS|CLAUDE_CODE_FILE_READ_MAX_OUTPUT_TOKENS',
    'CLAUDE_CODE_MAX_RETRIES|API_TIMEOUT_MS|MCP_TIMEOUT|MCP_TOOL_TIMEOUT',
    'BASH_DEFAULT_TIMEOUT_MS|BASH_MAX_TIMEOUT_MS|BASH_MAX_OUTPUT_LENGTH',
    'DISABLE_[A-Z_]+|CLAUDE_CODE_DISABLE_[A-Z_]+|CLAUDE_CODE_EAGER_FLUSH|ENABLE_TOOL_SEARCH',
    'BUN_JSC_useBaselineJIT|MIMALLOC_PURGE_DELAY',
  ].join('|')})$`,
);

// The API proxy has what these say, and each is known to be the login: no news that it stays outside.
const loginNames = /^(?:ANTHROPIC_API_KEY|ANTHROPIC_AUTH_TOKEN|CLAUDE_CODE_OAUTH_TOKEN)$/;

/**
 * The environment inside, built of the operator's (`outer`): its listed names, fixed ones in the place of whatever
 * else the CLI needs, and `placeholders` for the login (those of the API proxy). `isGateway`: the operator's own address
 * stands for Anthropic's, and the CLI is to behave as for one. `leftOut`: the names of `outer`, sorted, that stay outside
 * and are neither the login nor replaced.
 */
export function sandboxEnv(
  outer: Readonly<Record<string, string>>,
  placeholders: Readonly<Record<string, string>>,
  isGateway: boolean,
): { readonly env: Record<string, string>; readonly leftOut: readonly string[] } {
  const passed = Object.fromEntries(Object.entries(outer).filter(([name]) => passedNames.test(name)));
  const env = {
    LANG: 'C.UTF-8',
    ...passed,
    PATH: inside.path,
    HOME: inside.home,
    USER: 'claude',
    LOGNAME: 'claude',
    SHELL: '/bin/bash',
    TMPDIR: inside.tmp,
    CLAUDE_CONFIG_DIR: inside.home,
    // Transcripts lie in projects/work, whatever the working folder is called.
    CLAUDE_CODE_PROJECT_DIR_NAME: 'work',
    // Plain HTTP through the socket; this host alone gets the requests of the real one (fact 42).
    ANTHROPIC_BASE_URL: isGateway ? 'http://gateway.invalid' : 'http://api.anthropic.com',
    ANTHROPIC_UNIX_SOCKET: `${inside.api}/${socketName}`,
    ...placeholders,
  };
  const leftOut = Object.keys(outer).filter((name) => !(name in env) && !loginNames.test(name));
  return { env, leftOut: leftOut.sort() };
}
