import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { apiKey, within } from '../running-server.ts';
import { Chance } from './chance.ts';
import { outcomeOf } from './outcomes.ts';
import { askChat, badRequests, type Answer, type Json } from './soak-requests.ts';

/** A dialogue of some user, and all that was said in it; where the answer was lost nobody knows whether it was heard. */
interface Dialogue {
  readonly userId: number;
  sessionId: string | undefined;
  said: Array<{ readonly prompt: string; readonly isCertain: boolean }>;
}

export interface Ways {
  /** `play …` prompts that only the stand-in for the CLI knows. */
  readonly faults: readonly string[];
  /** Whether it is the stand-in, which also shows what it was sent. */
  readonly isFake: boolean;
  /** How many dialogues go on side by side: the first user has a quarter of them, the others two each. */
  readonly dialogues: number;
  /** How many turns are asked for at a time, each after a pause. */
  readonly callers: number;
  readonly pauseMs: number;
}

// After so many prompts its user begins another dialogue.
const longest = 20;

/** Everybody at once, for a long time: dialogues, streams, hang-ups, files, retries, requests that are wrong, and a CLI that fails. */
export class SoakCrowd {
  readonly dialogues: readonly Dialogue[];
  /** How often each kind of thing was done. */
  readonly done: Record<string, number> = {};
  /** Turns that failed although nothing was played, and what may be to blame: processes that were ended from outside. */
  harmed = 0;
  harm = 0;
  readonly #url: string;
  readonly #chance: Chance;
  readonly #ways: Ways;
  readonly #busy = new Set<Dialogue>();
  #latenciesMs: number[] = [];
  #number = 0;
  #isOver = false;
  #failure: unknown;
  #calling: Promise<unknown> | undefined;

  constructor(url: string, random: () => number, ways: Ways) {
    [this.#url, this.#chance, this.#ways] = [url, new Chance(random), ways];
    const userOf = (i: number): number => (i < ways.dialogues / 4 ? 1 : 2 + (i % Math.ceil((ways.dialogues * 3) / 8)));
    this.dialogues = Array.from({ length: ways.dialogues }, (_, i) => ({ userId: userOf(i), sessionId: undefined, said: [] }));
  }

  get turns(): number {
    return this.#number;
  }

  begin(): void {
    this.#calling = Promise.all(Array.from({ length: this.#ways.callers }, () => this.#call()));
  }

  /** Throws what was wrong, if anything was. */
  check(): void {
    if (this.#failure !== undefined) throw this.#failure;
    assert.ok(this.harmed <= this.harm, `${this.harmed} turns failed, ${this.harm} processes were ended from outside`);
  }

  /** Nobody asks any more, and every dialogue is whole. */
  async stop(): Promise<void> {
    this.#isOver = true;
    await this.#calling;
    this.check();
    for (const dialogue of this.dialogues) await this.#end(dialogue);
    this.check();
  }

  /** How long the plain turns since the last call took. */
  takeLatenciesMs(): number[] {
    const taken = this.#latenciesMs;
    this.#latenciesMs = [];
    return taken;
  }

  async #call(): Promise<void> {
    while (!this.#isOver && this.#failure === undefined) {
      const dialogue = this.#chance.pick(this.dialogues);
      if (this.#busy.has(dialogue)) {
        await new Promise((resolve) => setTimeout(resolve, 5));
        continue;
      }
      this.#busy.add(dialogue);
      // One stays with a dialogue for a while, so that some of its turns find its process warm.
      for (let left = this.#chance.int(1, 8); left > 0 && !this.#isOver && this.#failure === undefined; left -= 1) {
        await this.#act(dialogue).catch((error: unknown) => (this.#failure ??= error));
        if (this.#ways.pauseMs > 0) await new Promise((resolve) => setTimeout(resolve, this.#ways.pauseMs));
      }
      this.#busy.delete(dialogue);
    }
  }

  #act(dialogue: Dialogue): Promise<void> {
    const { isFake, faults } = this.#ways;
    const share = this.#chance.int(1, 100);
    if (dialogue.said.length >= longest) return this.#as('end', this.#end(dialogue));
    if (share <= 6) return this.#as('hang-up', this.#hangUp(dialogue, `turn ${this.#next()}`));
    if (share <= 12) return this.#as('retry', this.#retry(dialogue));
    if (share <= 20) return this.#as('bad request', this.#askBadly());
    if (share <= 26) return this.#as('files out', this.#getFiles(dialogue));
    if (share <= 32 && isFake) return this.#as('files in', this.#sendFiles(dialogue));
    if (share <= 38 && faults.length > 0) return this.#as('fault', this.#fail(dialogue, this.#chance.pick(faults)));
    return this.#as('plain', this.#talk(dialogue));
  }

  #as(kind: string, act: Promise<void>): Promise<void> {
    this.done[kind] = (this.done[kind] ?? 0) + 1;
    return act;
  }

  #next(): number {
    return (this.#number += 1);
  }

  async #talk(dialogue: Dialogue): Promise<void> {
    const prompt = `turn ${this.#next()}`;
    const startedAt = performance.now();
    const answer = await this.#say(dialogue, prompt);
    if (answer === undefined) return;
    this.#latenciesMs.push(performance.now() - startedAt);
    assert.equal(answer.body['content'], `you said: ${prompt}`);
  }

  async #fail(dialogue: Dialogue, fault: string): Promise<void> {
    const prompt = `play ${fault} #${this.#next()}`;
    const expected = outcomeOf.get(fault) ?? '200';
    if (expected === 'left') return this.#hangUp(dialogue, prompt);
    // The next turn may begin in its last moments.
    if (fault === 'die-idle') this.harm += 1;
    await this.#say(dialogue, prompt, {}, expected);
  }

  /** A dialogue that was hung up on begins anew where its user never heard its id. */
  async #hangUp(dialogue: Dialogue, prompt: string): Promise<void> {
    const caller = new AbortController();
    setTimeout(() => caller.abort(), this.#chance.int(1, 200));
    const answer = await this.#ask(dialogue, prompt, {}, {}, caller.signal).catch(() => undefined);
    this.#note(dialogue, prompt, answer);
  }

  async #retry(dialogue: Dialogue): Promise<void> {
    // Half of them hear nothing of their first try. Where that failed the next one is another turn, and their prompt is heard twice.
    const isDeaf = this.#chance.is(0.5);
    const prompt = `${isDeaf ? 'retry' : 'turn'} ${this.#next()}`;
    const headers = { 'Idempotency-Key': randomUUID() };
    const caller = new AbortController();
    if (isDeaf) setTimeout(() => caller.abort(), this.#chance.int(1, 100));
    const first = await this.#ask(dialogue, prompt, {}, headers, caller.signal).catch((error: unknown) => {
      assert.ok(caller.signal.aborted, String(error));
      return undefined;
    });
    // What failed was forgotten: the next one would be another turn.
    if (first !== undefined && first.outcome !== '200') return this.#noteHarm(dialogue, prompt, first);
    const second = await this.#ask(dialogue, prompt, {}, headers);
    if (second.outcome !== '200' && first === undefined) return this.#noteHarm(dialogue, prompt, second);
    this.#note(dialogue, prompt, second);
    assert.equal(second.body['content'], `you said: ${prompt}`, JSON.stringify(second));
    if (first !== undefined) assert.deepEqual([second.headers.get('idempotency-replayed'), second.body], ['true', first.body]);
  }

  async #sendFiles(dialogue: Dialogue): Promise<void> {
    const names = ['photo.jpg', 'sales.csv', 'naïve.txt'].slice(0, this.#chance.int(1, 3));
    const files = names.map((name) => ({ name, data: Buffer.alloc(this.#chance.int(0, 40_000), `${this.#next()} `).toString('base64') }));
    const answer = await this.#say(dialogue, `play received #${this.#next()}`, { files });
    if (answer === undefined) return;
    const received = JSON.parse(String(answer.body['content'])) as Json;
    assert.deepEqual([received['files'], received['outbox']], [Object.fromEntries(files.map(({ name, data }) => [name, data])), []]);
  }

  async #getFiles(dialogue: Dialogue): Promise<void> {
    const bytes = this.#chance.int(1, 40_000);
    const answer = await this.#say(dialogue, `play give a.csv:${bytes} #${this.#next()}`);
    const data = Buffer.from('x'.repeat(bytes)).toString('base64');
    if (answer !== undefined) assert.deepEqual(answer.body['files'], [{ name: 'a.csv', data }]);
  }

  async #askBadly(): Promise<void> {
    const [outcome, headers, body] = this.#chance.pick(badRequests);
    const own = { Authorization: `Bearer ${apiKey}`, 'Content-Type': 'application/json', 'X-User-Id': '1', ...headers };
    assert.equal((await askChat(this.#url, { headers: own, body })).outcome, outcome);
  }

  /** All that was surely said was heard, once and in its order. The dialogue is over then. */
  async #end(dialogue: Dialogue): Promise<void> {
    const { userId, sessionId, said } = dialogue;
    const answer = sessionId === undefined ? undefined : await this.#say(dialogue, 'play history');
    Object.assign(dialogue, { sessionId: undefined, said: [] });
    if (answer === undefined) return;
    const heard = JSON.parse(String(answer.body['content'])) as string[];
    const certain = said.filter(({ isCertain }) => isCertain).map(({ prompt }) => prompt);
    const isAgain = (prompt: string, i: number): boolean => prompt.startsWith('retry') && prompt === heard[i - 1];
    const once = heard.filter((prompt, i) => certain.includes(prompt) && !isAgain(prompt, i));
    assert.deepEqual(once, certain, `user ${userId} was not heard right`);
  }

  /** A turn that ends as expected; undefined for one that was harmed. */
  async #say(dialogue: Dialogue, prompt: string, fields: Json = {}, expected = '200'): Promise<Answer | undefined> {
    const answer = await this.#ask(dialogue, prompt, fields);
    if (answer.outcome === '404 session_not_found' && !dialogue.said.some(({ isCertain }) => isCertain)) {
      // A process that was ended before it had saved anything leaves a name and nothing said.
      Object.assign(dialogue, { sessionId: undefined, said: [] });
      return undefined;
    }
    if (answer.outcome !== expected) {
      this.#noteHarm(dialogue, prompt, answer);
      return undefined;
    }
    this.#note(dialogue, prompt, answer);
    return answer;
  }

  #noteHarm(dialogue: Dialogue, prompt: string, answer: Answer): void {
    const told = `user ${dialogue.userId}, ${prompt}: ${answer.outcome} ${JSON.stringify(answer.body)}`;
    assert.ok(/^502 claude_failed$|^503 sandbox_unavailable$/.test(answer.outcome), told);
    this.harmed += 1;
    this.#note(dialogue, prompt, answer);
  }

  #note(dialogue: Dialogue, prompt: string, answer?: Answer): void {
    const sessionId = answer?.body['session_id'];
    if (dialogue.sessionId === undefined && typeof sessionId === 'string') dialogue.sessionId = sessionId;
    if (answer?.outcome === '200') assert.equal(sessionId, dialogue.sessionId);
    dialogue.said.push({ prompt, isCertain: answer?.outcome === '200' });
  }

  async #ask(
    { userId, sessionId }: Dialogue, prompt: string, fields: Json, headers: Readonly<Record<string, string>> = {}, signal?: AbortSignal,
  ): Promise<Answer> {
    const isStream = this.#chance.is(0.3);
    const body = JSON.stringify({ user_id: userId, prompt, ...(sessionId !== undefined && { session_id: sessionId }), ...fields });
    const accept = isStream ? { Accept: 'text/event-stream' } : {};
    const own = { Authorization: `Bearer ${apiKey}`, 'Content-Type': 'application/json', ...accept, ...headers };
    return within(`user ${userId}: ${prompt}`, 120_000, askChat(this.#url, { headers: own, body, ...(signal && { signal }) }));
  }
}

