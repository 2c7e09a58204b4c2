import { Resolver } from 'node:dns/promises';
import { createServer } from 'node:http';
import { connect, isIP, type Socket } from 'node:net';
import { dirname, join } from 'node:path';
import { pipeline } from 'node:stream';
import { hasHost, type HostList } from '../host/host-list.ts';
import type { Fields, Log } from '../log.ts';
import { errorCode } from '../problem.ts';
import type { AddressCheck } from './addresses.ts';
import { endServer, listenAt, type ProxySocket } from './api-socket.ts';

/** The way out for what tools fetch: a proxy outside that takes CONNECT (RFC 9110, section 9.3.6) to port 443 of allowed hosts. */
export interface NetworkProxy {
  /** A socket for one process in a folder that is there. Rejects with the system's error. */
  open(folder: string): Promise<NetworkSocket>;
}

/** The network as one process sees it: closed but for its turns, and its start where that is wanted. */
export interface NetworkSocket {
  /** `logFields`: what a line of the log says of whose turn it is; by its `user` connections are counted. */
  beginTurn(logFields: Fields): void;
  /** Cuts what is open. */
  endTurn(): void;
  /** Ends everything and removes the socket. Never rejects; may be called twice. */
  close(): Promise<void>;
}

interface NetworkProxyOptions {
  readonly hosts: HostList;
  readonly addresses: AddressCheck;
  readonly log: Log;
  /** How long it is open from a process's start on: what the operator starts beside the CLI connects before the first turn. */
  readonly startMs?: number;
  /** The addresses a name has now; none for a name that is not known. */
  readonly resolve?: (host: string) => Promise<readonly string[]>;
  /** Begins a connection to port 443 of this address. */
  readonly dial?: (address: string) => Socket;
  /** How long a request's head may take, and a connection to one address. */
  readonly connectMs?: number;
  /** How long a connection may be silent. */
  readonly idleMs?: number;
}

/** The name of the socket, beside the API's in its folder. */
export const networkSocketName = 'n';

/** npm and git have some ten at once. */
const maxConnections = 64;
const maxUserTunnels = 128;
const maxTunnels = 1024;
// Lines of the log in one turn: a name is said once, and whoever tries names by the thousand is no news after these.
const maxNamed = 20;
const maxAddresses = 4;
const maxHostLength = 253;

/** A turn, or the time before the first one: whose it is, and the hosts that were refused. */
interface Turn {
  readonly logFields: Fields;
  readonly refused: Set<string>;
}

/** Whose a process is, told by its first turn; before that it counts by itself. */
interface Owner {
  user: unknown;
}

/** A host that is not to be reached; the message says why to the tool that asked. */
class Refused extends Error {}

/** A proxy without sockets yet. Starts nothing. */
export function createNetworkProxy(options: NetworkProxyOptions): NetworkProxy {
  const { hosts, addresses, log, startMs = 0, resolve = lookUp, dial = dialHttps, connectMs = 10_000, idleMs = 300_000 } = options;
  const tunnels = new Map<Socket, Owner>();

  async function serve(client: Socket, target: string, head: Buffer, turn: Turn, owner: Owner): Promise<void> {
    try {
      if (isFull(owner)) return answer(client, 503, 'Too many connections');
      tunnels.set(client, owner);
      client.once('close', () => tunnels.delete(client));
      const upstream = await reach(client, target);
      upstream.setTimeout(idleMs);
      client.write('HTTP/1.1 200 Connection established\r\n\r\n');
      upstream.write(head);
      pipeline(client, upstream, client, () => {});
    } catch (error) {
      tunnels.delete(client);
      if (!(error instanceof Refused)) return answer(client, 502, `No connection (${errorCode(error) ?? 'unknown host'})`);
      logOnce(turn, target.replace(/:443$/, '').slice(0, maxHostLength));
      answer(client, 403, error.message);
    }
  }

  function isFull({ user }: Owner): boolean {
    return tunnels.size >= maxTunnels || [...tunnels.values()].filter((each) => each.user === user).length >= maxUserTunnels;
  }

  function logOnce({ refused, logFields }: Turn, host: string): void {
    if (refused.has(host) || refused.size >= maxNamed) return;
    refused.add(host);
    log('warning', 'network_refused', { ...logFields, host });
  }

  /** A connection to an address that was checked, and to no other: a name may resolve otherwise the next time. */
  async function reach(client: Socket, target: string): Promise<Socket> {
    const host = hostOf(target);
    if (!hasHost(hosts, host)) throw new Refused(`${host} is not in CLAUDE_NETWORK`);
    const found = isIP(host) === 0 ? await resolve(host) : [host];
    const allowed = found.filter(addresses.isPublic).slice(0, maxAddresses);
    if (allowed.length === 0 && found.length > 0) throw new Refused(`${host} has no public address`);
    let failure: unknown = new Error('unknown host');
    for (const address of allowed) {
      if (client.destroyed) break;
      try {
        return await connected(dial(address), client, connectMs);
      } catch (error) {
        failure = error;
      }
    }
    throw failure;
  }

  return {
    async open(folder) {
      const path = join(folder, networkSocketName);
      const clients = new Set<Socket>();
      const owner: Owner = { user: clients };
      let turn: Turn | undefined = startMs > 0 ? { logFields: {}, refused: new Set() } : undefined;
      const server = createServer({ headersTimeout: connectMs, connectionsCheckingInterval: connectMs / 2 }, (_req, res) => {
        res.on('error', () => {});
        res.writeHead(403, onlyHttps, { connection: 'close' }).end();
      });
      server.maxConnections = maxConnections;
      server.on('connect', ({ url = '', socket }, _stream, head: Buffer) => {
        socket.on('error', () => {});
        clients.add(socket);
        socket.once('close', () => clients.delete(socket));
        if (turn === undefined) answer(socket, 403, 'The network is closed between turns');
        else void serve(socket, url, head, turn, owner);
      });
      await listenAt(server, path);
      const endTurn = (): void => {
        for (const client of clients) client.destroy();
        turn = undefined;
      };
      const startTimer = setTimeout(endTurn, startMs).unref();
      return {
        beginTurn(logFields) {
          clearTimeout(startTimer);
          turn = { logFields, refused: new Set() };
          owner.user = logFields['user'] ?? owner.user;
        },
        endTurn,
        async close() {
          clearTimeout(startTimer);
          endTurn();
          endServer(server);
        },
      };
    },
  };
}

// Closed at once it would lose the answer of a client that has sent more.
const lingerMs = 5000;

const onlyHttps = 'Only port 443 is to be reached, by CONNECT';

/** The host of a CONNECT's target, without the brackets of an IPv6 address. Throws Refused for another port than 443. */
function hostOf(target: string): string {
  const [, address, name = address] = /^(?:\[([\da-f.]*:[\da-f:.]*)\]|([a-z\d._-]+)):443$/i.exec(target.slice(0, maxHostLength + 4)) ?? [];
  if (name === undefined) throw new Refused(onlyHttps);
  return name;
}

/** Says why there is no connection where tools show it: pip the reason, the CLI what the header names. */
function answer(client: Socket, status: number, sentence: string): void {
  const body = `${sentence}.\n`;
  const why = status === 403 ? 'x-proxy-error: blocked-by-allowlist\r\n' : '';
  const timer = setTimeout(() => client.destroy(), lingerMs).unref(); // not of silence: a byte now and then would keep its place
  client.once('close', () => clearTimeout(timer)).resume();
  const headers = `${why}content-type: text/plain\r\ncontent-length: ${body.length}\r\nconnection: close\r\n`;
  client.end(`HTTP/1.1 ${status} ${sentence}\r\n${headers}\r\n${body}`);
}

/** Resolves when the connection is there; ends it when `client` goes first. Rejects with the system's error. */
function connected(socket: Socket, client: Socket, timeoutMs: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const leave = (): Socket => socket.destroy();
    client.once('close', leave);
    socket.setTimeout(timeoutMs, () => socket.destroy(Object.assign(new Error('no answer'), { code: 'ETIMEDOUT' })));
    socket.on('error', reject);
    socket.once('close', () => client.off('close', leave));
    socket.once('connect', () => {
      client.off('close', leave); // what joins the two sees to it from here on
      resolve(socket);
    });
  });
}

function dialHttps(host: string): Socket {
  return connect({ host, port: 443, allowHalfOpen: true });
}

/**
 * By DNS alone, which knows none of this machine's own names. Not dns.lookup: names that take long would take the threads
 * in which the server looks up its own.
 */
async function lookUp(host: string): Promise<string[]> {
  const resolver = new Resolver({ timeout: 3000, tries: 2 });
  const answers = await Promise.allSettled([resolver.resolve4(host), resolver.resolve6(host)]);
  return answers.flatMap((each) => (each.status === 'fulfilled' ? each.value : []));
}

/**
 * The API's socket with one of the network, where there is one, beside it in its folder: both are open in the same turns.
 * Rejects with the system's error; then both are closed.
 */
export async function withNetwork(api: ProxySocket, proxy: NetworkProxy | undefined): Promise<ProxySocket> {
  if (proxy === undefined) return api;
  const network = await proxy.open(dirname(api.path)).catch(async (error: unknown) => {
    await api.close();
    throw error;
  });
  return {
    ...api,
    beginTurn(limits) {
      api.beginTurn(limits);
      network.beginTurn(limits.logFields ?? {});
    },
    endTurn() {
      network.endTurn();
      return api.endTurn();
    },
    async close() {
      await network.close();
      await api.close();
    },
  };
}
