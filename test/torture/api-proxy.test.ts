import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { test } from 'node:test';
import type { ProxySocket } from '../../src/sandbox/api-socket.ts';
import { ask, messageBody, setStage, type ApiStage } from '../api-stage.ts';
import { Connection } from '../http-client.ts';
import { isTorture, randomOf } from '../random.ts';
import { until } from '../running-server.ts';
import { allowedNames, drawRequest, isAllowed, models, type Drawn } from './api-requests.ts';
import type { Chance } from './chance.ts';
import { openFiles, patiently, pause, playAll, shown, statusOf, Tally, total } from './proxy-play.ts';
import { ok, RawApi, type RawRequest } from './proxy-worlds.ts';

/** Says of what arrives at the API whether it may. */
class Judge {
  readonly drawn = new Map<string, { readonly request: Drawn; readonly isBarred: boolean } | 'never' | 'settled' | 'left'>();
  readonly arrived = new Map<string, number>();
  readonly #api: RawApi;
  readonly #login: readonly [name: string, value: string];

  constructor(api: RawApi, login: readonly [name: string, value: string]) {
    [this.#api, this.#login] = [api, login];
  }

  look({ line, headers, body }: RawRequest): void {
    const isCount = line === 'POST /v1/messages/count_tokens?beta=true HTTP/1.1';
    const [login, ownHeaders] = [this.#login, { host: this.#api.host, 'content-type': 'application/json', 'accept-encoding': 'identity', connection: 'keep-alive' }];
    const wrong = [
      !isCount && line !== 'POST /v1/messages?beta=true HTTP/1.1' && 'the line',
      headers.get(login[0]) !== login[1] && 'the login',
      ...Object.entries(ownHeaders).map(([name, value]) => headers.get(name) !== value && name),
      ...[...headers].map(([name, value]) => (!allowedNames.test(name) && !['content-length', login[0], ...Object.keys(ownHeaders)].includes(name)) || /EVIL|PLACEHOLDER/.test(value) ? name : false),
      !/^(?:(?:^|,)(?:claude-code-20250219|effort-2025-11-24|oauth-2025-04-20|interleaved-thinking-2025-05-14))*$/.test(headers.get('anthropic-beta') ?? '') && 'betas',
      !isAllowed(body, isCount) && 'the body',
    ].filter((each) => each !== false);
    const id = wrong.includes('the body') ? '' : idIn(body);
    const drawn = this.drawn.get(id);
    if (drawn === 'never' || id.includes('late')) wrong.push(`${id} came later, and was to be refused`);
    if (drawn === 'settled') wrong.push(`${id} came later or twice`);
    if (typeof drawn === 'object' && drawn.isBarred) wrong.push(`${id} was to be refused: ${shown(drawn.request.bytes)}`);
    if (typeof drawn === 'object' && (!drawn.request.body.equals(body) || drawn.request.isCount !== isCount)) wrong.push(`${id} came as another`);
    this.arrived.set(id, (this.arrived.get(id) ?? 0) + 1);
    if (wrong.length > 0) this.#api.wrong.push(`${wrong.join(', ')}: ${line} ${JSON.stringify([...headers])} ${shown(body)}`);
  }
}

function idIn(body: Buffer): string {
  const { messages } = JSON.parse(body.toString()) as { messages?: Array<{ content?: unknown }> };
  return /^id-(?:\d+|late)-[0-9a-f]+(?= )/.exec(String(messages?.[0]?.content))?.[0] ?? '';
}

/** One connection of one process, in a turn of its own or outside any; gives how many requests it had. */
async function playApi(chance: Chance, lane: { readonly socket: ProxySocket; isClean: boolean }, stage: ApiStage, judge: Judge, api: RawApi, tally: Tally): Promise<number> {
  const { socket, isClean: isCounted } = lane;
  const isOpen = chance.is(0.92);
  const requests: Drawn[] = [];
  do requests.push(drawRequest(chance, `id-${judge.drawn.size + requests.length}-${chance.int(0x10000000, 0xffffffff).toString(16)}`));
  while (requests.length < 6 && requests.at(-1)?.lacks === 'nothing' && chance.is(0.6));
  for (const request of requests) judge.drawn.set(request.id, { request, isBarred: !isOpen || request.fate === 'refused' });
  if (isOpen) socket.beginTurn(stage.limits());
  const connection = new Connection(connect({ path: socket.path, allowHalfOpen: true }));
  const leaves = !isOpen || chance.is(0.85) ? 'no' : chance.pick(['in mid-request', 'at once', 'turn']);
  const bytesOf = (some: readonly Drawn[]): Buffer => Buffer.concat(some.map((each) => each.bytes));
  // Node tells of a broken head ahead of the answers that are still to come.
  const brokenAt = leaves === 'no' ? requests.findIndex((each) => !each.isFramed) : -1;
  const [sound, rest] = brokenAt === -1 ? [requests, []] : [requests.slice(0, brokenAt), requests.slice(brokenAt)];
  let [isRelied, passed, hasReport, hasEnded] = [leaves === 'no', 0, isOpen, false];
  const send = async (bytes: Buffer): Promise<void> => {
    for (const piece of chance.is(0.6) ? [bytes] : chance.pieces(bytes, 8)) {
      void connection.send(piece);
      if (chance.is(0.3)) await pause(chance.int(0, 3));
    }
  };
  try {
    const bytes = bytesOf(sound);
    await send(leaves === 'in mid-request' ? bytes.subarray(0, chance.int(0, bytes.length)) : bytes);
    if (leaves === 'turn') {
      socket.endTurn();
      hasReport = false;
      void connection.send(drawRequest(chance, `id-late-${judge.drawn.size}`).bytes);
    }
    for (const each of isRelied ? sound : []) {
      const status = await statusOf(connection, each.isHead);
      tally.add(status);
      assert.equal(status, !isOpen ? 429 : each.fate === 'passes' ? 200 : 402, shown(each.bytes));
      if (status === 200 && idIn(each.body) === each.id) assert.equal(judge.arrived.get(each.id), 1, `${each.id} was answered by another`);
      if (status === 200 && !each.isCount) passed += 1;
    }
    const [broken] = rest;
    if (broken !== undefined) {
      await send(bytesOf(rest));
      isRelied = false;
      const isAwaited = isOpen && broken.lacks === 'body' && broken.body.length < 200_000 && chance.is(isTorture ? 0.01 : 0.1);
      if (isAwaited) assert.equal(await statusOf(connection, broken.isHead), 402, shown(broken.bytes));
      else if (broken.lacks === 'nothing') tally.add(`odd: ${await Promise.race([statusOf(connection, broken.isHead), pause(300).then(() => 'silence')])}`);
    }
    if (!isOpen || leaves === 'turn' || (leaves === 'no' && chance.is(0.3))) {
      connection.endSide();
      for (const [, status = ''] of (await patiently(() => connection.ended())).matchAll(/^HTTP\/1\.1 (\d+) .*\r$/gm)) assert.match(status, /^(?:100|200|400|402|408|413|417|429|431)$/);
      hasEnded = true;
    }
    assert.deepEqual(api.wrong, []);
  } catch (error) {
    throw new Error(`${isOpen ? 'in' : 'outside'} a turn, leaves: ${leaves}, ${passed} passed: ${String(error)}\n${requests.map((each) => `${each.fate} ${shown(each.bytes)}`).join('\n')}`, { cause: error });
  } finally {
    connection.hangUp();
    const report = hasReport ? socket.endTurn() : undefined;
    // What a client that left has still in its socket is of the next turn.
    lane.isClean = isRelied || hasEnded;
    if (isRelied && isCounted && report !== undefined) assert.deepEqual([report.tokens.input, report.tokens.output], [passed * 1000, passed * 100]);
    for (const { id, fate } of requests) judge.drawn.set(id, !isOpen || fate === 'refused' ? 'never' : judge.arrived.has(id) ? 'settled' : 'left');
  }
  return requests.length;
}


test(`drawn at random: of ${total} requests to the API proxy those that are allowed arrive, as they were and with the login, and no other`, async (t) => {
  const openBefore = await openFiles();
  const api = new RawApi();
  const random = randomOf(t);
  const isKey = random() < 0.5;
  const stage = await setStage(t, { upstreamUrl: await api.start(t), env: isKey ? { ANTHROPIC_API_KEY: 'the-secret' } : { ANTHROPIC_AUTH_TOKEN: 'the-secret' }, rules: { models } });
  const [judge, tally] = [new Judge(api, isKey ? ['x-api-key', 'the-secret'] : ['authorization', 'Bearer the-secret']), new Tally()];
  api.answer = (socket, request) => {
    judge.look(request);
    socket.write(ok.bytes);
  };
  const sockets = await Promise.all(Array.from({ length: 16 }, () => stage.open()));
  await playAll(t, random, sockets.map((socket) => ({ socket, isClean: true })), total, async (chance, lane) => {
    const played = await playApi(chance, lane, stage, judge, api, tally);
    assert.ok(!stage.logText.includes('"bug"') && !stage.logText.includes('the-secret'), stage.logText);
    stage.logText = '';
    return played;
  });
  t.diagnostic(`${tally}; ${[...judge.arrived.values()].reduce((sum, count) => sum + count, 0)} arrived`);
  assert.deepEqual(api.wrong, []);

  // All that may be held is free again: four requests of each process at once, 16 MiB of small bodies, and a large one.
  const held: Array<() => void> = [];
  api.answer = (socket) => held.push(() => socket.write(ok.bytes));
  for (const socket of sockets) socket.beginTurn(stage.limits());
  const full = (bytes: number): string => messageBody({ system: 'x'.repeat(bytes - messageBody({ system: '' }).length) });
  const replies = sockets.flatMap((socket) => [1, 2, 3, 4].map(() => ask(socket, { body: full(256 * 1024) })));
  await until('all of them to be there at once', () => (held.length === 64 ? true : undefined), 60_000);
  for (const answer of held) answer();
  for (const { status } of await Promise.all(replies)) assert.equal(status, 200);
  api.answer = (socket) => socket.write(ok.bytes);
  assert.equal((await ask(sockets[0] as ProxySocket, { body: full(32 * 1024 * 1024) })).status, 200);

  await Promise.all(sockets.map((socket) => socket.close()));
  stage.proxy?.close();
  api.close();
  await until('the descriptors to be closed', async () => ((await openFiles()) <= openBefore ? true : undefined), 30_000);
});
