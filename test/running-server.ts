import assert from 'node:assert/strict';
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { test, type TestContext } from 'node:test';
import { assertInTable } from './log-table.ts';
import { findProgram } from './needs.ts';
import { assertDescribed } from './openapi.ts';

export const fakeClaude = fileURLToPath(new URL('bin/claude', import.meta.url));

export const mainFile = fileURLToPath(new URL('../src/main.ts', import.meta.url));
const fromSource = [process.execPath, '--import', import.meta.resolve('tsx'), mainFile];
export const apiKey = 'b7e1c5d09f2a46388d4c1e6f7a9b0c2d';

export type Reply = { status: number; headers: Headers; body: Record<string, unknown> };
export type LogLine = Record<string, unknown> & { event: string };
/** One server-sent event of a streamed answer. */
export type StreamEvent = { readonly name: string; readonly data: Record<string, unknown> };

/** One run of the whole server as a process of its own, on a free port, with HOME and state folder of the test. */
export class RunningServer {
  readonly lines: LogLine[] = [];
  stderr = '';
  readonly #child: ChildProcess;
  readonly home: string;
  port = 0;

  /** `wrapper` is a command that executes what follows it, such as setpriv with its options; `program` is what runs the server. */
  constructor(home: string, env: Readonly<Record<string, string | undefined>>, wrapper: readonly string[] = [], program: readonly string[] = fromSource) {
    this.home = home;
    const [command = '', ...args] = [...wrapper, ...program];
    this.#child = spawn(command, args, {
      cwd: home,
      env: {
        PATH: process.env['PATH'],
        HOME: home,
        HOST: '127.0.0.1',
        PORT: '0',
        CLAUDE_API_KEY: apiKey,
        CLAUDE_BINARY_PATH: fakeClaude,
        // What needs the sandbox asks for it; root has none.
        CLAUDE_SANDBOX: 'off',
        CLAUDE_STATE_DIR: join(home, 'state'),
        ...env,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let unread = '';
    this.#child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      const lines = (unread + text).split('\n');
      unread = lines.pop() ?? '';
      for (const line of lines) this.lines.push(JSON.parse(line) as LogLine);
    });
    this.#child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.stderr += text));
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** The first log line of this event, waited for. */
  async logged(event: string, matches: (line: LogLine) => boolean = () => true, timeoutMs = 10_000): Promise<LogLine> {
    return until(`log line ${event}`, () => {
      assert.equal(this.#child.exitCode, null, `the server ended: ${this.stderr}`);
      return this.lines.find((line) => line.event === event && matches(line));
    }, timeoutMs);
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  request(path: string, init: RequestInit = {}): Promise<Response> {
    const headers = { Authorization: `Bearer ${apiKey}`, 'Content-Type': 'application/json', ...(init.headers as Record<string, string>) };
    return fetch(this.url + path, { ...init, headers });
  }

  /** A chat in one piece. Fails where the answer is not as openapi.json says. */
  async chat(body: Record<string, unknown>, init: RequestInit = {}): Promise<Reply> {
    const response = await this.request('/api/v1/chat', { method: 'POST', body: JSON.stringify({ user_id: 1, ...body }), ...init });
    const { status, headers } = response;
    const text = await response.text();
    assertDescribed('POST', '/api/v1/chat', { status, headers, body: text });
    return { status, headers, body: JSON.parse(text) as Record<string, unknown> };
  }

  /** A chat as server-sent events, each as it comes. Fails when the answer is no event stream. */
  async *stream(body: Record<string, unknown>, init: RequestInit = {}): AsyncGenerator<StreamEvent> {
    const headers = { Accept: 'text/event-stream' };
    const response = await this.request('/api/v1/chat', { method: 'POST', body: JSON.stringify({ user_id: 1, ...body }), headers, ...init });
    assert.match(response.headers.get('content-type') ?? '', /^text\/event-stream/, `status ${response.status}`);
    yield* eventsOf(response);
  }

  /** Leaves its log unread, as a pager does, until it is read on. */
  readLog(isRead: boolean): void {
    if (isRead) this.#child.stdout?.resume();
    else this.#child.stdout?.pause();
  }

  /** Closes the reading end of its log, as a log collector that was ended does. */
  closeLog(): void {
    this.#child.stdout?.destroy();
  }

  /** Sends the signal and waits for the end; gives the exit code, or the signal's name. */
  async end(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | string | null> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return this.#child.exitCode ?? this.#child.signalCode;
    const exited = once(this.#child, 'exit');
    this.#child.kill(signal);
    const [code, endedBy] = (await within('the server to end', 60_000, exited)) as [number | null, string | null];
    return code ?? endedBy;
  }

  /** The exit code of a server that is expected to end by itself. */
  async ended(): Promise<number | null> {
    if (this.#child.exitCode === null) await within('the server to end', 20_000, once(this.#child, 'exit'));
    return this.#child.exitCode;
  }

  /** Has the fake CLI's "play hold <name>" answer. */
  async release(name: string): Promise<void> {
    await mkdir(join(this.home, '.fake-claude'), { recursive: true });
    await writeFile(join(this.home, '.fake-claude', name), '');
  }

  /** Command lines of the processes of this run's HOME that still live, the server aside. */
  leftovers(): Promise<string[]> {
    return processesOf(this.home, this.pid);
  }
}

/** The events of a streamed answer, each as it comes. Fails when it is cut off in the midst of one. */
export async function* eventsOf(response: Response): AsyncGenerator<StreamEvent> {
  let unread = '';
  for await (const text of response.body?.pipeThrough(new TextDecoderStream()) ?? []) {
    const blocks = (unread + text).split('\n\n');
    unread = blocks.pop() ?? '';
    for (const block of blocks.filter((lines) => !lines.startsWith(':'))) {
      const [, name = '', data = ''] = /^event: ([^\n]*)\ndata: ([^\n]*)$/.exec(block) ?? assert.fail(`not an event: ${block.slice(0, 200)}`);
      yield { name, data: JSON.parse(data) as Record<string, unknown> };
    }
  }
  assert.equal(unread, '', 'the stream ends after a whole event');
}

/** A started server, in a HOME of its own unless one is given. It is killed at the end of the test. */
export async function startServer(
  t: TestContext,
  env: Readonly<Record<string, string | undefined>> = {},
  home?: string,
  wrapper?: readonly string[],
  program?: readonly string[],
): Promise<RunningServer> {
  const folder = home ?? (await makeHome(t));
  const server = new RunningServer(folder, env, wrapper, program);
  serversOf.set(folder, [...(serversOf.get(folder) ?? []), server]);
  server.port = Number((await server.logged('listening', undefined, 30_000))['port']);
  return server;
}

// node:test runs the hooks of a test in the order they were added: one hook must end the servers and then look.
const serversOf = new Map<string, RunningServer[]>();

/**
 * A fresh HOME. When the test is over its servers are killed, no process may carry it any more, and all that they logged
 * must be in docs/operations.md.
 */
export async function makeHome(t: TestContext): Promise<string> {
  const home = await mkdtemp(join(tmpdir(), 'claude-api-test-'));
  t.after(async () => {
    await Promise.all((serversOf.get(home) ?? []).map((server) => server.end('SIGKILL')));
    try {
      await noneLeft(home);
      for (const { lines } of serversOf.get(home) ?? []) assertInTable(lines);
    } finally {
      // A test that found some has failed; the next one need not suffer from it.
      for (const line of await processesOf(home)) killQuietly(Number.parseInt(line, 10));
      await rm(home, { recursive: true, force: true, maxRetries: 10 });
    }
  });
  return home;
}

function killQuietly(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // Gone already.
  }
}

/** Waits until no process with this HOME lives; fails after 10 s with their command lines. */
export async function noneLeft(home: string, exceptPid = 0): Promise<void> {
  let left: string[] = [];
  await until('no process left', async () => {
    left = await processesOf(home, exceptPid);
    return left.length === 0 ? true : undefined;
  }).catch((error: unknown) => assert.fail(`${String(error)}: ${left.join(' | ')}`));
}

/** Command lines of the living processes whose environment has this HOME. */
export async function processesOf(home: string, exceptPid = 0): Promise<string[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name) && Number(name) !== exceptPid);
  const found = await Promise.all(
    pids.map(async (pid) => {
      const environment = await readFile(`/proc/${pid}/environ`, 'latin1').catch(() => '');
      if (!`\0${environment}`.includes(`\0HOME=${home}\0`)) return [];
      const commandLine = await readFile(`/proc/${pid}/cmdline`, 'latin1').catch(() => '');
      // tsx keeps one of these beside a server whose sources are new to it.
      if (commandLine === '' || commandLine.includes('esbuild\0--service=')) return [];
      return [`${pid} ${commandLine.replaceAll('\0', ' ')}`];
    }),
  );
  return found.flat();
}

/** Asks every 20 ms until there is an answer other than undefined; fails after the deadline, naming what it waited for. */
export async function until<T>(label: string, ask: () => T | undefined | Promise<T | undefined>, timeoutMs = 10_000): Promise<T> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const answer = await ask();
    if (answer !== undefined) return answer;
    if (performance.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain for ${label}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** The promise, or a failure that names what was waited for. */
export async function within<T>(label: string, timeoutMs: number, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const deadline = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${timeoutMs} ms in vain for ${label}`)), timeoutMs);
  });
  return Promise.race([promise, deadline]).finally(() => clearTimeout(timer));
}

/**
 * Runs the tests of a theme once for every real CLI: the binaries that CLAUDE_TEST_CLIS names (joined by colons), else
 * `claude` on PATH. Without any there is one skipped test that says so.
 */
export function testWithRealClis(theme: string, tests: (t: TestContext, binary: string, version: string) => Promise<void>): void {
  const binaries = realClis();
  if (binaries.length === 0) test(theme, { skip: 'needs the Claude CLI, on PATH or named in CLAUDE_TEST_CLIS: what only the real one can show' }, () => {});
  for (const binary of binaries) {
    const version = execFileSync(binary, ['--version'], { encoding: 'utf8', timeout: 60_000 }).trim();
    // Tests that are not awaited one by one run side by side: most of their time is the CLI's start.
    test(`${theme}, on ${version}`, { concurrency: 4 }, (t) => tests(t, binary, version));
  }
}

/** The real CLIs to test with, as `testWithRealClis` takes them. */
export function realClis(): string[] {
  const named = (process.env['CLAUDE_TEST_CLIS'] ?? '').split(delimiter).filter((path) => path !== '');
  if (named.length > 0) return named;
  const onPath = findProgram('claude');
  return onPath === undefined ? [] : [onPath];
}
