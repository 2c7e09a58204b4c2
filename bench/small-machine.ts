// The real CLI on a machine with little memory: a control group with a limit, made here where that is allowed.
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { MessagesApi } from '../test/messages-api.ts';

const mainFile = fileURLToPath(new URL('../dist/main.js', import.meta.url));
const apiKey = 'b7e1c5d09f2a46388d4c1e6f7a9b0c2d';

/** A control group with a limit of memory, of either version; swap is no way out of it. */
class MemoryGroup {
  readonly #folder: string;
  readonly #isV2: boolean;

  private constructor(folder: string, isV2: boolean) {
    this.#folder = folder;
    this.#isV2 = isV2;
  }

  /** Throws with the kernel's reason where none can be made. */
  static make(limitBytes: number): MemoryGroup {
    const isV2 = !isThere('/sys/fs/cgroup/memory');
    const folder = join(isV2 ? '/sys/fs/cgroup' : '/sys/fs/cgroup/memory', `claude-api-bench-${process.pid}`);
    mkdirSync(folder);
    const group = new MemoryGroup(folder, isV2);
    for (const name of isV2 ? ['memory.max'] : ['memory.limit_in_bytes', 'memory.memsw.limit_in_bytes']) {
      if (isThere(join(folder, name))) writeFileSync(join(folder, name), String(limitBytes));
    }
    if (isV2 && isThere(join(folder, 'memory.swap.max'))) writeFileSync(join(folder, 'memory.swap.max'), '0');
    return group;
  }

  /** A command that runs what follows it in this group. */
  get wrapper(): [string, ...string[]] {
    return ['sh', '-c', 'echo $$ > "$0" && exec "$@"', join(this.#folder, 'cgroup.procs')];
  }

  /** Processes the kernel ended for want of memory. */
  get oomKills(): number {
    const text = readFileSync(join(this.#folder, this.#isV2 ? 'memory.events' : 'memory.oom_control'), 'latin1');
    return Number(/^oom_kill (\d+)/m.exec(text)?.[1]);
  }

  /** Pages of files that were read again because they had been given up. */
  get refaults(): number {
    return Number(/^(?:total_)?workingset_refault_file (\d+)/m.exec(readFileSync(join(this.#folder, 'memory.stat'), 'latin1'))?.[1]);
  }

  remove(): void {
    rmdirSync(this.#folder);
  }
}

function isThere(path: string): boolean {
  try {
    readFileSync(path);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EISDIR';
  }
}

interface Status {
  running: number;
  warm: number;
  queued: number;
  capacity: number;
  memory: { held: number; left: number };
}

export class SmallMachine {
  readonly group: MemoryGroup;
  readonly folder = mkdtempSync(join(tmpdir(), 'claude-api-small-'));
  readonly #children = new Set<ChildProcess>();
  #port = 0;

  constructor(limitBytes: number) {
    this.group = MemoryGroup.make(limitBytes);
  }

  /** Runs a program in the group. */
  run(args: readonly string[], env: NodeJS.ProcessEnv = process.env): ChildProcess {
    const [command, ...before] = this.group.wrapper;
    const child = spawn(command, [...before, ...args], { cwd: this.folder, env, stdio: ['pipe', 'pipe', 'inherit'] });
    this.#children.add(child);
    child.once('exit', () => this.#children.delete(child));
    return child;
  }

  async startServer(binary: string, api: MessagesApi): Promise<void> {
    // A copy made inside: the pages of the program count here, as they do on a machine of its own.
    const program = join(this.folder, 'claude');
    await once(this.run(['cp', binary, program]), 'exit');
    const child = this.run([process.execPath, mainFile], {
      PATH: process.env['PATH'], HOME: this.folder, PORT: '0', HOST: '127.0.0.1', CLAUDE_API_KEY: apiKey, CLAUDE_STATE_DIR: join(this.folder, 'state'),
      CLAUDE_BINARY_PATH: program, ANTHROPIC_BASE_URL: api.url, ANTHROPIC_API_KEY: 'sk-ant-made-up',
    });
    let text = '';
    child.stdout?.setEncoding('utf8').on('data', (part: string) => {
      text += part;
      if (process.env['BENCH_LOG']) process.stderr.write(part);
    });
    while (this.#port === 0) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      this.#port = Number(/"event":"listening".*?"port":(\d+)/.exec(text)?.[1] ?? 0);
    }
  }

  async status(): Promise<Status> {
    const response = await fetch(`http://127.0.0.1:${this.#port}/health`, { headers: { Authorization: `Bearer ${apiKey}` } });
    return (await response.json()) as Status;
  }

  /** One turn: what it took in milliseconds, its session, and the problem's code where it failed. */
  async turn(userId: number, sessionId?: string): Promise<{ tookMs: number; sessionId: string | undefined; failure: string | undefined }> {
    const startedAt = performance.now();
    const response = await fetch(`http://127.0.0.1:${this.#port}/api/v1/chat`, {
      method: 'POST',
      headers: { Authorization: `Bearer ${apiKey}`, 'Content-Type': 'application/json' },
      body: JSON.stringify({ prompt: 'hello', user_id: userId, ...(sessionId && { session_id: sessionId }) }),
    });
    const body = (await response.json()) as { session_id?: string; code?: string };
    return { tookMs: performance.now() - startedAt, sessionId: body.session_id ?? sessionId, failure: body.code };
  }

  async end(): Promise<void> {
    for (const child of this.#children) {
      const exited = once(child, 'exit');
      child.kill('SIGTERM');
      await exited;
    }
    this.group.remove();
    rmSync(this.folder, { recursive: true });
  }
}

/** Takes memory in steps down to `leaveBytes` below the limit, holds it for a while, and gives it back. */
export const hogScript = `
const [goal, stepMs, holdMs] = process.argv.slice(1).map(Number);
const parts = [];
const timer = setInterval(() => {
  parts.push(Buffer.alloc(5 << 20, 1));
  if (process.memoryUsage.rss() < goal) return;
  clearInterval(timer);
  console.log('full');
  setTimeout(() => process.exit(0), holdMs);
}, stepMs);
`;
