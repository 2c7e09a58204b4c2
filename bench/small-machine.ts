// The real CLI on machines with little memory: a control group with a limit, made here where that is allowed.
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, mkdir, mkdtemp, readFile, rm, rmdir, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { errorCode } from '../src/problem.ts';
import { asUserScript, chownAll } from '../test/sandboxed.ts';
import { median, ms, row, timed } from './rows.ts';
import { chat, ServerProcess } from './served.ts';

const mib = 1024 * 1024;
const names = { v1: { folder: '/sys/fs/cgroup/memory', limit: 'memory.limit_in_bytes', swap: 'memory.memsw.limit_in_bytes', events: 'memory.oom_control' },
  v2: { folder: '/sys/fs/cgroup', limit: 'memory.max', swap: 'memory.swap.max', events: 'memory.events' } };
const version = existsSync(names.v1.folder) ? 'v1' : 'v2';

/** A server in a control group of its own, with copies of its programs: their pages count, as on a machine of its own. */
class SmallMachine {
  readonly #group: string;
  readonly #folder: string;
  readonly server: ServerProcess;

  private constructor(group: string, folder: string, server: ServerProcess) {
    this.#group = group;
    this.#folder = folder;
    this.server = server;
  }

  /** With as much of its memory as install.sh gives the service. Throws the kernel's reason where no group can be made. */
  static async start(machineMib: number, sandbox: 'off' | 'required', base: Readonly<Record<string, string>>): Promise<SmallMachine> {
    const { folder: top, limit, swap } = names[version];
    const limitMib = Math.floor(0.85 * machineMib);
    const group = join(top, `claude-api-bench-${process.pid}`);
    await mkdir(group);
    await writeFile(join(group, limit), String(limitMib * mib));
    if (existsSync(join(group, swap))) await writeFile(join(group, swap), String(version === 'v1' ? limitMib * mib : 0));
    const folder = await mkdtemp(join(tmpdir(), 'claude-api-small-'));
    await chmod(folder, 0o755);
    const [node, claude, home] = [join(folder, 'node'), join(folder, 'claude'), join(folder, 'home')];
    await mkdir(home);
    await chownAll(home);
    await once(spawnIn(group, ['cp', process.execPath, node]), 'exit');
    await once(spawnIn(group, ['cp', base['CLAUDE_BINARY_PATH'] ?? '', claude]), 'exit');
    const env = { ...base, HOME: home, CLAUDE_BINARY_PATH: claude, CLAUDE_SANDBOX: sandbox, CLAUDE_STATE_DIR: join(home, 'state') };
    const server = new ServerProcess(env, home, [...intoGroup(group), asUserScript, node]);
    await server.ready();
    return new SmallMachine(group, folder, server);
  }

  /** Takes so much memory, step by step, holds it for two seconds, and gives it back. */
  async hog(takenMib: number): Promise<void> {
    await once(spawnIn(this.#group, [process.execPath, '--eval', hogScript, String(takenMib)]), 'exit');
  }

  /** Processes that the kernel ended for want of memory. */
  async killed(): Promise<number> {
    return Number(/^oom_kill (\d+)/m.exec(await readFile(join(this.#group, names[version].events), 'latin1'))?.[1]);
  }

  async end(): Promise<void> {
    await this.server.end();
    await rmdir(this.#group);
    await rm(this.#folder, { recursive: true });
  }
}

/** What runs the command that follows in a group. */
function intoGroup(group: string): readonly string[] {
  return ['sh', '-c', 'echo $$ >"$0" && exec "$@"', join(group, 'cgroup.procs')];
}

function spawnIn(group: string, command: readonly string[]): ChildProcess {
  const [program = '', ...args] = [...intoGroup(group), ...command];
  return spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit'] });
}

const hogScript = `
const parts = [];
const timer = setInterval(() => {
  parts.push(Buffer.alloc(5 << 20, 1));
  if (parts.length * 5 < Number(process.argv[1])) return;
  clearInterval(timer);
  setTimeout(() => process.exit(0), 2000);
}, 50);`;

/** Measures machines of several sizes, each without and with the sandbox. */
export async function smallMachines(base: Readonly<Record<string, string>>): Promise<void> {
  try {
    for (const sandbox of ['off', 'required'] as const) {
      const how = sandbox === 'off' ? 'without the sandbox' : 'in the sandbox';
      for (const mebibytes of [512, 1024]) {
        const machine = await SmallMachine.start(mebibytes, sandbox, base);
        await sixUsers(machine, `a machine of ${mebibytes} MiB, six users ${how}`, mebibytes >= 1024);
        await machine.end();
      }
      for (const mebibytes of [1024, 2048, 4096]) {
        const machine = await SmallMachine.start(mebibytes, sandbox, base);
        await fill(machine, `a machine of ${mebibytes} MiB ${how}`);
        await machine.end();
      }
    }
  } catch (error) {
    if (!/^(?:EACCES|EROFS|ENOENT)$/.test(errorCode(error) ?? '')) throw error;
    row('small machines', `not measured: no control group can be made here (${errorCode(error)})`, '', true);
  }
}

/** Six users begin at once and go on at once, then one by one, then beside a hog; nothing may fail. */
async function sixUsers(machine: SmallMachine, title: string, areAllWarm: boolean): Promise<void> {
  const users = [1, 2, 3, 4, 5, 6];
  let sessions: string[] = [];
  const begunMs = await timed(async () => (sessions = await Promise.all(users.map((user) => chat(machine.server.port, 'first', user)))));
  const turn = (user: number): Promise<string> => chat(machine.server.port, 'again', user, sessions[user - 1]);
  for (let round = 0; round < 2; round += 1) await Promise.all(users.map(turn));
  const times: number[] = [];
  for (const user of [...users, ...users]) times.push(await timed(() => turn(user)));
  const { warm } = await machine.server.figures();
  const figure = `${warm} warm, follow-ups ${ms(median(times.slice(6)))}, all begun in ${ms(begunMs)}, ${await machine.killed()} ended by the kernel`;
  const isGood = (await machine.killed()) === 0 && (!areAllWarm || (warm >= 6 && median(times.slice(6)) <= 100));
  row(title, figure, areAllWarm ? '6 warm, ≤ 100 ms, none ended' : 'none ended', isGood);
  if (areAllWarm) await besideHog(machine, title, turn);
}

async function besideHog(machine: SmallMachine, title: string, turn: (user: number) => Promise<string>): Promise<void> {
  const { memory } = await machine.server.figures();
  let isOver = false;
  const hogging = machine.hog((memory.held + memory.left) / mib - 300).finally(() => (isOver = true));
  let least = Infinity;
  for (let user = 1; !isOver; user = (user % 6) + 1) {
    await turn(user);
    least = Math.min(least, (await machine.server.figures()).warm);
    await pause(100);
  }
  await hogging;
  for (const user of [1, 2, 3, 4, 5, 6]) await turn(user);
  const { warm } = await machine.server.figures();
  const killed = await machine.killed();
  row(`${title}, beside a hog`, `${least} warm meanwhile, ${warm} afterwards, ${killed} ended by the kernel`, '6 warm afterwards, none ended', warm >= 6 && killed === 0);
}

/** Users begin a dialogue one after another until no more of them are kept warm. */
async function fill(machine: SmallMachine, title: string): Promise<void> {
  let most = 0;
  for (let user = 1, unchanged = 0; unchanged < 3; user += 1) {
    await chat(machine.server.port, 'first', user);
    await pause(500); // the spare, which may stand in the place of another, comes up
    const { warm } = await machine.server.figures();
    unchanged = warm > most ? 0 : unchanged + 1;
    most = Math.max(most, warm);
  }
  const killed = await machine.killed();
  row(`${title}: processes kept warm`, `${most}, ${killed} ended by the kernel`, 'none ended', killed === 0);
}
