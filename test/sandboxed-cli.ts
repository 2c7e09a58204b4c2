import assert from 'node:assert/strict';
import { once } from 'node:events';
import { chmod } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { readinessLine, userLine } from '../src/cli/protocol.ts';
import { withForwarder } from '../src/sandbox/forwarder.ts';
import { inside } from '../src/sandbox/sandbox.ts';
import type { Json, MessagesApi } from './messages-api.ts';
import { until } from './running-server.ts';
import { insideEnv, type Inside, type SandboxedUsers } from './sandboxed.ts';

/** The API proxy's place taken by a plain wire to the stand-in: what comes through the user's socket goes there. */
export async function wire(t: TestContext, users: SandboxedUsers, api: MessagesApi, userId = 1): Promise<void> {
  const server = createServer((socket) => {
    const upstream = connect(Number(new URL(api.url).port), '127.0.0.1');
    socket.pipe(upstream).pipe(socket);
    socket.on('error', () => upstream.destroy());
    upstream.on('error', () => socket.destroy());
  });
  const path = join(users.folders(userId).api ?? '', 's');
  server.listen(path);
  await once(server, 'listening');
  await chmod(path, 0o777);
  t.after(() => server.close());
}

const cliOptions = ['-p', '--input-format=stream-json', '--output-format=stream-json', '--verbose', '--permission-mode=bypassPermissions'];

/** The CLI in a sandbox of its own, without a server. */
export function startCli(users: SandboxedUsers, options: readonly string[], userId = 1, env: Readonly<Record<string, string>> = {}): Inside {
  const program = [inside.claude, ...cliOptions, ...options];
  const command = 'HTTPS_PROXY' in env ? withForwarder(program) : program;
  const process = users.start(command, userId, users.folders(userId), { ...insideEnv, ...env });
  process.child.stdin.write(readinessLine);
  return process;
}

/** The next result line after this prompt. */
export async function turn(cli: Inside, prompt: string): Promise<Json> {
  const results = (): Json[] => cli.stdout.split('\n').slice(0, -1).map((line) => JSON.parse(line) as Json).filter((line) => line['type'] === 'result');
  const before = results().length;
  cli.child.stdin.write(userLine({ prompt }, inside.inbox));
  return until(`a result of ${prompt}`, () => results()[before], 30_000).catch((error: unknown) => assert.fail(`${String(error)}\n${cli.stderr}`));
}

/** The CLI ends by itself when there is nothing more to read. */
export async function leave(cli: Inside): Promise<void> {
  cli.child.stdin.end();
  assert.equal((await cli.ended()).code, 0);
}
