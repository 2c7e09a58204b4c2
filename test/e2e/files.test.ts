import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import type { TestContext } from 'node:test';
import { callTools, cliEnv, imagesOf, promptsOf, say, startMessagesApi, toolResultsOf, type MessagesApi, type ToolCall } from '../messages-api.ts';
import { gif, jpeg, pdf, png, webp } from '../pictures.ts';
import { startServer, testWithRealClis, type Reply, type RunningServer } from '../running-server.ts';
import { noSandbox, startSandboxedServer } from '../sandboxed.ts';

const mib = 1024 * 1024;
const file = (name: string, bytes: Buffer | string) => ({ name, data: Buffer.from(bytes).toString('base64') });
const filesIn = ({ body }: Reply) => (body['files'] ?? []) as Array<{ name: string; data: string }>;

type Start = (t: TestContext, env: Readonly<Record<string, string>>) => Promise<RunningServer>;
const ways: Readonly<Record<string, Start>> = {
  'with the five tools': (t, env) => startServer(t, env),
  ...(noSandbox === false && { 'in the sandbox': (t, env) => startSandboxedServer(t, { ...env, CLAUDE_MODEL: 'claude-sonnet-5-5' }) }),
};

for (const [way, start] of Object.entries(ways)) testWithRealClis(`files ${way}`, async (t, binary) => {
  const api = await startMessagesApi(t);
  const server = await start(t, cliEnv(binary, api));
  const last = () => api.turns.at(-1) ?? assert.fail('nothing was asked');
  const ask = (body: Readonly<Record<string, unknown>>): Promise<Reply> => {
    api.script = () => say('ok');
    return askWith(server, body);
  };

  await t.test('a picture arrives byte by byte as a picture, a photo without a word too, and the dialogue goes on', async () => {
    const picture = png(3, 5);
    const first = await ask({ prompt: 'what is this?', files: [file('photo.png', picture), file('a.gif', gif)] });
    assert.deepEqual(imagesOf(last()).map(({ type }) => type), ['image/png', 'image/gif']);
    assert.deepEqual(imagesOf(last())[0]?.bytes, picture);
    assert.match(promptsOf(last())[0] ?? '', /^what is this\?\n\n\[Files in \S+: "photo\.png", "a\.gif"\]\s*$/);
    const session = first.body['session_id'];
    await ask({ prompt: '', session_id: session, files: [file('b.png', picture)] });
    assert.equal(imagesOf(last()).length, 3);
    await ask({ prompt: 'and?', session_id: session });
    assert.equal(imagesOf(last()).length, 3, 'what was shown stays in the dialogue');
  });

  await t.test('what is no picture that Claude can be shown is in the inbox only', async () => {
    const others = {
      'large.png': png(8, 8, 3_932_160), 'wide.png': png(2001, 9), 'half.png': png(300, 300).subarray(0, 80), 'text.png': Buffer.from('text'),
      'half.jpg': jpeg(9, 9).subarray(0, 20), 'half.webp': webp('VP8X', 9, 9).subarray(0, 36), 'picture.svg': Buffer.from('<svg/>'),
    };
    const first = await ask({ prompt: 'look', files: Object.entries(others).map(([name, bytes]) => file(name, bytes)) });
    assert.deepEqual(imagesOf(last()), []);
    assert.match(promptsOf(last())[0] ?? '', /"large\.png", "wide\.png".*"picture\.svg"/);
    assert.equal((await ask({ prompt: 'and now?', session_id: first.body['session_id'] })).body['content'], 'ok');
  });

  await t.test('a PDF of 200 pages and a table are read by the tools, and a chart comes back', async () => {
    const report = pdf(200);
    const files = [file('report.pdf', report), file('table 1.csv', 'month,sales\nMay,42\n')];
    const reply = await converse(api, server, { prompt: 'draw', files }, (inbox, outbox) => [
      { name: 'Read', input: { file_path: `${inbox}/report.pdf` } },
      { name: 'Read', input: { file_path: `${inbox}/table 1.csv` } },
      { name: 'Write', input: { file_path: `${outbox}/chart.svg`, content: '<svg/>' } },
    ]);
    const results = toolResultsOf(last());
    assert.deepEqual(results.map(({ isError }) => isError), [false, false, false], JSON.stringify(results));
    assert.ok(results.some(({ text }) => text.includes('May,42')));
    assert.ok(last().rawBody.includes(report.toString('base64')), 'the PDF reached the model whole');
    assert.deepEqual(filesIn(reply), [file('chart.svg', '<svg/>')]);
  });

  await t.test('twenty files and strange names are there, and names that cannot be are refused in words', async () => {
    const names = ['отчёт за май.csv', 'a b.txt', '🦊.txt', '-rf', '@mention', 'a\\b', '"quoted"', ...Array.from({ length: 12 }, (_, i) => `f${i}`)];
    // Without the sandbox the CLI asks a person before it reads such a name.
    if (way === 'in the sandbox') names[19] = 'trailing.';
    const files = names.map((name) => file(name, `content of ${name}`));
    await converse(api, server, { prompt: 'read', files }, (inbox) => names.map((name) => ({ name: 'Read', input: { file_path: `${inbox}/${name}` } })));
    const contents = toolResultsOf(last()).map(({ text }) => /content of .*/.exec(text)?.[0] ?? text);
    assert.deepEqual(contents.sort(), names.map((name) => `content of ${name}`).sort());
    for (const name of ['..', '../a', 'a/b', 'a\0b', 'ж'.repeat(150)]) {
      const { status, body } = await server.chat({ prompt: 'x', files: [file(name, 'x')] });
      assert.deepEqual([status, body['code']], [422, 'invalid_request'], name);
    }
    assert.match(String((await server.chat({ prompt: 'x', files: [file('a', 'x'), file('a', 'y')] })).body['detail']), /"a" is there twice/);
  });

  await t.test('turns of one user side by side have each their own', async () => {
    const names = ['one', 'two', 'three'];
    api.script = (request) => {
      const [prompt = ''] = promptsOf(request);
      const name = /^\w+/.exec(prompt)?.[0] ?? '';
      const { inbox, outbox } = boxesOf(request);
      if (toolResultsOf(request).length > 0) return say(toolResultsOf(request).map(({ text }) => text).join());
      return callTools([{ name: 'Read', input: { file_path: `${inbox}/${name}.txt` } }, { name: 'Write', input: { file_path: `${outbox}/${name}.out`, content: name } }]);
    };
    const replies = await Promise.all(names.map((name) => askWith(server, { prompt: name, files: [file(`${name}.txt`, `content of ${name}`)] })));
    for (const [i, reply] of replies.entries()) {
      assert.match(String(reply.body['content']), new RegExp(`content of ${names[i]}`));
      assert.deepEqual(filesIn(reply), [file(`${names[i]}.out`, names[i] ?? '')]);
    }
  });

  if (way === 'in the sandbox') await t.test('8 MiB go in and come back whole', async () => {
    const bytes = randomBytes(8 * mib);
    const reply = await converse(api, server, { prompt: 'copy', files: [file('whole.bin', bytes)] }, () => [{ name: 'Bash', input: { command: 'cp /inbox/whole.bin /outbox/' } }]);
    assert.ok(Buffer.from(filesIn(reply)[0]?.data ?? '', 'base64').equals(bytes));
  });
});

async function askWith(server: RunningServer, body: Readonly<Record<string, unknown>>): Promise<Reply> {
  const reply = await server.chat(body);
  assert.equal(reply.status, 200, JSON.stringify(reply.body));
  return reply;
}

/** Where the system prompt says that files come in and go out. */
function boxesOf({ rawBody }: { readonly rawBody: string }): { inbox: string; outbox: string } {
  const [, inbox = '', outbox = ''] = /Files that the user sends are in (\S+), .*? put it into (\S+) itself/.exec(rawBody) ?? assert.fail('Claude is not told');
  return { inbox, outbox };
}

/** A turn in which the model makes these calls, all at once. */
function converse(api: MessagesApi, server: RunningServer, body: Readonly<Record<string, unknown>>, calls: (inbox: string, outbox: string) => ToolCall[]): Promise<Reply> {
  let isAsked = false;
  api.script = (request) => {
    if (isAsked) return say('done');
    isAsked = true;
    const { inbox, outbox } = boxesOf(request);
    return callTools(calls(inbox, outbox));
  };
  return askWith(server, body);
}
