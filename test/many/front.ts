import assert from 'node:assert/strict';
import { execFile, execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { TestContext } from 'node:test';
import { findProgram, needs, needsToRun } from '../needs.ts';
import { asUserScript, makeSandboxedHome } from '../sandboxed.ts';
import { apiKey, makeHome, startServer, until, within, type RunningServer } from '../running-server.ts';

const run = promisify(execFile);
const haproxy = process.env['TEST_HAPROXY'] ?? findProgram('haproxy') ?? '';
const bucketsFile = fileURLToPath(new URL('../../deploy/buckets', import.meta.url));
const fakeSsh = fileURLToPath(new URL('bin/ssh', import.meta.url));

export const noHaproxy = needs(['haproxy', 'openssl', 'socat'], 'deploy/haproxy.cfg');
export const noMoves =
  noHaproxy ||
  needs(['rsync', 'socat', 'curl', 'flock'], 'deploy/buckets') ||
  needsToRun(['bwrap', '--ro-bind', '/', '/', 'true'], 'a bubblewrap that works', 'deploy/buckets');

/** A server of its own on an address of its own, which can be killed and started again. */
export class Machine {
  readonly name: string;
  readonly home: string;
  server: RunningServer;
  readonly #t: TestContext;
  readonly #env: Readonly<Record<string, string | undefined>>;

  private constructor(t: TestContext, name: string, home: string, env: Readonly<Record<string, string | undefined>>, server: RunningServer) {
    [this.#t, this.name, this.home, this.#env, this.server] = [t, name, home, env, server];
  }

  static async start(t: TestContext, number: number, env: Readonly<Record<string, string | undefined>>): Promise<Machine> {
    const home = await makeHome(t);
    const own = { HOST: `127.0.0.${number}`, CLAUDE_MAX_CONCURRENT_REQUESTS: '12', CLAUDE_QUEUE_LIMIT: '1000', ...env };
    return new Machine(t, `m${number}`, home, own, await startServer(t, own, home));
  }

  /** One whose users have the sandbox. */
  static async startSandboxed(t: TestContext, number: number, env: Readonly<Record<string, string>>): Promise<Machine> {
    const home = await makeSandboxedHome(t);
    const own = { HOST: `127.0.0.${number}`, CLAUDE_SANDBOX: 'required', ...env };
    const machine = new Machine(t, `m${number}`, home, own, await startServer(t, own, home, [asUserScript]));
    await until('the sandbox to be tried', async () => (await fetch(`http://${machine.address}/health`)).ok || undefined, 60_000);
    return machine;
  }

  get address(): string {
    return `${this.#env['HOST']}:${this.server.port}`;
  }

  async restart(): Promise<void> {
    this.server = await startServer(this.#t, { ...this.#env, PORT: String(this.server.port) }, this.home);
  }

  /** The users who have a folder here. */
  async users(): Promise<number[]> {
    const names = await readdir(join(this.home, 'state/users')).catch(() => []);
    return names.map(Number).sort((a, b) => a - b);
  }
}

/** HAProxy as deploy/haproxy.cfg has it, over these machines; buckets are dealt out to them in turn, or as is said. */
export class Front {
  readonly folder: string;
  readonly port: number;
  readonly tlsPort: number;
  readonly figuresPort: number;
  readonly map: string;
  readonly master: string;
  readonly config: string;
  log = '';
  #child: ChildProcess | undefined;

  private constructor(folder: string, [port = 0, tlsPort = 0, figuresPort = 0]: readonly number[]) {
    [this.folder, this.port, this.tlsPort, this.figuresPort] = [folder, port, tlsPort, figuresPort];
    this.map = join(folder, 'buckets.map');
    this.master = join(folder, 'master.sock');
    this.config = join(folder, 'haproxy.cfg');
  }

  static async start(t: TestContext, machines: readonly Machine[], machineOf = (bucket: number): Machine | undefined => machines[bucket % machines.length]): Promise<Front> {
    const folder = await mkdtemp(join(tmpdir(), 'claude-api-front-'));
    const front = new Front(folder, await freePorts(3));
    t.after(async () => {
      await front.end('SIGKILL');
      await rm(folder, { recursive: true, force: true });
    });
    const certificate = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'];
    await run('openssl', [...certificate, '-keyout', join(folder, 'key.pem'), '-out', join(folder, 'cert.pem')]);
    await writeFile(join(folder, 'claude-api.pem'), (await readFile(join(folder, 'key.pem'), 'utf8')) + (await readFile(join(folder, 'cert.pem'), 'utf8')));
    await writeFile(front.map, Array.from({ length: 64 }, (_, bucket) => `${bucket} ${machineOf(bucket)?.name}\n`).join(''));
    await mkdir(join(folder, 'machines'));
    await front.write(machines);
    await front.run();
    return front;
  }

  /** The configuration of the repository, for these machines and this folder. */
  async write(machines: readonly Machine[]): Promise<void> {
    let text = await readFile(new URL('../../deploy/haproxy.cfg', import.meta.url), 'utf8');
    const change = (from: string | RegExp, to: string): void => {
      assert.ok(text.search(from) >= 0, `deploy/haproxy.cfg has no ${String(from)}`);
      text = text.replace(from, to);
    };
    const bind = `ssl crt ${this.folder}/claude-api.pem alpn http/1.1`;
    change(/ {4}bind :443 .*\n/, `    bind 127.0.0.1:${this.tlsPort} ${bind}\n    bind 127.0.0.1:${this.port}\n`);
    change('bind 127.0.0.1:8404', `bind 127.0.0.1:${this.figuresPort}`);
    change('/etc/haproxy/buckets.map', this.map);
    change(/ {4}log \/dev\/log local0\n {4}user haproxy\n {4}group haproxy\n/, '    log stdout format raw local0\n');
    change(/( {4}acl away .*\n)+/, machines.map(({ name }) => `    acl away nbsrv(${name}) lt 1\n`).join(''));
    change(/(backend m\d\n.*\n\n)+/, machines.map(({ name, address }) => `backend ${name}\n    server ${name} ${address}\n\n`).join(''));
    change(/(?<=backend any\n)( {4}server .*\n)+/, machines.map(({ name, address }) => `    server ${name} ${address}\n`).join(''));
    await writeFile(this.config, text);
    for (const { name, home } of machines) {
      await symlink(home, join(this.folder, 'machines', name)).catch(() => {});
    }
  }

  /** Starts HAProxy, with a master process as the distribution's unit does. */
  async run(): Promise<void> {
    const child = spawn(haproxy, ['-W', '-S', this.master, '-f', this.config], { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#child = child;
    for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (this.log += text));
    await this.isReady();
  }

  /** Waits until it knows all machines to be well. */
  async isReady(): Promise<void> {
    await until('HAProxy to be ready', async () => {
      assert.equal(this.#child?.exitCode, null, this.log);
      return fetch(`${this.url}/health`).then(({ ok }) => (ok ? true : undefined), () => undefined);
    });
  }

  async end(signal: NodeJS.Signals): Promise<void> {
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const workers = await childrenOf(child.pid ?? 0);
    const exited = once(child, 'exit');
    child.kill(signal);
    if (signal === 'SIGKILL') {
      for (const pid of workers) {
        try {
          process.kill(pid, 'SIGKILL');
        } catch {
          // It ended with its master.
        }
      }
    }
    await within('HAProxy to end', 10_000, exited);
  }

  reload(): void {
    this.#child?.kill('SIGUSR2');
  }

  /** Waits until there is a worker that was started since, beside the old one or without it. */
  async isReloaded(): Promise<void> {
    await until('a new worker', async () => / worker +0 /.test(await this.command('show proc').catch(() => '')) || undefined);
    await this.isReady();
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** What HAProxy says to a command of its master's socket. Rejects while that is not there, such as during a reload. */
  async command(line: string): Promise<string> {
    const address = `UNIX-CONNECT:${this.master}`;
    return execFileSync('socat', ['-t', '10', '-', address], { input: `${line}\n`, encoding: 'utf8', stdio: ['pipe', 'pipe', 'ignore'] });
  }

  /** The process that does the work. */
  async workerPid(): Promise<number> {
    return (await childrenOf(this.#child?.pid ?? 0))[0] ?? assert.fail('HAProxy does not run');
  }

  /** Time its worker has had on a core, in milliseconds; the kernel counts in ticks of 10 ms (proc(5)). */
  async cpuMs(): Promise<number> {
    const fields = (await readFile(`/proc/${await this.workerPid()}/stat`, 'utf8')).replace(/^.*\) /, '').split(' ');
    return 10 * (Number(fields[11]) + Number(fields[12]));
  }

  /** Bucket → machine, as it is written down. */
  async buckets(): Promise<string[]> {
    const lines = (await readFile(this.map, 'utf8')).trim().split('\n').map((line) => line.split(' '));
    return lines.map(([, machine = '']) => machine);
  }

  /** Starts deploy/buckets. */
  startBuckets(...args: readonly string[]): Mover {
    const env = {
      PATH: process.env['PATH'],
      CLAUDE_API_KEY: apiKey,
      BUCKETS_MAP: this.map,
      BUCKETS_MASTER: this.master,
      BUCKETS_STATE: 'state',
      BUCKETS_SSH: fakeSsh,
      FAKE_MACHINES: join(this.folder, 'machines'),
    };
    return new Mover(spawn(bucketsFile, args, { env, detached: true, stdio: ['ignore', 'pipe', 'pipe'] }));
  }
}

/** One run of deploy/buckets. */
export class Mover {
  readonly lines: string[] = [];
  stderr = '';
  readonly #child: ChildProcess;
  readonly #ended: Promise<unknown>;

  constructor(child: ChildProcess) {
    this.#child = child;
    this.#ended = once(child, 'close');
    if (child.stdout !== null) createInterface(child.stdout).on('line', (line) => this.lines.push(line));
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.stderr += text));
  }

  /** Waits until it has said this; fails when it ends before. */
  async said(text: string, timeoutMs = 60_000): Promise<void> {
    await until(text, () => {
      if (this.lines.some((line) => line.includes(text))) return true;
      assert.equal(this.#child.exitCode, null, `it ended before it said ${text}: ${this.stderr}`);
      return undefined;
    }, timeoutMs);
  }

  /** Kills it and what it runs on this side; what it began on a machine goes on. */
  async kill(): Promise<void> {
    try {
      process.kill(-(this.#child.pid ?? 0), 'SIGKILL');
    } catch {
      // Over already.
    }
    await this.#ended;
  }

  /** Waits for its end, which must be a good one. */
  async done(timeoutMs = 120_000): Promise<void> {
    await within('deploy/buckets', timeoutMs, this.#ended).catch(async (error: unknown) => {
      await this.kill();
      throw new Error(`${String(error)}; it said: ${this.lines.join(' | ')} ${this.stderr}`);
    });
    assert.equal(this.#child.exitCode, 0, `${this.lines.join(' | ')} ${this.stderr}`);
  }
}

async function childrenOf(pid: number): Promise<number[]> {
  const text = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8').catch(() => '');
  return text.split(' ').filter((word) => word !== '').map(Number);
}

async function freePorts(count: number): Promise<number[]> {
  const holders = Array.from({ length: count }, () => createServer().listen(0, '127.0.0.1'));
  await Promise.all(holders.map((holder) => once(holder, 'listening')));
  const ports = holders.map((holder) => (holder.address() as AddressInfo).port);
  for (const holder of holders) holder.close();
  return ports;
}
