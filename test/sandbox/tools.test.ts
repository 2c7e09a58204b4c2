import assert from 'node:assert/strict';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { anthropicKey, attempt, callTools, holds, say, startMessagesApi, toolNamesOf, toolResultsOf } from '../messages-api.ts';
import { needs } from '../needs.ts';
import { testWithRealClis, until } from '../running-server.ts';
import { chownAll, makeSandboxedHome, noneWith, noSandbox, runningWith, startSandboxedServer, unlike } from '../sandboxed.ts';

// Found by ToolSearch only; the CLI offers these names in its place.
const searched = new Set(['DeferredToolPlaceholder']);

// What the CLI has besides: it asks a person, waits for a clock, runs in the background, or reaches a network there is not.
const absent = ['WebFetch', 'AskUserQuestion', 'CronCreate', 'Monitor', 'ScheduleWakeup', 'SendMessage', 'Workflow', 'EnterWorktree', 'ExitPlanMode'];

if (noSandbox === false) testWithRealClis('all tools of the real CLI in the sandbox', async (t, binary) => {
  const api = await startMessagesApi(t);
  const home = await makeSandboxedHome(t);
  const env = { CLAUDE_BINARY_PATH: binary, ANTHROPIC_BASE_URL: api.url, SECRET_OF_THE_SERVER: 'very secret', CLAUDE_MODEL: 'claude-sonnet-5-5' };
  const server = await startSandboxedServer(t, env, home);
  const users = join(home, 'state/users');
  const bash = async (command: string, userId = 1): Promise<string> => {
    const { results } = await attempt(api, server, [{ name: 'Bash', input: { command } }], { user_id: userId });
    return results[0]?.text ?? '';
  };

  await t.test('are there without a question, and no others', async () => {
    api.script = () => say('ok');
    await server.chat({ prompt: 'hello' });
    const offered = toolNamesOf(api.turns.at(-1) ?? assert.fail('asked')).filter((name) => !searched.has(name));
    assert.deepEqual(offered.sort(), ['Agent', 'Bash', 'Edit', 'Glob', 'Grep', 'Read', 'ToolSearch', 'Write']);
    const { results } = await attempt(api, server, absent.map((name) => ({ name, input: {} })), {}, absent.length);
    for (const [i, { text }] of results.entries()) assert.match(text, /No such tool available/, absent[i]);
  });

  await t.test('work on files, a git repository and a notebook, and a subagent does too', async () => {
    const calls = [
      { name: 'Write', input: { file_path: '/work/a.txt', content: 'one\n' } },
      { name: 'Edit', input: { file_path: '/work/a.txt', old_string: 'one', new_string: 'two' } },
      { name: 'Grep', input: { pattern: 'two', output_mode: 'content' } },
      { name: 'Glob', input: { pattern: '*.txt' } },
      { name: 'Bash', input: { command: 'git init -q . && git add a.txt && git -c user.name=x -c user.email=x@x commit -qm x && git log --oneline | wc -l' } },
      { name: 'Bash', input: { command: 'perl -ne "print ucfirst" a.txt; node -e "console.log(6 * 7)"' } },
    ];
    const { results } = await attempt(api, server, calls, { user_id: 3 });
    assert.ok(results.every(({ isError }) => !isError), JSON.stringify(results));
    assert.match(results[2]?.text ?? '', /two/);
    assert.match(results[3]?.text ?? '', /a\.txt/);
    assert.equal(results[4]?.text, '1');
    assert.equal(results[5]?.text, 'Two\n42');
    assert.equal(await readFile(join(users, '3/work/a.txt'), 'utf8'), 'two\n');
    let isAsked = false;
    api.script = (request) => {
      if (!isAsked) {
        isAsked = true;
        return callTools([{ name: 'Agent', input: { description: 'look', prompt: 'look at it', subagent_type: 'general-purpose', model: 'haiku' } }]);
      }
      return request.rawBody.includes('from the subagent') ? say('done') : say('from the subagent');
    };
    assert.equal((await server.chat({ prompt: 'delegate', user_id: 3 })).body['content'], 'done');
    assert.ok(api.turns.some(({ body }) => /haiku/.test(String(body['model']))), 'the small model is allowed, though not listed');
  });

  await t.test('run a Python script over a file of the user', { skip: needs(['python3'], 'runs a script inside') }, async () => {
    const script = 'import csv\nprint(sum(int(row["sales"]) for row in csv.DictReader(open("/inbox/table.csv"))))\n';
    const calls = [{ name: 'Write', input: { file_path: '/work/sum.py', content: script } }, { name: 'Bash', input: { command: 'python3 sum.py' } }];
    const files = [{ name: 'table.csv', data: Buffer.from('month,sales\nMay,40\nJune,2\n').toString('base64') }];
    const { results } = await attempt(api, server, calls, { user_id: 3, files });
    assert.equal(results[1]?.text, '42');
  });

  await t.test('leave the process warm that did no more than its turn', async () => {
    const { sessionId } = await attempt(api, server, [{ name: 'Bash', input: { command: 'sleep 0.1; echo done' } }], { user_id: 8 });
    const endedAt = performance.now();
    await until('what is looked at a second later', () => (performance.now() - endedAt > 1500 ? true : undefined));
    api.script = () => say('ok');
    await server.chat({ prompt: 'again', user_id: 8, session_id: sessionId });
    const turns = () => server.lines.filter((line) => line.event === 'turn' && line['session'] === sessionId);
    await until('both lines of the log', () => (turns().length === 2 ? true : undefined));
    assert.equal(turns()[1]?.['process'], 'warm');
  });

  await t.test('see no secret, and no folder of the machine is told to Anthropic', async () => {
    const seen = await bash('cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr "\\0" "\\n"; cat ~/.claude.json; find / -xdev -type f -name "*.env" 2>/dev/null; cat /proc/2/mountinfo');
    assert.match(seen, /^ANTHROPIC_AUTH_TOKEN=placeholder$/m);
    assert.doesNotMatch(seen, new RegExp(`very secret|${anthropicKey}`));
    for (const request of api.turns) {
      assert.equal(request.headers['x-api-key'], anthropicKey);
      assert.ok(!holds(request, anthropicKey));
    }
    assert.ok(!holds(api.turns[0] ?? assert.fail('asked'), home));
  });

  await t.test('reach the API through the same socket, for what the CLI itself asks for and nothing else', async () => {
    const post = (body: unknown, path = '/v1/messages?beta=true'): string =>
      `curl -s -m 10 -o /tmp/out -w '%{http_code}\\n' --unix-socket $ANTHROPIC_UNIX_SOCKET http://x${path} -H 'content-type: application/json' -d '${JSON.stringify(body)}'`;
    const plain = { model: 'claude-sonnet-5-5', max_tokens: 1, messages: [{ role: 'user', content: 'from curl' }] };
    const before = api.requests.length;
    const command = [
      post(plain), post({ ...plain, model: 'claude-dearer-5' }), post({ ...plain, mcp_servers: [] }), post(plain, '/v1/files'),
      post({ ...plain, messages: [{ role: 'user', content: [{ type: 'image', source: { type: 'url', url: 'https://example.com/x.png' } }] }] }),
      post({ ...plain, tools: [{ type: 'code_execution_20250522', name: 'code_execution' }] }),
    ].join('; ');
    const lines = (await bash(command, 4)).split('\n');
    assert.deepEqual(lines, ['200', '402', '402', '402', '402', '402']);
    const askLate = async (): Promise<string> => {
      const waiting = 'until [ -e /work/go ]';
      await bash(`rm -f /work/go; (${waiting}; do sleep 0.02; done; ${post(plain)} >/work/late) >/dev/null 2>&1 </dev/null & echo waits`, 4);
      await writeFile(join(users, '4/work/go'), '');
      return until('the late one, or its end', async () => {
        const isOver = (await runningWith(waiting)).length === 0;
        const text = await readFile(join(users, '4/work/late'), 'utf8').catch(() => '');
        return text || (isOver ? 'stopped' : undefined);
      });
    };
    // A process that goes on with something is stopped a second after its turn, on a busy machine before it could ask.
    let late = 'stopped';
    for (let i = 0; i < 3 && late === 'stopped'; i += 1) late = await askLate();
    assert.equal(late, '429\n', 'between turns nothing is asked');
    const own = api.requests.slice(before).filter((request) => request.rawBody.includes('"max_tokens":1,'));
    assert.equal(own.length, 1, 'only the allowed one went on');
  });

  await t.test('cannot ask for ever: the turn of one who tries is stopped', async () => {
    const command = 'for i in $(seq 40); do curl -s -m 5 --unix-socket $ANTHROPIC_UNIX_SOCKET http://x/v1/files; done; sleep 60';
    api.script = (request) => (toolResultsOf(request).length === 0 ? callTools([{ name: 'Bash', input: { command } }]) : say('never'));
    const reply = await server.chat({ prompt: 'try', user_id: 5 });
    assert.deepEqual([reply.status, reply.body['code']], [502, 'claude_failed']);
    assert.match(String(reply.body['detail']), /refused/);
  });

  await t.test('do what a planted setting says in the own sandbox only, and a server without one does not start there', async () => {
    api.script = () => say('ok');
    // Before any process of theirs is there, which would read it half written.
    await mkdir(join(users, '6/home'), { recursive: true });
    const hook = { hooks: { UserPromptSubmit: [{ hooks: [{ type: 'command', command: 'id -un >/work/hooked; ls / >>/work/hooked' }] }] } };
    await writeFile(join(users, '6/home/settings.json'), JSON.stringify(hook));
    await chownAll(join(users, '6'));
    const fresh = await server.chat({ prompt: 'hello', user_id: 6 });
    assert.equal(fresh.status, 200);
    assert.match(await readFile(join(users, '6/work/hooked'), 'utf8'), /^claude\nbin\n/);
    await rm(join(users, '6/work/hooked'));
  });

  await t.test('leave nothing running, whatever they start', async () => {
    const command = `setsid -f env -i sleep ${unlike(31)} >/dev/null 2>&1 </dev/null; nohup sleep ${unlike(31)} >/dev/null 2>&1 </dev/null & echo left`;
    assert.equal(await bash(command, 7), 'left');
    await server.end();
    for (const text of [`sleep ${unlike(31)}`, home]) await noneWith(text);
  });
});
