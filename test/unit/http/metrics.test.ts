import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { metricsText } from '../../../src/http/metrics.ts';
import { Problem } from '../../../src/problem.ts';
import { Figures } from '../../../src/turns/figures.ts';
import { healthDetails } from '../../http-stage.ts';
import { findProgram, needs } from '../../needs.ts';

/** Figures of two turns, in which nothing is the same as its neighbour. */
function someFigures(): Figures {
  const figures = new Figures();
  figures.turnAdmitted('resumed', 200);
  figures.turnEnded(undefined, 3000);
  figures.turnEnded(new Problem('busy', ''), 60_000);
  figures.counting(() => {})('warning', 'api_refused');
  return figures;
}

test('figures have a line each, a histogram one for each bucket', () => {
  const lines = metricsText(true, healthDetails, someFigures()).split('\n');
  for (const line of [
    'claude_api_up 1',
    'claude_api_info{version="1.2.3",claude_version="2.1.331",node="box",login="credentials file",sandbox="on"} 1',
    'claude_api_processes{state="warm"} 3',
    'claude_api_memory_bytes{kind="left"} 6',
    'claude_api_turns_total{outcome="failed"} 1',
    'claude_api_turn_problems_total{code="busy"} 1',
    'claude_api_turn_problems_total{code="claude_timeout"} 0',
    'claude_api_turn_duration_seconds_bucket{outcome="answered",le="2.5"} 0',
    'claude_api_turn_duration_seconds_bucket{outcome="answered",le="5"} 1',
    'claude_api_turn_duration_seconds_bucket{outcome="answered",le="+Inf"} 1',
    'claude_api_turn_duration_seconds_sum{outcome="answered"} 3',
    'claude_api_turn_wait_seconds_count 1',
    'claude_api_turn_starts_total{process="resumed"} 1',
    'claude_api_users 1',
    'claude_api_idempotency_keys 4',
    'claude_api_tokens_total{kind="output"} 11',
    'claude_api_sandbox_refusals_total 1',
    'claude_api_log_events_total{event="api_refused"} 1',
  ]) {
    assert.ok(lines.includes(line), `${line} is not in\n${lines.join('\n')}`);
  }
});

test('what a label says cannot end it', () => {
  const text = metricsText(true, { ...healthDetails, sandbox: 'a "b" \\ c\nclaude_api_up 7' }, new Figures());
  assert.ok(text.includes('sandbox="a \\"b\\" \\\\ c\\nclaude_api_up 7"} 1\n'));
});

const skip = needs(['promtool'], 'checks the figures as Prometheus reads them (package prometheus)');
test('Prometheus finds nothing wrong with the figures', { skip }, () => {
  const input = metricsText(true, healthDetails, someFigures());
  const { status, stdout, stderr } = spawnSync(findProgram('promtool') ?? '', ['check', 'metrics'], { input, encoding: 'utf8', timeout: 20_000 });
  assert.deepEqual([status, stdout, stderr], [0, '', '']);
});
