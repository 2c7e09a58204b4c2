import assert from 'node:assert/strict';
import { test } from 'node:test';
import { png } from '../../pictures.ts';
import { interruptLine, parseLine, userLine, type CliEvent } from '../../../src/cli/protocol.ts';

type Json = Record<string, unknown>;

// ---- lines to the CLI

test('a prompt is sent as one user message on one line', () => {
  assert.equal(userLine({ prompt: 'Hello' }, '/inbox'), '{"type":"user","message":{"role":"user","content":"Hello"}}\n');
});

test('a prompt reaches the CLI letter by letter, whatever it holds', () => {
  for (const prompt of ['-x', '--version', '@/etc/passwd', '!ls', '# memo', '  spaced  ', 'a\nb\r\nc\u2028d', 'żółć 🦊', '"}\\n{"', '\u0001\u007f']) {
    const line = userLine({ prompt }, '/inbox');
    assert.equal(line.indexOf('\n'), line.length - 1, JSON.stringify(prompt));
    assert.deepEqual(JSON.parse(line), { type: 'user', message: { role: 'user', content: prompt } });
  }
});

test('a prompt that begins with / gets a space in front, so that it is no command of the CLI', () => {
  for (const prompt of ['/config theme=dark', '/', '//']) {
    assert.equal((JSON.parse(userLine({ prompt }, '/inbox')) as { message: Json }).message['content'], ` ${prompt}`);
  }
  assert.equal((JSON.parse(userLine({ prompt: 'a /config' }, '/inbox')) as { message: Json }).message['content'], 'a /config');
});

test('the interrupt is one control request on one line', () => {
  assert.equal(interruptLine.indexOf('\n'), interruptLine.length - 1);
  assert.deepEqual(JSON.parse(interruptLine), { type: 'control_request', request_id: 'interrupt', request: { subtype: 'interrupt' } });
});

// ---- lines from the CLI

const initLine = `{"type":"system","subtype":"init","cwd":"/w","session_id":"0c6f2f1e","tools":["Edit","Glob"],"mcp_servers":[],"model":"claude-sonnet-5","permissionMode":"acceptEdits","slash_commands":[],"apiKeySource":"ANTHROPIC_API_KEY","claude_code_version":"2.1.331","output_style":"default","agents":["..."],"skills":[],"plugins":[],"analytics_disabled":true,"uuid":"U","memory_paths":{"auto":"..."},"fast_mode_state":"off"}`;
const toolLine = `{"type":"assistant","message":{"id":"msg_x","type":"message","role":"assistant","model":"claude-opus-4-8","content":[{"type":"tool_use","id":"toolu_x","name":"Bash","input":{"command":"ls"}}],"stop_reason":null,"usage":{"input_tokens":100,"output_tokens":1}},"parent_tool_use_id":null,"session_id":"0c6f2f1e","uuid":"U","request_id":"req_x"}`;
const toolResultLine = `{"type":"user","message":{"role":"user","content":[{"type":"tool_result","content":"...","is_error":true,"tool_use_id":"toolu_x"}]},"parent_tool_use_id":null,"session_id":"0c6f2f1e","uuid":"U","timestamp":"ISO","tool_use_result":"Error: ..."}`;
const successLine = `{"type":"result","subtype":"success","is_error":false,"api_error_status":null,"duration_ms":233,"duration_api_ms":51,"ttft_ms":213,"ttft_stream_ms":210,"time_to_request_ms":192,"num_turns":1,"result":"hello","stop_reason":"end_turn","session_id":"0c6f2f1e","total_cost_usd":0.5,"model_usage_since_last_result":{"claude-opus-4-8[1m]":{"inputTokens":100,"outputTokens":10,"costUSD":0.00075}},"usage":{"input_tokens":100,"output_tokens":10},"modelUsage":{"claude-opus-4-8[1m]":{"inputTokens":100,"outputTokens":10,"costUSD":0.00075}},"permission_denials":[{"tool_name":"Bash","tool_use_id":"toolu_x","tool_input":{"command":"..."}}],"terminal_reason":"completed","fast_mode_state":"off","uuid":"U"}`;
const maxTurnsLine = `{"type":"result","subtype":"error_max_turns","is_error":true,"num_turns":3,"stop_reason":"tool_use","terminal_reason":"max_turns","errors":["Reached maximum number of turns (2)"],"session_id":"0c6f2f1e","total_cost_usd":0.0015}`;

const stream = (event: Json, more: Json = {}): string => JSON.stringify({ type: 'stream_event', event, session_id: 's', parent_tool_use_id: null, ...more });
const assistant = (message: Json, more: Json = {}): string => JSON.stringify({ type: 'assistant', message: { id: 'm1', model: 'claude-opus-4-8', ...message }, parent_tool_use_id: null, ...more });
const textBlock = { content: [{ type: 'text', text: 'hi' }] };

const parsed: ReadonlyArray<readonly [string, string, readonly CliEvent[]]> = [
  ['init names the session and the version', initLine, [{ type: 'init', sessionId: '0c6f2f1e', version: '2.1.331', tools: ['Edit', 'Glob'] }]],
  ['a used tool is named, without its input', toolLine, [{ type: 'tool', name: 'Bash' }]],
  ['a tool result says nothing', toolResultLine, []],
  [
    'a result has the answer and the cost of the turn alone',
    successLine,
    [{ type: 'result', subtype: 'success', isError: false, text: 'hello', errors: [], apiStatus: undefined, terminalReason: 'completed', sessionId: '0c6f2f1e', costUsd: 0.00075 }],
  ],
  [
    'a result without an answer has its errors',
    maxTurnsLine,
    [{ type: 'result', subtype: 'error_max_turns', isError: true, text: undefined, errors: ['Reached maximum number of turns (2)'], apiStatus: undefined, terminalReason: 'max_turns', sessionId: '0c6f2f1e', costUsd: 0 }],
  ],
  ['a streamed message begins', stream({ type: 'message_start', message: { id: 'msg_x' } }), [{ type: 'message_start', messageId: 'msg_x' }]],
  ['a piece of text comes', stream({ type: 'content_block_delta', delta: { type: 'text_delta', text: 'He\u2028' } }), [{ type: 'text_delta', text: 'He\u2028' }]],
  ['thinking and tool input are not text', stream({ type: 'content_block_delta', delta: { type: 'thinking_delta', thinking: 'hm' } }), []],
  ['a streamed message ends with its stop reason', stream({ type: 'message_delta', delta: { stop_reason: 'end_turn' } }), [{ type: 'message_complete' }]],
  ['a message delta without a stop reason is no end', stream({ type: 'message_delta', delta: { stop_reason: null } }), []],
  ['other stream events say nothing', stream({ type: 'content_block_stop', index: 0 }), []],
  ['a whole text block comes', assistant(textBlock), [{ type: 'text_block', messageId: 'm1', text: 'hi' }]],
  [
    'text and tool of one message come in order',
    assistant({ content: [{ type: 'text', text: 'a' }, { type: 'thinking', thinking: 'hm' }, { type: 'tool_use', name: 'Read', input: {} }, { type: 'text', text: 'b' }] }),
    [{ type: 'text_block', messageId: 'm1', text: 'a' }, { type: 'tool', name: 'Read' }, { type: 'text_block', messageId: 'm1', text: 'b' }],
  ],
  ['a notice of the CLI itself is not what Claude said', assistant({ ...textBlock, model: '<synthetic>' }), []],
  ['the class of an API error is heard, its text is not', assistant({ ...textBlock, model: '<synthetic>' }, { error: 'rate_limit' }), [{ type: 'api_error', errorClass: 'rate_limit' }]],
  ['text of a subagent is not the answer', assistant(textBlock, { parent_tool_use_id: 'toolu_1' }), []],
  ['streamed text of a subagent is not the answer', stream({ type: 'content_block_delta', delta: { type: 'text_delta', text: 'x' } }, { parent_tool_use_id: 'toolu_1' }), []],
  [
    'a retry names the status and the wait',
    '{"type":"system","subtype":"api_retry","attempt":1,"max_retries":10,"retry_delay_ms":1000,"error_status":529,"error":"overloaded"}',
    [{ type: 'api_retry', status: 529, delayMs: 1000 }],
  ],
  ['a retry after a broken connection has no status', '{"type":"system","subtype":"api_retry","retry_delay_ms":600,"error_status":null}', [{ type: 'api_retry', status: undefined, delayMs: 600 }]],
  ['a reached limit names the time of its end', '{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":1700000000,"rateLimitType":"five_hour"}}', [{ type: 'limit_reached', resetsAtSeconds: 1700000000 }]],
  ['a limit that was not reached says nothing', '{"type":"rate_limit_event","rate_limit_info":{"status":"allowed","resetsAt":1700000000}}', []],
  ['other system lines say nothing', '{"type":"system","subtype":"status","status":"requesting"}', []],
  ['unknown types say nothing', '{"type":"control_response","response":{"subtype":"success"}}', []],
  ['an object without a type says nothing', '{}', []],
  ['an empty line says nothing', '', []],
  ['noise on stdout says nothing', '[SandboxDebug] {"type":"result"}', []],
  ['CR at the end of a line does not matter', '{"type":"system","subtype":"api_retry"}\r', [{ type: 'api_retry', status: undefined, delayMs: 0 }]],
];

for (const [title, line, events] of parsed) {
  test(`parseLine: ${title}`, () => {
    assert.deepEqual(parseLine(line), events);
  });
}

test('parseLine: a line that begins like JSON and is not is an error', () => {
  assert.throws(() => parseLine('{"type":"result","subtype":"succ'), SyntaxError);
  assert.throws(() => parseLine('{type:1}'), SyntaxError);
});

test('parseLine: a line that would take the memory of all is an error, and a long answer is none', () => {
  const values = (count: number): string => `{"type":"system","subtype":"x","a":[${'{},'.repeat(count)}{}]}`;
  assert.throws(() => parseLine(values(200_000)), SyntaxError);
  assert.throws(() => parseLine(`{"type":"system","a":${'['.repeat(200_000)}${']'.repeat(200_000)}}`), SyntaxError);
  assert.deepEqual(parseLine(values(40_000)), []);
  const text = '[{},"'.repeat(1_000_000);
  const [event] = parseLine(JSON.stringify({ type: 'result', is_error: false, result: text }));
  assert.ok(event?.type === 'result' && event.text === text);
});

test('parseLine: members of an unexpected type break nothing', () => {
  for (const type of ['system', 'stream_event', 'assistant', 'rate_limit_event', 'result']) {
    for (const odd of [null, 5, 'x', [], [null, 5], {}, { id: 5, content: [null, 5, { type: 'text' }, { type: 'tool_use' }] }]) {
      for (const subtype of ['init', 'api_retry', odd]) {
        const line = JSON.stringify({ type, subtype, message: odd, event: odd, rate_limit_info: odd, errors: odd, result: odd, session_id: odd, model_usage_since_last_result: odd, total_cost_usd: odd });
        assert.doesNotThrow(() => parseLine(line), line);
      }
    }
  }
});

test('parseLine: what is no text is no answer, no error and no session', () => {
  for (const odd of [null, 5, [], {}, true]) {
    const [result] = parseLine(JSON.stringify({ type: 'result', subtype: odd, result: odd, session_id: odd, errors: [odd], terminal_reason: odd, api_error_status: '5' }));
    assert.deepEqual(result, { type: 'result', subtype: '', isError: true, text: undefined, errors: [], apiStatus: undefined, terminalReason: undefined, sessionId: '', costUsd: 0 });
  }
});

test('parseLine: a result that does not say is_error:false is an error', () => {
  const [result] = parseLine('{"type":"result","subtype":"success","result":"x"}');
  assert.ok(result?.type === 'result' && result.isError);
});

// ---- what a turn cost

function costOf(modelUsage: unknown): number {
  const [event] = parseLine(JSON.stringify({ type: 'result', result: 'x', total_cost_usd: 5, model_usage_since_last_result: modelUsage }));
  assert.ok(event?.type === 'result');
  return event.costUsd;
}

test('the cost of a turn is that of all models since the last result, without noise at the end', () => {
  assert.equal(costOf({ 'claude-opus-4-8[1m]': { costUSD: 0.1 }, 'claude-haiku': { costUSD: 0.2 } }), 0.3);
  assert.equal(costOf({}), 0);
  assert.equal(costOf(undefined), 0);
});

test('a cost that is no number is not taken for nothing', () => {
  for (const costUSD of ['0.1', null, undefined, {}]) assert.ok(Number.isNaN(costOf({ 'claude-opus-4-8': { costUSD } })), String(costUSD));
});

test('files are named behind the prompt, or alone, and pictures stand before it', () => {
  const files = [{ name: 'a "b".csv', bytes: Buffer.from('x') }, { name: 'c.png', bytes: png(2, 2) }];
  const contentOf = (prompt: string, some = files) => (JSON.parse(userLine({ prompt, files: some }, '/inbox')) as { message: Json }).message['content'];
  const note = '[Files in /inbox: "a \\"b\\".csv", "c.png"]';
  const image = { type: 'image', source: { type: 'base64', media_type: 'image/png', data: png(2, 2).toString('base64') } };
  assert.deepEqual(contentOf('look'), [image, { type: 'text', text: `look\n\n${note}` }]);
  assert.deepEqual(contentOf(' \n'), [image, { type: 'text', text: note }]);
  assert.equal(contentOf('/config', files.slice(0, 1)), ' /config\n\n[Files in /inbox: "a \\"b\\".csv"]');
});
