import type { Log } from '../log.ts';
import type { CliConfig, CliRights } from './way.ts';

/** The whole of Claude Code but for what needs a person, a clock or a background. What a new CLI brings is added after a test. */
const sandboxedTools = 'Task,Bash,Glob,Grep,Read,Edit,Write,NotebookEdit,TaskStop,ToolSearch,WebSearch';

/** What the CLI may do in a sandbox: everything it has there, unasked, unless the operator narrows it. */
export function rightsInside(config: Pick<CliConfig, 'network' | keyof CliRights>): CliRights {
  const { network, tools, allowedTools, permissionMode, settingSources } = config;
  return {
    tools: tools ?? (network.length > 0 ? `${sandboxedTools},WebFetch` : sandboxedTools),
    allowedTools,
    permissionMode: permissionMode ?? 'bypassPermissions',
    settingSources: settingSources ?? 'user',
  };
}

/** Whether a list of tools has this one. */
export function hasTool(tools: string, name: string): boolean {
  const names = namesIn(tools);
  return names.includes(name) || names.includes('default');
}

function namesIn(tools: string): string[] {
  return tools.split(',').map((name) => name.trim());
}

// What the CLI confines by itself to the user's folders.
const fileTools = ['Read', 'Write', 'Edit', 'Glob', 'Grep'];

/**
 * What the CLI may do without a sandbox: the five file tools and their rules; more only where the operator switched the
 * sandbox off, since with it each end user can do what the service user can.
 */
export function rightsOutside(config: Pick<CliConfig, 'sandbox' | keyof CliRights>): CliRights {
  const { sandbox, tools, allowedTools, permissionMode, settingSources = '' } = config;
  if (sandbox === 'off') {
    return { tools: tools ?? fileTools.join(','), allowedTools, permissionMode: permissionMode ?? 'acceptEdits', settingSources };
  }
  const safe = fileTools.filter((name) => hasTool(tools ?? 'default', name)).join(',');
  return { tools: safe, allowedTools: '', permissionMode: 'acceptEdits', settingSources };
}

/** What logs, once, which of the tools the operator listed are none of the CLI's: a name misspelt is taken without a word. */
export function createToolCheck(listed: string | undefined, log: Log): (names: readonly string[]) => void {
  let asked = namesIn(listed ?? '');
  return (names) => {
    const unknown = asked.filter((name) => name !== '' && name !== 'default' && !names.includes(name));
    if (unknown.length > 0) log('warning', 'config', { message: `CLAUDE_TOOLS: the CLI has no tool of the name ${unknown.join(', ')}` });
    asked = [];
  };
}
