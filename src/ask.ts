import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { get, type IncomingMessage } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { createInside } from './cli/inside.ts';
import { ConfigError, machineEnv, parseConfig, type Config } from './env.ts';
import { findProvider } from './host/login.ts';
import { readOperatorFiles } from './host/operator-files.ts';
import { asObject, parseJson } from './json.ts';
import { decideSandbox } from './sandbox/mode.ts';

// What a script wants to know of the server whose .env lies in the working directory, by the server's own rules. An entry
// of its own beside main.ts: install.sh and the image's health check run it.
const usage = `usage: node dist/ask.js settings|sandbox|health [-]
  settings   prints HOST and PORT, and warnings to stderr; fails where the server would not start, or would make a key for each run
  sandbox    tries the sandbox as the server would, and prints "on", or "off" where CLAUDE_SANDBOX says so; fails with the reason
  health     prints the server's URL, whether it has the sandbox (on, off), and the kind of its login, once it answers and its CLI runs
  -          takes more of the environment from stdin, in the form of /proc/PID/environ`;

// sysexits.h: a usage and a configuration error.
const exitUsage = 64;
const exitConfig = 78;
const answerTimeoutMs = 3000;

async function main([question, source = '', ...others]: readonly string[]): Promise<void> {
  if (!/^(?:settings|sandbox|health)$/.test(question ?? '') || !/^-?$/.test(source) || others.length > 0) return fail(exitUsage, usage);
  const config = readConfig(source === '-' ? parseEnviron(readFileSync(0, 'utf8')) : {});
  if (question === 'health') return console.log(urlOf(config), ...(await askHealth(config)));
  if (question === 'sandbox') {
    const answer = config.sandbox === 'off' ? 'off' : await trySandbox(config);
    return console.log(answer);
  }
  if (config.apiKey === undefined) {
    const line = `CLAUDE_API_KEY=${randomBytes(32).toString('hex')}`;
    throw new ConfigError([`CLAUDE_API_KEY: missing; add the line ${line}`], config.warnings);
  }
  await readOperatorFiles(config);
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

/** Tries it in a folder of its own, so that a server that runs meanwhile is not disturbed. Rejects with the reason there is none. */
async function trySandbox(config: Config): Promise<string> {
  const files = await readOperatorFiles(config);
  const stateDir = await mkdtemp(join(tmpdir(), 'claude-api-'));
  const own = { marker: `${stateDir}.`, socketFolder: join(stateDir, 'api'), log: () => {} };
  const inside = createInside({ ...config, ...files, stateDir }, own);
  try {
    const [isRoot, provider] = [process.getuid?.() === 0, findProvider(config.childEnv)];
    const decision = decideSandbox({ setting: 'auto', hasEverRun: false, isRoot, provider, trial: await inside.try() });
    if ('reason' in decision) throw new Error(decision.reason);
    return decision.kind;
  } finally {
    inside.close();
    await rm(stateDir, { recursive: true, force: true });
  }
}

/** Where a caller on this machine finds the server. */
function urlOf({ host, port }: Config): string {
  const reachable = host === '0.0.0.0' ? '127.0.0.1' : host === '::' ? '::1' : host;
  return `http://${reachable.includes(':') ? `[${reachable}]` : reachable}:${port}`;
}

/** The sandbox and the kind of login that `/health` names. Rejects with a sentence when no turn can be had, after 3 s at the latest. */
async function askHealth(config: Config): Promise<[sandbox: 'on' | 'off', login: string]> {
  const response = await getHealth(config);
  const body = asObject(await text(response).then(parseJson, () => undefined));
  if (!('status' in body)) throw new Error(`what answers at ${urlOf(config)} is not claude-api`);
  const { statusCode } = response;
  if (statusCode !== 200) throw new Error(String(body['detail'] ?? `/health answers ${statusCode}`));
  // The CLI is looked for only when the server listens already.
  if (body['claude_version'] === null) throw new Error('the Claude CLI has not answered yet');
  return [body['sandbox'] === 'on' ? 'on' : 'off', String(body['login'] ?? 'none')];
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
