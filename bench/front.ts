import { readFile } from 'node:fs/promises';
import { Agent as PlainAgent, request as plainRequest, type ClientRequest, type IncomingMessage } from 'node:http';
import { Agent, request } from 'node:https';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { Front, Machine, noHaproxy } from '../test/many/front.ts';
import { apiKey } from '../test/running-server.ts';
import { median, ms, row, timed } from './rows.ts';

type Send = (userId: number, body: string) => Promise<string>;

/**
 * Follow-ups over three servers with the fake CLI, through HAProxy with TLS and a connection for each, and past it on kept
 * connections; both taking turns. Without HAProxy here there are no such rows.
 */
export async function manyMachines(): Promise<void> {
  if (noHaproxy !== false) return;
  const ends: (() => Promise<void> | void)[] = [];
  // What these helpers ask of a test is that it ends them.
  const t = { after: (end: () => Promise<void> | void) => ends.push(end) } as unknown as TestContext;
  try {
    const machines = await Promise.all([1, 2, 3].map((number) => Machine.start(t, number, { CLAUDE_MAX_CONCURRENT_REQUESTS: '20' })));
    await measure(await Front.start(t, machines), machines);
  } finally {
    for (const end of ends.reverse()) await end();
  }
}

async function measure(front: Front, machines: readonly Machine[]): Promise<void> {
  const agent = new Agent({ ca: await readFile(join(front.folder, 'cert.pem'), 'utf8') });
  const kept = new PlainAgent({ keepAlive: true });
  const options = { path: '/api/v1/chat', method: 'POST', headers: { Authorization: `Bearer ${apiKey}`, 'Content-Type': 'application/json' } };
  const through: Send = (_, body) => sent((onAnswer) => request({ ...options, host: 'localhost', port: front.tlsPort, agent }, onAnswer), body);
  const direct: Send = (userId, body) => {
    const [host, port] = machines[(userId % 64) % 3]?.address.split(':') ?? [];
    return sent((onAnswer) => plainRequest({ ...options, host, port, agent: kept }, onAnswer), body);
  };
  const userIds = Array.from({ length: 24 }, (_, i) => i + 1);
  const sessions = new Map<number, string>();
  const turn = async (send: Send, userId: number): Promise<void> => {
    const session = sessions.get(userId);
    const answer = JSON.parse(await send(userId, JSON.stringify({ user_id: userId, prompt: 'hello', ...(session && { session_id: session }) }))) as { session_id?: string };
    if (answer.session_id === undefined) throw new Error(`a turn failed: ${JSON.stringify(answer)}`);
    sessions.set(userId, answer.session_id);
  };
  for (const userId of userIds) await turn(through, userId);

  const [alone, all] = [{ direct: [] as number[], through: [] as number[] }, { direct: [] as number[], through: [] as number[] }];
  for (let i = 0; i < 100; i += 1) {
    alone.direct.push(await timed(() => turn(direct, 1)));
    alone.through.push(await timed(() => turn(through, 1)));
  }
  const turnsEach = 10;
  const burst = (send: Send): Promise<number> => timed(() => Promise.all(userIds.map(async (userId) => {
    for (let i = 0; i < turnsEach; i += 1) await turn(send, userId);
  })));
  const cpuBefore = await front.cpuMs();
  const rounds = 3;
  for (let round = 0; round < rounds; round += 1) {
    all.direct.push(await burst(direct));
    all.through.push(await burst(through));
  }
  const cpuMsPerTurn = ((await front.cpuMs()) - cpuBefore) / (rounds * turnsEach * userIds.length);
  const perSecond = (ms: number): number => (turnsEach * userIds.length * 1000) / ms;
  kept.destroy();
  const [direct1, through1] = [median(alone.direct), median(alone.through)];
  row('what HAProxy with TLS adds to a follow-up, p50', `${ms(through1)} - ${ms(direct1)} = ${ms(through1 - direct1)}`, '≤ 10 ms', through1 - direct1 <= 10);
  const rates = [all.through, all.direct].map((times) => perSecond(median(times)).toFixed(0)).join(' : ');
  const perCore = 1000 / cpuMsPerTurn;
  const figure = `${rates} turns/s past it; ${ms(cpuMsPerTurn)} of a core for a turn: ${perCore.toFixed(0)} a second`;
  row('three machines behind one HAProxy', figure, '≥ 500 a second on a core', perCore >= 500);
}

function sent(open: (onAnswer: (res: IncomingMessage) => void) => ClientRequest, body: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const req = open((res) => {
      let text = '';
      res.setEncoding('utf8').on('data', (part: string) => (text += part));
      res.on('end', () => resolve(text));
      res.on('error', reject);
    });
    req.on('error', reject);
    req.end(body);
  });
}
