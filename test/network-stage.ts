import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, createServer, type AddressInfo, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import type { HostList } from '../src/host/host-list.ts';
import { createLog } from '../src/log.ts';
import { createAddressCheck } from '../src/sandbox/addresses.ts';
import { createNetworkProxy, type NetworkProxy, type NetworkSocket } from '../src/sandbox/network-proxy.ts';
import { Connection, requestBytes } from './http-client.ts';
import { within, type LogLine } from './running-server.ts';

/** What a name resolves to: the same each time, or as a function says. */
export type Names = Readonly<Record<string, readonly string[] | (() => readonly string[] | Promise<readonly string[]>)>>;

interface WorldOptions {
  readonly hosts?: HostList;
  readonly names?: Names;
  /** Addresses of this machine, each as a network. */
  readonly own?: readonly string[];
  readonly startMs?: number;
  readonly connectMs?: number;
  readonly idleMs?: number;
}

/** A network proxy over a world of the test's: names, and what is at port 443 of their addresses, which are ports of 127.0.0.1. */
export class NetworkStage {
  /** Every address that was connected to, in order. */
  readonly dialled: string[] = [];
  /** Every name that was looked up. */
  readonly lookedUp: string[] = [];
  /** The ports of 127.0.0.1 that stand for addresses. */
  readonly ports = new Map<string, number>();
  proxy: NetworkProxy;
  logText = '';
  readonly #t: TestContext;

  constructor(t: TestContext, { hosts = 'public', names = {}, own = [], ...times }: WorldOptions) {
    this.#t = t;
    const interfaces = (): ReturnType<typeof import('node:os').networkInterfaces> => ({
      eth0: own.map((cidr) => ({ address: cidr.replace(/\/.*/, ''), cidr, netmask: '', mac: '', internal: false, family: 'IPv4' })),
    });
    this.proxy = createNetworkProxy({
      hosts,
      addresses: createAddressCheck(interfaces),
      log: createLog('json', { write: (line) => (this.logText += line) }),
      resolve: async (host) => {
        this.lookedUp.push(host);
        const known = names[host] ?? [];
        return typeof known === 'function' ? known() : known;
      },
      dial: (address) => {
        this.dialled.push(address);
        return connect({ host: '127.0.0.1', port: this.ports.get(address) ?? 1, allowHalfOpen: true });
      },
      ...times,
    });
  }

  get lines(): LogLine[] {
    return this.logText.split('\n').filter(Boolean).map((line) => JSON.parse(line) as LogLine);
  }

  /** Hosts that were refused, in the log's order. */
  get refused(): unknown[] {
    return this.lines.filter(({ event }) => event === 'network_refused').map(({ host }) => host);
  }

  /** Something that listens on a port of 127.0.0.1 stands for this address from now on. */
  async put(address: string, server: Server = createServer((socket) => socket.on('error', () => {}).pipe(socket))): Promise<Server> {
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    this.ports.set(address, (server.address() as AddressInfo).port);
    this.#t.after(() => server.close());
    return server;
  }

  /** A socket of one more process, in a turn. */
  async open(folder?: string): Promise<NetworkSocket & { readonly path: string }> {
    const socket = await this.openBeforeTurn(folder);
    socket.beginTurn({ user: 7 });
    return socket;
  }

  async openBeforeTurn(folder?: string): Promise<NetworkSocket & { readonly path: string }> {
    const own = folder ?? (await this.#makeFolder());
    const socket = await this.proxy.open(own);
    this.#t.after(() => socket.close());
    return { ...socket, path: join(own, 'n') };
  }

  /** A connection to the proxy. */
  async connect({ path }: { readonly path: string }): Promise<Connection> {
    const socket = connect({ path, allowHalfOpen: true });
    const connection = new Connection(socket);
    this.#t.after(() => connection.hangUp());
    await within('a connection', 10_000, once(socket, 'connect'));
    return connection;
  }

  /** The same, and what the proxy says to CONNECT. */
  async tunnel(socket: { readonly path: string }, target: string): Promise<{ readonly connection: Connection; readonly status: number; readonly body: string }> {
    const connection = await this.connect(socket);
    void connection.send(requestBytes(`CONNECT ${target}`));
    return { connection, ...(await connection.answer(`an answer to CONNECT ${target}`)) };
  }

  async #makeFolder(): Promise<string> {
    const folder = await mkdtemp(join(tmpdir(), 'network-'));
    this.#t.after(() => rm(folder, { recursive: true, force: true }));
    return folder;
  }
}
