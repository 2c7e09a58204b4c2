import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { availableParallelism, homedir, userInfo } from 'node:os';
import { createAuth } from './auth.ts';
import { createChat } from './turns/chat.ts';
import { createClaude } from './claude.ts';
import { EnvSyntaxError, parseEnv } from './host/dotenv.ts';
import { ConfigError, loadConfig, type Config } from './env.ts';
import { createHealthMonitor } from './http/health.ts';
import { claim, endMarked } from './cli/strays.ts';
import { createLog, type Log, type LogFormat } from './log.ts';
import { findLogin, howToLogIn } from './host/login.ts';
import { availableMemoryBytes, createStorageCheck, defaultCapacity } from './host/storage.ts';
import { Pool } from './turns/pool.ts';
import { describeBug, Problem, toProblem } from './problem.ts';
import { createRateLimit } from './turns/rate.ts';
import { createHttpServer } from './server.ts';
import { openSessions, type Sessions } from './turns/sessions.ts';
import type { Worker } from './cli/worker.ts';

// sysexits.h: a configuration error, on which systemd does not restart, and an internal one.
const exitConfig = 78;
const exitBug = 70;
// For the last answers to be written, at least, after the last turn.
const answerGraceMs = 2000;
// As long as the CLI itself keeps its transcripts.
const sessionMaxAgeMs = 30 * 24 * 60 * 60 * 1000;

async function main(): Promise<void> {
  const config = await readConfig();
  process.stdout.on('error', () => {});
  const log = createLog(logFormat(), (line) => process.stdout.write(line));
  for (const message of config.warnings) log('warning', 'config', { message });

  const [sessions, claude] = await Promise.all([openSessions(config.stateDir), createClaude(config)]).catch((error: NodeJS.ErrnoException) =>
    fail(1, [`CLAUDE_STATE_DIR cannot be used (${error.code}): the user the server runs as must be able to write there`]),
  );
  if (!(await claim(`claude-api.${claude.markerPrefix}`))) fail(1, ['another claude-api runs with this CLAUDE_STATE_DIR: stop it, or give this one another']);
  const leftovers = await endMarked(claude.markerPrefix);
  if (leftovers > 0) log('warning', 'leftovers', { message: 'ended what an earlier server left running', processes: leftovers });

  const pool = new Pool<Worker>({
    start: async (userId, sessionId) => {
      if (sessionId === undefined) return claude.start(userId);
      return claude.start(userId, { sessionId, totalCostUsd: (await sessions.find(sessionId))?.totalCostUsd ?? 0 });
    },
    capacity: config.maxWorkers ?? defaultCapacity(availableMemoryBytes()),
    queueLimit: config.queueLimit,
    queueTimeoutMs: config.queueTimeoutMs,
    warmMs: config.warmMs,
    maxStarts: 2 * availableParallelism(),
  });
  const closing = new AbortController();
  const { turnTimeoutMs } = config;
  const checkStorage = createStorageCheck(config.stateDir, config.childEnv);
  const takeTurn = createRateLimit(config.rateLimitPerMinute);
  let isDraining = false;
  let exitCode = 0;
  const monitor = createHealthMonitor(claude.probeVersion, () => isDraining, log);
  const { onTurnEnd } = monitor;
  const chat = createChat({ pool, sessions, turnTimeoutMs, checkStorage, takeTurn, closing: closing.signal, onTurnEnd, log });
  const apiKey = config.apiKey ?? randomBytes(32).toString('hex');
  const version = await readVersion();
  const server = createHttpServer({
    auth: createAuth(apiKey),
    chat,
    health: monitor.health,
    healthDetails: async () => ({
      version,
      login: (await findLogin(config.childEnv)) ?? null,
      uptime_seconds: Math.floor(process.uptime()),
      ...pool.counts(),
      ...monitor.counts(),
    }),
    maxBodyBytes: config.maxBodyBytes,
    corsOrigins: config.corsOrigins,
    log,
  });
  server.on('error', (error: NodeJS.ErrnoException) => fail(1, [listenProblem(error, config)]));
  server.listen(config.port, config.host, () => {
    const { port } = server.address() as AddressInfo;
    log('info', 'listening', { host: config.host, port, version, capacity: pool.counts().capacity });
    if (config.apiKey === undefined) offerKey(apiKey, port, log);
  });

  /** Lets running turns finish for `graceMs`, ends the rest, leaves no process behind, and exits. */
  async function drain(graceMs: number): Promise<void> {
    isDraining = true;
    const endsAt = performance.now() + graceMs;
    const timer = setTimeout(() => closing.abort(stopped()), graceMs);
    await pool.close();
    clearTimeout(timer);
    // The CLI may just be asked for its version.
    await endMarked(`${claude.markerPrefix}${process.pid}.`);
    setTimeout(() => server.closeAllConnections(), Math.max(answerGraceMs, endsAt - performance.now())).unref();
    server.close(() => process.exit(exitCode));
    server.closeIdleConnections();
  }
  /** Ends at once, with all processes of this server. */
  async function quit(): Promise<void> {
    exitCode ||= 1;
    await endMarked(`${claude.markerPrefix}${process.pid}.`);
    process.exit(exitCode);
  }
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.on(signal, () => {
      log('info', isDraining ? 'quitting' : 'draining', { signal });
      void (isDraining ? quit() : drain(config.drainTimeoutMs));
    });
  }
  process.on('uncaughtException', (error) => {
    log('error', 'bug', { message: 'a bug ends the server; please report it', cause: describeBug(error) });
    exitCode = exitBug;
    void (isDraining ? quit() : drain(0));
  });

  await sayLogin(config, log);
  sayStorage(checkStorage, log);
  setInterval(() => void sweepSessions(sessions, log), 24 * 60 * 60 * 1000).unref();
  await Promise.all([monitor.watchCli(), sweepSessions(sessions, log)]);
}

async function sweepSessions(sessions: Sessions, log: Log): Promise<void> {
  await sessions.sweep(sessionMaxAgeMs).catch((error: unknown) => {
    log('error', 'sweep_failed', { message: 'old session records could not be removed: is CLAUDE_STATE_DIR there and writable?', cause: describeBug(error) });
  });
}

async function readConfig(): Promise<Config> {
  try {
    const text = await readFile('.env', 'utf8').catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return '';
      throw new ConfigError([`.env: cannot be read (${error.code})`]);
    });
    const { values, warnings } = parseEnv(text);
    const config = loadConfig(machineEnv(), values, process.getuid?.() === 0);
    return { ...config, warnings: [...warnings.map((warning) => `.env ${warning}`), ...config.warnings] };
  } catch (error) {
    if (error instanceof EnvSyntaxError) return fail(exitConfig, [`.env ${error.message}`]);
    if (error instanceof ConfigError) return fail(exitConfig, error.problems);
    throw error;
  }
}

/** The process environment, completed with what a service manager may have left out and the CLI needs. */
function machineEnv(): Record<string, string | undefined> {
  const { username } = userInfo();
  return {
    PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    HOME: homedir(),
    USER: username,
    LOGNAME: username,
    LANG: 'C.UTF-8',
    ...process.env,
  };
}

function fail(status: number, problems: readonly string[]): never {
  for (const problem of problems) process.stderr.write(`claude-api: ${problem}\n`);
  process.exit(status);
}

function logFormat(): LogFormat {
  if (process.env['JOURNAL_STREAM'] !== undefined) return 'journal';
  return process.stdout.isTTY ? 'text' : 'json';
}

async function readVersion(): Promise<string> {
  const text = await readFile(new URL('../package.json', import.meta.url), 'utf8');
  const value: unknown = JSON.parse(text);
  return typeof value === 'object' && value !== null && 'version' in value ? String(value.version) : '';
}

function listenProblem(error: NodeJS.ErrnoException, { host, port }: Config): string {
  if (error.code === 'EADDRINUSE') return `port ${port} is taken by another program: set PORT in .env, or stop the other one`;
  if (error.code === 'EACCES') return `port ${port} needs root: set PORT in .env to 1024 or more`;
  return `cannot listen on ${host}:${port} (${error.code})`;
}

/** A key made for this run is shown to a person only: in a log file or the journal it would be a secret left lying about. */
function offerKey(apiKey: string, port: number, log: Log): void {
  log('warning', 'config', { message: 'CLAUDE_API_KEY is not set: a key was made for this run, and only this machine can connect' });
  const terminal = [process.stdout, process.stderr].find((stream) => stream.isTTY);
  terminal?.write(`
  curl http://127.0.0.1:${port}/api/v1/chat \\
    -H 'Authorization: Bearer ${apiKey}' \\
    -H 'Content-Type: application/json' \\
    -d '{"prompt": "Hello", "user_id": 1}'

`);
}

function stopped(): Problem {
  return new Problem('shutting_down', 'The server was stopped during this turn; the dialogue can go on when it is back.', { retryAfterSeconds: 10 });
}

function sayStorage(checkStorage: () => void, log: Log): void {
  try {
    checkStorage();
  } catch (error) {
    log('error', 'storage_unavailable', { message: 'no turn can be kept', cause: describeBug(toProblem(error).extras.cause) });
  }
}

async function sayLogin(config: Config, log: Log): Promise<void> {
  const login = await findLogin(config.childEnv);
  if (login === undefined) log('warning', 'login', { message: howToLogIn });
  else log('info', 'login', { login });
}

await main();
