import { readFile } from 'node:fs/promises';
import { ConfigError, type Config } from '../env.ts';
import { asObject, isObject, parseJson, type Json } from '../json.ts';
import { errorCode } from '../problem.ts';

/** What the operator gives every dialogue, read from files at the start. */
export interface OperatorFiles {
  /** Told to Claude besides the CLI's own words; empty for nothing. */
  readonly systemPrompt: string;
  /** MCP servers by name, each as the CLI's configuration has it. */
  readonly mcpServers: Readonly<Record<string, unknown>>;
}

// Each is one argument of the CLI, which may have 128 KiB (execve(2)).
const maxBytes = 65_536;

/** Reads the files that the settings name. Throws ConfigError for what is missing, cannot be read, or is not what it should be. */
export async function readOperatorFiles(settings: Pick<Config, 'mcpConfigFile' | 'sandbox' | 'systemPromptFile'>): Promise<OperatorFiles> {
  const problems: string[] = [];
  const read = async <T>(name: string, path: string | undefined, parse: (text: string) => T, none: T): Promise<T> => {
    if (path === undefined) return none;
    try {
      return parse(textOf(await readFile(path)));
    } catch (error) {
      problems.push(`${name}: ${error instanceof Unfit ? `expected ${error.message}` : `the file cannot be read (${errorCode(error)})`}`);
      return none;
    }
  };
  const systemPrompt = await read('CLAUDE_SYSTEM_PROMPT_FILE', settings.systemPromptFile, (text) => text.trim(), '');
  const parseServers = (text: string): OperatorFiles['mcpServers'] => serversOf(text, settings.sandbox === 'off');
  const mcpServers = await read('CLAUDE_MCP_CONFIG', settings.mcpConfigFile, parseServers, {});
  if (problems.length > 0) throw new ConfigError(problems);
  return { systemPrompt, mcpServers };
}

/** A file that is not what it should be; the message says what that is. */
class Unfit extends Error {}

function textOf(bytes: Buffer): string {
  const isFit = bytes.length <= maxBytes && !bytes.includes(0);
  try {
    if (isFit) return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    // Told below.
  }
  throw new Unfit(`a text in UTF-8 of at most ${maxBytes} bytes`);
}

function serversOf(text: string, mayHoldSecrets: boolean): OperatorFiles['mcpServers'] {
  const servers = asObject(parseJson(text))['mcpServers'];
  if (!isObject(servers)) throw new Unfit('JSON such as {"mcpServers": {"name": {"command": "/usr/bin/…"}}}');
  for (const [name, value] of Object.entries(servers)) {
    const server = asObject(value);
    // Other names the CLI changes, and then no rule of permission has them.
    if (!/^[\w-]{1,64}$/.test(name)) throw new Unfit('names of servers in letters, digits, _ and -');
    const isText = (key: string): boolean => typeof server[key] === 'string';
    if (!isText('command') && !isText('url')) throw new Unfit('a command or a url for each server');
    if (!mayHoldSecrets && !isOpen(server)) {
      throw new Unfit('no env, headers, headersHelper or login in a url: end users see it in the sandbox (CLAUDE_SANDBOX=off takes it)');
    }
  }
  return servers;
}

/** Whether nothing is where a secret would be. */
function isOpen(server: Json): boolean {
  const isEmpty = (key: string): boolean => server[key] === undefined || JSON.stringify(server[key]) === '{}';
  // Not by URL: what has variables of the CLI's in it is none yet.
  const hasLogin = /^[^/\\?#]*[/\\]*[^/\\?#]*@/.test(String(server['url'] ?? ''));
  return !hasLogin && ['env', 'headers', 'headersHelper'].every(isEmpty);
}
