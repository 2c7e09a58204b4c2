import { request as plainRequest, type ClientRequest, type IncomingHttpHeaders } from 'node:http';
import { request as tlsRequest } from 'node:https';
import type { Readable } from 'node:stream';
import type { ConnectionOptions } from 'node:tls';
import { createAgent, proxyFor } from './tunnel.ts';

/** Anthropic's API, or what stands for it. */
export interface Upstream {
  /**
   * Sends one request; gives the answer once its head is there. Rejects when there is none: no connection, one that
   * breaks, a head that does not come in time, `signal`. From then on the signal ends the body.
   */
  send(request: UpstreamRequest, signal: AbortSignal): Promise<UpstreamAnswer>;
  /** Ends the connections kept for later. */
  close(): void;
}

export interface UpstreamRequest {
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Uint8Array;
}

export interface UpstreamAnswer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: Readable;
}

interface UpstreamOptions {
  /** `https://api.anthropic.com`, or the operator's gateway with its own path. */
  readonly baseUrl: string;
  /** Where HTTPS_PROXY, NO_PROXY and their like are read, and ANTHROPIC_CUSTOM_HEADERS. */
  readonly env: Readonly<Record<string, string>>;
  /** Certificates to trust instead of Node's own, as for node:tls. */
  readonly ca?: ConnectionOptions['ca'];
  /** Above the CLI's own 600 s: an answer that is not streamed says nothing until it is done. */
  readonly firstByteMs?: number;
}

/** The API over HTTPS by Node's own TLS, on connections that are kept. Throws TypeError for an address that is no URL. */
export function createUpstream({ baseUrl, env, ca, firstByteMs = 630_000 }: UpstreamOptions): Upstream {
  const url = new URL(baseUrl);
  if (!/^https?:$/.test(url.protocol)) throw new TypeError('ANTHROPIC_BASE_URL: expected an http or https URL');
  const agent = createAgent(url, proxyFor(url, env), ca);
  const makeRequest = url.protocol === 'https:' ? tlsRequest : plainRequest;
  const custom = customHeaders(env['ANTHROPIC_CUSTOM_HEADERS'] ?? '');
  const prefix = url.pathname.replace(/\/$/, '');
  const where = { host: url.hostname.replace(/^\[|\]$/g, ''), port: url.port || (url.protocol === 'https:' ? 443 : 80) };

  return {
    send({ path, headers, body }, signal) {
      const sized = { ...headers, ...custom, host: url.host, 'content-length': String(body.length) };
      const request = makeRequest({ ...where, method: 'POST', path: prefix + path, headers: sized, agent, signal });
      const answer = answerOf(request, firstByteMs);
      request.end(body);
      return answer;
    },
    close: () => agent.destroy(),
  };
}

/** Knows nothing of the body, which its listeners would keep for as long as the answer streams. */
function answerOf(request: ClientRequest, firstByteMs: number): Promise<UpstreamAnswer> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => request.destroy(new Error('the API did not answer in time')), firstByteMs);
    request.on('error', (error) => {
      clearTimeout(timer);
      reject(error);
    });
    request.once('response', (answer) => {
      clearTimeout(timer);
      // To Node a reset ends an answer without a length as well as its end does.
      request.on('error', (error) => answer.complete || answer.destroy(error));
      resolve({ status: answer.statusCode ?? 0, headers: answer.headers, body: answer });
    });
  });
}

/** `Name: value` lines, as the CLI reads them; they may hold a secret and so stay outside the sandbox. */
function customHeaders(text: string): Record<string, string> {
  const pairs = text.split('\n').map((line) => /^\s*([\w-]+)\s*:\s*(.*?)\s*$/.exec(line));
  return Object.fromEntries(pairs.flatMap((pair) => (pair === null ? [] : [[(pair[1] ?? '').toLowerCase(), pair[2] ?? '']])));
}
