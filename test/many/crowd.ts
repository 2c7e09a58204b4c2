import assert from 'node:assert/strict';
import { Chance } from '../torture/chance.ts';
import { apiKey, eventsOf, until } from '../running-server.ts';

type Json = Record<string, unknown>;

/** One end user with one dialogue. */
interface Person {
  readonly userId: number;
  sessionId: string | undefined;
  /** What they said in it, in order; where the answer was lost nobody knows whether it was heard. */
  readonly said: { readonly prompt: string; readonly isCertain: boolean }[];
}

/** What can happen to a turn that is not answered: refused unheard, ended by a stop, or its connection gone. */
type Loss = { readonly userId: number; readonly kind: 'busy' | 'shutting_down' | 'gone' };

const sizes = [10, 10, 10, 9_000, 40_000, 150_000];
const afterBusyMs = 100;

/** End users who talk at random, each through one front, and notice every wrong answer. */
export class Crowd {
  readonly people: readonly Person[];
  /** Turns that were answered. */
  turns = 0;
  readonly losses: Loss[] = [];
  readonly #url: string;
  readonly #chance: Chance;
  readonly #busy = new Set<Person>();
  #begun = 0;
  #isOver = false;
  #failure: unknown;
  #talking: Promise<unknown> | undefined;

  constructor(url: string, userIds: readonly number[], random: () => number) {
    this.#url = url;
    this.#chance = new Chance(random);
    this.people = userIds.map((userId) => ({ userId, sessionId: undefined, said: [] }));
  }

  /** Lets so many of them talk at a time, until `stop`. */
  begin(atOnce: number): void {
    this.#talking = Promise.all(Array.from({ length: atOnce }, () => this.#talk()));
  }

  /** Waits until so many more turns were answered; rejects when an answer was wrong. */
  async talked(turns: number, timeoutMs = 120_000): Promise<void> {
    const goal = this.turns + turns;
    await until(`${turns} turns`, () => {
      this.check();
      return this.turns >= goal || undefined;
    }, timeoutMs);
  }

  /** Throws what was wrong, if anything was. */
  check(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  async stop(): Promise<void> {
    this.#isOver = true;
    await this.#talking;
    this.check();
  }

  /** Each dialogue as its machine has it: all that was surely said, once and in order, and nothing that was not. */
  async checkHistories(): Promise<void> {
    for (const person of this.people.filter(({ sessionId }) => sessionId !== undefined)) {
      const end = await this.#ask(person, 'play history');
      assert.equal(end.kind, 'answered', `user ${person.userId}: ${JSON.stringify(end)}`);
      const heard = JSON.parse(String(end.body['content'])) as string[];
      assert.equal(heard.pop(), 'play history');
      const possible = person.said.map(({ prompt }) => prompt);
      assert.deepEqual(heard, possible.filter((prompt) => heard.includes(prompt)), `user ${person.userId} heard what was not said, or twice`);
      for (const { prompt, isCertain } of person.said) {
        assert.ok(!isCertain || heard.includes(prompt), `user ${person.userId}: ${prompt.slice(0, 40)} is lost`);
      }
    }
  }

  async #talk(): Promise<void> {
    while (!this.#isOver && this.#failure === undefined) {
      // Everybody once, then at random.
      const person = this.people[this.#begun] ?? this.#chance.pick(this.people);
      this.#begun += 1;
      if (this.#busy.has(person)) {
        await new Promise(setImmediate);
        continue;
      }
      this.#busy.add(person);
      await this.#say(person).catch((error: unknown) => (this.#failure ??= error));
      this.#busy.delete(person);
    }
  }

  async #say(person: Person): Promise<void> {
    const prompt = `say ${person.userId}.${person.said.length}.${this.#chance.int(0, 1e9)} ${'x'.repeat(this.#chance.pick(sizes))}`;
    const end = await this.#ask(person, prompt);
    if (end.kind === 'answered') {
      assert.equal(end.body['content'], `you said: ${prompt}`, `a wrong answer for user ${person.userId}`);
      assert.equal(end.body['session_id'], person.sessionId ?? end.body['session_id']);
      person.sessionId ??= String(end.body['session_id']);
      this.turns += 1;
    } else {
      this.losses.push({ userId: person.userId, kind: end.kind });
    }
    // What was refused as busy was not heard.
    if (end.kind === 'busy') await new Promise((resolve) => setTimeout(resolve, afterBusyMs));
    else person.said.push({ prompt, isCertain: end.kind === 'answered' });
  }

  async #ask(person: Person, prompt: string): Promise<{ readonly kind: 'answered'; readonly body: Json } | { readonly kind: Loss['kind'] }> {
    const { userId, sessionId } = person;
    const isStream = this.#chance.is(0.3);
    const rest = { prompt, ...(sessionId !== undefined && { session_id: sessionId }) };
    const body = JSON.stringify(this.#chance.is(0.5) ? { user_id: userId, ...rest } : { ...rest, user_id: userId });
    const needsHeader = !body.startsWith('{"user_id"') && body.length > 14_000;
    const headers = {
      Authorization: `Bearer ${apiKey}`,
      'Content-Type': 'application/json',
      ...(isStream && { Accept: 'text/event-stream' }),
      ...((needsHeader || this.#chance.is(0.3)) && { 'X-User-Id': String(userId) }),
    };
    let response: Response;
    try {
      response = await fetch(`${this.#url}/api/v1/chat`, { method: 'POST', body, headers });
      if (response.status === 200) {
        const answer = isStream ? await lastEvent(response) : ((await response.json()) as Json);
        return answer === undefined ? { kind: 'gone' } : { kind: 'answered', body: answer };
      }
    } catch {
      return { kind: 'gone' };
    }
    const problem = (await response.json()) as Json;
    const told = `user ${userId} got ${JSON.stringify(problem)}`;
    assert.equal(response.status, 503, told);
    assert.ok(Number(response.headers.get('retry-after')) > 0 && Number(problem['retry_after_seconds']) > 0, told);
    const kind = problem['code'];
    return kind === 'busy' || kind === 'shutting_down' ? { kind } : assert.fail(told);
  }
}

/** The result of a stream; undefined when it was cut off. */
async function lastEvent(response: Response): Promise<Json | undefined> {
  for await (const { name, data } of eventsOf(response)) {
    if (name === 'result') return data;
    assert.notEqual(name, 'error', JSON.stringify(data));
  }
  return undefined;
}
