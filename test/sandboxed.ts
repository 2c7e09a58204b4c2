import assert from 'node:assert/strict';
import { spawn, type ChildProcessByStdio } from 'node:child_process';
import { createHash, randomUUID } from 'node:crypto';
import { closeSync, copyFileSync, linkSync, lstatSync, readFileSync, statSync } from 'node:fs';
import { chmod, chown, mkdir, mkdtemp, readdir, readFile, realpath, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { test, type TestContext } from 'node:test';
import { endMarked, markerName } from '../src/cli/strays.ts';
import { sandboxEnv } from '../src/sandbox/environment.ts';
import { hasProgramRun, openFilter, rootOptions, sandboxArgv, writeOwnFiles, type Folders, type Machine } from '../src/sandbox/sandbox.ts';
import { findProgram, needsToRun } from './needs.ts';
import { anthropicKey } from './messages-api.ts';
import { fakeClaude, makeHome, startServer, until, within, type RunningServer } from './running-server.ts';

const isRoot = process.getuid?.() === 0;
/** The ordinary user that bubblewrap runs as: root has no sandbox. */
const user = isRoot ? { uid: 64_123, gid: 64_123 } : { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };

/** A command line run as that user. */
export function asOrdinaryUser(...command: readonly string[]): [command: string, ...args: string[]] {
  const change = isRoot ? ['setpriv', `--reuid=${user.uid}`, `--regid=${user.gid}`, '--clear-groups', '--'] : [];
  const [first = '', ...rest] = [...change, ...command];
  return [first, ...rest];
}

/** Why there can be no sandbox here, or false. */
export const noSandbox = needsToRun(
  asOrdinaryUser('bwrap', '--unshare-user', '--unshare-net', '--ro-bind', '/', '/', 'true'),
  'a bubblewrap that works for an ordinary user',
  'starts programs in a sandbox',
);

/** A test that needs a sandbox. */
export function testSandboxed(title: string, run: (t: TestContext) => Promise<void>): void {
  test(title, { skip: noSandbox }, run);
}

/** A state folder with users, and sandboxes over it, without server and CLI. */
export class SandboxedUsers {
  readonly stateDir: string;
  readonly machine: Machine;
  /** What the markers of its processes begin with. */
  readonly markerPrefix = `test.${randomUUID()}.`;

  constructor(stateDir: string, machine: Machine) {
    this.stateDir = stateDir;
    this.machine = machine;
  }

  folders(userId: number): Folders {
    const folder = join(this.stateDir, 'users', String(userId));
    return { home: join(folder, 'home'), work: join(folder, 'work'), tmp: join(folder, 'tmp'), api: join(folder, 'turns/1/api') };
  }

  /** Starts a program inside. The program's arguments are what follows bubblewrap's own. */
  start(program: readonly string[], userId = 1, folders = this.folders(userId), env = insideEnv): Inside {
    const command = asOrdinaryUser(this.machine.bwrap, ...sandboxArgv(this.machine, folders, program));
    const filter = openFilter(this.machine);
    try {
      return new Inside(command, { ...env, [markerName]: `${this.markerPrefix}${userId}.` }, filter);
    } finally {
      closeSync(filter);
    }
  }

  /** What a shell script inside prints, waited for. */
  async run(script: string, userId = 1): Promise<Outcome> {
    return this.start(['/bin/bash', '-c', script], userId).ended();
  }
}

export const insideEnv = sandboxEnv({}, { ANTHROPIC_AUTH_TOKEN: 'placeholder' }, false).env;

export interface Outcome {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
  readonly hasRun: boolean;
}

/** A process inside. */
export class Inside {
  readonly child: ChildProcessByStdio<Writable, Readable, Readable>;
  readonly #closed: Promise<[number | null, string | null]>;
  stdout = '';
  stderr = '';
  #status = '';

  constructor([command, ...args]: [string, ...string[]], env: Readonly<Record<string, string>>, filter: number) {
    this.child = spawn(command, args, { cwd: '/', env, detached: true, stdio: ['pipe', 'pipe', 'pipe', filter, 'pipe'] }) as typeof this.child;
    this.#closed = new Promise((resolve) => this.child.once('close', (code, signal) => resolve([code, signal])));
    this.child.stdin.on('error', () => {});
    this.child.stdout.setEncoding('utf8').on('data', (text: string) => (this.stdout += text));
    this.child.stderr.setEncoding('utf8').on('data', (text: string) => (this.stderr += text));
    const status = this.child.stdio[4] as Readable | null;
    status?.setEncoding('utf8').on('data', (text: string) => (this.#status += text));
  }

  /** The sandbox's first process, as the host counts; the program is its child. */
  get pid(): number {
    return Number(/"child-pid": (\d+)/.exec(this.#status)?.[1]);
  }

  async ended(timeoutMs = 30_000): Promise<Outcome> {
    const [code, signal] = await within('the sandbox to end', timeoutMs, this.#closed);
    return { code, signal, stdout: this.stdout, stderr: this.stderr, hasRun: hasProgramRun(this.#status) };
  }
}

/** Users 1 and 2 with their folders, in a folder that is gone after the test with all that ran in it. */
export async function makeSandboxedUsers(t: TestContext, claude: string = fakeClaude): Promise<SandboxedUsers> {
  const top = await mkdtemp(join(tmpdir(), 'claude-api-test-'));
  const stateDir = join(top, 'state');
  const ownFiles = join(stateDir, 'sandbox');
  const programs = join(top, 'programs');
  for (const userId of [1, 2]) {
    for (const name of ['home', 'work', 'tmp', 'turns/1/api', 'turns/1/in', 'turns/1/out']) {
      await mkdir(join(stateDir, 'users', String(userId), name), { recursive: true });
    }
  }
  writeOwnFiles(ownFiles, user.uid, user.gid);
  await chownAll(top);
  await chmod(top, 0o755);
  await mkdir(programs, { mode: 0o755 });
  const machine = {
    bwrap: findProgram('bwrap') ?? '',
    claude: reachable(claude, programs),
    node: reachable(process.execPath, programs),
    ownFiles,
    root: rootOptions(),
  };
  const users = new SandboxedUsers(stateDir, machine);
  t.after(async () => {
    await endMarked(users.markerPrefix);
    await rm(top, { recursive: true, force: true });
  });
  return users;
}

/** The account the sandboxes run as gets everything below the folder, links not followed. */
export async function chownAll(path: string): Promise<void> {
  await chown(path, user.uid, user.gid);
  if (!lstatSync(path).isDirectory()) return;
  for (const name of await readdir(path)) await chownAll(join(path, name));
}

/** The program itself, or the same one where the ordinary user can reach it. */
function reachable(program: string, folder: string): string {
  const isOpen = (path: string): boolean => path === '/' || ((statSync(path).mode & 0o001) !== 0 && isOpen(dirname(path)));
  if (!isRoot || isOpen(program)) return program;
  const path = join(folder, basename(program));
  try {
    linkSync(program, path);
  } catch {
    copyFileSync(program, path); // another disk
  }
  return path;
}

/** The processes of the server in this home that carry its marker, on the whole machine. */
export async function markedProcesses(home: string): Promise<number[]> {
  const prefix = await markerPrefixOf(join(home, 'state'));
  const pids = (await readdir('/proc')).map(Number).filter((pid) => pid > 0);
  const found = await Promise.all(pids.map(async (pid) => (await readFile(`/proc/${pid}/environ`, 'latin1').catch(() => '')).includes(`${markerName}=${prefix}`)));
  return pids.filter((_pid, i) => found[i]);
}

/** What the markers of all processes of a server with this state folder begin with. */
async function markerPrefixOf(stateDir: string): Promise<string> {
  return `${createHash('sha256').update(await realpath(stateDir)).digest('hex').slice(0, 16)}.`;
}

/** Seconds for a `sleep` that no other run of these tests has: by it the sleep is found. */
export const unlike = (number: number): string => `300.${process.pid}${number}`;

/** Command lines of the living processes that have this text in theirs, on the whole machine; the own one aside. */
export async function runningWith(text: string): Promise<string[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid);
  const lines = await Promise.all(pids.map((pid) => readFile(`/proc/${pid}/cmdline`, 'latin1').catch(() => '')));
  return lines.map((line) => line.replaceAll('\0', ' ')).filter((line) => line.includes(text));
}

/** The parent of a process. */
export function parentOf(pid: number): number {
  return Number(/^PPid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1]);
}

/**
 * A server run as an ordinary user, with the sandbox required unless `env` says otherwise, and ready for turns. After the
 * test it is killed, and with it what a sandbox that was half made leaves.
 */
export async function startSandboxedServer(t: TestContext, env: Readonly<Record<string, string | undefined>> = {}, home?: string): Promise<RunningServer> {
  const folder = home ?? (await makeSandboxedHome(t));
  const server = await startServer(t, { CLAUDE_SANDBOX: 'required', ANTHROPIC_API_KEY: anthropicKey, ...env }, folder, [asUserScript]);
  await until('a server that is ready', async () => ((await server.request('/health')).status === 200 ? true : undefined), 30_000);
  const prefix = await markerPrefixOf(env['CLAUDE_STATE_DIR'] ?? join(folder, 'state'));
  t.after(() => server.end('SIGKILL').then(() => endMarked(prefix)));
  return server;
}

export const asUserScript = fileURLToPath(new URL('bin/as-ordinary-user', import.meta.url));

/** A HOME that belongs to the ordinary user. No sandbox over it may be left when the test is over. */
export async function makeSandboxedHome(t: TestContext): Promise<string> {
  const home = await makeHome(t);
  await chownAll(home);
  return home;
}

/** Waits until no process of the machine has this text in its command line; fails with those that do. */
export async function noneWith(text: string, timeoutMs = 10_000): Promise<void> {
  let left: readonly string[] = [];
  await until('no process left', async () => {
    left = await runningWith(text);
    return left.length === 0 ? true : undefined;
  }, timeoutMs).catch((error: unknown) => assert.fail(`${String(error)}: ${left.join(' | ')}`));
}
