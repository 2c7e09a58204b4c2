import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { test } from 'node:test';
import { needs } from '../needs.ts';
import { jpeg, png } from '../pictures.ts';
import { apiKey, makeHome, startServer, until, type Reply, type RunningServer } from '../running-server.ts';

const mib = 1024 * 1024;
const file = (name: string, content: string | Buffer = name) => ({ name, data: Buffer.from(content).toString('base64') });

/** What the stand-in for the CLI says it got: the parts of the message, and the files in the inbox. */
function receivedIn({ status, body }: Reply): { blocks: string[]; files: Record<string, string>; outbox: string[] } {
  assert.equal(status, 200, JSON.stringify(body));
  const received = JSON.parse(String(body['content'])) as { blocks: string[]; files: Record<string, string>; outbox: string[] };
  const files = Object.entries(received.files).map(([name, data]) => [name, Buffer.from(data, 'base64').toString()]);
  return { ...received, files: Object.fromEntries(files) };
}

const filesIn = ({ body }: Reply): string[] => ((body['files'] ?? []) as Array<{ name: string }>).map(({ name }) => name);

async function processOf(server: RunningServer, { body }: Reply): Promise<unknown> {
  return (await server.logged('turn', (line) => line['session'] === body['session_id']))['process'];
}

test('files are in the inbox for one turn, and Claude is told their names', async (t) => {
  const server = await startServer(t);
  const first = await server.chat({ prompt: 'play received', files: [file('отчёт за май.csv', 'a;b'), file('-rf', '')] });
  const { blocks, files } = receivedIn(first);
  assert.deepEqual(files, { 'отчёт за май.csv': 'a;b', '-rf': '' });
  const inbox = join(server.home, 'state/users/1/turns/1/in');
  assert.deepEqual(blocks, [`play received\n\n[Files in ${inbox}: "отчёт за май.csv", "-rf"]`]);
  await until('an empty inbox', () => (readdirSync(inbox).length === 0 ? true : undefined));
  const second = await server.chat({ prompt: 'play received', session_id: first.body['session_id'] });
  assert.deepEqual(receivedIn(second), { blocks: ['play received'], files: {}, outbox: [] });
});

test('a picture is shown at once, whatever it is called; a photo without a word is a turn', async (t) => {
  const server = await startServer(t);
  const { blocks, files } = receivedIn(await server.chat({ prompt: 'play received', files: [file('a.txt', png(3, 3)), file('b.png', 'no picture')] }));
  assert.deepEqual(blocks.map((text) => text.slice(0, 13)), ['image/png', 'play received']);
  assert.deepEqual(Object.keys(files), ['a.txt', 'b.png']);
  for (const prompt of ['', ' \n']) {
    const { status, body } = await server.chat({ prompt, files: [file('a.png', png(3, 3))] });
    assert.match(`${status} ${String(body['content'])}`, /^200 you said: \[Files in \S+\/turns\/\d+\/in: "a\.png"\]$/);
  }
  const { status, body } = await server.chat({ prompt: '', files: [] });
  assert.deepEqual([status, body['code']], [422, 'invalid_request']);
});

test('what is wrong with files is told at once with everything else', async (t) => {
  const server = await startServer(t);
  const { status, body } = await server.chat({ prompt: 7, user_id: 0, files: [file('../a'), { name: 'b', data: '?' }], file: [] });
  const errors = body['errors'] as Array<{ field: string; detail: string }>;
  assert.deepEqual([status, errors.map(({ field }) => field)], [422, ['prompt', 'user_id', 'files[0].name', 'files[1].data', 'file']]);
  assert.match(errors[4]?.detail ?? '', /did you mean "files"/);
  assert.equal(server.lines.filter(({ event }) => event === 'turn').length, 0);
});

test('what Claude gives comes back once, in one piece and streamed, and what is too much is named', async (t) => {
  const server = await startServer(t);
  const first = await server.chat({ prompt: `play give a.csv:3 b.bin:${4 * mib} c.bin:${4 * mib}` });
  assert.deepEqual([filesIn(first), first.body['omitted_files']], [['a.csv', 'b.bin'], ['c.bin']]);
  assert.deepEqual(first.body['files'] instanceof Array && first.body['files'][0], { name: 'a.csv', data: 'eHh4' });
  const next = await server.chat({ prompt: 'hello', session_id: first.body['session_id'] });
  assert.deepEqual(Object.keys(next.body), ['content', 'session_id', 'cost', 'duration_ms']);
  const events = [];
  for await (const event of server.stream({ prompt: 'play give a.csv:3', session_id: first.body['session_id'] })) events.push(event);
  assert.deepEqual(events.at(-1)?.data['files'], [{ name: 'a.csv', data: 'eHh4' }]);
});

test('8 MiB go both ways whole, and so do twenty files', async (t) => {
  const server = await startServer(t);
  const { body } = await server.chat({ prompt: `play give whole:${8 * mib}`, files: [file('whole', Buffer.alloc(8 * mib, 7))] });
  const [given] = body['files'] as Array<{ data: string }>;
  assert.ok(Buffer.from(given?.data ?? '', 'base64').equals(Buffer.alloc(8 * mib, 'x')));
  const names = Array.from({ length: 20 }, (_, i) => `file-${i + 10}`);
  const many = await server.chat({ prompt: `play give ${names.map((name) => `${name}:1`).join(' ')}`, files: names.map((name) => file(name)) });
  assert.deepEqual(filesIn(many), names);
  assert.deepEqual(receivedIn(await server.chat({ prompt: 'play received', files: names.map((name) => file(name)) })).files, Object.fromEntries(names.map((name) => [name, name])));
});

test('a spare process, and one that takes the place of a dead one, have their files too', async (t) => {
  const server = await startServer(t);
  await server.chat({ prompt: 'hello', files: [file('a')] });
  await until('the spare process', async () => ((await (await server.request('/health')).json() as { warm: number }).warm >= 2 ? true : undefined));
  const spare = await server.chat({ prompt: 'play received', files: [file('b')] });
  assert.deepEqual([receivedIn(spare).files, await processOf(server, spare)], [{ b: 'b' }, 'spare']);
  const last = await server.chat({ prompt: 'play die-idle' });
  const renewed = await server.chat({ prompt: 'play received', session_id: last.body['session_id'], files: [file('c')] });
  assert.deepEqual(receivedIn(renewed).files, { c: 'c' });
});

test('turns of one user side by side have each its own files', async (t) => {
  const server = await startServer(t, { CLAUDE_MAX_CONCURRENT_REQUESTS: '4' });
  const start = await Promise.all(['a', 'b', 'c', 'd'].map((name) => server.chat({ prompt: `play give ${name}.out:1`, files: [file(name)] })));
  assert.deepEqual(start.map(filesIn), [['a.out'], ['b.out'], ['c.out'], ['d.out']]);
  const next = await Promise.all(start.map(({ body }, i) => server.chat({ prompt: 'play received', session_id: body['session_id'], files: [file(`next ${i}`)] })));
  assert.deepEqual(next.map((reply) => receivedIn(reply)).map(({ files, outbox }) => [files, outbox]), [0, 1, 2, 3].map((i) => [{ [`next ${i}`]: `next ${i}` }, []]));
});

test('the folders of a process are gone with it, those that an earlier server left too', async (t) => {
  const home = await makeHome(t);
  const turns = join(home, 'state/users/1/turns');
  const first = await startServer(t, {}, home);
  await first.chat({ prompt: 'play give a:1', files: [file('b')] });
  assert.ok(readdirSync(turns).length > 0);
  await first.end('SIGKILL');
  const second = await startServer(t, { CLAUDE_WARM_SECONDS: '0' }, home);
  assert.equal((await second.chat({ prompt: 'hello' })).status, 200);
  await until('no folder of a process', () => (readdirSync(turns).length === 0 ? true : undefined));
});

test('the curl lines of docs/api.md send a photo, and get a chart back, as they stand', { skip: needs(['curl', 'jq', 'base64'], 'runs the lines of docs/api.md') }, async (t) => {
  const server = await startServer(t);
  const text = await readFile(new URL('../../docs/api.md', import.meta.url), 'utf8');
  const [, lines = ''] = /```sh\n(url=[^`]*)```/.exec(text) ?? assert.fail('no such lines');
  await writeFile(join(server.home, 'photo.jpg'), jpeg(3, 3));
  await writeFile(join(server.home, 'sales.csv'), 'month,sales\n');
  // The stand-in does as it is told.
  const script = lines.replace(/http:\S+(?=\/api)/, server.url).replace('What is this?', 'play received').replace('Draw this as chart.svg', 'play give chart.svg:7');
  const env = { PATH: process.env['PATH'], CLAUDE_API_KEY: apiKey };
  const { stdout } = await promisify(execFile)('/bin/sh', ['-ec', script], { cwd: server.home, env, timeout: 30_000 });
  const { blocks, files } = JSON.parse(String((JSON.parse(stdout) as { content: string }).content)) as { blocks: string[]; files: Record<string, string> };
  assert.deepEqual([blocks[0], files], ['image/jpeg', { 'photo.jpg': jpeg(3, 3).toString('base64') }]);
  assert.equal(await readFile(join(server.home, 'chart.svg'), 'utf8'), 'xxxxxxx');
});
