import { networkSocketName } from './network-proxy.ts';
import { inside } from './sandbox.ts';

/** Where tools inside find the proxy: only a port is known to all of them. */
const forwarderPort = 3128;

// A flow that breaks on one side ends on the other. The first process inside, so that nobody can end it and run something
// in its place: all ends with it, as it ends with the program. Its own streams are the program's, and it says nothing.
const forwarder = `
const { spawn } = require('node:child_process');
const { connect, createServer } = require('node:net');
const { constants } = require('node:os');
const { pipeline } = require('node:stream');
const [command, ...args] = process.argv.slice(1);
spawn(command, args, { stdio: 'inherit' })
  .on('error', () => process.exit(127))
  .on('exit', (code, signal) => process.exit(code ?? 128 + constants.signals[signal]));
createServer({ allowHalfOpen: true }, (tool) => {
  const proxy = connect({ path: '${inside.api}/${networkSocketName}', allowHalfOpen: true });
  pipeline(tool, proxy, tool, () => {});
}).listen(${forwarderPort}, '127.0.0.1');`;

/** The program as the child of the forwarder, which ends as it does: with its code, or 128 and the signal. */
export function withForwarder(program: readonly string[]): string[] {
  return [inside.node, '-e', forwarder, '--', ...program];
}

/** What tells the tools inside of it. */
export const networkEnv: Readonly<Record<string, string>> = {
  HTTPS_PROXY: `http://127.0.0.1:${forwarderPort}`,
  https_proxy: `http://127.0.0.1:${forwarderPort}`,
  no_proxy: 'localhost,127.0.0.1,::1',
  // For fetch in scripts of Node 22.21 and later.
  NODE_USE_ENV_PROXY: '1',
};
