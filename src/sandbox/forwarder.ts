import { networkSocketName } from './network-proxy.ts';
import { inside } from './sandbox.ts';

/** Where tools inside find the proxy: only a port is known to all of them. */
const forwarderPort = 3128;

// A flow that breaks on one side ends on the other. Quiet: its output would be the CLI's.
const forwarder = `
const { connect, createServer } = require('node:net');
const { pipeline } = require('node:stream');
createServer({ allowHalfOpen: true }, (tool) => {
  const proxy = connect({ path: '${inside.api}/${networkSocketName}', allowHalfOpen: true });
  pipeline(tool, proxy, tool, () => {});
}).listen(${forwarderPort}, '127.0.0.1');`;

/** The program with the forwarder as its child, which ends with the sandbox. */
export function withForwarder(program: readonly string[]): string[] {
  const script = '"$0" -e "$1" </dev/null >/dev/null 2>&1 & shift; exec "$@"';
  return ['/bin/sh', '-c', script, inside.node, forwarder, ...program];
}

/** What tells the tools inside of it. */
export const networkEnv: Readonly<Record<string, string>> = {
  HTTPS_PROXY: `http://127.0.0.1:${forwarderPort}`,
  https_proxy: `http://127.0.0.1:${forwarderPort}`,
  no_proxy: 'localhost,127.0.0.1,::1',
  // For fetch in scripts of Node 22.21 and later.
  NODE_USE_ENV_PROXY: '1',
};
