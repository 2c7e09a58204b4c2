import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import { createServer, type AddressInfo, type Server } from 'node:net';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { closeInheritedDescriptors } from '../../src/sandbox/sandbox.ts';
import { until } from '../running-server.ts';
import { chownAll, insideEnv, makeSandboxedUsers, runningWith, testSandboxed, unlike } from '../sandboxed.ts';

/** One script's lines; it must come to its end. */
async function linesOf(outcome: Promise<{ readonly code: number | null; readonly stdout: string; readonly stderr: string }>): Promise<string[]> {
  const { code, stdout, stderr } = await outcome;
  assert.equal(code, 0, stderr);
  return stdout.trimEnd().split('\n');
}

testSandboxed('everybody finds the same names inside, and works in their own folders', async (t) => {
  const users = await makeSandboxedUsers(t);
  for (const userId of [1, 2]) {
    const script = 'pwd; cd; pwd; id -un; id -gn; getent hosts localhost | tr -s " "; echo $PATH; cd - >/dev/null; touch here ~/home /tmp/a /var/tmp/b /dev/shm/c';
    const lines = await linesOf(users.run(script, userId));
    assert.deepEqual(lines, ['/work', '/home/claude', 'claude', 'claude', '::1 localhost', '/opt/bin:/usr/local/bin:/usr/bin:/bin']);
    const { home, work, tmp } = users.folders(userId);
    for (const path of [join(home, 'home'), join(work, 'here'), join(tmp, 'a'), join(tmp, 'b'), join(tmp, 'c')]) await readFile(path);
  }
});

testSandboxed('node and the CLI run by name, wherever they are installed', async (t) => {
  const users = await makeSandboxedUsers(t);
  const lines = await linesOf(users.run('command -v node claude; node --version; claude --version'));
  assert.deepEqual(lines.slice(0, 3), ['/opt/bin/node', '/opt/bin/claude', process.version]);
  assert.match(lines[3] ?? '', /^\d+\.\d+\.\d+ \(Claude Code\)$/);
});

testSandboxed('files sent along can be read and not changed; files to give back can be written', async (t) => {
  const users = await makeSandboxedUsers(t);
  const turn = join(users.stateDir, 'users/1/turns/1');
  await writeFile(join(turn, 'in/photo.txt'), 'a photo');
  const folders = { ...users.folders(1), inbox: join(turn, 'in'), outbox: join(turn, 'out') };
  const script = 'cat /inbox/photo.txt; echo; touch /inbox/x 2>&1 | grep -o "Read-only.*"; rm /inbox/photo.txt 2>&1 | grep -o "Read-only.*"; cp /inbox/photo.txt /outbox/back.txt';
  assert.deepEqual(await linesOf(users.start(['/bin/bash', '-c', script], 1, folders).ended()), ['a photo', 'Read-only file system', 'Read-only file system']);
  assert.equal(await readFile(join(turn, 'out/back.txt'), 'utf8'), 'a photo');
});

testSandboxed('no file of another user, of the server or of the machine is there', async (t) => {
  const users = await makeSandboxedUsers(t);
  await writeFile(join(users.folders(2).work, 'secret.txt'), 'of user 2');
  const paths = [
    users.stateDir, join(users.stateDir, 'users/1'), join(users.folders(2).work, 'secret.txt'), users.folders(1).work, users.machine.ownFiles,
    process.cwd(), process.env['HOME'] ?? '/root', '/root', '/srv', '/boot', '/sys', '/media', '/mnt', '/etc/shadow', '/etc/ssl/private', '/etc/hostname',
    '/etc/resolv.conf', '/run/systemd', '/run/dbus', '/run/user', '/var/lib', '/var/log', '/var/run', '/proc/1/root/root', '/proc/1/cwd/../root',
  ];
  const lines = await linesOf(users.run(paths.map((path) => `ls -d '${path}' 2>&1 >/dev/null | grep -o 'No such file or directory' || echo 'is there: ${path}'`).join('\n')));
  assert.deepEqual(lines, paths.map(() => 'No such file or directory'));
  assert.deepEqual(await linesOf(users.run('ls / /home /opt /run /var | xargs')), [
    `/: ${await rootNames(users)} /home: claude /opt: bin /run: api /var: tmp`,
  ]);
  assert.deepEqual(await linesOf(users.run('find / -xdev -name secret.txt 2>/dev/null | wc -l')), ['0']);
});

/** The folders of / inside: ours, and what this machine has of /bin and its like. */
async function rootNames(users: { readonly machine: { readonly root: readonly string[] } }): Promise<string> {
  const own = ['dev', 'etc', 'home', 'opt', 'proc', 'run', 'tmp', 'usr', 'var', 'work'];
  const system = users.machine.root.filter((word) => /^\/(?:s?bin|lib\w*)$/.test(word)).map((path) => path.slice(1));
  return [...new Set([...own, ...system])].sort().join(' ');
}

testSandboxed('what is planted inside as a link leads nowhere', async (t) => {
  const users = await makeSandboxedUsers(t);
  await writeFile(join(users.folders(2).work, 'secret.txt'), 'of user 2');
  const script = `ln -s '${users.folders(2).work}' link; cat link/secret.txt 2>&1 | grep -o 'No such file.*'; ln -s ../../2 up; ls up/ 2>&1 | grep -o 'No such file.*'`;
  assert.deepEqual(await linesOf(users.run(script)), ['No such file or directory', 'No such file or directory']);
});

testSandboxed('no secret of the server is in any environment inside, nor in any command line', async (t) => {
  process.env['SECRET_OF_THE_SERVER'] = 'very secret';
  t.after(() => delete process.env['SECRET_OF_THE_SERVER']);
  const users = await makeSandboxedUsers(t);
  const script = 'for f in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do tr "\\0" "\\n" <$f; done | grep -c "very[ ]secret"; tr "\\0" "\\n" </proc/1/environ';
  const lines = await linesOf(users.run(script));
  const names = lines.slice(1).map((line) => line.replace(/=.*/s, ''));
  assert.equal(lines[0], '0');
  assert.deepEqual(names.sort(), [...Object.keys(insideEnv), 'CLAUDEAPI_WORKER'].sort());
});

testSandboxed('only the own processes exist, and a signal to all of them reaches no other', async (t) => {
  const users = await makeSandboxedUsers(t);
  const other = users.start(['/bin/sleep', unlike(1)], 2);
  await until('the other to run', async () => ((await runningWith(`/bin/sleep ${unlike(1)}`)).length > 0 ? true : undefined));
  const names = await linesOf(users.run('names=$(cat /proc/[0-9]*/comm); echo "$names"'));
  assert.deepEqual([...new Set(names)].sort(), ['bash', 'bwrap', 'cat']);
  assert.deepEqual(await linesOf(users.run(`kill -9 ${process.pid} 2>&1 | grep -o 'No such process'`)), ['No such process']);
  const { code } = await users.run('(kill -9 -1); sleep 60');
  assert.equal(code, 128 + 9);
  assert.equal(other.child.exitCode ?? other.child.signalCode, null, 'the other user is served on');
});

testSandboxed('what is shared on the machine by the account is not shared: memory segments, sessions of a terminal', async (t) => {
  const users = await makeSandboxedUsers(t);
  const segment = (flags: string): string[] => ['/usr/bin/perl', '-e', `$| = 1; print defined(shmget(0x5eed, 100, ${flags})) ? "there" : $! + 0, "\n"; sleep 300 if ${flags};`];
  const maker = users.start(segment('01666'), 1);
  await until('the segment', () => (maker.stdout === 'there\n' ? true : undefined));
  assert.equal((await users.start(segment('0'), 2).ended()).stdout, '2\n', 'ENOENT');
  const [session] = await linesOf(users.run('cut -d" " -f6 /proc/self/stat'));
  assert.notEqual(session, '0', 'a session that began outside would be 0');
});

testSandboxed('nothing of what was open in the server is open inside', async (t) => {
  closeInheritedDescriptors();
  const users = await makeSandboxedUsers(t);
  assert.deepEqual(await linesOf(users.run('echo /proc/self/fd/*; ls -l /proc/1/fd | grep -v -E "socket:|pipe:|anon_inode" | grep " -> "; echo end')), [
    '/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3', // 3 is the pattern's own
    'end',
  ]);
});

async function listening(t: TestContext, where: { readonly port: number; readonly host: string } | { readonly path: string }): Promise<Server> {
  const server = createServer((socket) => socket.end('reached\n'));
  server.listen(where);
  await once(server, 'listening');
  t.after(() => server.close());
  return server;
}

testSandboxed('no port, abstract socket or network of the machine can be reached', async (t) => {
  const users = await makeSandboxedUsers(t);
  const port = ((await listening(t, { port: 0, host: '127.0.0.1' })).address() as AddressInfo).port;
  const name = `claude-api-test-${process.pid}`;
  await listening(t, { path: `\0${name}` });
  const connect = (to: string): string =>
    `node -e 'require("net").connect(${to}).on("data", (d) => console.log(String(d))).on("error", (e) => console.log(e.code))'`;
  const script = [
    connect(`{ port: ${port}, host: "127.0.0.1" }`),
    connect(`{ path: "\\0${name}" }`),
    connect('{ port: 80, host: "169.254.169.254" }'),
    connect('{ port: 443, host: "1.1.1.1" }'),
    'cat /proc/net/route | wc -l',
    `grep -c ${name} /proc/net/unix`,
    'ls /proc/sys/net/ipv4/conf | xargs',
    'getent hosts example.com || echo no such name',
  ].join('\n');
  assert.deepEqual(await linesOf(users.run(script)), ['ECONNREFUSED', 'ECONNREFUSED', 'ENETUNREACH', 'ENETUNREACH', '1', '0', 'all default lo', 'no such name']);
});

testSandboxed('the system is read-only, and what can be written lies on the own disk', async (t) => {
  const users = await makeSandboxedUsers(t);
  const places = ['/x', '/usr/x', '/usr/bin/x', '/etc/x', '/etc/passwd', '/dev/x', '/run/x', '/run/api/x', '/opt/bin/x', '/opt/bin/claude', '/home/x', '/var/x'];
  const lines = await linesOf(users.run(places.map((place) => `(echo x >>${place}) 2>&1 | grep -o 'Read-only.*\\|Permission.*' || echo 'written: ${place}'`).join('\n')));
  assert.equal(lines.filter((line) => !/^(?:Read-only file system|Permission denied)$/.test(line)).join(), '');
  assert.deepEqual(await linesOf(users.run("awk '$4 ~ /^rw/ && $2 !~ \"^/(proc|dev/(full|null|random|tty|urandom|zero)$)\" { print $2 }' /proc/mounts | sort | xargs")), [
    '/dev/pts /dev/shm /home/claude /tmp /var/tmp /work',
  ]);
});

testSandboxed('nobody becomes more than they are: no setuid, no capability, no namespace, no mount, no terminal', async (t) => {
  const users = await makeSandboxedUsers(t);
  const script = [
    "awk '/^(CapEff|CapBnd|NoNewPrivs|Seccomp):/ { print $1 $2 }' /proc/self/status",
    'awk \'$2 ~ "^/(usr|work|tmp|home/claude)$" && $4 !~ /nosuid/ { print $2 }\' /proc/mounts | wc -l',
    'for kind in user mount pid net ipc uts cgroup; do unshare --$kind true 2>&1 | grep -o "Operation not permitted"; done',
    'unshare --user --map-root-user true 2>&1 | grep -o "Operation not permitted"',
    'mount -t tmpfs tmpfs /tmp 2>/dev/null || echo no mount',
    '(: </dev/tty) 2>&1 | grep -o "No such device or address"',
  ].join('\n');
  assert.deepEqual(await linesOf(users.run(script)), [
    'CapEff:0000000000000000', 'CapBnd:0000000000000000', 'NoNewPrivs:1', 'Seccomp:2', '0', ...Array(8).fill('Operation not permitted'), 'no mount', 'No such device or address',
  ]);
});

// x64, arm64
const callNumbers = { ptrace: [101, 117], pidfd_getfd: [438, 438], keyctl: [250, 219], add_key: [248, 217], io_uring_setup: [425, 425], bpf: [321, 280] };

testSandboxed('the kernel refuses what reaches into other processes, keyrings and its own corners', async (t) => {
  const users = await makeSandboxedUsers(t);
  const call = (name: keyof typeof callNumbers, args: string): string =>
    `syscall(${callNumbers[name][process.arch === 'arm64' ? 1 : 0]}, ${args}); print "${name} ", $! + 0, "\\n"; `;
  const script = [
    call('ptrace', '16, 2, 0, 0'),
    call('pidfd_getfd', '0, 1, 0'),
    // Of the session keyring: the server's own, where a login gave it one.
    call('keyctl', '0, -3, 0'),
    '$type = "user"; $name = "planted"; ' + call('add_key', '$type, $name, $name, 1, -3'),
    call('io_uring_setup', '1, 0'),
    call('bpf', '0, 0, 0'),
  ].join('');
  const { stdout } = await users.start(['/usr/bin/perl', '-e', script]).ended();
  assert.deepEqual(stdout.trimEnd().split('\n'), Object.keys(callNumbers).map((name) => `${name} 1`));
});

testSandboxed('a user who starts processes without end stops at the limit, and others are served on', async (t) => {
  const users = await makeSandboxedUsers(t);
  const script = `for i in $(seq 400); do sleep ${unlike(2)} 2>/dev/null & [ $? = 0 ] || break; done 2>&1 | grep -m1 -o "Resource temporarily unavailable"; ls -d /proc/[0-9]* | wc -l`;
  const bomb = users.start(['/bin/bash', '-c', `${script}; sleep ${unlike(3)}`]);
  await until('the bomb to be at its end', () => (/Resource.*\n\d+/.test(bomb.stdout) ? true : undefined), 90_000);
  assert.ok(Number(bomb.stdout.trimEnd().split('\n')[1]) <= 303, bomb.stdout);
  assert.deepEqual(await linesOf(users.run('echo served', 2)), ['served']);
  assert.deepEqual(await linesOf(users.run('echo served', 1)), ['served'], 'the limit is one of each sandbox');
  bomb.child.kill('SIGKILL');
  await until('all of it to be gone', async () => ((await runningWith(`sleep ${unlike(2)}`)).length === 0 ? true : undefined));
});

testSandboxed('no file grows beyond 2 GiB, and a crash leaves no core', async (t) => {
  const users = await makeSandboxedUsers(t);
  const lines = await linesOf(users.run('truncate -s 2G fits && echo fits; truncate -s 3G large 2>/dev/null || echo does not; ulimit -c; ulimit -Hc; bash -c "ulimit -Hu"; bash -c "ulimit -u 1000" 2>&1 | grep -o "Operation not permitted"'));
  assert.deepEqual(lines, ['fits', 'does not', '0', '0', '300', 'Operation not permitted']);
});

testSandboxed('what the user changed in their own folders does not change the next sandbox', async (t) => {
  const users = await makeSandboxedUsers(t);
  await users.run('mkdir -p ~/bin bin; for f in ~/bin/prlimit bin/prlimit ~/.profile; do printf "#!/bin/sh\\necho planted\\n" >$f; chmod +x $f; done; mkdir -p /tmp/x; chmod 0 /tmp/x');
  assert.deepEqual(await linesOf(users.run('echo as before; command -v prlimit')), ['as before', '/usr/bin/prlimit']);
  await chownAll(users.folders(1).tmp);
});
