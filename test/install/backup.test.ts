import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { noScratchMachine, ScratchMachine } from './scratch-machine.ts';

const operations = await readFile(new URL('../../docs/operations.md', import.meta.url), 'utf8');
const section = /^## Backup\n([^]*?)^## /m.exec(operations)?.[1] ?? '';
const [backup = '', restore = ''] = Array.from(section.matchAll(/^```sh\n([^]*?)^```/gm), ([, lines = '']) => lines);
const forget = /^\| forget a user \| `([^`]+)`/m.exec(operations)?.[1] ?? '';

// A stand-in, since everything is root's here already.
const withSudo = (lines: string): string => `set -e; sudo() { "$@"; }; cd /root\n${lines}`;

interface Reply {
  readonly content?: string;
  readonly session_id?: string;
  readonly code?: string;
}

async function chat(machine: ScratchMachine, userId: number, prompt: string, sessionId?: string): Promise<Reply> {
  const body = JSON.stringify({ prompt, user_id: userId, ...(sessionId && { session_id: sessionId }) });
  const key = "Authorization: Bearer $(sed -n 's/^CLAUDE_API_KEY=//p' /home/claude/claude-api/.env)";
  const curl = 'curl -s --max-time 60 --retry 20 --retry-delay 1 --retry-connrefused 127.0.0.1:8001/api/v1/chat';
  return JSON.parse(await machine.must(`${curl} -H "${key}" -H 'Content-Type: application/json' -d '${body}'`)) as Reply;
}

test('what docs/operations.md says of backup, restore and forgetting does it', { skip: noScratchMachine, timeout: 300_000 }, async (t) => {
  const old = await ScratchMachine.boot(t);
  await old.must('cd /root/copy && ./install.sh');
  const first = await chat(old, 7, 'hello');
  const other = await chat(old, 8, 'hello');
  await old.must('install -d -o claude /home/claude/.claude && echo login > /home/claude/.claude/.credentials.json');
  await old.must('cd /var/lib/claude-api/users/7/work && echo mine > file && ln -s /etc/shadow link && mkfifo pipe && echo x > ../tmp/gone && chown -h claude file link pipe');
  const key = await old.must('grep CLAUDE_API_KEY /home/claude/claude-api/.env');

  await old.must(withSudo(backup));
  assert.equal(await old.must('stat -c %a /root/claude-api.tar.gz'), '600');
  const archive = await old.take('/root/claude-api.tar.gz');

  const machine = await ScratchMachine.boot(t);
  // Names are what counts, not numbers.
  await machine.must('useradd --system somebody-else && cd /root/copy && ./install.sh');
  await machine.put('/root/claude-api.tar.gz', archive);
  await machine.must(withSudo(restore));
  assert.equal(await machine.must('grep CLAUDE_API_KEY /home/claude/claude-api/.env'), key);
  assert.equal(await machine.must('stat -c "%a %U:%G" /home/claude/claude-api/.env'), '640 root:claude');
  assert.equal(await machine.must('cat /home/claude/.claude/.credentials.json'), 'login');
  assert.equal(await machine.must('cd /var/lib/claude-api/users/7 && cat work/file && readlink work/link && ls tmp && stat -c %U work/file'), 'mine\n/etc/shadow\nclaude');
  const went = await chat(machine, 7, 'play history', first.session_id);
  assert.equal(went.content, JSON.stringify(['hello', 'play history']));
  assert.equal((await chat(machine, 8, 'hello again', first.session_id)).code, 'session_not_found');

  await machine.must(withSudo(forget));
  assert.equal((await chat(machine, 7, 'hello again', first.session_id)).code, 'session_not_found');
  assert.equal((await chat(machine, 8, 'hello again', other.session_id)).session_id, other.session_id);
});
