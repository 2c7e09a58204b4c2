import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createServer, Socket } from 'node:net';
import { text } from 'node:stream/consumers';
import { test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { createLog } from '../../src/log.ts';
import { createAddressCheck } from '../../src/sandbox/addresses.ts';
import type { ProxySocket } from '../../src/sandbox/api-socket.ts';
import { createNetworkProxy, withNetwork, type NetworkSocket } from '../../src/sandbox/network-proxy.ts';
import { requestBytes, type Connection } from '../http-client.ts';
import { needs } from '../needs.ts';
import { NetworkStage } from '../network-stage.ts';
import { until, within } from '../running-server.ts';

const [here, there] = ['93.184.215.14', '93.184.215.15'];

/** A stage with allowed.example at `here`, where everything said comes back. */
async function setStage(t: TestContext, options: ConstructorParameters<typeof NetworkStage>[1] = {}): Promise<NetworkStage> {
  const stage = new NetworkStage(t, { hosts: ['allowed.example', '*.below.example'], ...options, names: { 'allowed.example': [here], ...options.names } });
  await stage.put(here);
  return stage;
}

async function echoes(connection: Connection, text: string): Promise<void> {
  void connection.send(text);
  await connection.received(text);
}

test('an allowed host is reached, at the address its name has, and bytes pass both ways', async (t) => {
  const warnings: Error[] = [];
  const onWarning = (warning: Error): void => void warnings.push(warning);
  process.on('warning', onWarning);
  t.after(() => process.off('warning', onWarning));
  const stage = await setStage(t);
  const { connection, status } = await stage.tunnel(await stage.open(), 'allowed.example:443');
  assert.equal(status, 200);
  await echoes(connection, 'hello');
  await echoes(connection, 'x'.repeat(1_000_000));
  connection.endSide();
  await connection.ended();
  assert.deepEqual([stage.dialled, stage.refused, warnings], [[here], [], []]);
});

test('what is sent along with CONNECT arrives', async (t) => {
  const stage = await setStage(t, { names: { 'Allowed.Example.': [here] } });
  const connection = await stage.connect(await stage.open());
  void connection.send(Buffer.concat([requestBytes('CONNECT Allowed.Example.:443'), Buffer.from('early')]));
  await connection.received('early');
});

/** A name of 253 letters, the most that DNS has. */
const longest = `${'a.'.repeat(120)}below.example`;

test('a wildcard has what is below it', async (t) => {
  const stage = await setStage(t, { names: { 'a.b.below.example': [here], [longest]: [here], 'below.example': [here], 'evilbelow.example': [here] } });
  const socket = await stage.open();
  for (const host of ['a.b.below.example', longest]) assert.equal((await stage.tunnel(socket, `${host}:443`)).status, 200);
  for (const host of ['below.example', 'evilbelow.example']) assert.equal((await stage.tunnel(socket, `${host}:443`)).status, 403);
  assert.deepEqual(stage.dialled, [here, here]);
});

test('a host that is not in the list is named to who asked and in the log, and not even looked up', async (t) => {
  const stage = await setStage(t, { names: { 'other.example': [here] } });
  const socket = await stage.open();
  const { connection, status, body } = await stage.tunnel(socket, 'other.example:443');
  assert.deepEqual([status, body], [403, 'other.example is not in CLAUDE_NETWORK.\n']);
  await connection.ended();
  await stage.tunnel(socket, 'other.example:443');
  assert.deepEqual([stage.dialled, stage.lookedUp, stage.refused], [[], [], ['other.example']]);
  assert.equal(stage.lines[0]?.['user'], 7);
});

for (const target of [
  'allowed.example:80', 'allowed.example:22', 'allowed.example:0443', 'allowed.example:4430', 'allowed.example:', 'allowed.example', ':443', '443', 'allowed.example:443:443', 'user@allowed.example:443',
  'https://allowed.example:443', 'https://allowed.example/', '/', '*', '[allowed.example]:443', '[93.184.215.14]:443', 'allowed.example%00.evil:443', 'allowed.example#:443', `a${longest}:443`, `${'a.'.repeat(5000)}example:443`,
]) {
  test(`no target: ${target.slice(0, 40)}`, async (t) => {
    const stage = await setStage(t, { hosts: 'public' });
    const connection = await stage.connect(await stage.open());
    void connection.send(requestBytes(`CONNECT ${target}`));
    assert.match(await connection.ended(), /^HTTP\/1\.1 40[03] /);
    assert.deepEqual([stage.dialled, stage.lookedUp], [[], []]);
  });
}

test('CONNECT without a target, and what is not CONNECT, leads nowhere', async (t) => {
  const stage = await setStage(t);
  const socket = await stage.open();
  for (const line of ['CONNECT ', 'GET http://allowed.example/', 'GET /', 'POST https://allowed.example:443/', 'OPTIONS *', 'PRI *']) {
    const connection = await stage.connect(socket);
    void connection.send(requestBytes(line));
    assert.match(await connection.ended(), /^HTTP\/1\.1 4\d\d /, line);
  }
  const connection = await stage.connect(socket);
  void connection.send('GET http://allowed.example/ HTTP/1.1\r\nHost: allowed.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n');
  assert.match(await connection.ended(), /^HTTP\/1\.1 403 [^]*\r\nconnection: close\r\n/);
  assert.deepEqual(stage.dialled, []);
});

const notPublic = [
  '127.0.0.1', '127.8.8.8', '0.0.0.0', '10.0.0.1', '100.64.0.1', '169.254.169.254', '172.16.0.1', '192.168.0.1', '198.18.0.1', '192.0.0.8', '224.0.0.1', '240.0.0.1', '255.255.255.255',
  '::1', '::', '::ffff:127.0.0.1', '::ffff:7f00:1', '::ffff:93.184.215.14', '64:ff9b::7f00:1', '64:ff9b::93.184.215.14', '64:ff9b:1::1', '2002:7f00:1::1', '2002:5db8:d70e::1', '2001:0:7f00:1::1',
  'fe80::1', 'fec0::1', 'fc00::1', 'fd00:ec2::254', 'ff02::1', '2001:db8::1', '5.9.10.11', '5.9.10.20', '2a01:4f8:1:2::1', '2a01:4f8:1:2::99',
];

test('a name with an address that is not public is refused, wherever it stands', async (t) => {
  const stage = await setStage(t, { names: { 'allowed.example': [...notPublic] }, own: ['5.9.10.11/27', '2a01:4f8:1:2::1/64'] });
  const { status, body } = await stage.tunnel(await stage.open(), 'allowed.example:443');
  assert.deepEqual([status, body], [403, 'allowed.example has no public address.\n']);
  assert.deepEqual([stage.dialled, stage.refused], [[], ['allowed.example']]);
});

test('among several addresses only public ones are tried, until one answers', async (t) => {
  const stage = await setStage(t, { names: { 'allowed.example': [...notPublic, there, here, '93.184.215.16'] }, own: ['5.9.10.11/27', '2a01:4f8:1:2::1/64'] });
  assert.equal((await stage.tunnel(await stage.open(), 'allowed.example:443')).status, 200);
  assert.deepEqual(stage.dialled, [there, here]);
});

test('an address in the place of a name is checked like one that was looked up', async (t) => {
  const stage = await setStage(t, { hosts: 'public', own: ['5.9.10.11/27', '2a01:4f8:1:2::1/64'] });
  const socket = await stage.open();
  for (const address of notPublic) {
    const { status } = await stage.tunnel(socket, `${address.includes(':') ? `[${address}]` : address}:443`);
    assert.equal(status, 403, address);
  }
  // As getaddrinfo(3) would read them; here they are names that nobody has.
  for (const spelling of ['127.1', '2130706433', '0x7f000001', '0x7f.0.0.1', '0177.0.0.1', '017700000001', '127.0.0.1.', 'localhost', '0', '169.254.43518']) {
    const { status } = await stage.tunnel(socket, `${spelling}:443`);
    assert.ok(status === 403 || status === 502, spelling);
  }
  assert.deepEqual(stage.dialled, []);
  assert.equal((await stage.tunnel(socket, `${here}:443`)).status, 200);
  await stage.put('2606:4700::6810:1822');
  assert.equal((await stage.tunnel(socket, '[2606:4700::6810:1822]:443')).status, 200);
  assert.deepEqual(stage.dialled, [here, '2606:4700::6810:1822']);
});

test('an address that is in no list of hosts is refused with one', async (t) => {
  const stage = await setStage(t);
  assert.equal((await stage.tunnel(await stage.open(), `${here}:443`)).status, 403);
  assert.deepEqual(stage.dialled, []);
});

test('a name that resolves otherwise the second time is connected to where it was checked', async (t) => {
  let asked = 0;
  const stage = await setStage(t, { names: { 'allowed.example': () => ((asked += 1) === 1 ? [here] : ['127.0.0.1']) } });
  const socket = await stage.open();
  assert.equal((await stage.tunnel(socket, 'allowed.example:443')).status, 200);
  assert.deepEqual([asked, stage.dialled], [1, [here]]);
  assert.equal((await stage.tunnel(socket, 'allowed.example:443')).status, 403);
  assert.deepEqual([asked, stage.dialled], [2, [here]]);
});

test('a name that nobody has, and an address where nobody is, are a 502 that is no news for the log', async (t) => {
  const stage = await setStage(t, { names: { 'nobody.below.example': Array<string>(6).fill(there), 'broken.below.example': () => Promise.reject(new Error('no DNS')) } });
  const socket = await stage.open();
  assert.deepEqual((await stage.tunnel(socket, 'unknown.below.example:443')).body, 'No connection (unknown host).\n');
  assert.equal((await stage.tunnel(socket, 'broken.below.example:443')).status, 502);
  assert.deepEqual((await stage.tunnel(socket, 'nobody.below.example:443')).body, 'No connection (ECONNREFUSED).\n');
  assert.equal(stage.dialled.length, 4, 'of many addresses the first four are tried');
  assert.deepEqual(stage.lines, []);
});

test('without a turn nothing is connected; with its end everything is cut', async (t) => {
  let find = (_addresses: string[]): void => {};
  const stage = await setStage(t, { names: { 'slow.below.example': () => new Promise((resolve) => (find = resolve)) } });
  const socket = await stage.open();
  const { connection } = await stage.tunnel(socket, 'allowed.example:443');
  await echoes(connection, 'hello');
  const late = await stage.connect(socket);
  void late.send(requestBytes('CONNECT slow.below.example:443'));
  await until('a look-up', () => stage.lookedUp.includes('slow.below.example') || undefined);
  socket.endTurn();
  await connection.ended();
  await late.ended();
  find([here]);
  const { status, body } = await stage.tunnel(socket, 'allowed.example:443');
  assert.deepEqual([status, body], [403, 'The network is closed between turns.\n']);
  socket.beginTurn({ user: 7 });
  assert.equal((await stage.tunnel(socket, 'allowed.example:443')).status, 200);
  assert.deepEqual(stage.dialled, [here, here]);
});

test('before the first turn it is open for as long as the operator\'s own servers need, and then cut', async (t) => {
  const stage = await setStage(t, { startMs: 1500 });
  const socket = await stage.openBeforeTurn();
  const { connection } = await stage.tunnel(socket, 'allowed.example:443');
  await echoes(connection, 'hello');
  await connection.ended();
  assert.equal((await stage.tunnel(socket, 'allowed.example:443')).status, 403);
  const other = await stage.openBeforeTurn();
  const startedAt = performance.now();
  const kept = await stage.tunnel(other, 'allowed.example:443');
  other.beginTurn({ user: 7 });
  await until('more than the start', () => (performance.now() - startedAt > 2000 ? true : undefined));
  await echoes(kept.connection, 'still there');
  other.endTurn();
  await kept.connection.ended();
});

test('a cut on one side ends the other', async (t) => {
  const stage = await setStage(t);
  const sides: Socket[] = [];
  const server = createServer((side) => void sides.push(side.on('error', () => {})));
  await stage.put(here, server);
  const socket = await stage.open();
  const { connection } = await stage.tunnel(socket, 'allowed.example:443');
  await until('the other side', () => sides[0]);
  sides[0]?.resetAndDestroy();
  await connection.ended();
  const second = await stage.tunnel(socket, 'allowed.example:443');
  await until('the other side', () => sides[1]);
  const closed = new Promise((resolve) => sides[1]?.once('close', resolve).resume());
  second.connection.hangUp();
  await closed;
});

test('who leaves while the connection is being made leaves none', async (t) => {
  const stage = await setStage(t, { names: { 'slow.below.example': () => new Promise((resolve) => setTimeout(resolve, 200, [here])) } });
  let closed = false;
  await stage.put(here, createServer((side) => void side.on('error', () => {}).on('close', () => (closed = true)).resume()));
  const connection = await stage.connect(await stage.open());
  void connection.send(requestBytes('CONNECT slow.below.example:443'));
  await until('a look-up', () => stage.lookedUp[0]);
  connection.hangUp();
  await until('the end of what was made', () => closed || undefined);
});

test('an address that does not answer is given up, and with its turn at once', async (t) => {
  const stage = await setStage(t);
  const made = new Socket();
  const options = { hosts: 'public', addresses: createAddressCheck(), log: createLog('json', { write: () => {} }), dial: () => made } as const;
  stage.proxy = createNetworkProxy({ ...options, dial: () => new Socket(), connectMs: 100 });
  assert.equal((await stage.tunnel(await stage.open(), `${here}:443`)).body, 'No connection (ETIMEDOUT).\n');
  stage.proxy = createNetworkProxy(options);
  const socket = await stage.open();
  const connection = await stage.connect(socket);
  void connection.send(requestBytes(`CONNECT ${here}:443`));
  await until('the attempt', () => made.listenerCount('connect') || undefined);
  socket.endTurn();
  await until('its end', () => made.destroyed || undefined, 5000); // before the attempt is given up
});

test('a folder that is not there is an error', async (t) => {
  await assert.rejects((await setStage(t)).proxy.open('/nowhere/at/all'), { code: /^(ENOENT|EACCES)$/ });
});

test('beside the API the network is open in the same turns, for the same user', async () => {
  const calls: unknown[] = [];
  const part = (name: string): object => ({
    path: '/x/s',
    beginTurn: (given: unknown) => void calls.push([name, given]),
    endTurn: () => void calls.push([name, 'end']),
    close: async () => void calls.push([name, 'close']),
  });
  const both = await withNetwork(part('api') as ProxySocket, { open: async () => part('network') as NetworkSocket });
  const limits = { maxRequests: 1, onTooManyRefusals: () => {}, logFields: { user: 7 } };
  both.beginTurn(limits);
  both.endTurn();
  await both.close();
  assert.deepEqual(calls, [['api', limits], ['network', { user: 7 }], ['network', 'end'], ['api', 'end'], ['network', 'close'], ['api', 'close']]);
});

test('where the network cannot be opened the API is closed too', async () => {
  let isClosed = false;
  const api = { path: '/x/s', close: async () => void (isClosed = true) } as unknown as ProxySocket;
  await assert.rejects(withNetwork(api, { open: () => Promise.reject(new Error('no place')) }), /no place/);
  assert.ok(isClosed);
});

test('who leaves before the answer does no harm', async (t) => {
  let find = (_addresses: string[]): void => {};
  const stage = await setStage(t, { names: { 'slow.below.example': () => new Promise((resolve) => (find = resolve)) } });
  const socket = await stage.open();
  const connection = await stage.connect(socket);
  void connection.send(requestBytes('CONNECT slow.below.example:443'));
  await until('a look-up', () => stage.lookedUp[0]);
  connection.hangUp();
  find([]);
  assert.equal((await stage.tunnel(socket, 'allowed.example:443')).status, 200);
});

test('a head that drips and a flow that falls silent are cut', async (t) => {
  const stage = await setStage(t, { connectMs: 1500, idleMs: 1500 });
  const socket = await stage.open();
  const drip = await stage.connect(socket);
  const timer = setInterval(() => void drip.send('C'), 50);
  t.after(() => clearInterval(timer));
  assert.match(await drip.ended(), /^HTTP\/1\.1 4/);
  clearInterval(timer);
  const { connection } = await stage.tunnel(socket, 'allowed.example:443');
  await echoes(connection, 'hello');
  await connection.ended();
});

test('of 2,000 connections of one process 64 stand, and another process is served', async (t) => {
  const stage = await setStage(t);
  const [socket, other] = [await stage.open(), await stage.open()];
  let open = 0;
  const tries = Array.from({ length: 2000 }, async () => {
    const { status } = await stage.tunnel(socket, 'allowed.example:443');
    if (status === 200) open += 1;
  });
  await Promise.allSettled(tries);
  assert.equal(open, 64);
  assert.equal(stage.dialled.length, 64);
  assert.equal((await stage.tunnel(other, 'allowed.example:443')).status, 200);
});

test('all processes of one user together have 128, whoever waits for a refusal to end not counted, and another user is served', async (t) => {
  const stage = await setStage(t, { startMs: 10_000 });
  const sockets = await Promise.all(Array.from({ length: 5 }, () => stage.openBeforeTurn()));
  const statuses: number[] = [];
  for (const socket of sockets) {
    // What was there before the turn counts too.
    const tunnels = [await stage.tunnel(socket, 'allowed.example:443')];
    socket.beginTurn({ user: 7 });
    tunnels.push(...(await Promise.all(Array.from({ length: 51 }, () => stage.tunnel(socket, 'allowed.example:443')))));
    statuses.push(...tunnels.map(({ status }) => status));
  }
  // The last two were let in before it was known whose they are.
  assert.deepEqual([statuses.filter((status) => status === 200).length, statuses.filter((status) => status === 503).length], [130, 130]);
  const other = await stage.openBeforeTurn();
  other.beginTurn({ user: 8 });
  assert.equal((await stage.tunnel(other, 'allowed.example:443')).status, 200);
  sockets[0]?.endTurn();
  await until('room', async () => (await stage.tunnel(sockets[4] ?? assert.fail(), 'allowed.example:443')).status === 200 || undefined);
});

test('all users together have 1,024', async (t) => {
  const stage = await setStage(t);
  const statuses: number[] = [];
  for (let user = 1; user <= 17; user += 1) {
    const socket = await stage.openBeforeTurn();
    socket.beginTurn({ user });
    const tunnels = await Promise.all(Array.from({ length: 62 }, () => stage.tunnel(socket, 'allowed.example:443')));
    statuses.push(...tunnels.map(({ status }) => status));
  }
  assert.deepEqual([statuses.filter((status) => status === 200).length, statuses.filter((status) => status === 503).length], [1024, 30]);
});

test('who was refused and goes on sending, a byte now and then, is cut all the same', async (t) => {
  const stage = await setStage(t);
  const { connection, status } = await stage.tunnel(await stage.open(), 'other.example:443');
  assert.equal(status, 403);
  const timer = setInterval(() => void connection.send('x'), 500);
  t.after(() => clearInterval(timer));
  await until('the cut', () => connection.isReset || undefined, 10_000);
});

test('whoever tries names by the hundred writes no more than twenty lines of the log in a turn', async (t) => {
  const stage = await setStage(t);
  const socket = await stage.open();
  for (let i = 0; i < 100; i += 1) (await stage.tunnel(socket, `host${i}.example:443`)).connection.hangUp();
  assert.equal(stage.lines.length, 20);
  socket.endTurn();
  socket.beginTurn({ user: 7 });
  await stage.tunnel(socket, 'host99.example:443');
  assert.equal(stage.lines.length, 21);
});

test('by itself the proxy asks DNS, and of this machine\'s own names it gives nothing', async (t) => {
  const stage = new NetworkStage(t, {});
  stage.proxy = createNetworkProxy({ hosts: 'public', addresses: createAddressCheck(), log: createLog('json', { write: () => {} }) });
  const { status } = await stage.tunnel(await stage.open(), 'localhost:443');
  assert.ok(status === 403 || status === 502, String(status));
});

test('by itself it asks the DNS server of the system, connects to what that says, and knows the machine\'s own public address', { skip: needs(['root', 'ip', 'unshare'], 'makes a network of its own') }, async (t) => {
  const world = fileURLToPath(new URL('../network-world.ts', import.meta.url));
  const child = spawn('unshare', ['--net', '--mount', '--', process.execPath, '--import', import.meta.resolve('tsx'), world], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  const answers: unknown = JSON.parse(await within('the answers', 30_000, text(child.stdout)));
  const own = '403 site.example has no public address';
  assert.deepEqual(answers, ['hello', '502 No connection (unknown host)', own, own.replace('site.example', '93.184.215.14')]);
});
