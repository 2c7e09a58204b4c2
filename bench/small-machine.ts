// The real CLI on machines with little memory: a control group with a limit, made here where that is allowed.
import { once } from 'node:events';
import { chmod, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { errorCode } from '../src/problem.ts';
import { MemoryGroup } from '../test/memory-group.ts';
import { asUserScript, chownAll } from '../test/sandboxed.ts';
import { median, ms, row, timed } from './rows.ts';
import { chat, ServerProcess } from './served.ts';

const mib = 1024 * 1024;

/** A server in a control group of its own, with copies of its programs: their pages count, as on a machine of its own. */
class SmallMachine {
  readonly #group: MemoryGroup;
  readonly #folder: string;
  readonly server: ServerProcess;

  private constructor(group: MemoryGroup, folder: string, server: ServerProcess) {
    this.#group = group;
    this.#folder = folder;
    this.server = server;
  }

  /** With as much of its memory as install.sh gives the service. Throws the kernel's reason where no group can be made. */
  static async start(machineMib: number, sandbox: 'off' | 'required', base: Readonly<Record<string, string>>): Promise<SmallMachine> {
    const group = await MemoryGroup.make(`claude-api-bench-${process.pid}`, Math.floor(0.85 * machineMib));
    const folder = await mkdtemp(join(tmpdir(), 'claude-api-small-'));
    await chmod(folder, 0o755);
    const [node, claude, home] = [join(folder, 'node'), join(folder, 'claude'), join(folder, 'home')];
    await mkdir(home);
    await chownAll(home);
    await once(group.spawn('cp', process.execPath, node), 'exit');
    await once(group.spawn('cp', base['CLAUDE_BINARY_PATH'] ?? '', claude), 'exit');
    const env = { ...base, HOME: home, CLAUDE_BINARY_PATH: claude, CLAUDE_SANDBOX: sandbox, CLAUDE_STATE_DIR: join(home, 'state') };
    const server = new ServerProcess(env, home, [...group.into, asUserScript, node]);
    await server.ready();
    return new SmallMachine(group, folder, server);
  }

  /** Takes so much memory, holds it for two seconds, and gives it back. */
  async hog(takenMib: number): Promise<void> {
    await once(this.#group.hog(takenMib, takenMib / 100, 2), 'exit');
  }

  killed(): Promise<number> {
    return this.#group.killed();
  }

  async end(): Promise<void> {
    await this.server.end();
    await this.#group.remove();
    await rm(this.#folder, { recursive: true });
  }
}

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
