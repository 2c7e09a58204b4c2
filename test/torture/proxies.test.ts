import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { test, type TestContext } from 'node:test';
import type { ProxySocket } from '../../src/sandbox/api-socket.ts';
import { ask, messageBody, setStage, type ApiReply, type ApiStage } from '../api-stage.ts';
import { Connection, requestBytes } from '../http-client.ts';
import { NetworkStage } from '../network-stage.ts';
import { amount, isTorture, randomOf, seededRandom } from '../random.ts';
import { until } from '../running-server.ts';
import { allowedNames, drawRequest, isAllowed, models, type Drawn } from './api-requests.ts';
import { Chance } from './chance.ts';
import { answering, canonical, deaf, drawTarget, hosts, ok, own, RawApi, spellings, wires, type RawRequest, type Target, type Wire } from './proxy-worlds.ts';

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
const openFiles = async (): Promise<number> => (await readdir('/proc/self/fd')).length;
const residentMb = async (): Promise<number> => (Number((await readFile('/proc/self/statm', 'latin1')).split(' ')[1]) * 4096) / 1024 / 1024;
const shown = (bytes: Buffer): string => JSON.stringify(bytes.toString('latin1').replace(/(.{1,5}?)\1{20,}/gs, '$1…').slice(0, 3000));

/** Plays until `total` were played, on so many lanes; fails for memory that grows. */
async function playAll<Lane>(t: TestContext, random: () => number, lanes: readonly Lane[], total: number, play: (chance: Chance, lane: Lane) => Promise<number>): Promise<void> {
  let [played, megabytesAtQuarter] = [0, 0];
  const startedAt = performance.now();
  await Promise.all(
    lanes.map(async (lane) => {
      while (played < total) {
        const count = await play(new Chance(seededRandom(Math.floor(random() * 2 ** 32))), lane);
        played += count;
        if (megabytesAtQuarter === 0 && played > total / 4) megabytesAtQuarter = await residentMb();
      }
    }),
  );
  const growth = (await residentMb()) - megabytesAtQuarter;
  t.diagnostic(`${played} in ${((performance.now() - startedAt) / 1000).toFixed(1)} s; memory grew ${growth.toFixed(1)} MB over the last three quarters`);
  assert.ok(growth < 96, `memory grew ${growth} MB`);
}

/** Counts answers by their name. */
class Tally {
  readonly #counts = new Map<string, number>();

  add(name: string | number | undefined): void {
    this.#counts.set(String(name), (this.#counts.get(String(name)) ?? 0) + 1);
  }

  toString(): string {
    return [...this.#counts].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, count]) => `${name} × ${count}`).join(', ');
  }
}

/** Asks again where a connection had nothing to say for 10 s, for a minute: this machine may have much else to do. */
async function patiently<T>(ask: () => Promise<T>, times = 6): Promise<T> {
  return ask().catch((error: unknown) => {
    if (times > 1 && String(error).includes('in vain')) return patiently(ask, times - 1);
    throw error;
  });
}

/** The next answer's status; undefined when the connection ended instead. */
async function statusOf(connection: Connection, isHead: boolean): Promise<number | undefined> {
  for (;;) {
    const answer = await patiently(() => connection.answer('an answer', isHead)).catch((error: unknown) => {
      if (String(error).includes('the connection ended before')) return undefined;
      throw error;
    });
    if (answer?.status !== 100) return answer?.status;
  }
}

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

const total = amount(1000, 100_000);

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

/** One CONNECT, by whoever; gives that it was one. */
async function playConnect(chance: Chance, lane: { socket: { path: string }; begin: () => void; end: () => void; names: Map<string, Target>; isListed: boolean; tally: Tally }, mark: string): Promise<number> {
  const { socket, begin, end, names, isListed, tally } = lane;
  const isOpen = chance.is(0.95);
  const target = drawTarget(chance, isListed, mark);
  const name = target.text.replace(/:443$/, '');
  const isItsOwn = name.includes(mark);
  names.set(name, isOpen || !isItsOwn ? target : { ...target, isAllowed: false });
  if (isOpen) begin();
  const connection = new Connection(connect({ path: socket.path, allowHalfOpen: true }));
  const line = chance.is(0.95) ? `CONNECT ${target.text}` : chance.pick([`GET http://${name}/`, `GET https://${name}/`, `POST ${target.text}`, `connect ${target.text}`, `CONNECT  ${target.text}`, `OPTIONS ${name}`]);
  const hasEarly = chance.is(0.2);
  const headers = chance.pick([[], ['Host: evil.example'], ['Proxy-Authorization: Basic eDp5'], ['Content-Length: 5'], ['Transfer-Encoding: chunked'], ['X: a', 'x: b', 'Connection: close']]);
  const bytes = Buffer.concat([Buffer.from(requestBytes(line, headers)), Buffer.from(hasEarly ? mark : '')]);
  const leaves = isOpen && chance.is(0.08);
  try {
    for (const piece of chance.is(0.8) ? [bytes] : chance.pieces(bytes, 4)) {
      void connection.send(piece);
      if (chance.is(0.2)) await pause(chance.int(0, 2));
    }
    if (leaves) return 1;
    const status = await statusOf(connection, true);
    tally.add(status);
    if (line !== `CONNECT ${target.text}`) assert.ok([400, 403, 431, undefined].includes(status) || line.startsWith('CONNECT  '), String(status));
    else if (!isOpen) assert.ok([400, 403, 431, undefined].includes(status), String(status));
    else if (target.status !== undefined) assert.equal(status, target.status);
    else assert.ok([400, 403, 431, 502, undefined].includes(status), String(status));
    if (status === 200) {
      if (!hasEarly) void connection.send(mark);
      await patiently(() => connection.received(mark));
      connection.endSide();
    }
    if (status !== undefined) await patiently(() => connection.ended());
  } catch (error) {
    throw new Error(`${isOpen ? 'in' : 'outside'} a turn, ${isListed ? 'a list' : 'public'}: ${String(error)}\n${shown(bytes)} ${JSON.stringify(target)}`, { cause: error });
  } finally {
    connection.hangUp();
    if (isOpen) end();
    if (isItsOwn && !leaves) names.delete(name); // what is left in the socket is of the next turn
  }
  return 1;
}

test(`drawn at random: of ${total} targets of CONNECT those that are allowed are connected to, and no other`, async (t) => {
  const openBefore = await openFiles();
  const tally = new Tally();
  const publicOnes = new Set([...answering, ...deaf].map(canonical));
  const wrong: string[] = [];
  const lookUp = (names: Map<string, Target>, host: string): readonly string[] => {
    if (!names.get(host)?.isAllowed) wrong.push(`${host} was looked up: ${JSON.stringify(names.get(host))}`);
    return names.get(host)?.found ?? [];
  };
  const worlds = [hosts, 'public' as const].map((list) => {
    const names = new Map<string, Target>();
    return { names, stage: new NetworkStage(t, { hosts: list, own, names: new Proxy({}, { get: (_, host) => () => lookUp(names, String(host)) }) }) };
  });
  let marks = 0;
  const lanes = (await Promise.all(
    worlds.map(async ({ names, stage }, i) => {
      await stage.put(answering[0] ?? '');
      for (const address of answering.flatMap(spellings)) stage.ports.set(address, stage.ports.get(answering[0] ?? '') ?? 0);
      const sockets = await Promise.all(Array.from({ length: 8 }, () => stage.openBeforeTurn()));
      return sockets.map((socket, user) => ({ socket, begin: () => socket.beginTurn({ user }), end: () => socket.endTurn(), close: () => socket.close(), stage, names, isListed: i === 0, tally }));
    }),
  )).flat();
  await playAll(t, randomOf(t), lanes, total, async (chance, lane) => {
    await playConnect(chance, lane, `m${(marks += 1)}`);
    assert.deepEqual(wrong, []);
    for (const address of lane.stage.dialled.splice(0)) assert.ok(publicOnes.has(canonical(address)), `${address} was connected to`);
    lane.stage.lookedUp.length = 0;
    lane.stage.logText = '';
    return 1;
  });
  t.diagnostic(String(tally));
  await until('the descriptors to be closed', async () => ((await openFiles()) <= openBefore + lanes.length + 2 ? true : undefined), 30_000);
});

type Fault = 'cut' | 'reset' | 'stall' | 'delay' | 'garble' | 'more' | 'early';

/** What goes wrong with an answer, and behind which of its bytes. */
interface Plan {
  readonly wire: Wire;
  readonly fault: Fault;
  readonly at: number;
}

const silentMs = isTorture ? 2000 : 5000;

/** Answers as planned. */
function answerBadly(socket: Socket, plan: Plan, chance: Chance, played: Set<Plan>): void {
  const { wire: { bytes, coding }, fault, at } = plan;
  played.add(plan);
  const rest = bytes.subarray(at);
  if (fault === 'garble') {
    const garbled = Buffer.from(bytes);
    garbled[at] = chance.is(0.5) ? (garbled[at] ?? 0) ^ (1 << chance.int(0, 7)) : chance.int(0, 255);
    socket.end(garbled); // a length that was garbled may want more
  } else if (fault === 'more') socket.end(Buffer.concat([bytes, bytes.subarray(0, at)]));
  else {
    socket.write(bytes.subarray(0, at), () => {
      if (fault === 'cut') socket.end();
      if (fault === 'reset' || fault === 'early') socket.resetAndDestroy();
      if (fault === 'delay') setTimeout(() => (coding === 'close' ? socket.end(rest) : socket.write(rest)), 2);
    });
  }
}

/** One broken answer of the API and a good one behind it, in a turn of its own. */
async function playFault(chance: Chance, socket: ProxySocket, stage: ApiStage, { plans, played }: { plans: Map<string, Plan>; played: Set<Plan> }, plan: Plan, tally: Tally): Promise<void> {
  const { wire, fault, at } = plan;
  const id = `id-${plans.size}`;
  plans.set(id, plan);
  socket.beginTurn(stage.limits());
  const isPlain = !wire.isStream && fault === 'stall' && at >= wire.headBytes; // may take ten minutes
  const leaving = isPlain ? AbortSignal.timeout(chance.int(1, 200)) : undefined;
  const body = messageBody({ messages: [{ role: 'user', content: id }], ...(fault === 'early' && { system: 'x'.repeat(200_000) }) });
  const startedAt = performance.now();
  const askBadly = (): Promise<ApiReply | undefined> => ask(socket, { body, ...(leaving && { signal: leaving }) }).catch(() => undefined);
  // Again, as the CLI does: a connection that was kept may just have ended.
  let reply = await askBadly();
  for (let i = 0; i < 9 && reply === undefined && !played.has(plan) && !leaving?.aborted; i += 1) reply = await pause(20 * i).then(askBadly);
  const tookMs = performance.now() - startedAt;
  let [isFirst, good] = [true, await ask(socket).catch(() => undefined)];
  for (let i = 0; i < 9 && good === undefined; i += 1) [isFirst, good] = [false, await pause(20 * i).then(() => ask(socket)).catch(() => undefined)];
  if (!played.delete(plan)) return void socket.endTurn();
  const { tokens, lastFailure } = socket.endTurn();
  tally.add(`${fault}: ${reply?.status ?? 'cut'}`);
  const label = `${fault} at ${at} of ${wire.bytes.length}, ${wire.status} ${wire.coding}${wire.isStream ? ', a stream' : ''}: ${JSON.stringify([reply, tokens, lastFailure])}`;
  assert.deepEqual([good?.status, good?.body], [200, ok.payload.toString()], label);
  assert.ok(tookMs < 60_000, `${tookMs} ms: ${label}`);
  const spent = { ...tokens, input: tokens.input - 1000, output: tokens.output - 100, cacheWrite: tokens.cacheWrite - 20, cacheRead: tokens.cacheRead - 3 };
  assert.ok(Object.values(spent).every((count) => Number.isFinite(count) && count >= 0), label);
  if (reply === undefined && fault !== 'stall' && tookMs > silentMs * 0.9) return; // this machine had much else to do
  if (fault === 'garble' && !wire.isPayload(at)) {
    if (reply === undefined) assert.ok(lastFailure !== undefined, `no failure is told: ${label}`);
    return;
  }
  const isEndTold = wire.coding !== 'close' || fault === 'reset' || fault === 'early';
  const isWhole = ['delay', 'more', 'garble'].includes(fault) || (fault !== 'stall' && (at === wire.bytes.length || (!isEndTold && at >= wire.headBytes))) || (fault === 'stall' && wire.coding !== 'close' && at === wire.bytes.length);
  const mayLose = fault === 'reset' || fault === 'early'; // what was on its way
  // Data and a reset at once look like an end to libuv; it may come within a letter.
  if (mayLose && wire.coding === 'close' && reply !== undefined) assert.ok(wire.payload.toString().startsWith(reply.body.replace(/\ufffd$/, '')), label);
  else if (!isWhole || (reply === undefined && mayLose)) {
    assert.equal(reply, undefined, label);
    if (leaving === undefined && isFirst) assert.ok(lastFailure !== undefined && [undefined, wire.status].includes(lastFailure.status), label);
  } else {
    assert.equal(reply?.status, wire.status, label);
    assert.equal(reply.headers['set-cookie'], undefined);
    if (fault !== 'garble') assert.equal(reply.body, wire.payload.toString('utf8', 0, fault === 'cut' ? wire.payloadIn(at) : undefined), label);
    if (wire.status >= 400 && fault !== 'garble' && isFirst) assert.deepEqual([lastFailure?.status, typeof lastFailure?.type], [wire.status, 'string'], label);
  }
  if (fault === 'garble' || leaving !== undefined) return;
  const { mostOutput, ...right } = wire.tokensIn(['delay', 'more'].includes(fault) ? wire.bytes.length : at);
  if (mayLose && spent.input < right.input) return assert.equal(spent.output, 0, label);
  assert.deepEqual({ ...spent, output: 0 }, { ...right, output: 0 }, label);
  assert.ok(spent.output <= mostOutput && (mayLose || spent.output >= right.output), label);
}

test('an answer that breaks at any of its bytes, in any way, is cut or passed on, its tokens are counted, and the next one is right', async (t) => {
  const openBefore = await openFiles();
  const chance = new Chance(randomOf(t));
  const faults: Fault[] = ['cut', 'reset', 'stall', 'delay', 'garble', 'more', 'early'];
  const all = wires.flatMap((wire) => Array.from({ length: wire.bytes.length + 1 }, (_, at) => faults.map((fault) => ({ wire, fault, at })))).flat();
  const usable = all.filter(({ wire, fault, at }) => !(fault === 'garble' && at === wire.bytes.length) && !(fault === 'more' && (at === 0 || wire.coding === 'close')));
  const todo = isTorture ? usable : Array.from({ length: 400 }, () => ({ ...chance.pick(usable) })); // copies: one that is drawn twice is played twice
  const [api, plans, played, tally] = [new RawApi(), new Map<string, Plan>(), new Set<Plan>(), new Tally()];
  const stage = await setStage(t, { upstreamUrl: await api.start(t), firstByteMs: silentMs, idleMs: silentMs });
  const planOf = (body: Buffer): Plan | undefined => plans.get(/id-\d+/.exec(body.toString('latin1'))?.[0] ?? '');
  api.answer = (socket, { body }) => {
    const plan = planOf(body);
    if (plan === undefined) socket.write(ok.bytes);
    else answerBadly(socket, plan, chance, played);
  };
  api.answerEarly = (socket, begun) => {
    const plan = planOf(begun);
    if (plan?.fault !== 'early') return false;
    answerBadly(socket, plan, chance, played);
    return true;
  };
  const sockets = await Promise.all(Array.from({ length: 64 }, () => stage.open()));
  await Promise.all(
    sockets.map(async (socket) => {
      for (let plan = todo.pop(); plan !== undefined; plan = todo.pop()) {
        await playFault(chance, socket, stage, { plans, played }, plan, tally);
        assert.ok(!stage.logText.includes('"bug"'), stage.logText);
        stage.logText = '';
      }
    }),
  );
  t.diagnostic(`${plans.size} answers: ${tally}`);
  assert.deepEqual(api.wrong, []);
  await Promise.all(sockets.map((socket) => socket.close()));
  stage.proxy?.close();
  api.close();
  await until('the descriptors to be closed', async () => ((await openFiles()) <= openBefore ? true : undefined), 30_000);
});
