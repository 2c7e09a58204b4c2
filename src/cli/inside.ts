import { randomUUID } from 'node:crypto';
import { mkdir, realpath, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { loginFilePath } from '../host/login.ts';
import type { Log } from '../log.ts';
import { describeBug, type Problem } from '../problem.ts';
import { createAddressCheck } from '../sandbox/addresses.ts';
import { createApiProxy } from '../sandbox/api-proxy.ts';
import { createCredentials } from '../sandbox/credentials.ts';
import { sandboxEnv } from '../sandbox/environment.ts';
import { networkEnv, withForwarder } from '../sandbox/forwarder.ts';
import { createLoginFile, refreshByCli } from '../sandbox/login-file.ts';
import { createNetworkProxy, withNetwork, type NetworkProxy } from '../sandbox/network-proxy.ts';
import {
  inside, openFilter, rootOptions, sandboxArgv, walkArgv, walkedFolder, writeOwnFiles, type Folders, type Machine,
} from '../sandbox/sandbox.ts';
import { trialProgram, trySandbox, type Trial } from '../sandbox/trial.ts';
import { createUpstream } from '../sandbox/upstream.ts';
import { Boxes } from './boxes.ts';
import { allowedModels, subagentModel } from './models.ts';
import { sandboxUnavailable } from './outcome.ts';
import { claudeNotFound, findProgram } from './program.ts';
import { createToolCheck, hasTool, rightsInside } from './rights.ts';
import { endMarked, markerName } from './strays.ts';
import { tryTurn, type TrialTurn } from './trial-turn.ts';
import { cliArguments, defaultEnv, type CliConfig, type Way } from './way.ts';

/** The CLI in a sandbox, with the API behind the API proxy. */
export interface Inside extends Way {
  /** Tries whether it works, with the CLI that is there now: its version, and a turn at no cost. Throws `claude_not_found`. */
  try(): Promise<Trial>;
  /** The operator's variables that stay outside, by name. */
  leftOut(): readonly string[];
}

interface InsideOptions {
  /** What its trials carry. */
  readonly marker: string;
  /** The server's own folder for sockets; emptied at the first trial. */
  readonly socketFolder: string;
  readonly log: Log;
}

/** The CLI that is there now, and the login it would be given: what a trial is good for. */
interface Present {
  readonly key: string;
  readonly claude: string;
  readonly placeholders: Readonly<Record<string, string>>;
}

/** What a trial found to work: this CLI, with this kind of login. */
interface Tried extends Shown {
  readonly key: string;
  readonly machine: Machine;
}

/** What its turn showed. */
type Shown = Exclude<TrialTurn, { readonly problem: string }>;

// For both steps together; a cold machine of 1 GB takes seconds for the first start.
const trialTimeoutMs = 60_000;

// WebFetch would first ask the API's own host about each address, and that host is not to be reached (fact 70).
const networkSettings = { skipWebFetchPreflight: true };

/** The sandboxed way. Starts nothing yet. Throws TypeError for an ANTHROPIC_BASE_URL that is no URL. */
export function createInside(config: CliConfig, { marker, socketFolder, log }: InsideOptions): Inside {
  const { childEnv } = config;
  const pathVariable = childEnv['PATH'] ?? '';
  const ownFiles = join(config.stateDir, 'sandbox');
  const rights = rightsInside(config);
  const gateway = gatewayOf(childEnv);
  const credentials = createCredentials(childEnv, createLoginFile(loginFilePath(childEnv), refreshLogin));
  let tried: Tried | undefined;
  let trying: Promise<Trial> | undefined;
  const hasServers = Object.keys(config.mcpServers).length > 0;
  const network = openNetwork(config, log, hasServers);
  const proxy = createApiProxy({
    upstream: createUpstream({ baseUrl: gateway ?? 'https://api.anthropic.com', env: childEnv }),
    credentials,
    rules: () => ({ models: allowedModels(config, tried?.models ?? []), isWebSearchAllowed: hasTool(rights.tools, 'WebSearch') }),
    log,
  });

  async function refreshLogin(): Promise<void> {
    const binary = await findProgram(config.claudeBinary, pathVariable);
    if (binary !== undefined) await refreshByCli(binary, childEnv);
  }

  function environment(placeholders: Readonly<Record<string, string>>): ReturnType<typeof sandboxEnv> {
    const ours = { ...defaultEnv, ...subagentModel(config), ...childEnv };
    const { env, leftOut } = sandboxEnv(ours, placeholders, gateway !== undefined);
    return { env: { ...env, ...(network !== undefined && networkEnv) }, leftOut };
  }

  /** The CLI with these options in a sandbox with these folders. */
  function commandLine(machine: Machine, folders: Folders, options: readonly string[]): { command: string; args: string[] } {
    const settings = network === undefined ? {} : networkSettings;
    const program = [inside.claude, ...cliArguments(config, rights, inside, settings), ...options];
    const args = sandboxArgv(machine, folders, network === undefined ? program : withForwarder(program));
    return { command: machine.bwrap, args };
  }

  async function present(): Promise<Present> {
    const found = await findProgram(config.claudeBinary, pathVariable);
    const claude = found === undefined ? undefined : await realpath(found).catch(() => undefined);
    if (claude === undefined) throw claudeNotFound();
    const { ino, mtimeMs, size } = await stat(claude);
    const placeholders = await credentials.placeholders();
    return { key: JSON.stringify([claude, ino, mtimeMs, size, placeholders]), claude, placeholders };
  }

  async function tryNow(): Promise<Trial> {
    const { key, claude, placeholders } = await present();
    const bwrap = await findProgram('bwrap', pathVariable);
    if (bwrap === undefined) return { works: false, reason: 'bubblewrap is not installed (apt install bubblewrap).', isLasting: true };
    try {
      if (tried === undefined) await rm(socketFolder, { recursive: true, force: true });
      if (!writeOwnFiles(ownFiles, process.getuid?.() ?? 0, process.getgid?.() ?? 0)) {
        return { works: false, reason: `there is no seccomp filter for ${process.arch}.`, isLasting: true };
      }
      const machine = { bwrap, claude, node: process.execPath, ownFiles, root: rootOptions() };
      const { trial, shown } = await tryOn(machine, placeholders);
      if (shown !== undefined) tried = { key, machine, ...shown };
      return trial;
    } catch (error) {
      return { works: false, reason: `CLAUDE_STATE_DIR cannot be used for it: ${describeBug(error)}`, isLasting: false };
    } finally {
      await endMarked(marker);
    }
  }

  async function tryOn(machine: Machine, placeholders: Present['placeholders']): Promise<{ trial: Trial; shown?: Shown }> {
    const api = join(socketFolder, 'trial');
    const { boxes, ...folders } = await trialFolders(join(ownFiles, 'trial'));
    const { env } = environment(placeholders);
    const withMarker = { ...env, [markerName]: marker };
    const args = sandboxArgv(machine, folders, trialProgram);
    const trial = await trySandbox({ command: machine.bwrap, args, env: withMarker, filter: openFilter(machine) }, trialTimeoutMs);
    if (!trial.works) return { trial };
    const sessionId = randomUUID();
    const startedAt = performance.now();
    const command = commandLine(machine, { ...folders, api }, [`--session-id=${sessionId}`]);
    const onTools = createToolCheck(config.tools, log);
    const launch = { ...command, env, cwd: '/', marker, sessionId, boxes, inbox: inside.inbox, isInPlace: () => true, onTools };
    const timeoutMs = Math.ceil(trialTimeoutMs - trial.durationMs);
    const parts = { openFilter: () => openFilter(machine), socketFolder: api, network, log };
    const turn = await tryTurn({ launch, ...parts, timeoutMs });
    await rm(join(ownFiles, 'trial'), { recursive: true, force: true });
    const durationMs = trial.durationMs + performance.now() - startedAt;
    if ('models' in turn) {
      // bubblewrap twice, the CLI and the forwarder; the operator's servers are as many as they are.
      const own = network === undefined ? 3 : 4;
      const processes = hasServers ? Math.max(own, turn.processes) : own;
      return { trial: { ...trial, durationMs }, shown: { ...turn, processes } };
    }
    return { trial: { works: false, reason: turn.problem, isLasting: durationMs < trialTimeoutMs } };
  }

  /** What works now; tried again where CLI or login are others than those that were tried. */
  async function ready(): Promise<Tried & Pick<Present, 'placeholders'>> {
    const { key, placeholders } = await present();
    if (tried?.key !== key) {
      trying ??= tryNow().finally(() => (trying = undefined));
      const trial = await trying;
      if (!trial.works) throw unavailable(trial.reason);
    }
    if (tried === undefined) throw sandboxUnavailable();
    return { ...tried, placeholders };
  }

  return {
    try: tryNow,
    leftOut: () => environment({}).leftOut,

    async launch(options, { home, work, tmp, boxes }, number) {
      const { machine, placeholders, processes } = await ready();
      const socket = join(socketFolder, String(number));
      const opened = proxy.open(socket).then((api) => withNetwork(api, network));
      const api = await opened.catch((error: unknown) => {
        throw unavailable(describeBug(error) ?? '');
      });
      const limits = { maxRequests: 10 * config.maxTurns };
      return {
        ...commandLine(machine, { home, work, tmp, inbox: boxes.inbox, outbox: boxes.outbox, api: socket }, options),
        env: environment(placeholders).env,
        cwd: '/',
        inbox: inside.inbox,
        sandbox: { openFilter: () => openFilter(machine), api, limits, processes },
      };
    },

    async probeVersion() {
      const trial = await tryNow();
      if (!trial.works) throw unavailable(trial.reason);
      return trial.version;
    },

    walk(folder, program) {
      if (tried === undefined) throw sandboxUnavailable();
      return [tried.machine.bwrap, ...walkArgv(tried.machine, folder, program(walkedFolder))];
    },

    close: () => proxy.close(),
  };
}

function unavailable(reason: string): Problem {
  return sandboxUnavailable().with({ cause: new Error(reason) });
}

async function trialFolders(top: string): Promise<Folders & { readonly boxes: Boxes }> {
  await rm(top, { recursive: true, force: true });
  const boxes = new Boxes(join(top, 'turns'));
  const folders = { home: join(top, 'home'), work: join(top, 'work'), tmp: join(top, 'tmp') };
  for (const path of [...Object.values(folders), boxes.inbox, boxes.outbox]) await mkdir(path, { recursive: true, mode: 0o700 });
  return { ...folders, inbox: boxes.inbox, outbox: boxes.outbox, boxes };
}

// As long as the CLI's first turn waits for them.
const serversStartMs = 30_000;

function openNetwork({ network: hosts }: CliConfig, log: Log, hasServers: boolean): NetworkProxy | undefined {
  if (hosts.length === 0) return undefined;
  return createNetworkProxy({ hosts, addresses: createAddressCheck(), log, startMs: hasServers ? serversStartMs : 0 });
}

/** The operator's own address in the place of Anthropic's. */
function gatewayOf(childEnv: Readonly<Record<string, string>>): string | undefined {
  const given = childEnv['ANTHROPIC_BASE_URL']?.trim();
  return given && !/^https:\/\/api\.anthropic\.com\/?$/.test(given) ? given : undefined;
}
