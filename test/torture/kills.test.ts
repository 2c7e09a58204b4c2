import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { treeOf } from '../../src/host/processes.ts';
import { startMessagesApi } from '../messages-api.ts';
import { amount, randomOf } from '../random.ts';
import { testWithRealClis, until, within } from '../running-server.ts';
import { makeSandboxedHome, markedProcesses, noSandbox, startSandboxedServer, testSandboxed } from '../sandboxed.ts';

/** What a server started, but for the helper that compiles its sources. */
function sandboxTree(serverPid: number): number[] {
  return treeOf(serverPid).slice(1).filter((pid) => {
    try {
      return !readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes('esbuild');
    } catch {
      return false;
    }
  });
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It was quicker.
  }
}

testSandboxed('of a sandbox whose processes are killed in their first moments nothing is left, and the next turn works', async (t) => {
  const home = await makeSandboxedHome(t);
  const server = await startSandboxedServer(t, { CLAUDE_TIMEOUT_SECONDS: '5', CLAUDE_WARM_SECONDS: '0' }, home);
  for (let i = 0; i < amount(30, 300); i += 1) {
    let isOver = false;
    const turn = server.chat({ prompt: 'hello', user_id: 1 }).finally(() => (isOver = true));
    // In turn bubblewrap, the sandbox's first process, the CLI; of a turn that was quicker than the look nothing is left.
    const pid = await until('a process', () => sandboxTree(server.pid)[i % 3] ?? (isOver ? 'none' : undefined));
    await delay(i % 30); // the moment is the subject
    if (pid !== 'none') kill(pid);
    const { status } = await within('the turn', 20_000, turn);
    assert.ok([200, 502, 503].includes(status), String(status));
  }
  await until('nothing left', async () => ((await markedProcesses(home)).length === 0 ? true : undefined));
  await until('a server that serves', async () => ((await server.chat({ prompt: 'hello', user_id: 2 })).status === 200 ? true : undefined), 20_000);
});

/** Whether this is a bubblewrap whose parent was killed before it could let it go on: it waits for ever, and nothing has run in it. */
function isHalfMade(pid: number): boolean {
  try {
    return /^[^\0]*\/bwrap\0/.test(readFileSync(`/proc/${pid}/cmdline`, 'latin1')) && treeOf(pid).length === 1;
  } catch {
    return false;
  }
}

// A sandbox that was being made may live on. The real CLI in it ends with its input; what is half made ends at the next start.
if (noSandbox === false) testWithRealClis('of a server that is killed in the first moments of its turns nothing runs on, and nothing is left after the next start', async (t, binary) => {
  const api = await startMessagesApi(t);
  const home = await makeSandboxedHome(t);
  const random = randomOf(t);
  for (let i = 0; i < amount(4, 300); i += 1) {
    const server = await startSandboxedServer(t, { CLAUDE_BINARY_PATH: binary, ANTHROPIC_BASE_URL: api.url }, home);
    const turns = [1, 2].map((user_id) => server.chat({ prompt: 'hello', user_id }).catch(() => {}));
    await until('a process', () => sandboxTree(server.pid)[0]);
    // The moment is the subject: half of them while the sandbox is made.
    await delay(i % 2 === 0 ? random() * 20 : random() * 400);
    await server.end('SIGKILL');
    await Promise.all(turns);
    await until('nothing that runs', async () => ((await markedProcesses(home)).every(isHalfMade) ? true : undefined), 30_000);
  }
  const server = await startSandboxedServer(t, { CLAUDE_BINARY_PATH: binary, ANTHROPIC_BASE_URL: api.url }, home);
  await server.end();
  await until('nothing left', async () => ((await markedProcesses(home)).length === 0 ? true : undefined));
});
