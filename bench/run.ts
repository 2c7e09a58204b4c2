// Measures the server against the CLI driven directly, both up at once and taking turns, and prints the table of targets.
// Takes the first of CLAUDE_TEST_CLIS, or the `claude` on PATH.
import { fork, spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { Agent, createServer, request as httpRequest, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { outsideEnv } from '../src/cli/outside.ts';
import { rightsOutside } from '../src/cli/rights.ts';
import { cliArguments } from '../src/cli/way.ts';
import { loadConfig } from '../src/env.ts';
import { LineSplitter } from '../src/cli/ndjson.ts';
import { parseLine } from '../src/cli/protocol.ts';
import { MessagesApi } from '../test/messages-api.ts';
import { DirectCli } from './drive.ts';
import { createPeer } from './peer.ts';

const mainFile = fileURLToPath(new URL('../dist/main.js', import.meta.url));
const proberFile = fileURLToPath(new URL('prober.ts', import.meta.url));
const apiKey = 'b7e1c5d09f2a46388d4c1e6f7a9b0c2d';
const keptAlive = new Agent({ keepAlive: true, maxSockets: 64 });

interface Reply {
  readonly status: number;
  readonly text: string;
}

function ask(port: number, path: string, body?: object, agent = keptAlive): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const headers = { Authorization: `Bearer ${apiKey}`, ...(body && { 'Content-Type': 'application/json' }) };
    const req = httpRequest({ port, path, agent, headers, method: body ? 'POST' : 'GET' }, (res) => {
      let text = '';
      res.setEncoding('utf8').on('data', (part: string) => (text += part));
      res.on('end', () => resolve({ status: res.statusCode ?? 0, text }));
    });
    req.on('error', reject);
    req.end(body && JSON.stringify(body));
  });
}

async function chat(port: number, prompt: string, userId: number, sessionId?: string): Promise<string> {
  const { status, text } = await ask(port, '/api/v1/chat', { prompt, user_id: userId, ...(sessionId && { session_id: sessionId }) });
  if (status !== 200) throw new Error(`a turn failed: ${text}`);
  return (JSON.parse(text) as { session_id: string }).session_id;
}

// Ended also when a measurement fails.
const children = new Set<ChildProcess>();
process.on('exit', () => children.forEach((child) => child.kill()));

/** The server under test, started as in production. */
class ServerProcess {
  readonly #child: ChildProcess;
  readonly startedMs: Promise<number>;
  port = 0;

  constructor(env: Readonly<Record<string, string>>, cwd: string) {
    const startedAt = performance.now();
    this.#child = spawn(process.execPath, [mainFile], { cwd, env: { ...env, PORT: '0', HOST: '127.0.0.1', CLAUDE_API_KEY: apiKey }, stdio: ['ignore', 'pipe', 'inherit'] });
    // Also when a measurement fails.
    children.add(this.#child);
    this.startedMs = new Promise((resolve) => {
      let text = '';
      this.#child.stdout?.setEncoding('utf8').on('data', (part: string) => {
        text += part;
        const port = /"event":"listening".*?"port":(\d+)/.exec(text)?.[1];
        if (port === undefined || this.port !== 0) return;
        this.port = Number(port);
        resolve(performance.now() - startedAt);
      });
    });
  }

  async residentMegabytes(): Promise<number> {
    return (Number((await readFile(`/proc/${this.#child.pid}/statm`, 'latin1')).split(' ')[1]) * 4096) / 1024 / 1024;
  }

  async end(): Promise<void> {
    this.#child.kill('SIGTERM');
    await once(this.#child, 'exit');
  }
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now();
  await work();
  return performance.now() - startedAt;
}

function percentile(values: readonly number[], share: number): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length * share)] ?? NaN;
}
const median = (values: readonly number[]): number => percentile(values, 0.5);

const rows: string[] = [];
function row(what: string, figure: string, target: string, isReached: boolean): void {
  rows.push(`| ${what} | ${figure} | ${target} | ${isReached ? 'reached' : 'MISSED'} |`);
}
const ms = (value: number): string => `${value.toFixed(value < 10 ? 2 : 0)} ms`;

async function main(): Promise<void> {
  const [binary = ''] = (process.env['CLAUDE_TEST_CLIS'] ?? 'claude').split(':');
  const { status, stdout: version } = spawnSync(binary, ['--version'], { encoding: 'utf8' });
  if (status !== 0) throw new Error('no Claude CLI: put claude on PATH, or its path in CLAUDE_TEST_CLIS');
  const home = await mkdtemp(join(tmpdir(), 'claude-api-bench-'));
  const api = new MessagesApi();
  await api.listen();
  console.log(`CLI: ${version.trim()}; Node ${process.version}\n`);

  const base = {
    PATH: process.env['PATH'] ?? '',
    HOME: home,
    CLAUDE_BINARY_PATH: binary,
    ANTHROPIC_BASE_URL: api.url,
    ANTHROPIC_API_KEY: 'sk-ant-made-up',
    CLAUDE_MAX_CONCURRENT_REQUESTS: '40',
    CLAUDE_STATE_DIR: join(home, 'state'),
  };
  const config = loadConfig(base);
  const cliEnv = outsideEnv(config.childEnv, { home: join(home, 'direct'), tmp: tmpdir() });
  const args = cliArguments(config, rightsOutside(config), { inbox: home, outbox: home });
  const drive = (name: string): DirectCli => new DirectCli(binary, args, cliEnv, join(home, name));
  const warm = new ServerProcess(base, home);
  const cold = new ServerProcess({ ...base, CLAUDE_WARM_SECONDS: '0', CLAUDE_STATE_DIR: join(home, 'state-cold') }, home);
  await Promise.all([warm.startedMs, cold.startedMs]);

  await followUps(drive, warm.port, await startPeer(binary, cliEnv, home));
  await firstTurns(drive, warm.port, cold.port);
  await sideBySide(drive, warm.port);
  await Promise.all([warm.end(), cold.end()]);
  await theServerItself(base, home);
  await underLoad(base, home);
  bigLine();

  api.close();
  keptAlive.destroy();
  await rm(home, { recursive: true, force: true });
  console.log(['| what | measured | target | |', '|---|---|---|---|', ...rows].join('\n'));
  process.exitCode = rows.some((line) => line.includes('MISSED')) ? 1 : 0;
}

async function startPeer(binary: string, env: Readonly<Record<string, string>>, cwd: string): Promise<Server> {
  const peer = createPeer(binary, env, cwd);
  peer.listen(0, '127.0.0.1');
  await once(peer, 'listening');
  return peer;
}

async function followUps(drive: (name: string) => DirectCli, port: number, peer: Server): Promise<void> {
  const cli = drive('follow');
  const sessionId = await chat(port, 'first', 1);
  await cli.turn('first');
  const [direct, served]: [number[], number[]] = [[], []];
  for (let i = 0; i < 80; i += 1) {
    direct.push(await timed(() => cli.turn(`turn ${i}`)));
    served.push(await timed(() => chat(port, `turn ${i}`, 1, sessionId)));
  }
  await cli.end();
  const ratio = median(served) / median(direct);
  row('follow-up turn, p50', `${ms(median(served))} : ${ms(median(direct))} direct = ${ratio.toFixed(2)} ×`, '≤ 1.15 ×', ratio <= 1.15);

  // The fake CLI takes no plain prompt.
  const peerPort = (peer.address() as AddressInfo).port;
  const peerSession = await ask(peerPort, '/', { prompt: 'first' }).then((reply) => (JSON.parse(reply.text) as { session_id: string }).session_id, () => undefined);
  if (peerSession !== undefined) {
    const [perStart, again]: [number[], number[]] = [[], []];
    for (let i = 0; i < 10; i += 1) {
      perStart.push(await timed(() => ask(peerPort, '/', { prompt: `turn ${i}`, session_id: peerSession })));
      again.push(await timed(() => chat(port, `again ${i}`, 1, sessionId)));
    }
    const faster = median(perStart) / median(again);
    row('follow-up against one CLI start per turn', `${ms(median(again))} : ${ms(median(perStart))} = ${faster.toFixed(1)} × faster`, '≥ 10 ×', faster >= 10);
  }
  peer.close();
  peer.closeAllConnections();
}

async function firstTurns(drive: (name: string) => DirectCli, warmPort: number, coldPort: number): Promise<void> {
  const [direct, cold, spare]: [number[], number[], number[]] = [[], [], []];
  await chat(warmPort, 'first', 2);
  for (let i = 0; i < 15; i += 1) {
    const spareReady = async (): Promise<void> => {
      // The spare is up a good second after the last dialogue began.
      await new Promise((resolve) => setTimeout(resolve, 1500));
    };
    await spareReady();
    const cli = drive(`cold-${i}`);
    direct.push(await timed(() => cli.turn('first')));
    await cli.end();
    cold.push(await timed(() => chat(coldPort, 'first', 2)));
    await new Promise((resolve) => setTimeout(resolve, 100));
    spare.push(await timed(() => chat(warmPort, 'first', 2)));
  }
  const [coldRatio, spareRatio] = [median(cold) / median(direct), median(spare) / median(direct)];
  row('first turn with the spare ready, p50', `${ms(median(spare))} : ${ms(median(direct))} direct, cold = ${spareRatio.toFixed(2)} ×`, '≤ 0.35 ×', spareRatio <= 0.35);
  row('first turn cold, p50', `${ms(median(cold))} : ${ms(median(direct))} direct = ${coldRatio.toFixed(2)} ×`, '≤ 1.05 ×', coldRatio <= 1.05);
}

async function sideBySide(drive: (name: string) => DirectCli, port: number): Promise<void> {
  const clis = [0, 1, 2, 3].map((i) => drive(`side-${i}`));
  await Promise.all(clis.map((cli) => cli.turn('first')));
  const sessions = await Promise.all(clis.map((_, i) => chat(port, 'first', 10 + i)));
  const turnsEach = 10;
  const inTurn = async (turn: (i: number) => Promise<unknown>): Promise<void> => {
    for (let i = 0; i < turnsEach; i += 1) await turn(i);
  };
  const [direct, served]: [number[], number[]] = [[], []];
  for (let round = 0; round < 7; round += 1) {
    direct.push(await timed(() => Promise.all(clis.map((cli) => inTurn((i) => cli.turn(`turn ${i}`))))));
    served.push(await timed(() => Promise.all(sessions.map((id, user) => inTurn((i) => chat(port, `turn ${i}`, 10 + user, id))))));
  }
  await Promise.all(clis.map((cli) => cli.end()));
  const perSecond = (time: number): number => (clis.length * turnsEach * 1000) / time;
  const ratio = perSecond(median(served)) / perSecond(median(direct));
  row('four dialogues side by side', `${perSecond(median(served)).toFixed(0)} : ${perSecond(median(direct)).toFixed(0)} turns/s direct = ${ratio.toFixed(2)} ×`, '≥ 0.85 ×', ratio >= 0.85);
}

async function theServerItself(base: Readonly<Record<string, string>>, home: string): Promise<void> {
  const starts: number[] = [];
  let server = new ServerProcess(base, home);
  for (let i = 0; i < 7; i += 1) {
    starts.push(await server.startedMs);
    await server.end();
    server = new ServerProcess(base, home);
  }
  row('start to listening', ms(median(starts)), '≤ 250 ms', median(starts) <= 250);
  await server.startedMs;
  await new Promise((resolve) => setTimeout(resolve, 1000));
  const idle = await server.residentMegabytes();
  row('idle memory', `${idle.toFixed(0)} MiB`, '≤ 60 MiB', idle <= 60);

  const bare = createServer((_, res) => res.writeHead(200, { 'Content-Type': 'application/json' }).end('{"status":"ok"}'));
  bare.listen(0, '127.0.0.1');
  await once(bare, 'listening');
  const barePort = (bare.address() as AddressInfo).port;
  const [ours, theirs]: [number[], number[]] = [[], []];
  const burst = (port: number, path: string): Promise<number> => timed(() => Promise.all(Array.from({ length: 16 }, async () => {
    for (let i = 0; i < 200; i += 1) await ask(port, path);
  })));
  for (let round = 0; round < 8; round += 1) {
    theirs.push(await burst(barePort, '/'));
    ours.push(await burst(server.port, '/health'));
  }
  bare.close();
  bare.closeAllConnections();
  const ratio = median(theirs) / median(ours);
  row('/health against a bare node:http handler', `${ratio.toFixed(2)} × its requests/s`, '≥ 0.7 ×', ratio >= 0.7);

  const settled = await server.residentMegabytes();
  for (let round = 0; round < 31; round += 1) {
    await burst(server.port, '/health');
  }
  const grown = (await server.residentMegabytes()) - settled;
  row('growth over 100,000 requests', `${grown.toFixed(1)} MiB`, 'none (< 8 MiB)', grown < 8);
  await server.end();
}

/** 200 users begin a dialogue at once where two CLIs may run and 100 turns may wait: 102 are served, the rest is turned away. */
async function underLoad(base: Readonly<Record<string, string>>, home: string): Promise<void> {
  const limits = { CLAUDE_MAX_CONCURRENT_REQUESTS: '2', CLAUDE_QUEUE_SECONDS: '300', CLAUDE_STATE_DIR: join(home, 'state-load') };
  const server = new ServerProcess({ ...base, ...limits }, home);
  await server.startedMs;
  const bare = fork(proberFile);
  const [barePort] = (await once(bare, 'message')) as [number];
  const prober = fork(proberFile, [String(server.port), String(barePort)]);
  const callers = new Agent({ maxSockets: Infinity });
  const replies = await Promise.all(Array.from({ length: 200 }, (_, i) => ask(server.port, '/api/v1/chat', { prompt: 'first', user_id: i + 1 }, callers)));
  prober.send('stop');
  const [[ours, theirs]] = (await once(prober, 'message')) as [[number[], number[]]];
  bare.kill();
  callers.destroy();
  await server.end();

  const count = (status: number): number => replies.filter((reply) => reply.status === status).length;
  row('200 callers at capacity 2, queue 100', `${count(200)} served, ${count(503)} turned away`, '102, 98', count(200) === 102 && count(503) === 98);
  const [slow, bareSlow] = [percentile(ours, 0.99), percentile(theirs, 0.99)];
  row('/health meanwhile, p99', `${ms(slow)} : ${ms(bareSlow)} bare handler beside it`, '< 5 ms, or as the bare one (× 1.25)', slow < Math.max(5, 1.25 * bareSlow));
}

function bigLine(): void {
  const line = Buffer.from(JSON.stringify({ type: 'result', is_error: false, result: 'x'.repeat(32 * 1024 * 1024) }) + '\n');
  const times = Array.from({ length: 5 }, () => {
    const splitter = new LineSplitter(64 * 1024 * 1024);
    const startedAt = performance.now();
    for (let at = 0; at < line.length; at += 65536) for (const whole of splitter.push(line.subarray(at, at + 65536))) parseLine(whole);
    return performance.now() - startedAt;
  });
  row('one CLI line of 32 MiB', ms(median(times)), '≤ 200 ms', median(times) <= 200);
}

await main();
