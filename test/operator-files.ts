import { readFileSync } from 'node:fs';
import { chmod, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const source = readFileSync(fileURLToPath(new URL('bin/mcp-server', import.meta.url)), 'utf8');

/** An MCP server that runs wherever there is a `node`, without a file. */
export const greeter = { command: 'node', args: ['--input-type=module', '-e', source] };

export const operatorsWords = 'Words of the operator:\n\n--be "kind" to $USER, żółć.';

/** Both files in a folder that the server can read, as the settings that name them. */
export async function writeOperatorFiles(folder: string, mcpServers: Readonly<Record<string, unknown>> = { greeter }): Promise<Record<'CLAUDE_SYSTEM_PROMPT_FILE' | 'CLAUDE_MCP_CONFIG', string>> {
  const paths = { CLAUDE_SYSTEM_PROMPT_FILE: join(folder, 'words.txt'), CLAUDE_MCP_CONFIG: join(folder, 'mcp.json') };
  await writeFile(paths.CLAUDE_SYSTEM_PROMPT_FILE, `${operatorsWords}\n`);
  await writeFile(paths.CLAUDE_MCP_CONFIG, JSON.stringify({ mcpServers }));
  for (const path of Object.values(paths)) await chmod(path, 0o644);
  return paths;
}
