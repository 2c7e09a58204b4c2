import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { loadConfig } from '../../src/env.ts';
import { settings } from '../../src/host/settings.ts';
import { claudeNotFound } from '../../src/cli/program.ts';
import { metricsText } from '../../src/http/metrics.ts';
import { Problem, problemCodes } from '../../src/problem.ts';
import { Figures } from '../../src/turns/figures.ts';
import { healthDetails } from '../http-stage.ts';
import { logTable } from '../log-table.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
const read = (name: string): Promise<string> => readFile(join(root, name), 'utf8');

/** The names of all files in a folder of the repository, as paths from its root. */
async function filesIn(folder: string): Promise<string[]> {
  const entries = await readdir(join(root, folder), { recursive: true, withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath.slice(root.length), entry.name));
}

const documents = async (): Promise<string[]> => [
  ...['README.md', 'README.ru.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md'],
  ...(await filesIn('docs')),
];

test('README.md has a row for every setting, with its default and its line, and .env.example has the same', async () => {
  const [readme, example] = await Promise.all([read('README.md'), read('.env.example')]);
  const rows = readme.replace(/\[([^\]]+)\]\([^)]+\)/g, '$1').matchAll(/^\| `([A-Z_]+)` \| (.+?) \| (.+) \|$/gm);
  const documented = Array.from(rows, ([, name, standard = '', doc]) => [name, standard.replaceAll('`', ''), doc]);
  // What a setting without a value of its own stands for is said in words.
  const inWords = new Map(documented.map(([name, standard]) => [name, standard]));
  const table = Object.values(settings).map(({ name, defaultText, doc }) => [name, defaultText || inWords.get(name), doc]);
  assert.deepEqual(documented, table);
  const lines = Array.from(example.matchAll(/^(?:# )?([A-Z_]+)=(.*)$/gm), ([, name, value]) => [name, value]);
  const isOurs = ([name]: readonly (string | undefined)[]): boolean => !/^(ANTHROPIC|CLAUDE_CODE)_/.test(name ?? '');
  assert.deepEqual(lines.filter(isOurs), Object.values(settings).map(({ name, defaultText }) => [name, defaultText]));
});

test('docs/api.md has a row for every problem code, with its status, and for no other', async () => {
  const rows = (await read('docs/api.md')).matchAll(/^\| ([45]\d\d) \| `(\w+)` \|/gm);
  const documented = Array.from(rows, ([, status, code]) => `${status} ${code}`);
  assert.deepEqual(documented.sort(), problemCodes.map((code) => `${new Problem(code, '').status} ${code}`).sort());
});

test('docs/operations.md has every event of the log, and no other', async () => {
  const documented = [...logTable.keys()];
  const sources = await Promise.all((await filesIn('src')).map(read));
  const inSource = sources.flatMap((text) => {
    const calls = [...text.matchAll(/\blog\(([^{}()]*)/g), ...text.matchAll(/\bevent = ([^;]*);/g)];
    return calls.flatMap(([, call = '']) => quoted(call, "'"));
  });
  const events = new Set(inSource.filter((name) => !['error', 'warning', 'info'].includes(name)));
  assert.deepEqual(documented.sort(), [...events].sort());
});

test('what the documents call a setting, a code or an option of install.sh is one', async () => {
  const sources = await Promise.all([...(await filesIn('src')), ...(await filesIn('test')), 'install.sh', 'Dockerfile', 'claude-api.service'].map(read));
  const source = sources.join('\n');
  const labels = /while \[ \$# -gt 0 \]; do([^]*?)esac/.exec(await read('install.sh'))?.[1] ?? '';
  for (const name of await documents()) {
    const text = await read(name);
    const inCapitals = Array.from(text.matchAll(/`([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?:=[^`]*)?`/g), ([, word = '']) => word);
    assert.deepEqual(inCapitals.filter((word) => !source.includes(word)), [], name);
    const problems = Array.from(text.matchAll(/\b([45]\d\d) `(\w+)`/g), ([, status, code]) => `${status} ${code}`);
    const all = problemCodes.map((code) => `${new Problem(code, '').status} ${code}`);
    assert.deepEqual(problems.filter((problem) => !all.includes(problem)), [], name);
    const options = Array.from(text.matchAll(/install\.sh[^`\n]* (--[a-z-]+)/g), ([, option = '']) => option);
    assert.deepEqual(options.filter((option) => !labels.includes(`${option} `) && !labels.includes(`${option})`)), [], name);
  }
});

test('docs/operations.md has every figure with its labels, and no other', async () => {
  const rows = (await read('docs/operations.md')).matchAll(/^\| (`claude_api_.+?) \| (.*?) ?\| /gm);
  const documented = Array.from(rows, ([, names = '', labels = '']) => quoted(names, '`').map((name) => [name, ...quoted(labels, '`')].join(' '))).flat();
  const figures = new Figures();
  figures.counting(() => {})('info', 'turn');
  const lines = metricsText(true, healthDetails, figures).split('\n').filter((line) => /^claude/.test(line) && !/_(?:bucket|count)\b/.test(line));
  const names = lines.map((line) => [line.replace(/(?:_sum)?(?:\{.*|) .*$/, ''), ...Array.from(line.matchAll(/(\w+)="/g), ([, label]) => label)].join(' '));
  assert.deepEqual(documented.sort(), [...new Set(names)].sort());
});

/** The words between two of these marks. */
function quoted(text: string, mark: string): string[] {
  return Array.from(text.matchAll(new RegExp(`${mark}(\\w+)${mark}`, 'g')), ([, word = '']) => word);
}

test('the line that installs the CLI is the same in the documents and in what the server says', async () => {
  const [, line = ''] = /"(npm [^"]+)"/.exec(claudeNotFound().message) ?? [];
  assert.match(line, /@latest$/, 'else npm may take one that is too old');
  for (const name of ['README.md', 'README.ru.md', 'docs/operations.md']) assert.ok((await read(name)).includes(line), name);
});

test('README.md and docs/api.md name the longest an answer takes, by the defaults', async () => {
  const { queueTimeoutMs, turnTimeoutMs } = loadConfig({ HOME: '/home/claude' });
  const bound = `${(queueTimeoutMs + turnTimeoutMs) / 1000 + 20} s`;
  for (const name of ['README.md', 'docs/api.md']) assert.ok((await read(name)).includes(bound), `${name}: ${bound}`);
});

/** What a translation must keep: commands, what stands between backquotes, where links lead, and numbers. */
function untranslated(text: string): Record<string, string[]> {
  const blocks = text.match(/^```[^]*?^```$/gm) ?? [];
  const prose = text.replace(/^```[^]*?^```$/gm, '');
  const all = (pattern: RegExp): string[] => Array.from(prose.matchAll(pattern), ([, found = '']) => found);
  return {
    commands: blocks.map((block) => block.replace(/ +# .*$/gm, '')),
    code: [...new Set(all(/`([^`]+)`/g))].sort(),
    links: all(/\]\(([^)#]*(?:#[^)]*)?)\)/g).filter((target) => !/^(?:#|README)/.test(target)).sort(),
    rows: all(/^\| `(\w+)` \|/gm),
    numbers: [...new Set(all(/(\d+(?:[., \u00a0]?\d+)*)/g).map((number) => number.replace(/[ ,\u00a0](?=\d{3}\b)/g, '').replace(',', '.')))].sort(),
  };
}

test('README.ru.md has the commands, names, codes, links and numbers of README.md', async () => {
  assert.deepEqual(untranslated(await read('README.ru.md')), untranslated(await read('README.md')));
  const headings = async (name: string): Promise<number> => (await read(name)).match(/^#+ /gm)?.length ?? 0;
  assert.equal(await headings('README.ru.md'), await headings('README.md'));
});

test('README.md and README.ru.md have at most 150 lines', async () => {
  for (const name of ['README.md', 'README.ru.md']) assert.ok((await read(name)).trimEnd().split('\n').length <= 150, name);
});

test('a command of npm in the documents is a script, and every script is in one of them', async () => {
  const { scripts } = JSON.parse(await read('package.json')) as { scripts: Record<string, string> };
  const texts = await Promise.all((await documents()).map(read));
  const commands = new Set(texts.flatMap((text) => Array.from(text.matchAll(/\bnpm (?:run ([\w:]+)|start|test)\b/g), ([whole, name]) => name ?? whole.slice(4))));
  assert.deepEqual([...commands].filter((name) => !(name in scripts)), []);
  assert.deepEqual(Object.keys(scripts).filter((name) => !commands.has(name) && name !== 'prepare'), []);
});

test('compose.yaml runs the image as docs/docker.md does', async () => {
  const [compose, docker] = await Promise.all([read('compose.yaml'), read('docs/docker.md')]);
  const [, port, volume, restart, timeout, memory] =
    /-p (\S+) -v (\S+) --restart (\S+) --stop-timeout (\d+) --memory (\S+)/.exec(docker) ?? assert.fail('docs/docker.md has no such command');
  for (const line of [`- ${port}`, `- ${volume}`, `restart: ${restart}`, `stop_grace_period: ${timeout}s`, `mem_limit: ${memory}`]) {
    assert.ok(compose.includes(`${line}\n`), line);
  }
});

test('no link between the documents is dead', async () => {
  for (const name of await documents()) {
    for (const [, target = ''] of (await read(name)).matchAll(/\]\((?!https?:)([^)\s]+)\)/g)) {
      const [path = '', anchor] = target.split('#');
      const file = path === '' ? name : join(dirname(name), path);
      assert.ok(existsSync(join(root, file)), `${name}: ${target}`);
      if (anchor !== undefined) assert.ok(anchorsOf(await read(file)).includes(anchor), `${name}: ${target}`);
    }
  }
});

/** The anchors GitHub makes of a document's headings. */
function anchorsOf(text: string): string[] {
  const headings = text.replace(/^```[^]*?^```/gm, '').matchAll(/^#+ (.+)$/gm);
  return Array.from(headings, ([, heading = '']) => heading.toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, '').replaceAll(' ', '-'));
}

test('nothing is needed at run time but Node', async () => {
  const manifest = JSON.parse(await read('package.json')) as Record<string, unknown>;
  for (const kind of ['dependencies', 'optionalDependencies', 'peerDependencies']) assert.equal(manifest[kind], undefined, kind);
});

test('facts about the CLI have each a number of its own, and name tests that are there', async () => {
  const text = await read('docs/cli-facts.md');
  const numbers = Array.from(text.matchAll(/^\| (\d+) \|/gm), ([, number]) => Number(number));
  assert.ok(numbers.length > 0);
  assert.deepEqual([...new Set(numbers)].sort((a, b) => a - b), [...numbers].sort((a, b) => a - b), 'a number stands twice');
  for (const [, path = '', title = ''] of text.matchAll(/\]\(\.\.\/(test\/[^)]+)\): `([^`]+)` \|$/gm)) {
    assert.ok((await read(path)).includes(title), `${path} has no test "${title}"`);
  }
});

test('a fact that the code cites is one of docs/cli-facts.md', async () => {
  const text = await read('docs/cli-facts.md');
  for (const name of await filesIn('src')) {
    for (const [, number = ''] of (await read(name)).matchAll(/\bfacts? (\d+)/g)) assert.ok(text.includes(`\n| ${number} |`), `${name}: fact ${number}`);
  }
});

test('docs/architecture.md names files that are there', async () => {
  const named = Array.from((await read('docs/architecture.md')).matchAll(/(?<![\w/.-])(?:\w+\/)*[\w-]+\.ts\b/g), ([path]) => path);
  assert.ok(named.length > 10);
  assert.deepEqual(named.filter((path) => !existsSync(join(root, 'src', path)) && !existsSync(join(root, path))), []);
});
