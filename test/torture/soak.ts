// A server under full load for a long time, with restarts in between: an hour on the fake CLI, then 20 minutes on the
// first of CLAUDE_TEST_CLIS, if any. Draws memory, descriptors, processes and latency into soak-fake.svg and
// soak-real.svg, and ends with 1 when an answer was wrong or something grew. SOAK_MINUTES is other times
// for the two, as in 60,20; 0 leaves one out.
import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { cliEnv, MessagesApi, promptsOf, say } from '../messages-api.ts';
import { seededRandom } from '../random.ts';
import { fakeClaude, noneLeft, processesOf, RunningServer, until } from '../running-server.ts';

interface Sample {
  readonly minutes: number;
  readonly residentMegabytes: number;
  readonly descriptors: number;
  readonly clis: number;
  readonly latencyMs: number;
}

const capacity = 4;
const callers = 12;
const users = 40;
const seed = Number(process.env['TEST_SEED'] ?? Date.now() % 1_000_000);
const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;

/** One server's load: every caller goes from user to user, with a prompt, a stream or a hang-up. */
class Soak {
  readonly samples: Sample[] = [];
  turns = 0;
  restarts = 0;
  readonly #binary: string;
  readonly #endsAt: number;
  readonly #startedAt = performance.now();
  readonly #random = seededRandom(seed);
  readonly #sessions = new Map<number, { id: string; prompts: string[] }>();
  readonly #busy = new Set<number>();
  #latenciesMs: number[] = [];
  #server!: RunningServer;
  #isPaused = false;

  constructor(binary: string, minutes: number) {
    this.#binary = binary;
    this.#endsAt = this.#startedAt + minutes * 60_000;
  }

  async run(home: string, env: Readonly<Record<string, string>>, restartMs: number): Promise<void> {
    const start = async (): Promise<void> => {
      this.#server = new RunningServer(home, { ...env, CLAUDE_BINARY_PATH: this.#binary, CLAUDE_MAX_CONCURRENT_REQUESTS: String(capacity) });
      this.#server.port = Number((await this.#server.logged('listening'))['port']);
    };
    await start();
    const calling = Promise.all(Array.from({ length: callers }, () => this.#call()));
    let restartAt = performance.now() + restartMs;
    while (performance.now() < this.#endsAt) {
      await new Promise((resolve) => setTimeout(resolve, 5000));
      await this.#sample();
      if (performance.now() < restartAt || performance.now() + 20_000 > this.#endsAt) continue;
      this.#isPaused = true;
      await until('the callers to pause', () => this.#busy.size === 0 || undefined, 60_000);
      await this.#server.end(this.restarts % 2 === 0 ? 'SIGTERM' : 'SIGKILL');
      await noneLeft(home);
      await start();
      this.restarts += 1;
      this.#isPaused = false;
      restartAt = performance.now() + restartMs;
    }
    await calling;
    assert.equal(await this.#server.end(), 0);
    await noneLeft(home);
    assert.deepEqual(this.#server.lines.filter(({ event }) => event === 'bug'), []);
  }

  async #call(): Promise<void> {
    while (performance.now() < this.#endsAt) {
      const userId = 1 + Math.floor(this.#random() * users);
      if (this.#isPaused || this.#busy.has(userId)) {
        await new Promise((resolve) => setTimeout(resolve, 5));
        continue;
      }
      this.#busy.add(userId);
      await this.#turn(userId).finally(() => this.#busy.delete(userId));
      this.turns += 1;
    }
  }

  async #turn(userId: number): Promise<void> {
    const session = this.#sessions.get(userId);
    const prompt = `turn ${this.turns}`;
    const body = { prompt, user_id: userId, ...(session && { session_id: session.id }) };
    const kind = this.#random();
    const startedAt = performance.now();
    if (kind < 0.05 && session !== undefined) {
      // Hung up on at some moment: whether its prompt counts is open, so the dialogue is left.
      await this.#server.chat(body, { signal: AbortSignal.timeout(1 + Math.floor(this.#random() * 50)) }).catch(() => undefined);
      this.#sessions.delete(userId);
      return;
    }
    const answer = kind < 0.25 ? await this.#stream(body) : (await this.#server.chat(body)).body;
    this.#latenciesMs.push(performance.now() - startedAt);
    const prompts = [...(session?.prompts ?? []), prompt];
    assert.equal(answer['content'], this.#binary === fakeClaude ? `you said: ${prompt}` : prompts.join(' | '), JSON.stringify(answer));
    if (session !== undefined) assert.equal(answer['session_id'], session.id);
    // A dialogue ends after a while; its user begins another.
    if (prompts.length >= 20) this.#sessions.delete(userId);
    else this.#sessions.set(userId, { id: String(answer['session_id']), prompts });
  }

  async #stream(body: Record<string, unknown>): Promise<Record<string, unknown>> {
    let last: Record<string, unknown> = {};
    for await (const event of this.#server.stream(body)) last = event.data;
    return last;
  }

  async #sample(): Promise<void> {
    const { pid } = this.#server;
    const pages = Number((await readFile(`/proc/${pid}/statm`, 'latin1')).split(' ')[1]);
    this.samples.push({
      minutes: (performance.now() - this.#startedAt) / 60_000,
      residentMegabytes: (pages * 4096) / 1024 / 1024,
      descriptors: (await readdir(`/proc/${pid}/fd`)).length,
      clis: (await processesOf(this.#server.home, pid)).length,
      latencyMs: median(this.#latenciesMs),
    });
    this.#latenciesMs = [];
  }
}

/** Four curves over time, each on its own scale from 0. */
function draw(title: string, samples: readonly Sample[]): string {
  const [width, height, gap] = [900, 120, 50];
  const last = samples.at(-1)?.minutes ?? 1;
  const curves = [
    ['memory of the server, MiB', samples.map((sample) => sample.residentMegabytes)],
    ['descriptors', samples.map((sample) => sample.descriptors)],
    ['processes of the CLI', samples.map((sample) => sample.clis)],
    ['median latency of a turn, ms', samples.map((sample) => sample.latencyMs)],
  ] as const;
  const panels = curves.map(([name, values], row) => {
    const most = Math.max(...values.filter(Number.isFinite), 1);
    const top = 50 + row * (height + gap);
    const points = values.flatMap((value, i) => {
      const x = 60 + ((samples[i]?.minutes ?? 0) / last) * width;
      return Number.isFinite(value) ? [`${x.toFixed(1)},${(top + height - (value / most) * height).toFixed(1)}`] : [];
    });
    return `<text x="60" y="${top - 8}">${name}: ${most.toFixed(0)} at most</text>
<path d="M60 ${top}V${top + height}H${60 + width}" fill="none" stroke="#999"/>
<polyline points="${points.join(' ')}" fill="none" stroke="#06c"/>`;
  });
  const total = 50 + curves.length * (height + gap);
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 ${total}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="#fff"/>
<text x="60" y="20" font-size="16">${title}, ${last.toFixed(0)} minutes</text>
${panels.join('\n')}
</svg>
`;
}

async function soak(name: string, binary: string, minutes: number, env: Readonly<Record<string, string>>): Promise<boolean> {
  const home = await mkdtemp(join(tmpdir(), 'claude-api-soak-'));
  const run = new Soak(binary, minutes);
  await run.run(home, env, (minutes * 60_000) / 6);
  await rm(home, { recursive: true, force: true });
  await writeFile(`soak-${name}.svg`, draw(`claude-api under load, ${name} CLI`, run.samples));

  const quarter = Math.floor(run.samples.length / 4);
  const figures = (samples: readonly Sample[]) => ({
    'memory, MiB': median(samples.map((sample) => sample.residentMegabytes)),
    descriptors: median(samples.map((sample) => sample.descriptors)),
    'CLIs at most': Math.max(...samples.map((sample) => sample.clis)),
    'latency, ms': median(samples.map((sample) => sample.latencyMs)),
  });
  const [first, last] = [figures(run.samples.slice(0, quarter)), figures(run.samples.slice(-quarter))];
  console.log(`${name}: ${run.turns} turns, ${run.restarts} restarts, TEST_SEED=${seed}; medians of the first and the last quarter:`);
  console.table({ first, last });
  return last['memory, MiB'] < first['memory, MiB'] * 1.25 + 10 && last.descriptors <= first.descriptors + 10 && last['CLIs at most'] <= capacity + 1;
}

const [fakeMinutes = 0, realMinutes = 0] = (process.env['SOAK_MINUTES'] ?? '60,20').split(',').map(Number);
const results: boolean[] = [];
if (fakeMinutes > 0) results.push(await soak('fake', fakeClaude, fakeMinutes, {}));
const real = (process.env['CLAUDE_TEST_CLIS'] ?? '').split(':')[0];
if (real && realMinutes > 0) {
  const api = new MessagesApi();
  api.script = (request) => {
    api.requests.length = 0;
    return say(promptsOf(request).join(' | '));
  };
  await api.listen();
  results.push(await soak('real', real, realMinutes, cliEnv(real, api)));
  api.close();
} else if (realMinutes > 0) {
  console.log('no real CLI in CLAUDE_TEST_CLIS: its part is left out');
}
process.exitCode = results.every(Boolean) ? 0 : 1;
