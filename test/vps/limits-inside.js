// What test/vps/limits runs in the machine: end users who take all they can, others who want an answer meanwhile.
import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';

const url = 'http://127.0.0.1:8001';
const headers = { authorization: 'Bearer a-key-for-one-run-of-a-machine-alone', 'content-type': 'application/json' };
const groups = '/sys/fs/cgroup/system.slice/claude-api.service';
let failures = 0;

function ok(what, isRight, told = '') {
  console.log(`${isRight ? 'ok     ' : 'NOT OK '} ${what} ${told}`);
  if (!isRight) failures += 1;
}

async function chat(userId, prompt) {
  const startedAt = performance.now();
  const body = JSON.stringify({ prompt, user_id: userId });
  const answer = await (await fetch(`${url}/api/v1/chat`, { method: 'POST', headers, body })).json();
  return { said: answer.content ?? answer.code, ms: Math.round(performance.now() - startedAt) };
}

/** How long /health took, asked ten times a second until the work is done. */
async function timesOfHealth(work) {
  const times = [];
  let isDone = false;
  const done = work.finally(() => (isDone = true));
  while (!isDone) {
    const startedAt = performance.now();
    await (await fetch(`${url}/health`)).text();
    times.push(performance.now() - startedAt);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  await done;
  times.sort((a, b) => a - b);
  return { median: times[Math.floor(times.length / 2)], worst: times.at(-1) };
}

/** One who takes too much, while two others want answers and /health is asked. */
async function attack(what, prompts, expected) {
  const [first] = await Promise.all([chat(2, 'hello'), chat(3, 'hello')]);
  const hogs = prompts.map((prompt) => chat(1, `play sh ${prompt}`));
  const others = [];
  const { median, worst } = await timesOfHealth((async () => {
    let areOver = false;
    const over = Promise.all(hogs).then(() => (areOver = true));
    do others.push(...(await Promise.all([chat(2, 'hello again'), chat(3, 'hello again')])));
    while (!areOver);
    await over;
  })());
  const ends = (await Promise.all(hogs)).map(({ said }) => said);
  ok(`${what}: that turn alone ends`, ends.every((said) => expected.test(said)), ends.join(' '));
  const slowest = Math.max(...others.map(({ ms }) => ms));
  ok(`${what}: others are answered`, others.every(({ said }) => said === 'you said: hello again'), `${others.length} turns, the slowest ${slowest} ms (${first.ms} ms alone) ${[...new Set(others.map(({ said }) => said))]}`);
  ok(`${what}: /health answers`, median < 10 * idle.median, `median ${median.toFixed(1)} ms, worst ${worst.toFixed(0)} ms`);
  ok(`${what}: the user is served again`, (await chat(1, 'hello')).said === 'you said: hello');
}

const startedAt = performance.now();
for (;;) {
  if ((await fetch(`${url}/health`).catch(() => undefined))?.status === 200) break;
  if (performance.now() - startedAt > 180_000) break;
  await new Promise((resolve) => setTimeout(resolve, 500));
}
const health = await (await fetch(`${url}/health`, { headers })).json();
ok('the server is up, in the sandbox', health.status === 'ok' && health.sandbox === 'on', `${JSON.stringify(health)} after ${Math.round((performance.now() - startedAt) / 1000)} s`);
ok('it has groups to divide', readdirSync(groups).includes('server'));
const log = () => execFileSync('journalctl', ['-u', 'claude-api', '-o', 'cat'], { encoding: 'utf8' });
ok('... and says nothing of having none', !log().includes('no_cgroups'));

// The processor is emulated: what takes a millisecond elsewhere takes some here.
const idle = await timesOfHealth(new Promise((resolve) => setTimeout(resolve, 5000)));
console.log(`        /health alone: median ${idle.median.toFixed(1)} ms, worst ${idle.worst.toFixed(0)} ms`);

const eat = `perl -e 'push @x, "x" x ((1 << 20) + $i++) while 1'`;
const fillMemory = `perl -e '$name = "x"; $fd = syscall(319, $name, 0); open F, ">&=", $fd; $b = "x" x (1 << 20); 1 while syswrite F, $b; sleep 60'`;
await attack('a program that takes all memory', [eat], /^claude_failed$/);
await attack('a file in memory without end', [fillMemory], /^claude_failed$/);
await attack('200 children', ['for i in $(seq 200); do sleep 60 & done; wait'], /^claude_timeout$/);
await attack('`yes` on every core, fifty times', ['for i in $(seq 50); do yes >/dev/null & done; wait'], /^claude_timeout$/);
await attack('seven sessions of one user', Array(7).fill('for i in $(seq 60); do yes >/dev/null & done; wait'), /^(claude_timeout|claude_failed|busy)$/);

execFileSync('systemctl', ['restart', 'claude-api']);
ok('nothing is left in the groups', readdirSync(groups).every((name) => !/^u\d/.test(name)), readdirSync(groups).filter((name) => /^u\d/.test(name)).join(' '));
if (failures > 0) console.log(log().split('\n').slice(-60).join('\n'));
console.log(`failures: ${failures}`);
