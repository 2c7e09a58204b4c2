import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type { Server } from 'node:net';
import { availableParallelism, hostname } from 'node:os';
import { createAuth, offerKey } from './auth.ts';
import { createClaude, type Claude } from './claude.ts';
import { endMarked } from './cli/strays.ts';
import type { Worker } from './cli/worker.ts';
import type { Config } from './env.ts';
import { openCgroups, type Cgroups } from './host/cgroups.ts';
import { findLogin, howToLogIn, logLogin } from './host/login.ts';
import { lockStateFolder, type Lock } from './host/lock.ts';
import { readOperatorFiles, type OperatorFiles } from './host/operator-files.ts';
import { openMemory } from './host/memory.ts';
import { createReserve } from './host/reserve.ts';
import { createStorageCheck, findShortage, logStorage } from './host/storage.ts';
import { createCloser } from './http/connections.ts';
import { createHealthMonitor } from './http/health.ts';
import type { HealthDetails } from './http/metrics.ts';
import { asObject } from './json.ts';
import type { Log } from './log.ts';
import { describeBug, errorCode } from './problem.ts';
import type { Tokens } from './sandbox/usage.ts';
import { createHttpServer, listenProblem } from './server.ts';
import { drain, type Stoppable } from './shutdown.ts';
import { createChat, type KeyedChats } from './turns/chat.ts';
import { createDiskLimit } from './turns/disk.ts';
import { Figures } from './turns/figures.ts';
import { KeyedTurns } from './turns/keyed.ts';
import { Pool } from './turns/pool.ts';
import { createRateLimit } from './turns/rate.ts';

const maxUserFiles = 200_000;
const dayMs = 24 * 60 * 60 * 1000;

/** A start that failed; the message is a sentence for the operator, without a stack. */
export class StartError extends Error {
  override name = 'StartError';
  /** 78 where the next start would end the same way (sysexits.h). */
  readonly exitCode: 1 | 78;

  constructor(message: string, exitCode: 1 | 78 = 1) {
    super(message);
    this.exitCode = exitCode;
  }
}

/** The whole server on one state folder. */
export interface App extends Stoppable {
  /** Takes connections; gives the port. Throws StartError when it cannot. */
  listen(): Promise<number>;
}

/** What the app needs of the process it lives in. */
interface Surroundings {
  readonly log: Log;
  /** Where a person reads along, if one does: a key made for this run is shown there and nowhere else. */
  readonly terminal?: { write(text: string): unknown } | undefined;
  /** Told when the sandbox, tried after the start, forbids to go on: the app is to be stopped. */
  readonly onRefusal: (error: StartError) => void;
}

/**
 * The wiring of all rooms. Takes the state folder for itself and ends what an earlier server left running there.
 * Throws ConfigError for files of the operator's that are not right, StartError when the folder cannot be used or another server has it.
 */
export async function createApp(config: Config, { log: uncounted, terminal, onRefusal }: Surroundings): Promise<App> {
  const figures = new Figures();
  const log = figures.counting(uncounted);
  for (const message of config.warnings) log('warning', 'config', { message });
  const files = await readOperatorFiles(config);
  // Before anything is started: what is, is born where the server is.
  const groups = openGroups(log);
  const { claude, lock } = await openStateFolder({ ...config, ...files }, { log, onRefusal, groups });
  const leftovers = await endMarked(claude.markerPrefix);
  if (leftovers > 0) log('warning', 'leftovers', { message: 'ended what an earlier server left running', processes: leftovers });

  const pool = createPool(config, claude);
  const closing = new AbortController();
  const { turnTimeoutMs, maxBodyBytes, corsOrigins } = config;
  const { hasSession } = claude.users;
  const checkStorage = createStorageCheck(config.stateDir);
  const takeByRate = createRateLimit(config.rateLimitPerMinute);
  const takeTurn = (userId: number): (() => void) => {
    claude.tokens.requireLeft(userId);
    return takeByRate(userId);
  };
  const reserve = createReserve(config.stateDir);
  const disk = createDiskLimit({
    measure: (userId) => claude.measure(userId, 2 * maxUserFiles),
    shortage: () => findShortage(config.stateDir, reserve.missing()),
    max: { bytes: config.userDiskBytes, files: maxUserFiles },
    reserve,
  });
  let isStopping = false;
  let stopped: Promise<void> | undefined;
  const isReady = (): boolean => claude.sandbox() !== undefined;
  const monitor = createHealthMonitor({ probeVersion: claude.probeVersion, isDraining: () => isStopping, isReady, log });
  const { health } = monitor;
  const keyed: KeyedChats = new KeyedTurns();
  const chat = createChat({
    pool,
    hasSession,
    turnTimeoutMs,
    checkStorage,
    takeTurn,
    keyed,
    disk,
    closing: closing.signal,
    onAdmitted: (start, waitedMs) => figures.turnAdmitted(start, waitedMs),
    onTurnEnd(problem, durationMs) {
      figures.turnEnded(problem, durationMs);
      monitor.onTurnEnd(problem);
    },
  });
  const apiKey = config.apiKey ?? randomBytes(32).toString('hex');
  const version = await readVersion();
  const startedAt = performance.now();
  const healthDetails = async (): Promise<HealthDetails> => {
    const login = (await findLogin(config.childEnv)) ?? null;
    return {
      version,
      node: hostname(),
      claude_version: monitor.claudeVersion() ?? null,
      login,
      sandbox: claude.sandbox() ?? null,
      ...(login === null && { warnings: [howToLogIn] }),
      uptime_seconds: Math.floor((performance.now() - startedAt) / 1000),
      ...pool.counts(),
      users: chat.users(),
      idempotency_keys: keyed.size,
      turns: figures.turns,
      failures: figures.failures,
      ...(claude.sandbox() === 'on' && { tokens: tokenMembers(claude.tokens.total()) }),
    };
  };
  const auth = createAuth(apiKey);
  const server = createHttpServer({ auth, chat, health, healthDetails, figures, maxBodyBytes, corsOrigins, log });
  const closeConnections = createCloser(server);
  const endProcesses = (): Promise<number> => endMarked(`${claude.markerPrefix}${process.pid}.`);
  const sweep = (): Promise<void> => sweepTranscripts(claude, config.keepDays, log);
  const daily = setInterval(() => void sweep(), dayMs).unref();

  return {
    async listen() {
      await new Promise<void>((resolve, reject) => {
        server.on('error', (error: NodeJS.ErrnoException) => reject(new StartError(listenProblem(error, config))));
        server.listen(config.port, config.host, resolve);
      });
      const port = portOf(server);
      log('info', 'listening', { host: config.host, port, version, capacity: pool.counts().capacity });
      if (config.apiKey === undefined) offerKey(apiKey, port, log, terminal);
      await logLogin(config.childEnv, log);
      logStorage(checkStorage, log);
      void monitor.watchCli();
      void sweep();
      return port;
    },
    stop(graceMs) {
      isStopping = true;
      clearInterval(daily);
      stopped ??= drain({ pool, closeConnections, closing, endProcesses }, graceMs).finally(claude.close).then(lock.release);
      return stopped;
    },
    quit: endProcesses,
  };
}

function openGroups(log: Log): Cgroups | undefined {
  const groups = openCgroups();
  if ('open' in groups) return groups;
  log('info', 'no_cgroups', { message: 'end users share the limits of the service', reason: groups.refusal });
  return undefined;
}

type Opening = Pick<Surroundings, 'log' | 'onRefusal'> & { readonly groups: Cgroups | undefined };

async function openStateFolder(
  config: Config & OperatorFiles, { log, onRefusal, groups }: Opening,
): Promise<{ readonly claude: Claude; readonly lock: Lock }> {
  let isOpen = false;
  const refuse = (error: StartError): void => {
    if (!isOpen) throw error;
    onRefusal(error);
  };
  try {
    const claude = await createClaude(config, log, ({ reason, exitCode }) => refuse(new StartError(reason, exitCode)), groups);
    isOpen = true;
    const lock = await lockStateFolder(config.stateDir, config.childEnv['PATH'] ?? '');
    if ('refusal' in lock) throw new StartError(lock.refusal);
    return { claude, lock };
  } catch (error) {
    if (error instanceof StartError) throw error;
    throw new StartError(`CLAUDE_STATE_DIR cannot be used (${errorCode(error)}): the user the server runs as must be able to write there`);
  }
}

function createPool(config: Config, claude: Claude): Pool<Worker> {
  return new Pool<Worker>({
    start: claude.start,
    hasSession: claude.users.hasSession,
    memory: openMemory(),
    maxProcesses: config.maxWorkers ?? Infinity,
    queueLimit: config.queueLimit,
    queueTimeoutMs: config.queueTimeoutMs,
    warmMs: config.warmMs,
    maxStarts: 2 * availableParallelism(),
  });
}

function tokenMembers({ input, output, cacheWrite, cacheRead }: Tokens): Record<string, number> {
  return { input, output, cache_creation: cacheWrite, cache_read: cacheRead };
}

async function sweepTranscripts({ users }: Claude, keepDays: number, log: Log): Promise<void> {
  await users.sweep(keepDays * dayMs).catch((error: unknown) => {
    const message = 'old dialogues could not be removed: is CLAUDE_STATE_DIR there and writable?';
    log('error', 'sweep_failed', { message, cause: describeBug(error) });
  });
}

/** Not the one asked for: that may be 0, which is any. */
function portOf(server: Server): number {
  const address = server.address();
  return typeof address === 'object' && address !== null ? address.port : 0;
}

async function readVersion(): Promise<string> {
  const text = await readFile(new URL('../package.json', import.meta.url), 'utf8');
  return String(asObject(JSON.parse(text))['version']);
}
