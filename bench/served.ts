import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { Agent, request as httpRequest } from 'node:http';
import { fileURLToPath } from 'node:url';

const mainFile = fileURLToPath(new URL('../dist/main.js', import.meta.url));
const apiKey = 'b7e1c5d09f2a46388d4c1e6f7a9b0c2d';
export const keptAlive = new Agent({ keepAlive: true, maxSockets: 64 });

export interface Reply {
  readonly status: number;
  readonly text: string;
}

const authorization = { Authorization: `Bearer ${apiKey}` };

/** With the key where there is a body. */
export function ask(port: number, path: string, body?: object, agent = keptAlive): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const headers = body && { ...authorization, 'Content-Type': 'application/json' };
    const req = httpRequest({ port, path, agent, ...(headers && { headers }), method: body ? 'POST' : 'GET' }, (res) => {
      let text = '';
      res.setEncoding('utf8').on('data', (part: string) => (text += part));
      res.on('end', () => resolve({ status: res.statusCode ?? 0, text }));
    });
    req.on('error', reject);
    req.end(body && JSON.stringify(body));
  });
}

/** One turn; gives its session. */
export async function chat(port: number, prompt: string, userId: number, sessionId?: string): Promise<string> {
  const { status, text } = await ask(port, '/api/v1/chat', { prompt, user_id: userId, ...(sessionId && { session_id: sessionId }) });
  if (status !== 200) throw new Error(`a turn failed: ${text}`);
  return (JSON.parse(text) as { session_id: string }).session_id;
}

// Ended also when a measurement fails.
const children = new Set<ChildProcess>();
process.on('exit', () => children.forEach((child) => child.kill()));

export interface Figures {
  readonly warm: number;
  readonly memory: { readonly held: number; readonly left: number };
}

/** The server under test, started as in production. */
export class ServerProcess {
  readonly #child: ChildProcess;
  readonly startedMs: Promise<number>;
  port = 0;

  /** `command` runs the server's file with Node; what stands before Node executes the rest. */
  constructor(env: Readonly<Record<string, string>>, cwd: string, command: readonly string[] = [process.execPath]) {
    const startedAt = performance.now();
    const [program = '', ...args] = [...command, mainFile];
    this.#child = spawn(program, args, { cwd, env: { ...env, PORT: '0', HOST: '127.0.0.1', CLAUDE_API_KEY: apiKey }, stdio: ['ignore', 'pipe', 'inherit'] });
    children.add(this.#child);
    this.startedMs = new Promise((resolve, reject) => {
      let text = '';
      this.#child.stdout?.setEncoding('utf8').on('data', (part: string) => {
        if (process.env['BENCH_LOG']) process.stderr.write(part);
        if (this.port !== 0) return;
        text += part;
        this.port = Number(/"event":"listening".*?"port":(\d+)/.exec(text)?.[1] ?? 0);
        if (this.port !== 0) resolve(performance.now() - startedAt);
      });
      this.#child.once('exit', (code) => reject(new Error(`the server ended with ${code}`)));
    });
  }

  /** Resolves when it takes turns: the sandbox, if any, is tried. */
  async ready(): Promise<void> {
    await this.startedMs;
    while ((await ask(this.port, '/health')).status !== 200) await new Promise((resolve) => setTimeout(resolve, 20));
  }

  /** What `/health` says to those who have the key. */
  async figures(): Promise<Figures> {
    const response = await fetch(`http://127.0.0.1:${this.port}/health`, { headers: authorization });
    return (await response.json()) as Figures;
  }

  residentMegabytes(): number {
    return (Number(readFileSync(`/proc/${this.#child.pid}/statm`, 'latin1').split(' ')[1]) * 4096) / 1024 / 1024;
  }

  async end(): Promise<void> {
    const exited = once(this.#child, 'exit');
    this.#child.kill('SIGTERM');
    await exited;
    children.delete(this.#child);
  }
}
