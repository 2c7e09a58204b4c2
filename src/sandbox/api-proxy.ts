import type { Log } from '../log.ts';
import type { ProxyParts } from './api-request.ts';
import { openSocket, type ProxySocket } from './api-socket.ts';
import { createBigBodies } from './big-bodies.ts';
import type { Credentials } from './credentials.ts';
import { maxBodyBytes } from './incoming-body.ts';
import type { BodyRules } from './request-body.ts';
import { createShare } from './share.ts';
import type { Upstream } from './upstream.ts';

/** The way from the sandboxes to the API: adds the login that no sandbox may see, and lets through what a CLI asks for. */
export interface ApiProxy {
  /** A socket for one process in a folder of its own; see `openSocket`. */
  open(folder: string): Promise<ProxySocket>;
  /** Ends the connections to the API and the thread; the sockets are closed one by one. */
  close(): void;
}

interface ApiProxyOptions {
  readonly upstream: Upstream;
  readonly credentials: Credentials;
  /** What bodies may ask for, looked up for each: the models may be learnt after the start. */
  readonly rules: () => BodyRules;
  readonly log: Log;
  /** How long a stream of events may be silent; the API sends pings in between. The CLI itself would wait 300 s. */
  readonly idleMs?: number;
}

// 48 MiB together; the two do not wait for each other, so that nobody's large bodies hold up everybody's turns.
const smallBytes = 16 * 1024 * 1024;
const largeBytes = maxBodyBytes;

const maxNamedBetas = 50;

/** A proxy without sockets yet. Starts nothing. */
export function createApiProxy({ upstream, credentials, rules, log, idleMs = 120_000 }: ApiProxyOptions): ApiProxy {
  const bigBodies = createBigBodies();
  const namedBetas = new Set<string>();
  const parts: ProxyParts = {
    upstream,
    credentials,
    rules,
    smallBytes: createShare(smallBytes),
    largeBytes: createShare(largeBytes),
    bigBodies,
    idleMs,
    log,
    onDroppedBetas(names) {
      for (const name of names) {
        if (namedBetas.has(name) || namedBetas.size >= maxNamedBetas) continue;
        namedBetas.add(name);
        log('info', 'api_beta_dropped', { beta: name.slice(0, 60) });
      }
    },
  };
  return {
    open: (folder) => openSocket(parts, folder),
    close() {
      upstream.close();
      bigBodies.close();
    },
  };
}
