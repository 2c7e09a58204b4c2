import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { test } from 'node:test';
import { Connection, requestBytes } from '../http-client.ts';
import { NetworkStage } from '../network-stage.ts';
import { randomOf } from '../random.ts';
import { until } from '../running-server.ts';
import type { Chance } from './chance.ts';
import { openFiles, patiently, pause, playAll, shown, statusOf, Tally, total } from './proxy-play.ts';
import { answering, canonical, deaf, drawTarget, hosts, own, spellings, type Target } from './proxy-worlds.ts';

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
