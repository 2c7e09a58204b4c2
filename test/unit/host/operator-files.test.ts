import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { ConfigError } from '../../../src/env.ts';
import { readOperatorFiles } from '../../../src/host/operator-files.ts';

const unset = { systemPromptFile: undefined, mcpConfigFile: undefined, sandbox: 'auto' } as const;

async function file(t: TestContext, content: string | Buffer): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'operator-'));
  t.after(() => rm(folder, { recursive: true }));
  await writeFile(join(folder, 'file'), content);
  return join(folder, 'file');
}

async function problemsOf(settings: Partial<Parameters<typeof readOperatorFiles>[0]>): Promise<readonly string[]> {
  const error = await readOperatorFiles({ ...unset, ...settings }).then(() => assert.fail('taken'), (reason: unknown) => reason);
  assert.ok(error instanceof ConfigError, String(error));
  return error.problems;
}

test('without the settings there is nothing', async () => {
  assert.deepEqual(await readOperatorFiles(unset), { systemPrompt: '', mcpServers: {} });
});

test('the words are the text of their file, the servers what their file says', async (t) => {
  const servers = { 'a_B-1': { command: '/usr/bin/x', args: ['-e', '"'], env: {} }, remote: { type: 'http', url: 'https://mcp.example/@me?to=a@b', headers: {} }, ['x'.repeat(64)]: { command: 'x' } };
  const paths = { systemPromptFile: await file(t, '\uFEFF\nBe kind.\n\nSay "żółć".\n\n'), mcpConfigFile: await file(t, JSON.stringify({ mcpServers: servers })) };
  assert.deepEqual(await readOperatorFiles({ ...unset, ...paths }), { systemPrompt: 'Be kind.\n\nSay "żółć".', mcpServers: servers });
});

test('files that are missing or are folders are named, both at once, without their paths', async () => {
  assert.deepEqual(await problemsOf({ systemPromptFile: '/nowhere/words', mcpConfigFile: tmpdir() }), [
    'CLAUDE_SYSTEM_PROMPT_FILE: the file cannot be read (ENOENT)', 'CLAUDE_MCP_CONFIG: the file cannot be read (EISDIR)',
  ]);
});

test('what is not a text is refused', async (t) => {
  for (const content of [Buffer.from([0x61, 0xff]), 'a\0b', Buffer.from('\uFEFFa', 'utf16le'), 'x'.repeat(65_537)]) {
    const path = await file(t, content);
    assert.deepEqual(await problemsOf({ systemPromptFile: path }), ['CLAUDE_SYSTEM_PROMPT_FILE: expected a text in UTF-8 of at most 65536 bytes']);
  }
});

for (const text of ['', 'null', '[]', '{}', '{"mcpServers": []}', '{"mcpServers": {"a": {"command": "x"}}', '{"servers": {}}']) {
  test(`no MCP configuration: ${text || 'nothing'}`, async (t) => {
    assert.match((await problemsOf({ mcpConfigFile: await file(t, text) })).join(), /^CLAUDE_MCP_CONFIG: expected JSON such as/);
  });
}

test('a server without a command and a url, and a name that the CLI would change, are refused', async (t) => {
  for (const [servers, expected] of [
    [{ a: {} }, /a command or a url/], [{ a: null }, /a command or a url/], [{ a: { command: 1 } }, /a command or a url/], [{ a: 'x' }, /a command or a url/],
    [{ 'a b': { command: 'x' } }, /names of servers/], [{ 'a,Bash': { command: 'x' } }, /names of servers/], [{ '': { command: 'x' } }, /names of servers/], [{ ['x'.repeat(65)]: { command: 'x' } }, /names of servers/],
  ] as const) assert.match((await problemsOf({ mcpConfigFile: await file(t, JSON.stringify({ mcpServers: servers })) })).join(), expected);
});

const secretServers = [
  { command: 'x', env: { TOKEN: 'secret' } }, { command: 'x', env: 'TOKEN=secret' }, { url: 'https://x.example', headers: { authorization: 'secret' } },
  { url: 'https://x.example', headers: ['Authorization: secret'] }, { url: 'https://x.example', headersHelper: 'echo secret' }, { url: 'https://me:secret@x.example/' },
  { url: 'https://secret@x.example' }, { url: 'https:secret@x.example' }, { url: 'https:\\\\secret@x.example' }, { url: ' https://me:secret@x.example' },
];
test('where a secret would be nothing may be that a sandbox may show to end users, and without one it is taken', async (t) => {
  for (const server of secretServers) {
    const mcpConfigFile = await file(t, JSON.stringify({ mcpServers: { fine: { command: 'y', url: 'https://x.example/@me?to=a@b' }, server } }));
    for (const sandbox of ['auto', 'required'] as const) {
      const [problem = ''] = await problemsOf({ mcpConfigFile, sandbox });
      assert.match(problem, /^CLAUDE_MCP_CONFIG: expected no env, headers, headersHelper or login in a url/);
      assert.doesNotMatch(problem, /secret/);
    }
    assert.deepEqual((await readOperatorFiles({ ...unset, mcpConfigFile, sandbox: 'off' })).mcpServers['server'], server);
  }
});
