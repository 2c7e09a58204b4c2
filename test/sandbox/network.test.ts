import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { copyFile, chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:https';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { text } from 'node:stream/consumers';
import { test, type TestContext } from 'node:test';
import { networkEnv, withForwarder } from '../../src/sandbox/forwarder.ts';
import type { NetworkSocket } from '../../src/sandbox/network-proxy.ts';
import { attempt, callTools, say, startMessagesApi, toolNamesOf, toolResultsOf } from '../messages-api.ts';
import { needsToRun } from '../needs.ts';
import { NetworkStage } from '../network-stage.ts';
import { testWithRealClis, until } from '../running-server.ts';
import { leave, startCli, turn, wire } from '../sandboxed-cli.ts';
import { chownAll, insideEnv, makeSandboxedHome, makeSandboxedUsers, noneWith, noSandbox, startSandboxedServer, testSandboxed, unlike, type Outcome, type SandboxedUsers } from '../sandboxed.ts';

const address = '93.184.215.14';
const caFile = '/home/claude/ca.pem';
// Of the test alone: that the stand-ins' certificate is trusted.
const trust = {
  CURL_CA_BUNDLE: caFile, GIT_SSL_CAINFO: caFile, NODE_EXTRA_CA_CERTS: caFile, PIP_CERT: caFile,
  npm_config_registry: 'https://registry.world.example/', npm_config_fund: 'false', npm_config_audit: 'false', npm_config_update_notifier: 'false',
  PIP_INDEX_URL: 'https://pypi.world.example/simple', PIP_DISABLE_PIP_VERSION_CHECK: '1',
};

/** A world of HTTPS at one address: each host is a folder, and what is asked for is a file in it. */
class World {
  readonly stage: NetworkStage;
  readonly users: SandboxedUsers;
  /** Before its first turn, where the world was made so. */
  socket: NetworkSocket | undefined;
  /** What was asked for: host and path. */
  readonly asked: string[] = [];

  constructor(stage: NetworkStage, users: SandboxedUsers) {
    this.stage = stage;
    this.users = users;
  }

  /** A shell script inside, with the forwarder beside it, which is waited for. */
  run(script: string): Promise<Outcome> {
    const waited = `until (exec 3<>/dev/tcp/127.0.0.1/3128) 2>/dev/null; do sleep 0.05; done; ${script}`;
    return this.users.start(withForwarder(['/bin/bash', '-c', waited]), 1, this.users.folders(1), { ...insideEnv, ...networkEnv, ...trust }).ended(60_000);
  }
}

async function makeWorld(t: TestContext, claude?: string, startMs = 0): Promise<World> {
  const users = await makeSandboxedUsers(t, claude);
  const folder = await mkdtemp(join(tmpdir(), 'world-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const names = ['site', 'registry', 'pypi', 'git'].map((name) => `${name}.world.example`);
  const stage = new NetworkStage(t, { hosts: ['*.world.example'], startMs, names: Object.fromEntries([...names, 'other.example'].map((name) => [name, [address]])) });
  const world = new World(stage, users);
  const certificate = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '1', '-subj', '/CN=made up', '-addext', 'subjectAltName=DNS:*.world.example'];
  execFileSync('openssl', [...certificate, '-keyout', join(folder, 'key'), '-out', join(folder, 'cert')], { stdio: 'ignore', timeout: 10_000 });
  const server = createServer({ key: await readFile(join(folder, 'key')), cert: await readFile(join(folder, 'cert')) }, (req, res) => {
    const path = `${req.headers.host}${decodeURIComponent((req.url ?? '').replace(/\?.*/, ''))}`;
    world.asked.push(path);
    if (path.endsWith('/mcp')) return void answerMcp(req, res);
    if (path.endsWith('/away')) return void res.writeHead(302, { location: 'https://other.example/' }).end();
    readFile(join(folder, path.endsWith('/') ? `${path}index.html` : path)).then(
      (body) => res.writeHead(200, { 'content-type': /(\/|html)$/.test(path) ? 'text/html' : 'application/octet-stream' }).end(body),
      () => res.writeHead(404).end(),
    );
  });
  await stage.put(address, server);
  t.after(() => server.closeAllConnections());
  for (const [path, content] of Object.entries(pages)) {
    await mkdir(dirname(join(folder, path)), { recursive: true });
    await writeFile(join(folder, path), content);
  }
  for (const script of [npmPackage, wheel, repository]) execFileSync('/bin/bash', ['-euc', script], { cwd: folder, stdio: 'pipe', timeout: 20_000 });
  const { home, api = '' } = users.folders(1);
  await copyFile(join(folder, 'cert'), join(home, 'ca.pem'));
  await chownAll(home);
  if (startMs === 0) await stage.open(api);
  else world.socket = await stage.openBeforeTurn(api);
  await chmod(join(api, 'n'), 0o777);
  return world;
}

/** An MCP server over HTTP that answers each call by itself (Streamable HTTP of the MCP specification). */
async function answerMcp(req: IncomingMessage, res: ServerResponse): Promise<void> {
  if (req.method !== 'POST') return void res.writeHead(405).end();
  const { id, method, params } = JSON.parse(await text(req)) as { id?: number; method: string; params: { protocolVersion?: string } };
  if (id === undefined) return void res.writeHead(202).end();
  const results: Readonly<Record<string, unknown>> = {
    initialize: { protocolVersion: params?.protocolVersion, capabilities: { tools: {} }, serverInfo: { name: 'remote', version: '1' } },
    'tools/list': { tools: [{ name: 'greet', description: 'greets', inputSchema: { type: 'object', properties: {} } }] },
    'tools/call': { content: [{ type: 'text', text: 'hello from far away' }] },
  };
  res.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({ jsonrpc: '2.0', id, result: results[method] ?? {} }));
}

const pages = {
  'site.world.example/index.html': '<html><body><h1>Hello from the site</h1></body></html>',
  'site.world.example/large': Buffer.alloc(20_000_000, 'x'),
  'registry.world.example/hello-package': JSON.stringify({
    name: 'hello-package',
    'dist-tags': { latest: '1.0.0' },
    versions: { '1.0.0': { name: 'hello-package', version: '1.0.0', dist: { tarball: 'https://registry.world.example/hello-package.tgz' } } },
  }),
  'package/package.json': '{"name":"hello-package","version":"1.0.0","main":"index.js"}',
  'package/index.js': 'module.exports = "hello from npm";',
  'pypi.world.example/simple/hello-wheel/index.html': '<a href="https://pypi.world.example/hello_wheel-1.0-py3-none-any.whl">hello_wheel-1.0-py3-none-any.whl</a>',
  'wheel/hello_wheel.py': 'text = "hello from pip"',
  'wheel/hello_wheel-1.0.dist-info/METADATA': 'Metadata-Version: 2.1\nName: hello-wheel\nVersion: 1.0\n',
  'wheel/hello_wheel-1.0.dist-info/WHEEL': 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
  'wheel/hello_wheel-1.0.dist-info/RECORD': 'hello_wheel.py,,\nhello_wheel-1.0.dist-info/METADATA,,\nhello_wheel-1.0.dist-info/WHEEL,,\nhello_wheel-1.0.dist-info/RECORD,,\n',
};
const npmPackage = 'tar czf registry.world.example/hello-package.tgz package';
const wheel = 'cd wheel; /usr/bin/python3 -m zipfile -c ../pypi.world.example/hello_wheel-1.0-py3-none-any.whl *';
const repository = [
  'git init -q made; cd made; echo "hello from git" >file.txt; git add .; git -c user.name=x -c user.email=x@x commit -qm x',
  'cd ..; mkdir -p git.world.example; git clone -q --bare made git.world.example/repository.git; git -C git.world.example/repository.git update-server-info',
].join('; ');

const tools = ['curl', 'git', 'npm', 'pip3', 'python3', 'openssl'];
// Where a sandbox has them: what lies elsewhere on the machine is not in it.
const isThere = `PATH=/usr/local/bin:/usr/bin:/bin; for tool in ${tools.join(' ')}; do command -v $tool || exit 1; done`;
const lacks = noSandbox || needsToRun(['/bin/sh', '-c', isThere], `${tools.join(', ')} in /usr/bin`, 'fetches from a sandbox');

test('through the network proxy, from inside', { skip: lacks }, async (t) => {
  const world = await makeWorld(t);
  const { stage } = world;

  await t.test('curl gets a page, and twenty megabytes whole', async () => {
    const script = 'curl -sS https://site.world.example/; curl -sS https://site.world.example/large | sha256sum; sha256sum </dev/null';
    const { stdout, stderr } = await world.run(script);
    const sum = execFileSync('sha256sum', { input: pages['site.world.example/large'], encoding: 'utf8' });
    assert.equal(stdout.replace(/\n[^\n]*\n$/, '\n'), `${pages['site.world.example/index.html']}${sum}`, stderr);
  });

  await t.test('fifty at once are served', async () => {
    const { stdout } = await world.run('for i in $(seq 50); do curl -sS -o /dev/null -w "%{http_code}\\n" https://site.world.example/ & done; wait');
    assert.equal(stdout, '200\n'.repeat(50));
  });

  await t.test('git clones, npm installs, pip installs', async () => {
    const git = await world.run('git clone -q https://git.world.example/repository.git && cat repository/file.txt');
    assert.equal(git.stdout, 'hello from git\n', git.stderr);
    const npm = await world.run('npm install hello-package && node -p \'require("hello-package")\'');
    assert.match(npm.stdout, /\nhello from npm\n$/, npm.stderr);
    const pip = await world.run('pip3 install -q --target=/work/lib hello-wheel && PYTHONPATH=/work/lib python3 -c "import hello_wheel; print(hello_wheel.text)"');
    assert.equal(pip.stdout, 'hello from pip\n', pip.stderr);
  });

  await t.test('a host that is not allowed is refused, straight and by a redirect; so is another port', async () => {
    const curl = await world.run('for url in https://other.example/ "-L https://site.world.example/away" https://site.world.example:80/; do curl -sS $url 2>&1; done');
    assert.match(curl.stdout, /^(curl: \(\d+\) CONNECT tunnel failed, response 403\n|curl: \(\d+\) Received HTTP code 403 from proxy after CONNECT\n){3}$/);
    const git = await world.run('git clone -q https://other.example/other.git');
    assert.match(git.stderr, /403/);
    const pip = await world.run('pip3 install --retries 1 --target=/work/other --index-url https://other.example/simple hello-wheel');
    assert.match(pip.stdout + pip.stderr, /403 other\.example is not in CLAUDE_NETWORK/);
    assert.deepEqual([...new Set(stage.refused)], ['other.example', 'site.world.example:80']);
    assert.ok(!world.asked.some((path) => path.startsWith('other.example')));
  });

  await t.test('there is no other way out', async () => {
    const direct = await world.run(`curl -sS -m 5 --noproxy '*' --resolve site.world.example:443:${address} https://site.world.example/; curl -sS -m 5 http://site.world.example/; wc -l </proc/net/route`);
    assert.equal(direct.stdout, '1\n');
    assert.deepEqual([...new Set(stage.dialled)], [address]);
  });
});

testSandboxed('the program beside the forwarder keeps its streams and its end', async (t) => {
  const users = await makeSandboxedUsers(t);
  const start = (script: string) => users.start(withForwarder(['/bin/bash', '-c', script, 'name with "quotes"', '$(x)']), 1);
  const process = start('cat; printf "%s|%s" "$0" "$1"; echo bad >&2; exit 7');
  process.child.stdin.end('in\n');
  const { code, stdout, stderr } = await process.ended();
  assert.deepEqual([code, stdout, stderr], [7, 'in\nname with "quotes"|$(x)', 'bad\n']);
  assert.equal((await start('kill -KILL $$').ended()).code, 137);
});

testSandboxed('whoever ends the forwarder ends all there is, and nothing can stand in its place', async (t) => {
  const users = await makeSandboxedUsers(t);
  const script = `setsid -f sleep ${unlike(51)}; kill -KILL $PPID; sleep ${unlike(51)}`;
  assert.equal((await users.start(withForwarder(['/bin/bash', '-c', script])).ended()).code, 137);
  await noneWith(`sleep ${unlike(51)}`);
});

if (lacks === false) testWithRealClis('the real CLI with a network', async (t, binary) => {
  await t.test('fetches by WebFetch from what is allowed, and says what is not', async (t) => {
    const world = await makeWorld(t, binary);
    const api = await startMessagesApi(t);
    await wire(t, world.users, api);
    let fetched = 0;
    const urls = ['https://site.world.example/', 'https://other.example/', 'https://site.world.example/away'];
    api.script = (request) => {
      if (!toolNamesOf(request).includes('Bash')) return say('a summary of it');
      const url = urls[fetched];
      fetched += 1;
      return url === undefined ? say('done') : callTools([{ name: 'WebFetch', input: { url, prompt: 'what does it say?' } }]);
    };
    const fetchAll = async (options: readonly string[]): Promise<void> => {
      fetched = 0;
      const cli = startCli(world.users, options, 1, { ...networkEnv, ...trust });
      assert.equal((await turn(cli, 'fetch'))['result'], 'done');
      await leave(cli);
    };
    await fetchAll([]);
    assert.deepEqual([world.asked, world.stage.refused], [[], ['api.anthropic.com']], 'asks the API about each host first');
    await fetchAll(['--settings={"skipWebFetchPreflight":true}']);
    const results = toolResultsOf(api.turns.at(-1) ?? assert.fail('asked'));
    assert.match(results[0]?.text ?? '', /a summary of it/);
    assert.ok(api.turns.some(({ rawBody }) => rawBody.includes('Hello from the site') && !rawBody.includes('"name":"Bash"')), 'the page was read');
    assert.match(results[1]?.text ?? '', /EGRESS_BLOCKED|blocked/);
    assert.ok(results.slice(1).every(({ text }) => !text.includes('a summary')), JSON.stringify(results));
    assert.deepEqual(world.asked.filter((path) => path.startsWith('other.example')), []);
    assert.deepEqual(new Set(world.stage.dialled), new Set([address]));
  });

  await t.test('has an MCP server of the operator\'s that is far away, from its start on and in each turn', async (t) => {
    const world = await makeWorld(t, binary, 30_000);
    const api = await startMessagesApi(t);
    await wire(t, world.users, api);
    const config = JSON.stringify({ mcpServers: { remote: { type: 'http', url: 'https://site.world.example/mcp' } } });
    const cli = startCli(world.users, ['--strict-mcp-config', `--mcp-config=${config}`], 1, { ...networkEnv, ...trust });
    await until('a connection before the first turn', () => world.asked.includes('site.world.example/mcp') || undefined);
    for (const prompt of ['greet', 'greet again']) {
      world.socket?.beginTurn({});
      let isAsked = false;
      api.script = () => {
        if (isAsked) return say('done');
        isAsked = true;
        return callTools([{ name: 'mcp__remote__greet', input: {} }]);
      };
      assert.equal((await turn(cli, prompt))['result'], 'done');
      assert.match(toolResultsOf(api.turns.at(-1) ?? assert.fail('asked')).at(-1)?.text ?? '', /hello from far away/);
      world.socket?.endTurn();
    }
    await leave(cli);
  });

  await t.test('has WebFetch and the variables by CLAUDE_NETWORK, hears and logs what is refused, and stays warm', async (t) => {
    const api = await startMessagesApi(t);
    const home = await makeSandboxedHome(t);
    const server = await startSandboxedServer(t, { CLAUDE_BINARY_PATH: binary, ANTHROPIC_BASE_URL: api.url, CLAUDE_NETWORK: 'allowed.example' }, home);
    const command = 'curl -sSv https://refused.example/ 2>&1; curl -sS https://allowed.example/ 2>&1';
    const { results, sessionId } = await attempt(api, server, [{ name: 'Bash', input: { command } }]);
    assert.match(results[0]?.text ?? '', /403 refused\.example is not in CLAUDE_NETWORK/);
    assert.match(results[0]?.text ?? '', /response 502|code 502/);
    // Named for ToolSearch, as WebSearch is.
    assert.ok(api.turns[0]?.rawBody.includes('WebFetch'));
    const line = await until('a line of the log', () => server.lines.find(({ event }) => event === 'network_refused'));
    assert.deepEqual([line['host'], line['user'], line['session']], ['refused.example', 1, sessionId]);
    const endedAt = performance.now();
    await until('what is looked at a second later', () => (performance.now() - endedAt > 1500 ? true : undefined));
    api.script = () => say('ok');
    await server.chat({ prompt: 'again', session_id: sessionId });
    const turns = () => server.lines.filter((line) => line.event === 'turn' && line['session'] === sessionId);
    await until('both lines of the log', () => (turns().length === 2 ? true : undefined));
    assert.equal(turns()[1]?.['process'], 'warm');
  });
});
