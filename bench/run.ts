// Measures the server against the CLI driven directly, both up at once and taking turns, and prints the table of targets.
// Takes the first of CLAUDE_TEST_CLIS, or the `claude` on PATH.
import { fork, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { Agent, createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { outsideEnv } from '../src/cli/outside.ts';
import { rightsInside, rightsOutside } from '../src/cli/rights.ts';
import { cliArguments } from '../src/cli/way.ts';
import { loadConfig } from '../src/env.ts';
import { LineMemory, LineSplitter } from '../src/cli/ndjson.ts';
import { parseLine } from '../src/cli/protocol.ts';
import { MessagesApi } from '../test/messages-api.ts';
import { asUserScript, chownAll } from '../test/sandboxed.ts';
import { DirectCli } from './drive.ts';
import { manyMachines } from './front.ts';
import { createPeer } from './peer.ts';
import { median, ms, percentile, printRows, row, timed } from './rows.ts';
import { ask, chat, keptAlive, ServerProcess } from './served.ts';
import { smallMachines } from './small-machine.ts';

const proberFile = fileURLToPath(new URL('prober.ts', import.meta.url));

async function main(): Promise<void> {
  const [binary = ''] = (process.env['CLAUDE_TEST_CLIS'] ?? 'claude').split(':');
  const { status, stdout: version } = spawnSync(binary, ['--version'], { encoding: 'utf8' });
  if (status !== 0) {
    console.error('no Claude CLI: put claude on PATH, or its path in CLAUDE_TEST_CLIS');
    process.exit(1);
  }
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
    CLAUDE_SANDBOX: 'off',
    CLAUDE_STATE_DIR: join(home, 'state'),
  };
  const config = { ...loadConfig(base), systemPrompt: '', mcpServers: {} };
  const cliEnv = outsideEnv(config.childEnv, { home: join(home, 'direct'), tmp: tmpdir() });
  // Each with the tools that the server's own has; as root the CLI refuses the sandbox's permission mode.
  const rights = { outside: rightsOutside(config), inside: { ...rightsInside(config), permissionMode: 'acceptEdits' } };
  const drive: Drive = (name, kind = 'outside') =>
    new DirectCli(binary, cliArguments(config, rights[kind], { inbox: home, outbox: home }), cliEnv, join(home, name));
  const outside = new ServerProcess(base, home);
  const outsideCold = new ServerProcess({ ...base, CLAUDE_WARM_SECONDS: '0', CLAUDE_STATE_DIR: join(home, 'state-cold') }, home);
  const sandboxed = await startSandboxed(base, home, 'sandboxed');
  const cold = await startSandboxed({ ...base, CLAUDE_WARM_SECONDS: '0' }, home, 'cold');
  const full = await startSandboxed({ ...base, CLAUDE_MAX_CONCURRENT_REQUESTS: '6' }, home, 'full');
  const servers = [outside, outsideCold, sandboxed, cold, full];
  await Promise.all(servers.map((server) => server.ready()));
  for (let user = 11; user <= 16; user += 1) await chat(full.port, 'first', user);

  await followUps(drive, outside.port, sandboxed.port);
  await againstStarts(outside.port, binary, cliEnv, home);
  await firstTurns(drive, { cold: outsideCold.port, coldInside: cold.port, spare: outside.port, spareInside: sandboxed.port, full: full.port });
  await sideBySide(drive, outside.port);
  await Promise.all(servers.map((server) => server.end()));
  await theServerItself(base, home);
  await underLoad(base, home);
  bigLine();
  await smallMachines(base);
  await manyMachines();

  api.close();
  keptAlive.destroy();
  await rm(home, { recursive: true, force: true });
  process.exitCode = printRows() ? 0 : 1;
}

/** Starts the CLI directly, with the tools it has outside the sandbox or inside it. */
type Drive = (name: string, kind?: 'outside' | 'inside') => DirectCli;

/** A server with the sandbox, in a folder of its own below `home`, as a user who can have one. */
async function startSandboxed(base: Readonly<Record<string, string>>, home: string, name: string): Promise<ServerProcess> {
  const own = join(home, name);
  await chmod(home, 0o755);
  await mkdir(own);
  await chownAll(own);
  const env = { ...base, HOME: own, CLAUDE_SANDBOX: 'required', CLAUDE_STATE_DIR: join(own, 'state') };
  return new ServerProcess(env, own, [asUserScript, process.execPath]);
}

async function followUps(drive: Drive, outsidePort: number, sandboxedPort: number): Promise<void> {
  const [cli, cliOfAllTools] = [drive('follow'), drive('follow-all', 'inside')];
  await cli.turn('first');
  await cliOfAllTools.turn('first');
  const outsideSession = await chat(outsidePort, 'first', 1);
  const sandboxedSession = await chat(sandboxedPort, 'first', 1);
  const [direct, outside, directAll, sandboxed]: [number[], number[], number[], number[]] = [[], [], [], []];
  for (let i = 0; i < 80; i += 1) {
    direct.push(await timed(() => cli.turn(`turn ${i}`)));
    outside.push(await timed(() => chat(outsidePort, `turn ${i}`, 1, outsideSession)));
    directAll.push(await timed(() => cliOfAllTools.turn(`turn ${i}`)));
    sandboxed.push(await timed(() => chat(sandboxedPort, `turn ${i}`, 1, sandboxedSession)));
  }
  await Promise.all([cli.end(), cliOfAllTools.end()]);
  const ratio = median(outside) / median(direct);
  row('follow-up without the sandbox, p50', against(outside, direct), '≤ 1.15 ×', ratio <= 1.15);
  const [inside, moreMs] = [median(sandboxed) / median(directAll), median(sandboxed) - median(directAll)];
  row('follow-up in the sandbox, p50', `${against(sandboxed, directAll)}, ${ms(moreMs)} more`, '≤ 1.35 ×, ≤ 10 ms more', inside <= 1.35 && moreMs <= 10);
}

/** The same turns by one start of the CLI for each, as other servers do it. */
async function againstStarts(port: number, binary: string, env: Readonly<Record<string, string>>, cwd: string): Promise<void> {
  const peer = createPeer(binary, env, cwd);
  peer.listen(0, '127.0.0.1');
  await once(peer, 'listening');
  const peerPort = (peer.address() as AddressInfo).port;
  // The fake CLI takes no plain prompt.
  const peerSession = await ask(peerPort, '/', { prompt: 'first' }).then((reply) => (JSON.parse(reply.text) as { session_id: string }).session_id, () => undefined);
  if (peerSession !== undefined) {
    const sessionId = await chat(port, 'first', 3);
    const [perStart, again]: [number[], number[]] = [[], []];
    for (let i = 0; i < 10; i += 1) {
      perStart.push(await timed(() => ask(peerPort, '/', { prompt: `turn ${i}`, session_id: peerSession })));
      again.push(await timed(() => chat(port, `again ${i}`, 3, sessionId)));
    }
    const faster = median(perStart) / median(again);
    row('follow-up against one CLI start per turn', `${ms(median(again))} : ${ms(median(perStart))} = ${faster.toFixed(1)} × faster`, '≥ 10 ×', faster >= 10);
  }
  peer.close();
  peer.closeAllConnections();
}

/** `spare` and `full` put up a spare, and `full` has a capacity full of idle dialogues; `cold` keep no process. */
async function firstTurns(drive: Drive, ports: Readonly<Record<'cold' | 'coldInside' | 'spare' | 'spareInside' | 'full', number>>): Promise<void> {
  const direct = { outside: [] as number[], inside: [] as number[] };
  const kinds = ([
    { what: 'with the spare, without the sandbox', port: ports.spare, most: 0.35, than: 'outside' },
    { what: 'with the spare, in the sandbox', port: ports.spareInside, most: 0.35, than: 'inside' },
    { what: 'with the spare, in the sandbox, at a capacity full of idle dialogues', port: ports.full, most: 0.35, than: 'inside' },
    { what: 'cold, without the sandbox', port: ports.cold, most: 1.1, than: 'outside' },
    { what: 'cold, in the sandbox', port: ports.coldInside, most: 1.1, than: 'inside' },
  ] as const).map((kind) => ({ ...kind, times: [] as number[] }));
  for (const { port } of kinds) await chat(port, 'first', 2);
  for (let i = 0; i < 16; i += 1) {
    // Each after the same pause: the one before may still be putting up its next spare, for which another has to leave first.
    for (const kind of ['outside', 'inside'] as const) {
      await pause(2500);
      const startedAt = performance.now();
      const cli = drive(`cold-${kind}-${i}`, kind);
      await cli.turn('first');
      direct[kind].push(performance.now() - startedAt);
      await cli.end();
    }
    for (const { port, times } of kinds) {
      await pause(2500);
      times.push(await timed(() => chat(port, 'first', 2)));
    }
  }
  for (const { what, times, most, than } of kinds) {
    row(`first turn ${what}, p50`, against(times, direct[than]), `≤ ${most.toFixed(2)} ×`, median(times) / median(direct[than]) <= most);
  }
}

/** The medians, and how they compare. */
function against(own: readonly number[], direct: readonly number[]): string {
  return `${ms(median(own))} : ${ms(median(direct))} direct = ${(median(own) / median(direct)).toFixed(2)} ×`;
}

async function sideBySide(drive: Drive, port: number): Promise<void> {
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
  await pause(1000);
  const idle = server.residentMegabytes();
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

  const settled = server.residentMegabytes();
  for (let round = 0; round < 31; round += 1) {
    await burst(server.port, '/health');
  }
  const grown = (server.residentMegabytes()) - settled;
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
    const splitter = new LineSplitter(new LineMemory(96 * 1024 * 1024));
    const startedAt = performance.now();
    for (let at = 0; at < line.length; at += 65536) for (const whole of splitter.push(line.subarray(at, at + 65536))) parseLine(whole);
    return performance.now() - startedAt;
  });
  row('one CLI line of 32 MiB', ms(median(times)), '≤ 200 ms', median(times) <= 200);
}

await main();
