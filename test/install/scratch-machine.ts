import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { needs, needsToRun } from '../needs.ts';
import { until } from '../running-server.ts';

export interface Outcome {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

const checkout = fileURLToPath(new URL('../..', import.meta.url));

const tryOverlay = 'mount -t tmpfs tmpfs /tmp && cd /tmp && mkdir upper work root && mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root';
const purpose = 'a machine to install on';
/** Why no scratch machine can be made here, or false when one can: it takes root, overlayfs and namespaces. */
export const noScratchMachine: string | false =
  needs(['root', 'unshare', 'ip', 'curl'], purpose) ||
  needsToRun(['unshare', '--mount', '--pid', '--fork', '--net', '--propagation', 'private', 'sh', '-ec', tryOverlay], 'namespaces and overlayfs', purpose);

/**
 * A machine to install on (test/install/scratch/boot): everything is real but systemctl, journalctl and npm, which stand-ins
 * play, and the Claude CLI, which is the fake one. Whatever is done to it is gone with the test.
 */
export class ScratchMachine {
  readonly #pid: number;

  private constructor(pid: number) {
    this.#pid = pid;
  }

  static async boot(t: TestContext): Promise<ScratchMachine> {
    const folder = mkdtempSync(join(tmpdir(), 'claude-api-machine-'));
    const namespaces = ['--mount', '--pid', '--net', '--fork', '--kill-child', '--propagation', 'private'];
    const child = spawn('unshare', [...namespaces, join(checkout, 'test/install/scratch/boot'), checkout, process.execPath, folder], { stdio: ['ignore', 'ignore', 'pipe'] });
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    t.after(async () => {
      const gone = new Promise((resolve) => child.once('exit', resolve));
      child.kill('SIGKILL');
      await gone;
      rmSync(folder, { recursive: true, force: true });
    });
    const init = await until('the scratch machine to start', () => {
      assert.equal(child.exitCode, null, stderr);
      const children = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').trim();
      return children === '' ? undefined : Number(children);
    });
    const machine = new ScratchMachine(init);
    await until('the scratch machine to be up', async () => {
      assert.equal(child.exitCode, null, stderr);
      return (await machine.run('test -e /run/stub/booted')).status === 0 ? true : undefined;
    });
    await machine.must('mkdir /root/copy && cd /checkout && cp -R install.sh claude-api.service claude-api-newer-systemd.conf package*.json .npmrc tsconfig*.json src docs README.md CHANGELOG.md LICENSE .env.example /root/copy/');
    return machine;
  }

  /** Runs a bash script as root on the machine. */
  run(script: string, env: Readonly<Record<string, string>> = {}): Promise<Outcome> {
    return this.#enter(['--mount', '--pid', '--net', '--root', '--wd', 'bash', '--norc', '-c', script], env);
  }

  /** Runs a script that has to succeed, and gives what it printed. */
  async must(script: string, env: Readonly<Record<string, string>> = {}): Promise<string> {
    const { status, stdout, stderr } = await this.run(script, env);
    assert.equal(status, 0, `${script}\n${stdout}${stderr}`);
    return stdout.trim();
  }

  /** Reads a file of the machine. */
  async take(path: string): Promise<Buffer> {
    return readFile(`/proc/${this.#pid}/root${path}`);
  }

  /** Writes a file on the machine. */
  async put(path: string, content: string | Buffer): Promise<void> {
    await writeFile(`/proc/${this.#pid}/root${path}`, content);
  }

  /**
   * All that is otherwise than on the machine below, a line each: files with their modes, owners, times and links. Not what a
   * server writes about its users, at times of its own.
   */
  async state(): Promise<string> {
    const format = '%P %M %u:%g %T@ %l\\n';
    const { status, stdout, stderr } = await this.#enter(['--mount', 'find', '/run/stub/upper', '-printf', format]);
    assert.equal(status, 0, stderr);
    return stdout.split('\n').filter((line) => !line.startsWith('var/lib/claude-api/')).sort().join('\n');
  }

  #enter(args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Outcome> {
    const options = { env: { PATH: '/stub:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', HOME: '/root', ...env }, timeout: 120_000, maxBuffer: 64 * 1024 * 1024 };
    return new Promise((resolve) => {
      execFile('nsenter', ['--target', String(this.#pid), ...args], options, (error, stdout, stderr) => {
        resolve({ status: error === null ? 0 : typeof error.code === 'number' ? error.code : 255, stdout, stderr });
      });
    });
  }
}
