import { createHash } from 'node:crypto';
import { realpath } from 'node:fs/promises';
import { join } from 'node:path';
import { createInside, type Inside } from './cli/inside.ts';
import { createOutside } from './cli/outside.ts';
import { openUsers, type Users } from './cli/users.ts';
import type { CliConfig, Way } from './cli/way.ts';
import { Worker } from './cli/worker.ts';
import { markerName } from './cli/strays.ts';
import type { Cgroups, ProcessGroup } from './host/cgroups.ts';
import { findProvider } from './host/login.ts';
import { machineExhausted } from './host/memory.ts';
import type { Log } from './log.ts';
import { Problem, shuttingDown } from './problem.ts';
import { socketPathProblem } from './sandbox/api-socket.ts';
import { runSizeProgram, sizeProgram, type FolderSize } from './sandbox/folder-size.ts';
import { createShare } from './sandbox/share.ts';
import { decideSandbox, hasEverBeenSandboxed, rememberSandbox, type Decision } from './sandbox/mode.ts';
import { createTokenCount, type TokenCount } from './sandbox/token-count.ts';
import { inTime } from './waiting.ts';

/** The session a process is started for. */
export interface StartSession {
  readonly userId: number;
  /** Chosen by the server, also for a session that begins. */
  readonly sessionId: string;
  /** Whether it begins with this process; else its transcript is there to be resumed. */
  readonly isNew: boolean;
}

/** Starts CLI processes as configured. */
export interface Claude {
  /** All that is kept of end users. */
  readonly users: Users;
  /** What was counted in the sandbox; nothing is without it. */
  readonly tokens: TokenCount;
  /**
   * A started process for this session, in the user's own folders (made on first use). It exists but is not known to work
   * before its first turn. Waits until the sandbox is tried. Throws Problem `claude_not_found` when there is no such
   * program, `claude_too_old` when the last probe found so, `sandbox_unavailable`, `storage_unavailable` when a folder
   * cannot be made, and `busy` when the machine has no room for a process, or what the user's last ones left is not removed
   * within 2 s.
   */
  start(session: StartSession): Promise<Worker>;
  /**
   * The CLI's version from `claude --version`; the first call tries the sandbox as well. Throws Problem `claude_not_found`
   * when it cannot be run, `claude_too_old`, `sandbox_unavailable`, and `shutting_down` where the server may not go on.
   */
  probeVersion(): Promise<string>;
  /**
   * What a user's folder holds, counted no further than `maxFiles`; infinitely much where that takes more than 30 s, and
   * undefined where it cannot be counted now. Waits until the sandbox is tried. Never rejects.
   */
  measure(userId: number, maxFiles: number): Promise<FolderSize | undefined>;
  /** What is known of the sandbox: `on`, or why there is none; undefined while it is not decided. */
  sandbox(): string | undefined;
  /** Ends the ways to the API, and waits for what users' last programs left to be removed, 2 s at most. */
  close(): Promise<void>;
  /** What the markers of all processes of this state folder begin with; the server's pid and a point follow. */
  readonly markerPrefix: string;
}

/** Why the server may not go on: it must have a sandbox, and there is none. */
type Refusal = Extract<Decision, { readonly kind: 'end' }>;

/**
 * The CLI as configured, for one state folder. `onRefusal` is told, once, that the server must end: before this resolves
 * where that is known without a trial. `groups`: where each process has its limits, if anywhere. Starts nothing yet. Rejects
 * when the state folder cannot be made.
 */
export async function createClaude(
  config: CliConfig, log: Log, onRefusal: (refusal: Refusal) => void, groups?: Pick<Cgroups, 'open'>,
): Promise<Claude> {
  const users = await openUsers(config.stateDir);
  const tokens = createTokenCount(config.userTokensPerDay);
  const hash = createHash('sha256').update(await realpath(config.stateDir)).digest('hex').slice(0, 16);
  const markerPrefix = `${hash}.`;
  const probeMarker = `${markerPrefix}${process.pid}.0.`;
  const socketFolder = join(config.runtimeDir, hash);
  const outside = await createOutside(config, probeMarker, log);
  // How many processes each user has, and the emptying of their `tmp` and `turns` when the last one is gone.
  const processes = new Map<number, number>();
  const emptying = new Map<number, Promise<void>>();
  const measuring = createShare(mostMeasured);
  let started = 0;
  let way: Way | undefined;
  let deciding: Promise<Way> | undefined;
  let sandbox: string | undefined;
  let version: string | undefined;

  function decide(trial?: Parameters<typeof decideSandbox>[0]['trial']): Decision {
    const tooLong = config.sandbox === 'off' ? undefined : socketPathProblem(join(socketFolder, '1000000'));
    if (tooLong !== undefined) {
      return { kind: 'end', exitCode: 78, reason: `${tooLong} Set CLAUDE_STATE_DIR, or RUNTIME_DIRECTORY, to a shorter one.` };
    }
    return decideSandbox({
      setting: config.sandbox,
      hasEverRun: hasEverBeenSandboxed(config.stateDir),
      isRoot: process.getuid?.() === 0,
      provider: findProvider(config.childEnv),
      trial,
    });
  }

  async function findWay(): Promise<Way> {
    // A CLI that does not run at all says nothing about the sandbox.
    version = await outside.probeVersion();
    const inside = createInside(config, { marker: probeMarker, socketFolder, log });
    const trial = await inside.try();
    if (trial.works && trial.durationMs > longTrialMs) {
      log('warning', 'sandbox', { message: 'its trial took more than 5 s', duration_ms: Math.round(trial.durationMs) });
    }
    return settle(decide(trial), inside) ?? Promise.reject(shuttingDown());
  }

  /** Makes the decision count; undefined when it is not to go on. */
  function settle(decision: Decision, inside?: Inside): Way | undefined {
    if (decision.kind === 'end') onRefusal(decision);
    if (decision.kind === 'on' && inside !== undefined) {
      rememberSandbox(config.stateDir);
      const leftOut = inside.leftOut();
      log('info', 'sandbox', { sandbox: 'on', ...(leftOut.length > 0 && { left_out: leftOut.join(',') }) });
      sandbox = 'on';
      return (way = inside);
    }
    inside?.close();
    if (decision.kind !== 'without') return undefined;
    sandbox = decision.reason;
    log('warning', 'sandbox', { message: config.sandbox === 'off' ? everybodyTrusted : fiveTools, reason: sandbox });
    if (config.userTokensPerDay !== undefined) log('warning', 'config', { message: tokensUncounted });
    if (config.network.length > 0) log('warning', 'config', { message: networkUnused });
    return (way = outside);
  }

  function getWay(): Promise<Way> {
    if (way !== undefined) return Promise.resolve(way);
    deciding ??= findWay().finally(() => (deciding = undefined));
    return deciding;
  }

  async function launch({ userId, sessionId, isNew }: StartSession): Promise<Worker> {
    const chosen = await getWay();
    await untilEmptied(userId);
    started += 1;
    const number = started;
    const folders = await users.prepare(userId, number);
    const own = await chosen.launch([isNew ? `--session-id=${sessionId}` : `--resume=${sessionId}`], folders, number);
    let group: ProcessGroup | undefined;
    try {
      group = openGroup(userId, number);
      const logFields = { user: userId, session: sessionId };
      const sandbox = own.sandbox && { ...own.sandbox, limits: { ...own.sandbox.limits, ...tokens.of(userId), logFields } };
      const { boxes, isUnchanged: isInPlace } = folders;
      const marker = `${markerPrefix}${process.pid}.${number}.`;
      return new Worker({ ...own, sandbox, group, marker, sessionId, boxes, isInPlace });
    } catch (error) {
      await own.sandbox?.api.close();
      await group?.end();
      throw error;
    }
  }

  /** Not for long: while it waits it counts as starting, and others do not start. */
  async function untilEmptied(userId: number): Promise<void> {
    const emptied = emptying.get(userId)?.then(() => true);
    if (emptied === undefined || (await inTime(emptied, mostEmptyingMs, false))) return;
    const detail = "What this user's last programs left is still being removed; try again in a few seconds.";
    throw new Problem('busy', detail, { retryAfterSeconds: 5 });
  }

  function openGroup(userId: number, number: number): ProcessGroup | undefined {
    try {
      return groups?.open(userId, number);
    } catch (error) {
      throw machineExhausted().with({ cause: error });
    }
  }

  function countProcess(userId: number, change: 1 | -1): void {
    const count = (processes.get(userId) ?? 0) + change;
    if (count > 0) {
      processes.set(userId, count);
      return;
    }
    processes.delete(userId);
    // One after another: a start that waits for one must not be overtaken by the next.
    const emptied = (emptying.get(userId) ?? Promise.resolve()).then(() => users.tidy(userId));
    emptying.set(userId, emptied);
    void emptied.then(() => {
      if (emptying.get(userId) === emptied) emptying.delete(userId);
    });
  }

  settle(decide());
  return {
    users,
    tokens,
    markerPrefix,
    sandbox: () => sandbox,

    async close() {
      way?.close();
      await inTime(Promise.all(emptying.values()), mostEmptyingMs, []);
    },

    async probeVersion() {
      const isFirst = way === undefined;
      const chosen = await getWay();
      return isFirst && version !== undefined ? version : chosen.probeVersion();
    },

    async measure(userId, maxFiles) {
      const chosen = way ?? (await deciding?.catch(() => undefined));
      const folder = users.find(userId);
      if (folder === undefined) return { bytes: 0, files: 0 };
      if (chosen === undefined) return undefined;
      const command = chosen.walk(folder, (path) => sizeProgram(path, maxFiles));
      const env = { PATH: '/usr/bin:/bin', LC_ALL: 'C', [markerName]: `${markerPrefix}${process.pid}.size.` };
      const free = await measuring.take(1, never);
      return runSizeProgram(command, env, measureMs).finally(free);
    },

    async start(session) {
      countProcess(session.userId, 1);
      try {
        const worker = await launch(session);
        void worker.exited.then(() => worker.stop()).then(() => countProcess(session.userId, -1));
        return worker;
      } catch (error) {
        countProcess(session.userId, -1);
        throw error;
      }
    },
  };
}

const longTrialMs = 5000;
const measureMs = 30_000;
const mostEmptyingMs = 2000;
const never = new AbortController().signal;
// A count is five small programs, and one core's work.
const mostMeasured = 4;
const everybodyTrusted = 'every end user is as trusted as the operator';
const tokensUncounted = 'CLAUDE_USER_TOKENS_PER_DAY limits nothing: tokens are counted in the sandbox';
const networkUnused = 'CLAUDE_NETWORK opens nothing: it is for tools in the sandbox';
const fiveTools = 'Claude has the five file tools and their rules';
