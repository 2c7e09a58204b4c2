import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { killQuietly, read, treeOf } from '../../src/host/processes.ts';
import { callTools, promptsOf, say, startMessagesApi, toolNamesOf, type MessagesApi } from '../messages-api.ts';
import { amount, randomOf, seededRandom } from '../random.ts';
import { fakeClaude, testWithRealClis, until, within, type Reply, type RunningServer } from '../running-server.ts';
import { chownAll, makeSandboxedHome, markedProcesses, noneWith, noSandbox, startSandboxedServer, testSandboxed } from '../sandboxed.ts';
import { acts, found, listen, ownersIn, secretOf, secretsBelow, strangersIn, type Act, type Hostile } from './acts.ts';
import { Chance } from './chance.ts';

const restMs = 30_000;

interface World extends Pick<Hostile, 'forbidden' | 'model' | 'outside'> {
  readonly server: RunningServer;
  readonly api: MessagesApi;
  readonly login: string;
  readonly isFake: boolean;
}

/** A server on which some users act and others have honest turns, and what must be true of it all the time. */
class Stage {
  readonly figures = { acts: 0, answers: 0, 'honest turns': 0, upstream: 0, 'longest rest, ms': 0 };
  readonly codes = new Map<string, number>();
  readonly victims: Array<{ readonly folder: string; readonly sessionId: string }> = [];
  /** What the model calls when it is asked so; the real CLI's way to a shell. */
  readonly commands = new Map<string, string>();
  readonly world: World;
  readonly server: RunningServer;
  /** The API proxy's: one for each process. */
  readonly sockets = (): string[] => found(join(this.server.home, 'state/run'), '-name', 's');

  constructor(world: World) {
    this.world = world;
    this.server = world.server;
  }

  folder(userId: number): string {
    return join(this.server.home, 'state/users', String(userId));
  }

  /** A chat, whose answer must hold nothing of anybody else. */
  async chat(userId: number, body: Record<string, unknown>, signal?: AbortSignal): Promise<Reply | undefined> {
    const reply = await this.server.chat({ user_id: userId, ...body }, signal ? { signal } : {}).catch((error: unknown) => {
      if (signal?.aborted !== true) throw error;
      return undefined;
    });
    if (reply === undefined) return undefined;
    const files = ((reply.body['files'] ?? []) as Array<{ data: string }>).map(({ data }) => Buffer.from(data, 'base64').toString('latin1'));
    for (const text of [JSON.stringify(reply.body), JSON.stringify([...reply.headers]), ...files]) {
      assert.deepEqual(strangersIn(text, String(userId)), [], `in an answer to ${userId}: ${text.slice(0, 2000)}`);
    }
    this.figures.answers += 1;
    const outcome = String(reply.body['code'] ?? reply.status);
    assert.ok(reply.status !== 500 && outcome !== 'sandbox_unavailable', JSON.stringify(reply.body));
    this.codes.set(outcome, (this.codes.get(outcome) ?? 0) + 1);
    return reply;
  }

  /** What must hold after each act, whoever else is at it. */
  async check(userId: number, word: string): Promise<void> {
    const startedAt = performance.now();
    const health = await within('health', restMs, this.server.request('/health'));
    assert.equal(health.status, 200, await health.text());
    this.checkUpstream();
    await this.checkFiles();
    await noneWith(word, restMs);
    await this.#rests(userId);
    this.figures['longest rest, ms'] = Math.max(this.figures['longest rest, ms'], Math.round(performance.now() - startedAt));
  }

  /** Nothing of another, nothing refused and no other login went up. */
  checkUpstream(): void {
    for (const { method, path, headers: { 'x-api-key': key, ...headers }, rawBody } of this.world.api.requests.splice(0)) {
      const text = `${method} ${path} ${JSON.stringify(headers)} ${rawBody}`;
      const owners = ownersIn(text);
      assert.ok(owners.length <= 1 && !owners.includes('operator'), `of ${owners.join(', ')}: ${text.slice(0, 3000)}`);
      // The real CLI tells the API what its tools said, which may be what a user knows was refused.
      if (this.world.isFake) assert.ok(!text.includes(this.world.forbidden), text.slice(0, 3000));
      assert.deepEqual([method, path, key, headers['authorization'], headers['cookie']], ['POST', '/v1/messages', this.world.login, undefined, undefined]);
      this.figures.upstream += 1;
    }
  }

  /** No file of a user holds what is another's. */
  async checkFiles(): Promise<void> {
    const found = await secretsBelow(join(this.server.home, 'state/users'));
    assert.deepEqual(found.filter(([folder, , secret]) => strangersIn(secret, folder).length > 0), []);
  }

  /** A user who is left alone has no file of a turn left, and no process but what a warm CLI is. */
  async #rests(userId: number): Promise<void> {
    const left = async (): Promise<string> => {
      const files = found(join(this.folder(userId), 'turns'), '-mindepth', '3').slice(0, 10);
      const tree = new Set(treeOf(this.server.pid));
      const strays = (await markedProcesses(this.server.home)).filter((pid) => !tree.has(pid));
      const sandboxes = [...tree].filter((pid) => commandOf(pid).includes('/bwrap'));
      const sockets = this.sockets().slice(sandboxes.length / 2);
      const busy = sandboxes.filter((pid) => commandOf(pid).includes(`${this.folder(userId)}/home`) && treeOf(pid).length > 4);
      return [files, sockets, strays.map(commandOf), busy.map((pid) => treeOf(pid).map(commandOf))].flat(2).join('\n').trim();
    };
    await until('nothing left', async () => ((await left()) === '' ? true : undefined), restMs).catch(async (error: unknown) => assert.fail(`${String(error)}: ${await left()}`));
  }
}

const commandOf = (pid: number): string => read(`/proc/${pid}/cmdline`).replaceAll('\0', ' ');

/** A user who does these acts, one after the other, in dialogues of their own. */
async function actAll(stage: Stage, userId: number, mine: readonly Act[], chance: Chance, isOver: () => boolean): Promise<void> {
  const own = secretOf(chance, String(userId));
  let sessionId: string | undefined;
  for (const [i, act] of mine.entries()) {
    if (isOver()) return;
    const word = `300.${process.pid}${userId}${i}`;
    const victim = chance.pick(stage.victims);
    const hostile: Hostile = { ...stage.world, chance, word, own, victim, sessionId: sessionId ?? victim.sessionId };
    const script = act.script(hostile);
    const prompt = stage.world.isFake ? `play sh ${script}` : `act ${word}`;
    stage.commands.set(prompt, script);
    const files = chance.is(0.3) ? { files: [{ name: 'mine.txt', data: Buffer.from(own).toString('base64') }] } : {};
    const signal = AbortSignal.timeout(act.isHungUp || chance.is(0.03) ? chance.int(500, 1500) : amount(8_000, 20_000));
    try {
      const reply = await within(act.name, 90_000, stage.chat(userId, { prompt, ...files, ...(sessionId !== undefined && { session_id: sessionId }) }, signal));
      if (act.goFile && reply !== undefined) await writeFile(join(stage.folder(userId), 'work', act.goFile(hostile)), '').catch(() => {});
      if (act.isThief) await stage.chat(userId, { prompt: 'play history', session_id: victim.sessionId });
      await stage.check(userId, word);
      const isFit = reply?.status === 200 && chance.is(0.7);
      sessionId = isFit ? String(reply.body['session_id']) : undefined;
      // What they made of their folders is theirs; the operator makes room for the next act.
      if (reply?.status !== 200) await promisify(execFile)('sh', ['-c', 'chmod 700 home work tmp; rm -rf home/* home/.[!.]* work/* work/.[!.]*; :'], { cwd: stage.folder(userId) });
    } catch (error) {
      throw new Error(`act ${i} of user ${userId}, ${act.name}: ${script.slice(0, 1000)}`, { cause: error });
    }
    stage.figures.acts += 1;
  }
}

/** An honest user, whose dialogues go on as if there were nobody else. */
async function talk(stage: Stage, userId: number, chance: Chance, isOver: () => boolean): Promise<void> {
  const own = secretOf(chance, String(userId));
  let sessionId: unknown;
  let prompts: string[] = [];
  for (let i = 0; i === 0 || !isOver(); i += 1) {
    const kind = stage.world.isFake ? chance.pick(['said', 'history', 'asked', 'sent', 'kept']) : 'said';
    const prompt = i === 0 ? own : { said: `turn ${i} ${own}`, history: 'play history', asked: `play ask ${own}`, sent: 'play received', kept: 'play sh cat /work/diary.txt' }[kind] ?? '';
    const files = kind === 'sent' && i > 0 ? { files: [{ name: 'photo.txt', data: Buffer.from(own).toString('base64') }] } : {};
    prompts.push(prompt);
    const reply = (await stage.chat(userId, { prompt, ...files, ...(sessionId !== undefined && { session_id: sessionId }) })) ?? assert.fail();
    const { content } = reply.body;
    assert.deepEqual([reply.status, reply.body['omitted_files'], reply.body['files']], [200, undefined, undefined], JSON.stringify(reply.body));
    if (!stage.world.isFake) assert.equal(content, prompts.join(' | '));
    else if (prompt === 'play history') assert.deepEqual(JSON.parse(String(content)), prompts);
    else if (prompt === 'play received') assert.deepEqual(JSON.parse(String(content)).files, { 'photo.txt': Buffer.from(own).toString('base64') });
    else assert.equal(content, prompt.startsWith('play') ? own : `you said: ${prompt}`);
    assert.equal(reply.body['session_id'], sessionId ?? reply.body['session_id']);
    sessionId = reply.body['session_id'];
    if (i === 0) {
      const folder = stage.folder(userId);
      await writeFile(join(folder, 'work/diary.txt'), own);
      await chownAll(join(folder, 'work/diary.txt'));
      stage.victims.push({ folder, sessionId: String(sessionId) });
    } else if (chance.is(0.05)) [sessionId, prompts] = [undefined, []];
    stage.figures['honest turns'] += 1;
    await delay(chance.int(20, 400));
  }
}

/** What the server takes when all its processes were ended, of which nothing stays. */
async function takenAtRest({ server, sockets }: Stage, mostDescriptors = Infinity): Promise<{ readonly descriptors: number; readonly mebibytes: number }> {
  const { pid, home } = server;
  const folders = (): string[] => found(join(home, 'state/users'), '-mindepth', '3', '-maxdepth', '3', '-path', '*/turns/*');
  const tcp = (): string => read('/proc/net/tcp'); // connections that are kept for a while
  const countDescriptors = (): number => found(`/proc/${pid}/fd`, '-printf', '%l\\n').filter((link) => !tcp().includes(` ${/\d+/.exec(link)?.[0]} `)).length;
  // Over and over: the last turn may be followed by a spare process.
  const descriptors = await until('no process, folder, socket or descriptor left', () => {
    const sandboxes = treeOf(pid).filter((each) => commandOf(each).includes('/bwrap'));
    for (const each of sandboxes) killQuietly(each);
    const count = countDescriptors();
    return sandboxes.length + folders().length + sockets().length === 0 && count <= mostDescriptors ? count : undefined;
  }, restMs);
  const mebibytes = Number(/^VmRSS:\s+(\d+)/m.exec(read(`/proc/${pid}/status`))?.[1]) / 1024;
  return { descriptors, mebibytes: Math.round(mebibytes) };
}

/** Users who act, each act `decks` times or as often as there is time for, and honest ones meanwhile. */
async function play(t: TestContext, binary: string, { hostile, honest, decks, mostMinutes }: Readonly<Record<'hostile' | 'honest' | 'decks' | 'mostMinutes', number>>): Promise<void> {
  const random = randomOf(t);
  const chance = new Chance(random);
  const api = await startMessagesApi(t);
  const home = await makeSandboxedHome(t);
  const login = `sk-ant-${secretOf(chance, 'operator')}`;
  await writeFile(join(home, '.env'), `# ${secretOf(chance, 'operator')}\nANTHROPIC_API_KEY=${login}\n`, { mode: 0o600 });
  await mkdir(join(home, '.claude'));
  await writeFile(join(home, '.claude/.credentials.json'), JSON.stringify({ claudeAiOauth: { accessToken: secretOf(chance, 'operator') } }));
  await chownAll(home);
  const isFake = binary === fakeClaude;
  const model = isFake ? 'claude-fake' : 'claude-sonnet-5-5';
  const server = await startSandboxedServer(t, {
    ANTHROPIC_API_KEY: undefined, ANTHROPIC_BASE_URL: api.url, CLAUDE_BINARY_PATH: binary, CLAUDE_MODEL: model,
    CLAUDE_TIMEOUT_SECONDS: '60', CLAUDE_USER_DISK_MB: '64', CLAUDE_MAX_CONCURRENT_REQUESTS: String(amount(12, 6)), ...(isFake && { CLAUDE_NETWORK: 'public' }),
  }, home);
  const [abstract, told] = [`claude-api-test-${process.pid}`, secretOf(chance, 'operator')];
  const outside = { ports: [await listen(t, told, { port: 0, host: '127.0.0.1' }), server.port], abstract, pid: server.pid };
  await listen(t, told, { path: `\0${abstract}` });
  const stage = new Stage({ server, api, login, isFake, model, outside, forbidden: secretOf(chance, 'forbidden') });
  api.script = (request) => {
    const prompts = promptsOf(request);
    const asked = (prompts.at(-1) ?? '').replace(/\n\n\[Files in .*/s, '');
    const command = toolNamesOf(request).includes('Bash') ? stage.commands.get(asked) : undefined;
    if (command === undefined) return say(isFake ? asked : prompts.join(' | '));
    stage.commands.delete(asked);
    return callTools([{ name: 'Bash', input: { command } }]);
  };
  const chanceOf = (): Chance => new Chance(seededRandom(Math.floor(random() * 1e9)));
  await Promise.all(Array.from({ length: honest }, (_, i) => talk(stage, 101 + i, chanceOf(), () => true)));
  const before = await takenAtRest(stage);
  let isOver = false;
  const endsAtMs = performance.now() + mostMinutes * 60_000;
  const honestOnes = Array.from({ length: honest }, (_, i) => talk(stage, 101 + i, chanceOf(), () => isOver));
  const fit = acts.filter((act) => isFake || act.isForFake !== true);
  const deck = Array.from({ length: Math.ceil(decks) }, () => chance.shuffled(fit)).flat().slice(0, Math.round(fit.length * decks));
  const hostileOnes = Array.from({ length: hostile }, (_, i) => actAll(stage, 1 + i, deck.filter((_act, at) => at % hostile === i), chanceOf(), () => isOver || performance.now() > endsAtMs));
  try {
    await Promise.race([Promise.all(hostileOnes), Promise.all(honestOnes)]);
  } finally {
    isOver = true;
    t.diagnostic(JSON.stringify({ ...stage.figures, ...Object.fromEntries(stage.codes) }));
  }
  await Promise.all(honestOnes);
  assert.deepEqual(server.lines.filter(({ event }) => event === 'bug'), []);
  assert.deepEqual(ownersIn(JSON.stringify(server.lines) + server.stderr), [], 'in the log');
  const after = await takenAtRest(stage, before.descriptors);
  t.diagnostic(JSON.stringify({ before, after }));
  assert.ok(after.mebibytes <= before.mebibytes * 1.5 + 60, JSON.stringify({ before, after }));
  assert.equal(await server.end(), 0);
  await until('nothing left', async () => ((await markedProcesses(server.home)).length === 0 ? true : undefined));
}

testSandboxed('whatever users do with a shell, nothing of others reaches them, nothing is left, and honest turns are right (drawn at random)', async (t) => {
  await play(t, fakeClaude, { hostile: 3, honest: 2, decks: amount(0.4, 100), mostMinutes: 10 });
});

if (noSandbox === false) testWithRealClis('whatever users do with the real CLI\'s shell (drawn at random)', async (t, binary) => {
  await play(t, binary, { hostile: 2, honest: 1, decks: amount(0.06, 20), mostMinutes: 2.5 });
});
