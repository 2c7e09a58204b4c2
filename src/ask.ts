import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { get, type IncomingMessage } from 'node:http';
import { text } from 'node:stream/consumers';
import { ConfigError, machineEnv, parseConfig, type Config } from './env.ts';

// What a script wants to know of the server whose .env lies in the working directory, by the server's own rules. An entry
// of its own beside main.ts: install.sh and the image's health check run it.
const usage = `usage: node dist/ask.js settings|health [-]
  settings   prints HOST and PORT, and warnings to stderr; fails where the server would not start, or would make a key for each run
  health     prints the server's URL and the kind of its login, once it answers and its CLI runs
  -          takes more of the environment from stdin, in the form of /proc/PID/environ`;

// sysexits.h: a usage and a configuration error.
const exitUsage = 64;
const exitConfig = 78;
const answerTimeoutMs = 3000;

async function main([question, source = '', ...others]: readonly string[]): Promise<void> {
  if ((question !== 'settings' && question !== 'health') || !/^-?$/.test(source) || others.length > 0) return fail(exitUsage, usage);
  const config = readConfig(source === '-' ? parseEnviron(readFileSync(0, 'utf8')) : {});
  if (question === 'health') return console.log(urlOf(config), await askLogin(config));
  if (config.apiKey === undefined) {
    const line = `CLAUDE_API_KEY=${randomBytes(32).toString('hex')}`;
    throw new ConfigError([`CLAUDE_API_KEY: missing; add the line ${line}`], config.warnings);
  }
  console.log(config.host, config.port);
  for (const warning of config.warnings) console.error(`warning: ${warning}`);
}

function parseEnviron(environ: string): Record<string, string> {
  const variables = [...environ.matchAll(/([^=\0]+)=([^\0]*)/g)];
  return Object.fromEntries(variables.map(([, name, value]) => [name, value]));
}

function readConfig(environ: Readonly<Record<string, string>>): Config {
  const file = existsSync('.env') ? readFileSync('.env', 'utf8') : '';
  return parseConfig(machineEnv({ ...process.env, ...environ }), file);
}

/** Where a caller on this machine finds the server. */
function urlOf({ host, port }: Config): string {
  const reachable = host === '0.0.0.0' ? '127.0.0.1' : host === '::' ? '::1' : host;
  return `http://${reachable.includes(':') ? `[${reachable}]` : reachable}:${port}`;
}

/** The kind of login that `/health` names, or `none`. Rejects with a sentence when no turn can be had, after 3 s at the latest. */
async function askLogin(config: Config): Promise<string> {
  const response = await getHealth(config);
  const body: unknown = await text(response).then(JSON.parse).catch(() => undefined);
  if (typeof body !== 'object' || body === null || !('status' in body)) {
    throw new Error(`what answers at ${urlOf(config)} is not claude-api`);
  }
  if (response.statusCode !== 200) throw new Error('detail' in body ? String(body.detail) : `/health answers ${response.statusCode}`);
  // The CLI is looked for only when the server listens already.
  if ('claude_version' in body && body.claude_version === null) throw new Error('the Claude CLI has not answered yet');
  return 'login' in body && typeof body.login === 'string' ? body.login : 'none';
}

/** Not by fetch, which refuses some ports that a server may have. */
function getHealth(config: Config): Promise<IncomingMessage> {
  const headers = config.apiKey === undefined ? {} : { Authorization: `Bearer ${config.apiKey}` };
  return new Promise((resolve, reject) => {
    get(`${urlOf(config)}/health`, { headers, signal: AbortSignal.timeout(answerTimeoutMs) }, resolve).on('error', (error) => {
      reject(new Error(`nothing answers at ${urlOf(config)}`, { cause: error }));
    });
  });
}

function fail(status: number, message: string): void {
  console.error(message);
  process.exitCode = status;
}

await main(process.argv.slice(2)).catch((error: unknown) => {
  fail(error instanceof ConfigError ? exitConfig : 1, error instanceof Error ? error.message : String(error));
});
