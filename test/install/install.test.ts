import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { test, type TestContext } from 'node:test';
import { promisify } from 'node:util';
import { needs } from '../needs.ts';
import { noScratchMachine, ScratchMachine, type Outcome } from './scratch-machine.ts';

const app = '/home/claude/claude-api';
const install = 'cd /root/copy && ./install.sh';
// A restart tries the sandbox first.
const restart = 'systemctl restart claude-api && until curl -sf 127.0.0.1:8001/health > /dev/null; do sleep 0.1; done';
const readKey = `sed -n 's/^CLAUDE_API_KEY=//p' ${app}/.env`;

/** A test on a machine of its own; they run side by side, since most of their time is waiting. */
function onMachine(name: string, work: (machine: ScratchMachine, t: TestContext) => Promise<void>): void {
  test(name, { skip: noScratchMachine, timeout: 180_000 }, async (t) => work(await ScratchMachine.boot(t), t));
}

async function chat(machine: ScratchMachine, prompt: string, sessionId?: string): Promise<Record<string, unknown>> {
  const body = JSON.stringify({ prompt, user_id: 1, ...(sessionId && { session_id: sessionId }) });
  const headers = `-H "Authorization: Bearer $(${readKey})" -H 'Content-Type: application/json'`;
  return JSON.parse(await machine.must(`curl -s --max-time 20 127.0.0.1:8001/api/v1/chat ${headers} -d '${body}'`)) as Record<string, unknown>;
}

/** The addresses that are listened at, as the kernel's table of IPv4 writes them. */
async function listeners(machine: ScratchMachine, port: number): Promise<string> {
  return machine.must(`awk '$4 == "0A" { print $2 }' /proc/net/tcp | sed -n 's/:${port.toString(16).toUpperCase().padStart(4, '0')}$//p'`);
}

/** What the curl line of the last screen answers, as a person would paste it. */
async function tried(machine: ScratchMachine, said: string): Promise<Record<string, unknown>> {
  const line = /^ {2}curl [^]*?}'$/m.exec(said)?.[0] ?? assert.fail(said);
  return JSON.parse(await machine.must(`sudo() { "$@"; }; export -f sudo; ${line} -s --max-time 20`)) as Record<string, unknown>;
}

test('install.sh and the other scripts pass shellcheck', { skip: needs(['shellcheck'], 'checks the scripts') }, async () => {
  const scripts = ['install.sh', '.ci/run', '.ci/release', 'test/install/scratch/boot', 'test/install/scratch/systemctl', 'test/install/scratch/npm', 'test/install/scratch/journalctl', 'test/vps/run', 'test/vps/newcomer', 'test/vps/small', 'test/vps/kernel', 'test/vps/machine.sh', 'deploy/buckets', 'test/many/bin/ssh'];
  await promisify(execFile)('shellcheck', ['-x', ...scripts], { cwd: new URL('../..', import.meta.url) });
});

test('the unit is understood, and exposes little', { skip: needs(['systemd-analyze'], 'checks claude-api.service') }, async () => {
  const unit = await readFile(new URL('../../claude-api.service', import.meta.url), 'utf8');
  const cwd = new URL('../..', import.meta.url);
  // The program is not there before the installation, which is all that may be complained about.
  const { stderr } = await promisify(execFile)('systemd-analyze', ['verify', './claude-api.service'], { cwd }).catch((error: { stderr: string }) => error);
  assert.deepEqual(stderr.split('\n').filter((line) => line.includes('claude-api') && !/current\/bin\/node is not executable/.test(line)), []);
  const security = await promisify(execFile)('systemd-analyze', ['security', '--offline=true', '--threshold=22', './claude-api.service'], { cwd });
  assert.match(security.stdout, /Overall exposure level for claude-api.service: ([01]\.\d|2\.[012]) /);
  assert.match(unit, /^KillMode=mixed$/m);
});

onMachine('half a script, as a broken download leaves it, does nothing', async (machine) => {
  const before = await machine.state();
  for (const percent of [10, 30, 50, 70, 90, 99]) {
    const { stdout } = await machine.run(`head -c $(($(stat -c %s /root/copy/install.sh) * ${percent} / 100)) /root/copy/install.sh | bash`);
    assert.equal(stdout, '', `${percent} %`);
  }
  assert.equal(await machine.state(), before);
});

onMachine('one command, and it serves; a second one changes nothing', async (machine) => {
  const { status, stdout, stderr } = await machine.run(install);
  assert.equal(status, 0, stdout + stderr);
  assert.match(stdout, /claude-api runs as the user claude and answers at http:\/\/127\.0\.0\.1:8001/);
  assert.match(stdout, /listens on +127\.0\.0\.1, port 8001\n/);
  assert.equal(await listeners(machine, 8001), '0100007F', 'this machine only');
  assert.match(stdout, /the sandbox +on\n/);
  assert.equal(await machine.must(`grep ^CLAUDE_SANDBOX ${app}/.env; ls /var/lib/claude-api/sandboxed`), 'CLAUDE_SANDBOX=required\n/var/lib/claude-api/sandboxed');
  assert.match(stdout, /no Claude login yet[^]*ANTHROPIC_API_KEY[^]*claude setup-token[^]*sudo -u claude -H /);

  const key = await machine.must(readKey);
  assert.match(key, /^[0-9a-f]{64}$/);
  assert.equal(await machine.must(`stat -c '%a %U:%G' ${app}/.env ${app} /home/claude`), '640 root:claude\n755 root:root\n1770 root:claude');
  for (const where of ['cat /proc/[0-9]*/cmdline | tr "\\0" " "', 'cat /run/stub/journal', 'cat /etc/systemd/system/claude-api.service', 'cat /run/stub/calls /run/stub/npm-calls']) {
    assert.doesNotMatch(await machine.must(where), new RegExp(key), where);
  }
  assert.doesNotMatch(stdout + stderr, new RegExp(key));
  assert.equal(await machine.must("ps -o user= -p $(cat /run/stub/pid)"), 'claude');

  // What runs as claude can neither write the code nor put its own in its place.
  assert.equal(await machine.must(`find ${app} ! -type l \\( ! -user root -o -perm /o+w -o -perm /g+w \\)`), '');
  for (const attempt of [`mv ${app} ${app}.old`, `rm -rf ${app}/current`, `ln -sfn /tmp ${app}/current`, `sh -c 'echo >> ${app}/.env'`]) {
    assert.notEqual((await machine.run(`runuser -u claude -- ${attempt}`)).status, 0, attempt);
  }
  await machine.must('runuser -u claude -- mkdir /home/claude/.claude');

  await machine.must(`echo ANTHROPIC_API_KEY=made-up >> ${app}/.env && ${restart}`);
  const first = await chat(machine, 'hello');
  assert.equal(typeof (await tried(machine, stdout))['content'], 'string', 'the line to try answers');
  assert.equal(typeof first['content'], 'string');

  const [before, calls] = [await machine.state(), await machine.must('grep -c . /run/stub/npm-calls')];
  const again = await machine.must(install);
  assert.match(again, /nothing to change/);
  assert.match(again, /found: ANTHROPIC_API_KEY/);
  assert.equal(await machine.state(), before);
  assert.equal(await machine.must('grep -c . /run/stub/npm-calls'), calls);
  assert.equal(await machine.must('grep -c ^restart /run/stub/calls'), '2');
  assert.equal((await chat(machine, 'again', String(first['session_id'])))['session_id'], first['session_id']);
});

onMachine('an update restarts what changed, and keeps key, login and dialogues', async (machine) => {
  await machine.must(`${install} && echo ANTHROPIC_API_KEY=made-up >> ${app}/.env && ${restart}`);
  const { session_id: sessionId } = await chat(machine, 'remember me');
  const [key, pid, release] = [await machine.must(readKey), await machine.must('cat /run/stub/pid'), await machine.must(`readlink ${app}/current`)];

  await machine.must(`echo '// new' >> /root/copy/src/main.ts && ${install}`);
  assert.notEqual(await machine.must('cat /run/stub/pid'), pid);
  assert.notEqual(await machine.must(`readlink ${app}/current`), release);
  assert.equal(await machine.must(`ls ${app}/releases | wc -l`), '1', 'the old version is removed');
  assert.equal(await machine.must(readKey), key);
  assert.equal((await chat(machine, 'still there?', String(sessionId)))['session_id'], sessionId);

  // The unit alone.
  await machine.must(`sed -i s/TasksMax=.*/TasksMax=1000/ /root/copy/claude-api.service && ${install}`);
  assert.match(await machine.must('cat /etc/systemd/system/claude-api.service'), /TasksMax=1000/);
  // The CLI alone; it stays when a later run does not ask.
  await machine.must(`${install} --claude latest && ${install}`);
  assert.match(await machine.must(`readlink -f ${app}/current/bin/claude`), /cli\/2\.1\.400\//);
  assert.equal(await machine.must(`ls ${app}/cli`), '2.1.400');
  assert.equal((await chat(machine, 'and now?', String(sessionId)))['session_id'], sessionId);
});

onMachine('an update that fails leaves the old version running', async (machine) => {
  await machine.must(install);
  const before = { pid: await machine.must('cat /run/stub/pid'), release: await machine.must(`readlink ${app}/current`) };
  const healthy = (): Promise<string> => machine.must('curl -s 127.0.0.1:8001/health');
  const unchanged = async (pid?: string): Promise<void> => {
    assert.equal(await machine.must(`readlink ${app}/current`), before.release);
    assert.equal(await machine.must(`ls -A ${app}/releases`), before.release.split('/').at(-1));
    if (pid) assert.equal(await machine.must('cat /run/stub/pid'), pid);
    assert.equal(await healthy(), '{"status":"ok"}');
  };
  const fails = async (breakIt: string, message: RegExp): Promise<void> => {
    await machine.must('rm -rf /root/broken && cp -R /root/copy /root/broken');
    const { status, stderr } = await machine.run(`${breakIt}; cd /root/broken && ./install.sh`);
    assert.equal(status, 1);
    assert.match(stderr, message);
  };

  await fails('echo "const x: number = 1 +" >> /root/broken/src/main.ts', /error TS[^]*error: the build failed\nThe steps above[^]*The service runs as before\./);
  await unchanged(before.pid);
  await fails('echo ci > /run/stub/npm-fails; echo "// n" >> /root/broken/src/main.ts', /ENOTFOUND[^]*error: npm ci failed\nThe steps above[^]*The service runs as before/);
  await unchanged(before.pid);
  await machine.must('rm /run/stub/npm-fails');
  // Built, but it does not come up. The old one is of a version that had no ask.js, as 0.1.0.
  await machine.must(`rm ${app}/current/dist/ask.js`);
  await fails('echo "console.error(\'broken at start\'); process.exit(1);" > /root/broken/src/main.ts', /dialogues of 0\.1\.0 are not carried over[^]*broken at start(?![^]*it does not answer either)[^]*the old one runs again\nThe service runs as before\.\n$/);
  await unchanged();
  // The CLI of the new version cannot be had, or does not run.
  await fails('sed -i "s/^claude_version=.*/claude_version=2.1.999/" /root/broken/install.sh; echo 2.1.999 > /run/stub/npm-fails', /npm install @anthropic-ai\/claude-code@2.1.999 failed/);
  await unchanged();
  await machine.must('rm /run/stub/npm-fails; touch /run/stub/claude-is-a-stub');
  await fails('sed -i "s/^claude_version=.*/claude_version=2.1.999/" /root/broken/install.sh', /"claude --version" does not answer as the user claude: claude native binary not installed[^]*The service runs as before/);
  await unchanged();
  assert.equal(await machine.must(`ls -A ${app}/cli`), '2.1.331');
});

onMachine('an update that is interrupted goes back to the old version, at once or at the next run', async (machine) => {
  await machine.must(install);
  const release = await machine.must(`readlink ${app}/current`);
  await machine.must('cp -R /root/copy /root/hanging && echo "setInterval(() => {}, 1000);" > /root/hanging/src/main.ts');
  for (const signal of ['TERM', 'HUP', 'KILL']) {
    // In a session of its own, as a terminal that goes away would end it; it waits for the new version's answer.
    await machine.must(`setsid /root/hanging/install.sh > /run/stub/said 2>&1 & pid=$!; until [ -L ${app}/previous ]; do sleep 0.1; done; sleep 1; kill -${signal} $pid; wait $pid; true`);
    if (signal === 'KILL') {
      assert.notEqual(await machine.must(`readlink ${app}/current`), release);
      // What it was just running ends by itself a little later, and holds the lock until then.
      await machine.must(`flock /run/claude-api-install.lock true; ${install}`);
    }
    assert.equal(await machine.must(`readlink ${app}/current; ls -A ${app}/releases | wc -l; test -e ${app}/previous || echo gone`), `${release}\n1\ngone`, signal);
    assert.equal(await machine.must('curl -s 127.0.0.1:8001/health'), '{"status":"ok"}', signal);
  }
});

/** Runs it where no user namespace can be made, by a limit that counts for what is inside only. */
const withoutNamespaces = (script: string): string => `
  unshare --user sleep 60 & holder=$!; until [ "$(readlink /proc/$holder/ns/user)" != "$(readlink /proc/self/ns/user)" ]; do sleep 0.05; done
  for map in uid gid; do echo 0 0 100000 > /proc/$holder/\${map}_map; done
  nsenter --user --target $holder bash -c 'echo 0 > /proc/sys/user/max_user_namespaces; ${script}'; status=$?; kill $holder; exit $status`;
const maskProc = 'mkdir -p /run/empty; mount --bind /run/empty /proc/acpi';
const noPackages = 'rm -f /usr/bin/bwrap /usr/bin/apt-get';

for (const [name, command, reason] of [
  ['user namespaces are off', withoutNamespaces(install), /user namespaces are off \(unshare: [^)]+\): the sysctls user\.max_user_namespaces and/],
  ['parts of /proc are masked', `${maskProc}; ${install}`, /parts of \/proc are masked \(unshare: mount \/proc failed: [^)]+\), as a container's host does it/],
  ['there is no bubblewrap and nothing to get it with', install, /needs bubblewrap, and there is no apt-get/],
] as const) {
  onMachine(`where ${name} it says so, changes nothing, and names the way out, which works`, async (machine) => {
    if (command === install) await machine.must(noPackages);
    const before = await machine.state();
    const { status, stderr } = await machine.run(command);
    assert.equal(status, 1);
    assert.match(stderr, new RegExp(`^install\\.sh: error: [^\\n]*${reason.source}[^\\n]*five file tools and no wall[^\\n]*: sudo \\./install\\.sh --no-sandbox\\nNothing was changed\\.\\n$`));
    assert.equal(await machine.state(), before);
    if (command === install) await machine.must(noPackages);
    const said = await machine.must(`${install} --no-sandbox`);
    assert.match(said, /the sandbox +off: Claude has five file tools, and no wall but its own rules between end users\n/);
    assert.doesNotMatch(said, /trying the sandbox/);
    assert.equal(await machine.must(`grep ^CLAUDE_SANDBOX ${app}/.env`), 'CLAUDE_SANDBOX=off');
    assert.match(await machine.must(install), /nothing to change/, 'the .env says so from then on');
  });
}

/** A bubblewrap that works only under this condition, and else says this. */
const bwrapWhere = (condition: string, words: string): string =>
  `[ -e /usr/bin/bwrap.real ] || mv /usr/bin/bwrap /usr/bin/bwrap.real; printf '#!/bin/sh\n${condition} || { echo "bwrap: ${words}" >&2; exit 1; }\nexec /usr/bin/bwrap.real "$@"\n' > /usr/bin/bwrap; chmod 755 /usr/bin/bwrap`;

onMachine('a sandbox that does not work is found before anything takes effect', async (machine) => {
  await machine.must(bwrapWhere('false', 'setting up uid map: Permission denied'));
  const first = await machine.run(install);
  assert.equal(first.status, 1);
  assert.match(first.stderr, /there is no sandbox: AppArmor does not let bubblewrap work: [^\n]+\n[^\n]+ CLAUDE_SANDBOX=off in \/home\/claude\/claude-api\/\.env\n/);
  assert.equal(await machine.must('grep -c ^restart /run/stub/calls || true; ls /run/systemd/system /etc/systemd/system/claude-api.service* 2>/dev/null || true'), '0\n/run/systemd/system:');
  const tooMuch = await machine.run(`${install} --no-sandbox`);
  assert.match(tooMuch.stderr, /--no-sandbox counts for a new \.env only: set CLAUDE_SANDBOX=off in \/home\/claude[^]*Nothing was changed/);

  await machine.must(`${bwrapWhere('true', '')}; ${install}`);
  const [pid, release] = [await machine.must('cat /run/stub/pid'), await machine.must(`readlink ${app}/current`)];
  const update = await machine.run(`${bwrapWhere('false', 'Unknown option --seccomp')}; echo '// new' >> /root/copy/src/main.ts; ${install}`);
  assert.match(update.stderr, /there is no sandbox: this bubblewrap is too old[^]*The service runs as before/);
  assert.deepEqual([await machine.must('cat /run/stub/pid'), await machine.must(`readlink ${app}/current`)], [pid, release]);
});

onMachine('the looser lines for newer systemd are added where the trial needs them, and only there', async (machine) => {
  const looser = '/etc/systemd/system/claude-api.service.d/10-sandbox.conf';
  const trial = '/run/systemd/system/claude-api-trial.service.d';
  const isLooser = `[ -e ${trial}/10-sandbox.conf ] || { [ ! -e ${trial} ] && [ -e ${looser} ]; }`;
  await machine.must(bwrapWhere(isLooser, 'mount proc on /newroot/proc: Operation not permitted'));
  // What the operator edited counts in the trial too, and stays.
  await machine.must(`mkdir -p $(dirname ${looser}); echo '[Service]' > $(dirname ${looser})/override.conf`);
  assert.match(await machine.must(install), /the sandbox +on\n/);
  assert.match(await machine.must(`cat ${looser}`), /^ProtectKernelTunables=no$/m);
  const before = await machine.state();
  assert.match(await machine.must(install), /nothing to change/);
  assert.equal(await machine.state(), before);
  // An update that fails takes them back as they were.
  const failed = await machine.run(`cp -R /root/copy /root/broken; echo 'process.exit(1);' > /root/broken/src/main.ts; /root/broken/install.sh`);
  assert.match(failed.stderr, /the old one runs again/);
  await machine.must(`ls ${looser}`);
  await machine.must(`${bwrapWhere('true', '')}; ${install}`);
  assert.equal((await machine.run(`ls ${looser}`)).status, 2, 'not needed any more');
  await machine.must(`${bwrapWhere(isLooser, 'mount proc on')}; ${install}; ${install} --uninstall`);
  assert.equal(await machine.must(`ls $(dirname ${looser})`), 'override.conf');
});

onMachine("where AppArmor keeps user namespaces from programs without a profile, the distribution's for bubblewrap is loaded", async (machine) => {
  // As much of Ubuntu 24.04 as this test can be: the kernel's word, and no profile yet.
  await machine.must(`mkdir -p /run/kernel /usr/share/apparmor/extra-profiles && cp /proc/sys/kernel/overflow?id /run/kernel/ && echo 1 > /run/kernel/apparmor_restrict_unprivileged_userns && mount --bind /run/kernel /proc/sys/kernel
    printf '#!/bin/sh\necho "$@" >> /run/stub/apt; case "$*" in *apparmor-profiles*) echo profile > /usr/share/apparmor/extra-profiles/bwrap-userns-restrict;; esac\n' > /stub/apt-get
    printf '#!/bin/sh\necho "$@" >> /run/stub/parser\n' > /stub/apparmor_parser; chmod 755 /stub/*; rm -f /etc/apparmor.d/bwrap-userns-restrict`);
  const { stdout, stderr } = await machine.run(install);
  assert.match(stdout, /install apparmor-profiles from the distribution[^]*load AppArmor's profile bwrap-userns-restrict\n/);
  assert.match(await machine.must('cat /run/stub/apt'), /^install -y .*apparmor-profiles$/m);
  assert.equal(await machine.must('cat /run/stub/parser; cat /etc/apparmor.d/bwrap-userns-restrict'), '-r /etc/apparmor.d/bwrap-userns-restrict\nprofile');
  assert.match(stderr, /there is no sandbox: parts of \/proc are masked/, 'which the mount of this test does');
});

onMachine('two at once do not meet', async (machine) => {
  const { status, stderr } = await machine.run(`flock /run/claude-api-install.lock sleep 20 & while flock -n /run/claude-api-install.lock true; do sleep 0.1; done; ${install}`);
  assert.deepEqual([status, /another install\.sh is running/.test(stderr)], [1, true]);
});

onMachine('what goes wrong at each step of a first run is said, with what remains, and the next run goes on', async (machine) => {
  for (const [word, message] of [
    ['claude-code@', /npm install @anthropic-ai\/claude-code@\S+ failed\nThe steps above were completed and are kept/],
    ['ci ', /npm ci failed\nThe steps above were completed and are kept/],
  ] as const) {
    await machine.must(`echo '${word}' > /run/stub/npm-fails`);
    const { status, stderr } = await machine.run(`${install} --port 8001`);
    assert.equal(status, 1);
    assert.match(stderr, message);
    assert.match(stderr, /are kept\. To go on: sudo \.\/install\.sh --port 8001\. To remove all of it, add --purge\.\n$/);
  }
  await machine.must('rm /run/stub/npm-fails');
  await machine.must('echo "process.exit(1);" > /root/copy/src/main.ts');
  const silent = await machine.run(install);
  assert.match(silent.stderr, /the service is installed, but does not answer[^]*The steps above were completed and are kept/);
  await machine.must(`cp /checkout/src/main.ts /root/copy/src/ && ${install}`);
});

onMachine('a .env that the server would not start with is refused before anything takes effect', async (machine) => {
  await machine.must(`echo PORT=80a > /root/copy/.env`);
  const noKey = await machine.run(install);
  assert.deepEqual([noKey.status, /the server would not start with \S+\.env:\nPORT: expected a whole number/.test(noKey.stderr)], [1, true], noKey.stderr);
  await machine.must(`echo PORT=9100 > ${app}/.env`);
  assert.match((await machine.run(install)).stderr, /CLAUDE_API_KEY: missing; add the line CLAUDE_API_KEY=[0-9a-f]{64}\n/);
  assert.equal(await machine.must('grep -c ^restart /run/stub/calls || true'), '0');
  await machine.must(`(node -e 'require("net").createServer().listen(9100)' & echo $! > /run/stub/other) >/dev/null 2>&1; until bash -c ': </dev/tcp/127.0.0.1/9100' 2>/dev/null; do sleep 0.1; done; echo CLAUDE_API_KEY=9f2c41d07be85a36c0d1e7f4a8b95263 >> ${app}/.env`);
  assert.match((await machine.run(install)).stderr, /port 9100 is taken by another program: stop it, or set another PORT in/);
  await machine.must(`kill $(cat /run/stub/other) && ${install}`);

  const [pid, release] = [await machine.must('cat /run/stub/pid'), await machine.must(`readlink ${app}/current`)];
  // What is doubtful is said, and no more than that.
  const doubtful = await machine.run(`echo PRT=9200 >> ${app}/.env && ${install}`);
  assert.deepEqual([doubtful.status, /^install\.sh: warning: PRT in \.env is neither a setting/m.test(doubtful.stderr)], [0, true], doubtful.stderr);
  await machine.must(`sed -i '$d' ${app}/.env && echo CLAUDE_TOOLS='"open' >> ${app}/.env && echo '// new' >> /root/copy/src/main.ts`);
  const update = await machine.run(install);
  assert.match(update.stderr, /\.env line 3: expected a closing "[^]*The service runs as before/);
  assert.deepEqual([await machine.must('cat /run/stub/pid'), await machine.must(`readlink ${app}/current`)], [pid, release]);
  await machine.must(`sed -i '$d' ${app}/.env && ${install}`);
  assert.equal(await machine.must(readKey), '9f2c41d07be85a36c0d1e7f4a8b95263');
});

onMachine('--uninstall keeps .env, login and dialogues, --purge keeps nothing', async (machine) => {
  const fresh = await machine.must('ls -A /home /var/lib /etc/systemd/system; getent passwd | wc -l');
  await machine.must(`${install} && echo ANTHROPIC_API_KEY=made-up >> ${app}/.env && ${restart}`);
  const { session_id: sessionId } = await chat(machine, 'remember me');
  const key = await machine.must(readKey);

  const said = await machine.must(`${app}/current/install.sh --uninstall`);
  assert.match(said, /what stays: \/home\/claude\/claude-api\/\.env, the dialogues in \/var\/lib\/claude-api, the login in \/home\/claude\/\.claude, the user claude/);
  assert.equal(await machine.must(`ls -A ${app}`), '.env');
  assert.equal(await machine.must('pgrep -u claude | wc -l'), '0');
  assert.equal(await machine.must('ls /etc/systemd/system/claude-api.service 2>&1 | wc -l; test ! -e /run/stub/enabled && echo off'), '1\noff');
  assert.match(await machine.must(`${install} --uninstall`), /claude-api is not installed/);

  await machine.must(install);
  assert.equal(await machine.must(readKey), key);
  assert.equal((await chat(machine, 'still there?', String(sessionId)))['session_id'], sessionId);

  await machine.must(`${install} --purge`);
  assert.equal(await machine.must('ls -A /home /var/lib /etc/systemd/system; getent passwd | wc -l'), fresh);
});

onMachine('all that is wrong with a machine is said at once, and nothing is changed', async (machine, t) => {
  await machine.must('mkdir -p /home/claude && echo x > /home/claude/file && rm -rf /run/systemd && rm /root/copy/LICENSE && printf "[Service]\\nUser=root\\n" > /etc/systemd/system/claude-api.service');
  await machine.run(`(node -e 'require("net").createServer().listen(8001)' & ) >/dev/null 2>&1; until bash -c ': </dev/tcp/127.0.0.1/8001' 2>/dev/null; do sleep 0.1; done`);
  const before = await machine.state();
  const { status, stderr, stdout } = await machine.run(install);
  assert.equal(status, 1, stdout);
  for (const message of [/systemd is not running on this machine/, /LICENSE is missing/, /there is another claude-api\.service/, /\/home\/claude is there, but no user claude/, /port 8001 is taken/, /Nothing was changed/]) {
    assert.match(stderr, message);
  }
  assert.equal(stderr.split('\n').filter((line) => line.startsWith('install.sh: error: ')).length, 5);
  assert.equal(await machine.state(), before);

  const refused: readonly (readonly [string, string, number, RegExp])[] = [
    ['an unknown option', `${install} --prot 9000`, 2, /unknown option --prot/],
    ['no value', `${install} --port`, 2, /--port needs a value/],
    ['a port that is none', `${install} --port 80a`, 2, /--port: expected/],
    ['a port of root', `${install} --port 80`, 2, /--port: expected 1024/],
    ['a user with a blank', `${install} --user 'a b'`, 2, /--user: expected/],
    ['a user with a slash', `${install} --user ../root`, 2, /--user: expected/],
    ['an address with a blank', `${install} --host '0.0.0.0 #'`, 2, /--host: expected/],
    ['root', `${install} --user root`, 1, /must not run as root/],
    ['a version that is none', `${install} --claude '$(id)'`, 2, /--claude: expected/],
    ['a value where none belongs', `${install} --purge=yes`, 2, /unknown option yes/],
    ['no login to copy', `${install} --copy-login`, 1, /--copy-login: neither root/],
    ['not root', 'chmod 755 /root; cd /root/copy && setpriv --reuid 65534 --clear-groups bash ./install.sh --port 9000 --claude latest', 1, /must run as root, and changed nothing; try: sudo \.\/install\.sh --port 9000 --claude latest\n/],
    ['another shell', 'cd /root/copy && sh ./install.sh', 2, /needs bash/],
  ];
  for (const [name, command, expected, message] of refused) {
    await t.test(name, async () => {
      const run = await machine.run(command);
      assert.deepEqual([run.status, message.test(run.stderr)], [expected, true], run.stderr);
    });
  }
  assert.match(await machine.must(`${install} --help`), /usage: sudo \.\/install\.sh/);
});

onMachine('--dry-run says what would be done, and does none of it', async (machine) => {
  const before = await machine.state();
  const said = await machine.must(`${install} --dry-run`);
  for (const step of ['make the user claude', 'install the Claude CLI', 'build claude-api', `make ${app}/.env with a new key`, 'start the service']) assert.match(said, new RegExp(`^would: ${step}`, 'm'));
  assert.equal(await machine.state(), before);
  // Nor does it need root, and says what it cannot see then.
  const nobody = (args: string): Promise<Outcome> => machine.run(`chmod 755 /root && cd /root/copy && setpriv --reuid 65534 --regid 65534 --clear-groups bash ./install.sh --dry-run ${args}`);
  const traces = 'ls -A /run/claude-api-install.lock /tmp /var/tmp 2>&1';
  const emptied = await machine.must(`rm -f /run/claude-api-install.lock; ${traces}; true`);
  const free = await nobody('--port 9000');
  assert.deepEqual([free.status, free.stderr], [0, '']);
  assert.match(free.stdout, /^would: make the user claude/);
  assert.equal(await machine.must(`${traces}; true`), emptied);

  await machine.must(install);
  const installed = await machine.state();
  assert.match(await machine.must(`${install} --purge --dry-run`), /would: stop and remove[^]*would: remove the code[^]*would: remove the user claude/);
  assert.match(await machine.must(`${install} --dry-run`), /^==> nothing to change$/m);
  const blind = await nobody('--port 9000');
  assert.match(blind.stderr, /only root sees what is in \/home\/claude already: sudo \.\/install\.sh --dry-run --port 9000\n/);
  assert.equal(blind.status, 0, blind.stderr);
  assert.equal(await machine.state(), installed);
});

onMachine('a folder with blanks, another port, and a .env of the operator', async (machine) => {
  await machine.must(`mv /root/copy "/root/my  copy's" && printf 'CLAUDE_API_KEY="9f2c41d07be8#5a36c0d1e7f4a8b95263"\\nHOST=::\\nPORT=9100\\n' > "/root/my  copy's/.env"`);
  const said = await machine.must(`cd / && "/root/my  copy's/install.sh"`);
  assert.match(said, /answers at http:\/\/\[::1\]:9100\n\n +listens on +::, port 9100\n/);
  assert.equal(typeof (await tried(machine, said))['content'], 'string', 'a quoted key too');
  assert.equal(await machine.must(`cmp ${app}/.env "/root/my  copy's/.env" && echo as it was`), 'as it was');
  assert.equal(await machine.must(`stat -c '%a %U:%G' ${app}/.env`), '640 root:claude');
  await machine.must(`${app}/current/install.sh --purge; mv "/root/my  copy's" /root/copy; rm /root/copy/.env`);
  assert.match(await machine.must(`${install} --port=9200 --host 0.0.0.0`), /answers at http:\/\/127.0.0.1:9200\n\n +listens on +0\.0\.0\.0, port 9200/);
  assert.equal(await listeners(machine, 9200), '00000000');
  for (const [option, value] of [['port', '9300'], ['host', '127.0.0.1']] as const) {
    const other = await machine.run(`${install} --${option} ${value}`);
    assert.deepEqual([other.status, other.stderr.includes(`--${option} counts for a new .env only: set ${option.toUpperCase()}=${value} in ${app}/.env`)], [1, true], other.stderr);
  }
  assert.match(await machine.must(`${install} --port 9200 --host 0.0.0.0`), /nothing to change/);
  // Addresses that are no part of a URL as they stand, and what "systemctl edit" added; an .env that came over from elsewhere.
  await machine.must(`echo HOST=::1 >> ${app}/.env && chmod 600 ${app}/.env && chown root:root ${app}/.env && systemctl restart claude-api; true`);
  assert.match(await machine.must(install), /answers at http:\/\/\[::1\]:9200/);
  await machine.must(`echo PORT=9400 > /run/stub/environment && systemctl restart claude-api`);
  assert.match(await machine.must(install), /answers at http:\/\/\[::1\]:9400/);
  await machine.must('rm /run/stub/environment');
  // An .env without a key, and the files of somebody else in our place.
  await machine.must(`${install} --purge && mkdir -p /opt/claude-api/.git && useradd -d /home/claude -m claude && echo PORT=9000 > /root/copy/.env`);
  const refused = await machine.run(install);
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /\/opt\/claude-api is where the server goes, but something else is there/);
});

onMachine('a user that is there already serves, and survives --purge', async (machine) => {
  await machine.must('useradd --create-home bob && echo mine > /home/bob/file && useradd -d "/home/with blank" -m carol && useradd -M -d /home/gone dave');
  await machine.must(`${install} --user bob`);
  assert.equal(await machine.must('ps -o user= -p $(cat /run/stub/pid); stat -c %U:%G /home/bob /opt/claude-api'), 'bob\nbob:bob\nroot:root');
  const other = await machine.run(`${install} --user claude`);
  assert.match(other.stderr, /the service is installed for the user bob/);
  assert.match(await machine.must(install), /nothing to change/);
  const foreign = await machine.run(`${install} --user carol --purge`);
  assert.deepEqual([foreign.status, /installed for the user bob, not for carol/.test(foreign.stderr)], [1, true]);
  const said = await machine.must(`${install} --purge`);
  assert.match(said, /the user bob was not made by install\.sh and stays/);
  assert.equal(await machine.must('cat /home/bob/file; ls /home/bob'), 'mine\nfile');
  for (const name of ['carol', 'dave']) assert.match((await machine.run(`${install} --user ${name}`)).stderr, new RegExp(`the user ${name} has no usable home folder`));
});

onMachine('what is not ours is not removed', async (machine) => {
  await machine.must('useradd --create-home claude && mkdir -p /home/claude/claude-api/releases /opt/claude-api/releases && touch /home/claude/claude-api/app.py /opt/claude-api/app.py');
  const before = await machine.state();
  for (const option of ['--uninstall', '--purge']) assert.match(await machine.must(`${install} ${option}`), /claude-api is not installed/);
  assert.equal(await machine.state(), before);
});

onMachine('a damaged release is built anew, and --purge ends what its user still runs', async (machine) => {
  await machine.must(`${install} && rm ${app}/current/dist/server.js && ${install} | grep build`);
  assert.equal(await machine.must('curl -s 127.0.0.1:8001/health'), '{"status":"ok"}');
  await machine.run('(setsid runuser -u claude -- sleep 100 &) >/dev/null 2>&1 </dev/null; until pgrep -u claude -x sleep; do sleep 0.1; done');
  await machine.must(`${install} --purge`);
  assert.equal((await machine.run('getent passwd claude; test -e /home/claude')).status, 1);
});

onMachine('a login is offered, and copied when asked, through no link', async (machine) => {
  await machine.must('mkdir /root/.claude && echo "{\\"secret\\":1}" > /root/.claude/.credentials.json && chmod 600 /root/.claude/.credentials.json');
  const said = await machine.must(install);
  assert.match(said, /a copy +of \/root\/\.claude\/\.credentials\.json: sudo \.\/install\.sh --copy-login/);
  const copied = await machine.must(`${install} --copy-login`);
  assert.match(copied, /found: credentials file/);
  assert.equal(await machine.must("stat -c '%a %U' /home/claude/.claude/.credentials.json; cat /home/claude/.claude/.credentials.json"), '600 claude\n{"secret":1}');
  const kept = await machine.run(`echo other > /root/.claude/.credentials.json; ${install} --copy-login`);
  assert.match(kept.stderr, /is there already and stays as it is/);
  assert.equal(await machine.must('cat /home/claude/.claude/.credentials.json'), '{"secret":1}');
  // Root does not follow what the user put in the way.
  await machine.must('rm -rf /home/claude/.claude && runuser -u claude -- ln -s /etc /home/claude/.claude');
  assert.equal((await machine.run(`${install} --copy-login`)).status, 1);
  assert.equal((await machine.run('test -e /etc/.credentials.json')).status, 1);
});

onMachine('"curl … | sudo bash" takes the code from the address, also where the machine has no Node', async (machine) => {
  // The Node this test runs on plays the one from npm.
  const [major = ''] = process.versions.node.split('.');
  await machine.must(`sed -i s/^node_major=.*/node_major=${major}/ /root/copy/install.sh`);
  await machine.must('cd /root && tar -czf /tmp/source.tar.gz copy && (cd /tmp && sha256sum source.tar.gz > source.tar.gz.sha256) && cp copy/install.sh /tmp/ && rm -rf copy');
  const nowhere = await machine.run('cd /tmp && cat install.sh | bash');
  assert.deepEqual([nowhere.status, /set CLAUDE_API_SOURCE/.test(nowhere.stderr)], [1, true]);
  const gone = await machine.run('cd / && cat /tmp/install.sh | bash', { CLAUDE_API_SOURCE: 'file:///tmp/other.tar.gz' });
  assert.deepEqual([gone.status, /the download failed\nNothing was changed/.test(gone.stderr)], [1, true]);
  // A Node of somebody's home is hidden from the service, and so does not count; nor does one that is too old.
  await machine.must('cp -L /usr/local/bin/node /root/node && umount /usr/local/bin/node && rm -f /usr/local/bin/node /usr/bin/node && ln -s /root/node /usr/local/bin/node');
  await machine.must("printf '#!/bin/sh\\necho v9.11.2\\n' > /usr/bin/node && chmod 755 /usr/bin/node");
  const source = { CLAUDE_API_SOURCE: 'file:///tmp/source.tar.gz' };
  const before = await machine.must('ls -A /tmp /var/tmp /home');
  assert.match(await machine.must('cd / && cat /tmp/install.sh | bash -s -- --dry-run', source), /^==> downloading[^]*^would: start the service/m);
  assert.equal(await machine.must('ls -A /tmp /var/tmp /home'), before, 'nothing of the download is left');
  const said = await machine.must('cd / && cat /tmp/install.sh | bash -s -- --port 9000', source);
  assert.match(said, /install Node\.js \d+ into \/home\/claude\/claude-api\/node\n/);
  assert.match(said, /answers at http:\/\/127\.0\.0\.1:9000/);
  assert.match(await machine.must(`readlink ${app}/current/bin/node`), /^\/home\/claude\/claude-api\/node\//);
  assert.match(await machine.must(`${app}/current/install.sh`), /nothing to change/);
});
