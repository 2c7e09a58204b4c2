import { Agent as PlainAgent, request as plainRequest } from 'node:http';
import { Agent as TlsAgent, request as tlsRequest, type RequestOptions } from 'node:https';
import { Socket } from 'node:net';
import { unescape } from 'node:querystring';
import type { Duplex } from 'node:stream';
import { connect as tlsConnect, type ConnectionOptions } from 'node:tls';

const connectTimeoutMs = 30_000;

type Env = Readonly<Record<string, string>>;
type OnSocket = (error: Error | null, socket: Duplex) => void;

/**
 * The proxy that the operator's variables name for this address: HTTPS_PROXY or else HTTP_PROXY, unless NO_PROXY has
 * the host, as the CLI itself reads them. Throws TypeError for a value that is no http or https URL.
 */
export function proxyFor(url: URL, env: Env): URL | undefined {
  const value = (name: string): string => env[name.toLowerCase()] || env[name] || '';
  const proxy = value('HTTPS_PROXY') || value('HTTP_PROXY') || value('ALL_PROXY');
  if (proxy === '' || isExcepted(url, value('NO_PROXY'))) return undefined;
  const address = proxy.includes('://') ? proxy : `http://${proxy}`;
  if (!/^https?:/i.test(address) || !URL.canParse(address)) throw new TypeError('HTTPS_PROXY: expected an http or https URL');
  return new URL(address);
}

function isExcepted({ hostname, port, protocol }: URL, list: string): boolean {
  const ownPort = port || (protocol === 'https:' ? '443' : '80');
  return list.split(/[\s,]+/).some((entry) => {
    if (entry === '*') return true;
    const [, name = '', exceptedPort] = /^\*?\.?(.*?)(?::(\d+))?$/.exec(entry.toLowerCase()) ?? [];
    const isNamed = name !== '' && (hostname === name || hostname.endsWith(`.${name}`));
    return isNamed && (exceptedPort === undefined || exceptedPort === ownPort);
  });
}

/** What keeps the connections to an address: made through a proxy's CONNECT where there is one. `ca`: as for node:tls. */
export function createAgent(url: URL, proxy: URL | undefined, ca: ConnectionOptions['ca']): PlainAgent | TlsAgent {
  const options = { keepAlive: true, noDelay: true, ...(ca !== undefined && { ca }) };
  const isTls = url.protocol === 'https:';
  const agent = isTls ? new TlsAgent(options) : new PlainAgent(options);
  if (proxy === undefined) return agent;
  agent.createConnection = (wanted: RequestOptions, onSocket: OnSocket = () => {}): undefined => {
    openTunnel(proxy, `${wanted.host}:${wanted.port}`, (error, socket) => {
      onSocket(error, isTls && error === null ? overTls(socket, wanted) : socket);
    });
  };
  return agent;
}

function overTls(socket: Duplex, { ca, host, servername }: RequestOptions): Duplex {
  // The host is what the certificate must name where the address is a number and no name goes ahead.
  return tlsConnect({ socket, host: host ?? '', ...(ca !== undefined && { ca }), ...(servername && { servername }) });
}

/** Asks the proxy for a connection to `target`; an answer other than 200 is an error with its status. RFC 9110 section 9.3.6. */
function openTunnel(proxy: URL, target: string, onSocket: OnSocket): void {
  const login = unescape(`${proxy.username}:${proxy.password}`);
  const request = (proxy.protocol === 'https:' ? tlsRequest : plainRequest)({
    host: proxy.hostname.replace(/^\[|\]$/g, ''),
    port: proxy.port || (proxy.protocol === 'https:' ? 443 : 80),
    method: 'CONNECT',
    path: target,
    agent: false,
    timeout: connectTimeoutMs,
    headers: { host: target, ...(login !== ':' && { 'proxy-authorization': `Basic ${Buffer.from(login).toString('base64')}` }) },
  });
  const fail = (error: Error): void => onSocket(error, new Socket()); // nobody looks at the socket of an error
  request.once('error', fail);
  request.once('timeout', () => request.destroy(new Error('the proxy did not answer')));
  request.once('response', ({ statusCode }) => request.destroy(new Error(`the proxy answered ${statusCode}`)));
  request.once('connect', ({ statusCode }, socket) => {
    request.off('error', fail);
    socket.setTimeout(0);
    if (statusCode === 200) onSocket(null, socket);
    else {
      socket.destroy();
      fail(new Error(`the proxy answered ${statusCode}`));
    }
  });
  request.end();
}
