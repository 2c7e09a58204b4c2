import assert from 'node:assert/strict';
import type { Socket } from 'node:net';
import { test } from 'node:test';
import type { ProxySocket } from '../../src/sandbox/api-socket.ts';
import { ask, messageBody, setStage, type ApiReply, type ApiStage } from '../api-stage.ts';
import { isTorture, randomOf } from '../random.ts';
import { until } from '../running-server.ts';
import { Chance } from './chance.ts';
import { openFiles, pause, Tally } from './proxy-play.ts';
import { ok, RawApi, wires, type Wire } from './proxy-worlds.ts';

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
  const isUnended = at < wire.bytes.length || wire.coding === 'close';
  const mayTakeMinutes = !wire.isStream && fault === 'stall' && at >= wire.headBytes && isUnended; // ten of them
  const leaving = mayTakeMinutes ? AbortSignal.timeout(chance.int(1, 200)) : undefined;
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
