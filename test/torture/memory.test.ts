import assert from 'node:assert/strict';
import { execFileSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { chmod, cp, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { MemoryGroup, noMemoryGroup } from '../memory-group.ts';
import { callTools, cliEnv, promptsOf, say, startMessagesApi } from '../messages-api.ts';
import { needs } from '../needs.ts';
import { amount, isTorture, randomOf } from '../random.ts';
import { realClis, startServer, until, within, type RunningServer } from '../running-server.ts';
import { asUserScript, makeSandboxedHome, markedProcesses, noSandbox } from '../sandboxed.ts';
import { Chance } from './chance.ts';
import { median } from './soak-gauge.ts';

const project = fileURLToPath(new URL('../..', import.meta.url));
const [binary = ''] = realClis();
const noCli = binary === '' && 'needs the Claude CLI, on PATH or named in CLAUDE_TEST_CLIS: what only the real one can show';
const skip = noMemoryGroup || noSandbox || needs(['root'], 'machines with little memory') || noCli;

interface Person {
  readonly userId: number;
  /** In a fat dialogue a program is started that takes 160 MiB and stays as long as the dialogue's process. */
  readonly isFat: boolean;
  sessionId: string | undefined;
  said: string[];
  cutOff: string | undefined;
}

/** The server as install.sh sets it up, on a machine with so much memory and no swap. What it runs is a copy, whose pages count. */
class SmallMachine {
  server!: RunningServer;
  readonly service: MemoryGroup;
  readonly others: MemoryGroup;
  readonly #home: string;
  readonly #env: Readonly<Record<string, string>>;
  readonly #programs: string;

  private constructor(service: MemoryGroup, others: MemoryGroup, home: string, env: Readonly<Record<string, string>>, programs: string) {
    [this.service, this.others, this.#home, this.#env, this.#programs] = [service, others, home, env, programs];
  }

  static async make(t: TestContext, mebibytes: number, binary: string, env: Readonly<Record<string, string>>): Promise<SmallMachine> {
    const all = await MemoryGroup.make(`claude-api-test-${process.pid}-${mebibytes}`, mebibytes);
    const service = await MemoryGroup.make('service', Math.floor(0.85 * mebibytes), all);
    const others = await MemoryGroup.make('others', undefined, all);
    const programs = await mkdtemp(join(tmpdir(), 'claude-api-small-'));
    await chmod(programs, 0o755);
    const home = await makeSandboxedHome(t);
    const [node, claude] = [join(programs, 'node'), join(programs, 'claude')];
    execFileSync(join(project, 'node_modules/.bin/tsc'), ['-p', join(project, 'tsconfig.build.json'), '--outDir', join(programs, 'dist')]);
    await cp(join(project, 'package.json'), join(programs, 'package.json'));
    await once(service.spawn('cp', process.execPath, node), 'exit');
    await once(service.spawn('cp', binary, claude), 'exit');
    const own = { CLAUDE_SANDBOX: 'required', CLAUDE_BINARY_PATH: claude, ...env };
    const machine = new SmallMachine(service, others, home, own, programs);
    t.after(async () => {
      for (const group of [service, others, all]) await group.remove();
      await rm(programs, { recursive: true });
    });
    await machine.start(t);
    return machine;
  }

  async start(t: TestContext): Promise<void> {
    const program = [join(this.#programs, 'node'), join(this.#programs, 'dist/main.js')];
    this.server = await startServer(t, this.#env, this.#home, [...this.service.into, asUserScript], program);
    await until('a server that is ready', async () => ((await this.server.request('/health')).ok ? true : undefined), 60_000);
  }

  async memory(): Promise<{ readonly held: number; readonly left: number; readonly warm: number }> {
    const health = (await (await this.server.request('/health')).json()) as { memory: { held: number; left: number }; warm: number };
    const [held = 0, left = 0] = [health.memory.held, health.memory.left].map((bytes) => bytes >> 20);
    return { held, left, warm: health.warm };
  }
}

/** People who take turns, and notice when anything of what they said is gone. */
class People {
  readonly #people: readonly Person[];
  readonly #machine: SmallMachine;
  readonly #chance: Chance;
  /** While the server is ended under them. */
  isCut = false;
  #begun = 0;
  #timesMs: number[] = [];

  constructor(machine: SmallMachine, slim: number, fat: number, random: () => number) {
    this.#machine = machine;
    this.#chance = new Chance(random);
    const own = { sessionId: undefined, cutOff: undefined };
    this.#people = Array.from({ length: slim + fat }, (_, i) => ({ ...own, userId: i + 1, isFat: i >= slim, said: [] }));
  }

  /** Everybody at once. */
  async all(): Promise<void> {
    await Promise.all(this.#people.map((person) => this.#turn(person)));
  }

  /** One after another at random, for so many turns. */
  async some(turns: number): Promise<void> {
    for (let i = 0; i < turns; i += 1) await this.#turn(this.#chance.pick(this.#people));
  }

  /** Every other one of them, two at a time, until this program has ended; gives its exit code and signal. */
  async beside(program: ChildProcess): Promise<[number | null, string | null]> {
    const ended = once(program, 'exit') as Promise<[number | null, string | null]>;
    const isOver = (): boolean => program.exitCode !== null || program.signalCode !== null;
    const talk = async (people: readonly Person[]): Promise<void> => {
      while (!isOver()) await this.#turn(this.#chance.pick(people));
    };
    await Promise.all([0, 1].map((half) => talk(this.#people.filter((_person, i) => i % 2 === half))));
    return ended;
  }

  /** How long the turns since the last call took. */
  times(): string {
    const times = this.#timesMs;
    this.#timesMs = [];
    return `${times.length} turns, ${Math.round(median(times))} ms, ${Math.round(Math.max(...times))} at most`;
  }

  /** One turn. What a stop refuses is not heard, and what is cut off may have been. */
  async #turn(person: Person): Promise<void> {
    const { userId, isFat, sessionId, said, cutOff } = person;
    const number = (this.#begun += 1);
    const prompt = `${isFat ? 'fat' : 'slim'}.${userId}.${number}`;
    const startedAt = performance.now();
    const asked = this.#machine.server.chat({ prompt, user_id: userId, ...(sessionId !== undefined && { session_id: sessionId }) });
    // Not one that waits for its program to be read from the disk again and again.
    const reply = await within(`turn ${prompt}`, 60_000, asked).catch((error: unknown) => {
      assert.ok(this.isCut, String(error));
      person.cutOff = prompt;
    });
    if (reply === undefined || (this.isCut && reply.body['code'] === 'shutting_down')) return;
    const { status, body } = reply;
    this.#timesMs.push(performance.now() - startedAt);
    assert.equal(status, 200, JSON.stringify(body));
    if (cutOff !== undefined && String(body['content']).includes(cutOff)) said.push(cutOff);
    said.push(prompt);
    Object.assign(person, { sessionId: body['session_id'], cutOff: undefined });
    assert.equal(body['content'], said.join(' '), `the dialogue of user ${userId}`);
  }
}

// Its name is put together, so that this command is not taken for it.
const fatProgram = `
$0 = join "-", "stay", "fat";
for (1..20) { push @parts, "x" x ((8 << 20) + $_); select undef, undef, undef, 0.1 }
open F, ">/tmp/full"; close F; sleep 600`;
const getFat = `grep -qs 'stay-[f]at' /proc/[0-9]*/cmdline || {
  perl -e '${fatProgram}' >/dev/null 2>&1 &
  while ! [ -e /tmp/full ]; do sleep 0.1; done
  rm /tmp/full
}`;

/** One size: turns, turns beside a program that takes all it can get, and restarts. */
async function onMachine(t: TestContext, mebibytes: number, slim: number, fat: number): Promise<void> {
  const api = await startMessagesApi(t);
  api.script = (request) => {
    api.requests.length = 0;
    const prompts = promptsOf(request).filter((text) => /^(?:fat|slim)\./.test(text));
    const isAnswered = JSON.stringify((request.body['messages'] as unknown[]).at(-1)).includes('"tool_result"');
    if (prompts.at(-1)?.startsWith('fat') && !isAnswered) return callTools([{ name: 'Bash', input: { command: getFat } }]);
    return say(prompts.join(' '));
  };
  const machine = await SmallMachine.make(t, mebibytes, binary, cliEnv(binary, api));
  const { service, others } = machine;
  const people = new People(machine, slim, fat, randomOf(t));
  const told = async (phase: string): Promise<void> => {
    const { held, left, warm } = await machine.memory();
    const [killed, faults] = [await service.killed(), await service.majorFaults()];
    const figures = `${warm} warm, ${held} MiB held, ${left} left, ${faults} major faults, ${killed} ended by the kernel`;
    t.diagnostic(`${mebibytes} MiB, ${phase}: ${people.times()}; ${figures}`);
    assert.equal(killed, 0, 'the kernel ended nothing of the service');
  };

  await people.all();
  await told('all begin at once');
  for (let i = 0; i < amount(0, 5); i += 1) await people.all();
  await people.some(amount(5, 60));
  await told('turns');

  // All but what the server needs for a turn or two at a time.
  const taken = mebibytes - (mebibytes > 600 ? 450 : 330);
  const hog = others.hog(taken, amount(12, 7), amount(1, 15));
  assert.deepEqual(await people.beside(hog), [0, null], 'the hog had what it wanted');
  await told(`beside a hog of ${taken} MiB`);

  for (const signal of (['SIGTERM', 'SIGKILL'] as const).slice(0, amount(1, 2))) {
    people.isCut = true;
    const turns = people.all();
    await new Promise((resolve) => setTimeout(resolve, 50));
    assert.equal(await machine.server.end(signal), signal === 'SIGTERM' ? 0 : signal);
    await turns;
    people.isCut = false;
    await until('no process left', async () => ((await markedProcesses(machine.server.home)).length === 0 ? true : undefined));
    await machine.start(t);
    await people.all();
    await told(`after ${signal}`);
  }

  if (!isTorture) return;
  // Takes all there is, and is ended for it.
  assert.deepEqual(await people.beside(others.hog(4 * mebibytes, 60, 0)), [null, 'SIGKILL']);
  await told('beside one that is ended for its greed');
  await people.all();
  await people.some(20);
  await told('afterwards');
}

const title = 'no turn is lost, none takes a minute, and the kernel ends nothing of the server\'s, with fat dialogues, a hog and restarts';
test(`on 1 GB ${title}`, { skip }, (t) => onMachine(t, 1024, amount(3, 4), amount(1, 2)));
if (isTorture) test(`on 512 MB ${title}`, { skip }, (t) => onMachine(t, 512, 2, 1));
