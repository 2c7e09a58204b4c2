import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createHealthMonitor, type HealthMonitor } from '../../../src/http/health.ts';
import { createLog } from '../../../src/log.ts';
import { Problem, toProblem } from '../../../src/problem.ts';
import { until, type LogLine } from '../../running-server.ts';

const notFound = new Problem('claude_not_found', 'Install the CLI.');

/** A monitor whose CLI a test can change; `version` undefined = the CLI cannot be run. */
class Scene {
  version: string | undefined = '2.1.331';
  isDraining = false;
  isReady = true;
  probes = 0;
  readonly lines: LogLine[] = [];
  readonly monitor: HealthMonitor;

  constructor(retryMs?: number) {
    const probeVersion = async (): Promise<string> => {
      this.probes += 1;
      if (this.version === undefined) throw notFound;
      return this.version;
    };
    const log = createLog('json', { write: (line) => this.lines.push(JSON.parse(line) as LogLine) });
    this.monitor = createHealthMonitor({ probeVersion, isDraining: () => this.isDraining, isReady: () => this.isReady, log, retryMs });
  }

  get status(): string {
    return this.monitor.health().status;
  }

  get events(): string[] {
    return this.lines.map((line) => `${String(line['level'])} ${line.event}`);
  }
}

test('a server is ok from the start, and nothing was started to find out', () => {
  const scene = new Scene();
  assert.deepEqual(scene.monitor.health(), { status: 'ok' });
  assert.equal(scene.monitor.claudeVersion(), undefined);
  assert.equal(scene.probes, 0);
});

test('the version is known once the CLI was looked for', async () => {
  const scene = new Scene();
  await scene.monitor.watchCli();
  assert.equal(scene.monitor.claudeVersion(), '2.1.331');
  assert.deepEqual(scene.events, []);
});

test('asking for health starts no process, however often', async () => {
  const scene = new Scene();
  scene.version = undefined;
  await scene.monitor.watchCli();
  for (let i = 0; i < 100; i += 1) scene.monitor.health();
  assert.equal(scene.probes, 1);
});

test('a CLI that cannot be run makes the server unavailable, with what to do about it', async () => {
  const scene = new Scene();
  scene.version = undefined;
  await scene.monitor.watchCli();
  const { status, detail } = scene.monitor.health();
  assert.deepEqual([status, detail], ['unavailable', notFound.message]);
  assert.equal(scene.monitor.claudeVersion(), undefined);
  assert.deepEqual(scene.events, ['error claude_unavailable']);
});

test('a CLI that appears later is found by itself, and said once', async () => {
  const scene = new Scene(5);
  scene.version = undefined;
  await scene.monitor.watchCli();
  await until('more looks for the CLI', () => (scene.probes >= 4 ? true : undefined));
  assert.equal(scene.status, 'unavailable');
  scene.version = '2.1.331';
  await until('the server to be available', () => (scene.status === 'ok' ? true : undefined));
  assert.deepEqual(scene.events, ['error claude_unavailable', 'info claude_found']);
  assert.equal(scene.monitor.claudeVersion(), '2.1.331');
});

test('a CLI that is there is not looked for again', async () => {
  const scene = new Scene(1);
  scene.version = undefined;
  await scene.monitor.watchCli();
  scene.version = '2.1.331';
  await until('the server to be available', () => (scene.status === 'ok' ? true : undefined));
  const { probes } = scene;
  const other = new Scene(1);
  other.version = undefined;
  await other.monitor.watchCli();
  await until('twenty looks for a CLI that is not there', () => (other.probes > 20 ? true : undefined));
  assert.equal(scene.probes, probes);
});

test('a turn that finds no CLI makes the server unavailable', () => {
  const scene = new Scene();
  scene.monitor.onTurnEnd(notFound);
  assert.equal(scene.status, 'unavailable');
  assert.deepEqual(scene.events, ['error claude_unavailable']);
});

test('a turn that goes well makes it available again at once', () => {
  const scene = new Scene();
  scene.monitor.onTurnEnd(notFound);
  scene.monitor.onTurnEnd(undefined);
  assert.equal(scene.status, 'ok');
  assert.deepEqual(scene.events, ['error claude_unavailable', 'info claude_found']);
});

test('other failures of a turn say nothing about the CLI', () => {
  for (const failure of [new Problem('claude_failed', ''), new Problem('claude_not_authenticated', ''), toProblem(new Error('bug'))]) {
    const scene = new Scene();
    scene.monitor.onTurnEnd(failure);
    assert.equal(scene.status, 'ok');
  }
});

test('a server that stops says so, whatever the CLI', async () => {
  const scene = new Scene();
  scene.isDraining = true;
  assert.deepEqual(scene.monitor.health(), { status: 'draining' });
  scene.version = undefined;
  await scene.monitor.watchCli();
  assert.deepEqual(scene.monitor.health(), { status: 'draining' });
});

test('a CLI that is too old makes the server unavailable, and says so in words of its own', async () => {
  const scene = new Scene();
  scene.monitor.onTurnEnd(new Problem('claude_too_old', 'Update the CLI.'));
  assert.deepEqual([scene.monitor.health(), scene.events], [{ status: 'unavailable', detail: 'Update the CLI.' }, ['error claude_unavailable']]);
});

test('three turns in a row without their sandbox make the server unavailable; one that has it counts anew', () => {
  const noSandbox = new Problem('sandbox_unavailable', 'The sandbox could not be made.');
  const scene = new Scene();
  for (const end of [noSandbox, noSandbox, new Problem('claude_failed', ''), noSandbox, noSandbox]) scene.monitor.onTurnEnd(end);
  assert.equal(scene.status, 'ok');
  scene.monitor.onTurnEnd(noSandbox);
  assert.deepEqual([scene.status, scene.events], ['unavailable', ['error claude_unavailable']]);
});

test('until it is decided how the CLI is run, the server is not ready, and says so', () => {
  const scene = new Scene();
  scene.isReady = false;
  assert.match(String(scene.monitor.health().detail), /is trying its sandbox/);
  scene.isReady = true;
  assert.equal(scene.status, 'ok');
});
