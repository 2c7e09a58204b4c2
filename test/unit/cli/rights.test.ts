import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createToolCheck, hasTool, rightsInside, rightsOutside } from '../../../src/cli/rights.ts';

const unset = { tools: undefined, allowedTools: '', permissionMode: undefined, settingSources: undefined };
const fiveTools = 'Read,Write,Edit,Glob,Grep';
const opened = { tools: 'Bash,Read, Edit', allowedTools: 'Bash', permissionMode: 'bypassPermissions', settingSources: 'project' } as const;

test('without a sandbox there are five file tools and the settings of no user', () => {
  const rights = { tools: fiveTools, allowedTools: '', permissionMode: 'acceptEdits', settingSources: '' };
  for (const sandbox of ['auto', 'required', 'off'] as const) assert.deepEqual(rightsOutside({ ...unset, sandbox }), rights);
});

test('where the sandbox was wanted, what only a sandbox makes harmless stays closed', () => {
  assert.deepEqual(rightsOutside({ ...opened, sandbox: 'auto' }), {
    tools: 'Read,Edit', allowedTools: '', permissionMode: 'acceptEdits', settingSources: 'project',
  });
  assert.equal(rightsOutside({ ...unset, tools: 'default', sandbox: 'auto' }).tools, fiveTools);
  assert.equal(rightsOutside({ ...unset, tools: '', sandbox: 'auto' }).tools, '');
});

test('with CLAUDE_SANDBOX=off the operator may open what they like', () => {
  assert.deepEqual(rightsOutside({ ...opened, sandbox: 'off' }), opened);
});

test('in the sandbox all is allowed unasked, and the operator may narrow it', () => {
  const { tools, ...others } = rightsInside({ ...unset, network: [] });
  assert.match(tools, /^(?!.*WebFetch).*Bash.*WebSearch/);
  for (const network of ['public', ['github.com']] as const) assert.equal(rightsInside({ ...unset, network }).tools, `${tools},WebFetch`);
  assert.deepEqual(others, { allowedTools: '', permissionMode: 'bypassPermissions', settingSources: 'user' });
  const narrow = { tools: 'Read', allowedTools: '', permissionMode: 'dontAsk', settingSources: '' } as const;
  assert.deepEqual(rightsInside({ ...narrow, network: 'public' }), narrow);
});

test('a tool is had by its name, and by default', () => {
  for (const tools of ['WebSearch', 'Read, WebSearch', 'default', 'Read, default']) assert.ok(hasTool(tools, 'WebSearch'), tools);
  for (const tools of ['', 'Read', 'WebSearch2', 'Read,WebFetch']) assert.ok(!hasTool(tools, 'WebSearch'), tools);
});

test('a tool that the operator lists and the CLI does not name is warned of, once', () => {
  const warnings = (listed: string | undefined): unknown[] => {
    const lines: unknown[] = [];
    const check = createToolCheck(listed, (level, event, fields) => void lines.push([level, event, fields?.['message']]));
    for (const names of [['Read', 'Bash'], []]) check(names);
    return lines;
  };
  assert.deepEqual(warnings('Read, Raed,Bsh'), [['warning', 'config', 'CLAUDE_TOOLS: the CLI has no tool of the name Raed, Bsh']]);
  for (const listed of [undefined, '', 'default', 'Read, Bash']) assert.deepEqual(warnings(listed), []);
});
