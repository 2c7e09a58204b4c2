import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { accessSync, constants } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { delimiter, join } from 'node:path';

// A shell of an ordinary user often lacks the second half, where nginx and ip are.
const folders = [...(process.env['PATH'] ?? '').split(delimiter), '/usr/sbin', '/sbin'].filter((folder) => folder !== '');

/** The path of a program on PATH or in the folders for administrators; undefined when it is not there. */
export function findProgram(name: string): string | undefined {
  return folders.map((folder) => join(folder, name)).find(isExecutable);
}

/**
 * Why a test is skipped here, or false when it can run: `{ skip: needs(['shellcheck'], 'checks the shell scripts') }`. A
 * program is a name; `root` stands for the user. `npm test` ends with one list of these reasons (test/summary.js).
 */
export function needs(things: readonly string[], purpose: string): string | false {
  const missing = things.filter((thing) => (thing === 'root' ? process.getuid?.() !== 0 : findProgram(thing) === undefined));
  return missing.length > 0 && `needs ${missing.join(', ')}: ${purpose}`;
}

/** The same for what must be tried: a command that succeeds only where the kernel and its administrator allow it. */
export function needsToRun(command: readonly [string, ...string[]], thing: string, purpose: string): string | false {
  const [program, ...args] = command;
  return spawnSync(program, args, { stdio: 'ignore', timeout: 10_000 }).status !== 0 && `needs ${thing}: ${purpose}`;
}

/** A port of 127.0.0.1 that nobody listens on, for a program that cannot choose one by itself. */
export async function freePort(): Promise<number> {
  const holder = createServer().listen(0, '127.0.0.1');
  await once(holder, 'listening');
  const { port } = holder.address() as AddressInfo;
  holder.close();
  return port;
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
