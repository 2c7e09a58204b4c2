import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { callTools, promptsOf, refuse, say, startMessagesApi, toolResultsOf } from '../messages-api.ts';
import { testWithRealClis } from '../running-server.ts';
import { chownAll, makeSandboxedHome, noSandbox, startSandboxedServer } from '../sandboxed.ts';

const secret = 'a-secret-that-nobody-inside-may-see';
const bearer = ['authorization', `Bearer ${secret}`] as const;
/** Each kind of login: its variable, or the file, and the header it becomes. */
const logins = [
  ['ANTHROPIC_API_KEY', 'x-api-key', secret],
  ['ANTHROPIC_AUTH_TOKEN', ...bearer],
  ['CLAUDE_CODE_OAUTH_TOKEN', ...bearer],
  ['the login file', ...bearer],
] as const;

async function writeLoginFile(home: string): Promise<void> {
  const login = { accessToken: secret, refreshToken: secret, expiresAt: Date.now() + 3_600_000, scopes: ['user:inference'], subscriptionType: 'max' };
  await mkdir(join(home, '.claude'));
  await writeFile(join(home, '.claude/.credentials.json'), JSON.stringify({ claudeAiOauth: login }));
  await chownAll(home);
}

// Every readable place of every process inside, and every file of the own folders; the search itself has the word in two halves.
const search = `/usr/bin/python3 - <<'END'
import glob, os
word = b'a-secret-that-' + b'nobody-inside-may-see'
found, looked = [], 0
def look(name, data):
    global looked
    looked += 1
    if word in data: found.append(name)
for pid in [p for p in os.listdir('/proc') if p.isdigit() and int(p) != os.getpid()]:
    for name in ('environ', 'cmdline', 'mountinfo'):
        try: look(pid + name, open(f'/proc/{pid}/{name}', 'rb').read())
        except OSError: pass
    try:
        mem = open(f'/proc/{pid}/mem', 'rb', buffering=0)
        for line in open(f'/proc/{pid}/maps'):
            span, mode = line.split()[:2]
            start, end = [int(x, 16) for x in span.split('-')]
            if 'rw' not in mode or end - start > 2**30: continue
            while start < end:
                try: mem.seek(start); look(pid + 'mem', mem.read(min(end - start, 2**24)))
                except (OSError, ValueError): pass
                start += 2**24
    except OSError: pass
for top in ('/home', '/work', '/tmp', '/run', '/etc'):
    for folder, _, names in os.walk(top):
        for name in names:
            try: look(folder + name, open(os.path.join(folder, name), 'rb').read(2**24))
            except OSError: pass
print('looked' if looked > 20 else 'blind', found)
END`;

if (noSandbox === false) testWithRealClis('each kind of login', async (t, binary) => {
  for (const [name, header, value] of logins) await t.test(`${name} reaches Anthropic and nobody inside, and is named where it is refused`, async (t) => {
    const api = await startMessagesApi(t);
    const home = await makeSandboxedHome(t);
    if (name === 'the login file') await writeLoginFile(home);
    const env = { ANTHROPIC_API_KEY: undefined, CLAUDE_BINARY_PATH: binary, ANTHROPIC_BASE_URL: api.url, CLAUDE_MODEL: 'claude-sonnet-5-5', [name]: secret };
    const server = await startSandboxedServer(t, env, home);
    api.script = (request) => (toolResultsOf(request).length === 0 ? callTools([{ name: 'Bash', input: { command: search } }]) : say('done'));
    const reply = await server.chat({ prompt: 'search' });
    assert.equal(reply.body['content'], 'done', JSON.stringify(reply.body));
    const last = api.turns.at(-1) ?? assert.fail('asked');
    assert.deepEqual(toolResultsOf(last).map(({ text }) => text), ['looked []']);
    for (const { headers } of api.turns) {
      assert.equal(headers[header], value);
      assert.equal(headers[header === 'x-api-key' ? 'authorization' : 'x-api-key'], undefined);
    }
    api.script = () => refuse(401, 'authentication_error', 'invalid login');
    const refused = await server.chat({ prompt: 'again', session_id: reply.body['session_id'] });
    assert.deepEqual([refused.status, refused.body['code']], [503, 'claude_not_authenticated'], JSON.stringify(refused.body));
  });
});

if (noSandbox === false) testWithRealClis('two users at once', async (t, binary) => {
  const api = await startMessagesApi(t);
  const home = await makeSandboxedHome(t);
  const server = await startSandboxedServer(t, { CLAUDE_BINARY_PATH: binary, ANTHROPIC_BASE_URL: api.url, CLAUDE_MODEL: 'claude-sonnet-5-5' }, home);
  const word = 'mine-alone';
  const commands = new Map([
    ['first', `echo ${word} | tee ~/a /work/a /tmp/a /dev/shm/a >/dev/null; export MINE=${word}; exec -a ${word} sleep 3`],
    ['second', `sleep 1; grep -rlsa 'mine-[a]lone' /home /work /tmp /dev/shm /run /var /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | wc -l; ls -d /proc/[0-9]* | wc -l; ls /run/api`],
  ]);
  api.script = (request) => {
    const command = commands.get(promptsOf(request).at(-1) ?? '');
    return command !== undefined && toolResultsOf(request).length === 0 ? callTools([{ name: 'Bash', input: { command } }]) : say('done');
  };
  const [first, second] = await Promise.all([server.chat({ prompt: 'first', user_id: 1 }), server.chat({ prompt: 'second', user_id: 2 })]);
  assert.deepEqual([first.body['content'], second.body['content']], ['done', 'done']);
  const seen = toolResultsOf(api.turns.find((request) => promptsOf(request).includes('second') && toolResultsOf(request).length > 0) ?? assert.fail('asked'));
  const [found, processes, sockets] = (seen[0]?.text ?? '').split('\n');
  assert.equal(found, '0', 'nothing of the other is found');
  assert.ok(Number(processes) <= 8, processes);
  assert.equal(sockets, 's');
});
