import assert from 'node:assert/strict';
import { test } from 'node:test';
import { checkBody, type BodyRules } from '../../../src/sandbox/request-body.ts';

const rules: BodyRules = { models: ['claude-sonnet-5-5'], isWebSearchAllowed: true };

type Json = Record<string, unknown>;

function refusalOf(extra: Json, some: Partial<BodyRules> = {}, target: 'messages' | 'count_tokens' = 'messages'): string | undefined {
  const body = { model: 'claude-sonnet-5-5', messages: [], ...extra };
  const verdict = checkBody(Buffer.from(JSON.stringify(body)), target, { ...rules, ...some });
  return 'refused' in verdict ? verdict.refused : undefined;
}

const inMessage = (...content: unknown[]): Json => ({ messages: [{ role: 'user', content }] });
const inToolResult = (...content: unknown[]): Json => inMessage({ type: 'tool_result', tool_use_id: 'x', content });
const image = (source: unknown): Json => ({ type: 'image', source });

test('what the CLI asks for goes through', () => {
  const common = {
    system: [{ type: 'text', text: 'x', cache_control: { type: 'ephemeral', scope: 'global', ttl: '1h' } }],
    tools: [{ name: 'Bash', description: 'x', input_schema: { type: 'object', properties: { source: { type: 'string' }, type: { type: 'string' } } } }],
    metadata: { user_id: '{}' }, max_tokens: 128000, stream: true, thinking: { type: 'adaptive', display: 'updates' },
  };
  const bodies: Json[] = [
    common,
    { ...common, context_management: { edits: [{ type: 'clear_thinking_20251015', keep: 'all' }] }, output_config: { effort: 'max' }, diagnostics: { previous_message_id: null } },
    { ...common, output_config: { format: { type: 'json_schema', schema: { properties: { source: { type: 'url' } } } } } },
    { temperature: 1, tool_choice: { type: 'tool', name: 'web_search' }, tools: [{ type: 'web_search_20250305', name: 'web_search', max_uses: 8 }] },
    { service_tier: 'standard_only', stop_sequences: ['x'], top_k: 1, top_p: 1 },
    { ...common, context_management: { edits: [{ type: 'clear_tool_uses_20250919' }, { type: 'compact_20260112' }] } },
    inToolResult(image({ type: 'base64', media_type: 'image/png', data: 'AAAA' }), { type: 'tool_reference', tool_name: 'x' }),
    inMessage({ type: 'document', source: { type: 'text', data: 'x' } }, { type: 'document', source: { type: 'content', content: [image({ type: 'base64', data: '' })] } }),
    // A tool's arguments are the model's words: their names mean nothing to the API.
    inMessage({ type: 'tool_use', id: 'x', name: 'mcp', input: { source: 'https://example.org', mcp_servers: 1, type: 'web_fetch_20250910', container: {} } }),
    inMessage({ type: 'server_tool_use', id: 'x', name: 'web_search', input: { source: 'https://example.org' } }),
    { messages: [{ role: 'system', content: [{ type: 'tool_addition', tool: { type: 'tool_definition', definition: { name: 'x', input_schema: {} } } }] }] },
  ];
  for (const body of bodies) assert.equal(refusalOf(body), undefined, JSON.stringify(body));
  const counted = { system: 'x', tools: [], tool_choice: {}, thinking: {}, output_config: {}, context_management: {}, cache_control: {} };
  assert.equal(refusalOf(counted, {}, 'count_tokens'), undefined);
});

test('a field that is not on the list is refused by its name, wherever it is dangerous', () => {
  for (const key of ['mcp_servers', 'container', 'speed', 'fallbacks', 'inference_geo', 'thread', 'betas', 'output_format', '__proto__x']) {
    assert.equal(refusalOf({ [key]: null }), `the field ${key}`);
  }
  for (const key of ['mcp_servers', 'container', 'speed', 'fallbacks']) assert.equal(refusalOf({ messages: [{ role: 'user', content: [], [key]: 'x' }] }), `the field ${key}`);
  for (const key of ['stream', 'metadata', 'max_tokens', 'service_tier']) assert.equal(refusalOf({ [key]: 1 }, {}, 'count_tokens'), `the field ${key}`);
  assert.equal(refusalOf({ 'a\nb "x" ж': 1 }), 'the field a?b??x???');
  assert.equal(refusalOf({ ['x'.repeat(500)]: 1 }), `the field ${'x'.repeat(60)}`);
  for (const tier of ['auto', 'priority', '', null, 1]) assert.match(String(refusalOf({ service_tier: tier })), /^the service tier /);
});

test('a source is refused at any depth unless what it stands for is in the body', () => {
  const url = { type: 'url', url: 'https://evil.example/?secret' };
  const bad: Array<[unknown, string]> = [
    [url, 'url'], [{ type: 'file', file_id: 'x' }, 'file'], [{ url: 'x' }, 'undefined'], ['https://evil.example', 'string'], [[url], 'object'], [null, 'object'], [7, 'number'], [{ type: ['base64'] }, 'object'],
  ];
  const places: Array<(source: unknown) => Json> = [
    (source) => inMessage(image(source)),
    (source) => inMessage({ type: 'document', title: 'x', source }),
    (source) => inToolResult(image(source)),
    (source) => inToolResult({ type: 'document', source: { type: 'content', content: [{ type: 'text', text: 'x' }, image(source)] } }),
    (source) => ({ system: [image(source)] }),
    (source) => ({ tools: [{ name: 'x', source }] }),
    (source) => ({ metadata: { source } }),
    (source) => inMessage({ type: 'tool_use', id: 'x', name: 'x', input: {}, source }),
    (source) => inMessage({ type: 'x', schema: { source } }),
    (source) => inMessage({ type: 'json_schema', x: { source } }),
    // Its data is a text, or else looked into.
    (source) => inMessage(image({ type: 'base64', data: { source } })),
  ];
  for (const [source, name] of bad) for (const place of places) assert.equal(refusalOf(place(source)), `a source of type ${name}`);
});

test('tools that run at Anthropic are refused but for a bounded web search, which the operator may close', () => {
  const search = { type: 'web_search_20250305', name: 'web_search', max_uses: 8 };
  const bad = [
    'web_fetch_20250910', 'code_execution_20250825', 'computer_20250124', 'bash_20250124', 'text_editor_20250728', 'memory_20250818', 'tool_search_tool_regex_20251119',
    'advisor_20260301', 'mcp_toolset', 'web_search', 'web_search_20250305x', 'web_search_2025', 'Web_search_20250305',
  ];
  for (const type of bad) assert.equal(refusalOf({ tools: [{ type, name: 'x', max_uses: 1 }] }), `the tool ${type}`);
  assert.equal(refusalOf({ tools: [search] }, { isWebSearchAllowed: false }), 'the tool web_search_20250305');
  for (const uses of [undefined, 0, 9, '1', null, -1]) assert.equal(refusalOf({ tools: [{ ...search, max_uses: uses }] }), 'more than 8 web searches at once');
  assert.equal(refusalOf({ tools: { 0: search } }), 'tools that are no list');
  assert.equal(refusalOf({ tools: [[search]] }), 'a tool that is no object');
  assert.equal(refusalOf({ tools: [{ type: null }] }), 'the tool object');
  // In the midst of the messages, where tools may be added as well.
  const added = (definition: unknown): Json => ({ messages: [{ role: 'system', content: [{ type: 'tool_addition', tool: { type: 'tool_definition', definition } }] }] });
  assert.equal(refusalOf(added({ type: 'web_fetch_20250910' })), 'the tool web_fetch_20250910');
  assert.equal(refusalOf(added({ type: 'mcp_toolset' })), 'the tool mcp_toolset');
  assert.equal(refusalOf(added(search)), undefined);
  const inPlace = (type: string): Json => ({ messages: [{ role: 'system', content: [{ type: 'tool_addition', tool: { type, max_uses: 1 } }] }] });
  for (const type of ['web_fetch_20250910', 'x_clear_thinking_20251015', 'x_20251015_y']) assert.equal(refusalOf(inPlace(type)), `the tool ${type}`);
  for (const type of ['web_search_20250305', 'x_2025']) assert.equal(refusalOf(inPlace(type)), undefined);
  assert.equal(refusalOf(inMessage({ type: 'web_fetch_20250910', name: 'x', definition: { name: 'x' } })), 'the tool web_fetch_20250910');
});

test('a model goes through by its name, by the family the operator named, or all in the trial', () => {
  const asked = (model: unknown, models?: readonly string[]): string | undefined => refusalOf({ model }, { models });
  for (const names of [['claude-sonnet-5-5'], ['claude-sonnet-5-5[1m]'], ['sonnet'], ['sonnet[1m]'], ['opus', 'sonnet']]) assert.equal(asked('claude-sonnet-5-5', names), undefined);
  assert.equal(asked('claude-haiku-4-5-20251001', ['haiku']), undefined);
  assert.equal(asked('gateway/some:model', ['gateway/some:model']), undefined);
  const refused = ['claude-sonnet-5', 'claude-sonnet-5-5-x', 'claude-opus-5-5', 'sonnet', 'claude', '', 'Claude-Sonnet-5-5', 'x-sonnet'];
  for (const model of refused) assert.equal(asked(model, ['claude-sonnet-5-5', 'haiku']), `the model ${model}`);
  assert.equal(asked('evil-sonnet', ['sonnet']), 'the model evil-sonnet');
  for (const name of ['5', 'x5x']) assert.equal(asked(`claude-x-${name}`, [name]), `the model claude-x-${name}`);
  assert.equal(asked('claude-anything', undefined), undefined);
  for (const model of [null, 7, ['claude-sonnet-5-5'], {}]) assert.match(String(asked(model)), /^the model (object|number)$/);
});

test('a body may have some depth and some values, and be in UTF-8', () => {
  const nested = (depth: number): Json => JSON.parse(`${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}`) as Json;
  assert.equal(refusalOf({ metadata: nested(99) }), undefined);
  assert.equal(refusalOf({ metadata: nested(100) }), 'a body of too many values');
  const deep = Buffer.from(`{"model":${'{"a":'.repeat(40_000)}1${'}'.repeat(40_001)}`);
  assert.deepEqual(checkBody(deep, 'messages', rules), { refused: 'a body of too many values' });
  assert.equal(refusalOf({ messages: Array<number>(499_998).fill(1) }), undefined);
  assert.equal(refusalOf({ messages: Array<number>(499_999).fill(1) }), 'a body of too many values');
  const bytes = Buffer.from(JSON.stringify({ model: 'claude-sonnet-5-5', system: 'xx' }));
  assert.ok('textLength' in checkBody(bytes, 'messages', rules));
  // A quotation mark in two bytes where one would do, which some readers take for one.
  bytes.set([0xc0, 0xa2], bytes.indexOf('xx'));
  assert.deepEqual(checkBody(bytes, 'messages', rules), { refused: 'a body that is no JSON object' });
});

test('the letters of all texts are counted, files in base64 left out', () => {
  const body = { model: 'claude-sonnet-5-5', ...inMessage({ type: 'text', text: 'x'.repeat(1000) }, image({ type: 'base64', data: 'A'.repeat(5000) })) };
  const others = ['claude-sonnet-5-5', 'user', 'text', 'image', 'base64'].join('').length;
  assert.deepEqual(checkBody(Buffer.from(JSON.stringify(body)), 'messages', rules), { textLength: 1000 + others });
});
