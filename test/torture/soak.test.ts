// Everybody at once for a long time, and nothing grows. SOAK_MINUTES is another length of each. In `npm run torture` every one
// draws soak-NAME.svg.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { treeOf } from '../../src/host/processes.ts';
import { assertInTable } from '../log-table.ts';
import { Front, Machine } from '../many/front.ts';
import { callTools, cliEnv, promptsOf, say, startMessagesApi, toolResultsOf, type MessagesApi } from '../messages-api.ts';
import { amount, isTorture, randomOf } from '../random.ts';
import { apiKey, noneLeft, realClis, startServer, until, type RunningServer } from '../running-server.ts';
import { markedProcesses, startSandboxedServer, testSandboxed } from '../sandboxed.ts';
import { Chance } from './chance.ts';
import { faults } from './outcomes.ts';
import { draw, Gauge, leftIn, type Watched } from './soak-gauge.ts';
import { SoakCrowd, type Ways } from './soak-crowd.ts';

const minutes = Number(process.env['SOAK_MINUTES'] ?? amount(0.15, 15));
// So often a process is ended from outside.
const turnsForOne = 20;
const settings = { CLAUDE_MAX_CONCURRENT_REQUESTS: '6', CLAUDE_WARM_SECONDS: '20' };
// Its dialogue is lost with its process, on purpose.
const played = faults.filter((fault) => fault !== 'forget');
const usual: Ways = { faults: played, isFake: true, dialogues: 48, callers: 12, pauseMs: 0 };

interface Machinery {
  readonly name: string;
  readonly url: string;
  readonly server: RunningServer;
}

/** Those who talk to some servers at one address. */
interface Load {
  readonly name: string;
  readonly crowd: SoakCrowd;
  readonly servers: readonly Machinery[];
}

/** Lets them talk for as long as is wanted; then all stop, nothing has grown and nothing is left. */
async function soak(
  t: TestContext, name: string, loads: readonly Load[], random: () => number, others: () => Promise<readonly Watched[]> = async () => [],
): Promise<void> {
  const gauge = new Gauge();
  const chance = new Chance(random);
  const servers = loads.flatMap((load) => load.servers);
  for (const { crowd } of loads) crowd.begin();
  const endsAt = performance.now() + minutes * 60_000;
  while (performance.now() < endsAt) {
    // At every twentieth of a short one.
    await new Promise((resolve) => setTimeout(resolve, Math.min(2000, minutes * 3000)));
    for (const { crowd, servers } of loads) {
      if (crowd.turns >= turnsForOne * (crowd.harm + 1) && endOne(chance.pick(servers).server, chance)) crowd.harm += 1;
      crowd.check();
    }
    for (const { server } of servers) checkLog(server);
    const watched = servers.map(({ name, server }) => ({ name, pid: server.pid, stateDir: join(server.home, 'state') }));
    gauge.look([...watched, ...(await others())], Object.fromEntries(loads.map(({ name, crowd }) => [name, crowd.takeLatenciesMs()])));
  }
  if (isTorture) await writeFile(`soak-${name}.svg`, draw(`claude-api, ${name}`, gauge));
  for (const [key, quarters] of Object.entries(gauge.quarters())) t.diagnostic(`${key}: ${quarters.join(' ')}`);
  for (const { name, crowd } of loads) {
    await crowd.stop();
    const { turns, harm, harmed, done } = crowd;
    t.diagnostic(`${name}: ${turns} turns in ${minutes} minutes; ${harm} ended from outside failed ${harmed}; ${JSON.stringify(done)}`);
  }
  for (const each of servers) await nothingLeft(each);
  // A young server is still growing, not everybody has come, and a quarter of seconds is one stall of a busy machine.
  gauge.assertFlat(minutes < 5 ? ['memory, MiB', 'folders of users', 'latency, ms'] : []);
}

/** Ends one of the processes of CLIs, whichever it is: the CLI, or what is around it. Gives whether there was one. */
function endOne(server: RunningServer, chance: Chance): boolean {
  const isOfCli = (pid: number): boolean => {
    try {
      return /stream-json/.test(readFileSync(`/proc/${pid}/cmdline`, 'latin1'));
    } catch {
      return false;
    }
  };
  const pids = treeOf(server.pid).slice(1).filter(isOfCli);
  if (pids.length === 0) return false;
  try {
    process.kill(chance.pick(pids), 'SIGKILL');
  } catch {
    return false; // it was quicker
  }
  return true;
}

/** All lines are known, and none tells of a bug. They are forgotten then: of a long run they would fill the memory. */
function checkLog(server: RunningServer): void {
  const lines = server.lines.splice(0);
  assertInTable(lines);
  assert.deepEqual(lines.filter((line) => line.event === 'bug' || line['code'] === 'internal_error'), []);
  assert.equal(server.stderr, '');
}

async function nothingLeft({ server, url }: Machinery): Promise<void> {
  await until('every turn to be over', async () => {
    const health = await fetch(`${url}/health`, { headers: { Authorization: `Bearer ${apiKey}` } });
    const { running, queued } = (await health.json()) as Record<string, unknown>;
    return running === 0 && queued === 0 ? true : undefined;
  }, 30_000);
  assert.equal(await server.end(), 0);
  checkLog(server);
  await noneLeft(server.home);
  await until('no marked process left', async () => ((await markedProcesses(server.home)).length === 0 ? true : undefined));
  assert.deepEqual(leftIn(join(server.home, 'state')), []);
}

/** The same answers that the stand-in for the CLI gives, from the model. */
function answerLikeFake(api: MessagesApi): void {
  api.script = (request) => {
    api.requests.length = 0;
    const prompts = promptsOf(request);
    const prompt = prompts.at(-1) ?? '';
    const given = prompts.filter((each) => each.startsWith('play give')).length;
    const [, name, bytes] = /^play give (\S+):(\d+)/.exec(prompt) ?? [];
    if (prompt === 'play history') return say(JSON.stringify(prompts));
    if (name === undefined || toolResultsOf(request).length >= given) return say(`you said: ${prompt}`);
    return callTools([{ name: 'Bash', input: { command: `head -c ${bytes} /dev/zero | tr '\\0' x >/outbox/${name}` } }]);
  };
}

testSandboxed(`in the sandbox, for ${minutes} minutes: nothing grows and nothing is left`, async (t) => {
  const random = randomOf(t);
  const load = (name: string, server: RunningServer, ways: Ways): Load => {
    return { name, crowd: new SoakCrowd(server.url, random, ways), servers: [{ name, url: server.url, server }] };
  };
  const loads = [load('sandbox', await startSandboxedServer(t, settings), usual)];
  const binary = realClis()[0];
  if (isTorture && binary !== undefined) {
    const api = await startMessagesApi(t);
    answerLikeFake(api);
    const server = await startSandboxedServer(t, { ...settings, CLAUDE_MAX_CONCURRENT_REQUESTS: '4', ...cliEnv(binary, api) });
    loads.push(load('real CLI', server, { ...usual, faults: [], isFake: false, dialogues: 8, callers: 2, pauseMs: 500 }));
  }
  await soak(t, 'sandbox', loads, random);
});

if (isTorture) {
  test(`without the sandbox, for ${minutes} minutes: nothing grows and nothing is left`, async (t) => {
    const random = randomOf(t);
    const server = await startServer(t, settings);
    const servers = [{ name: 'outside', url: server.url, server }];
    await soak(t, 'outside', [{ name: 'outside', crowd: new SoakCrowd(server.url, random, usual), servers }], random);
  });

  test(`three servers behind HAProxy, for ${minutes} minutes: nothing grows and nothing is left`, async (t) => {
    const random = randomOf(t);
    const machines = await Promise.all([1, 2, 3].map((number) => Machine.start(t, number, settings)));
    const front = await Front.start(t, machines);
    const crowd = new SoakCrowd(front.url, random, { ...usual, dialogues: 96, callers: 24 });
    const servers = machines.map(({ name, address, server }) => ({ name, url: `http://${address}`, server }));
    await soak(t, 'many', [{ name: 'all', crowd, servers }], random, async () => [{ name: 'HAProxy', pid: await front.workerPid() }]);
  });
}
