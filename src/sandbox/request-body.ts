import { isUtf8 } from 'node:buffer';
import { isObject, jsonShapeOf, parseJson, type Json } from '../json.ts';
import type { Target } from './request-head.ts';

/** What a body may ask for. Plain values: it is also sent to a thread. */
export interface BodyRules {
  /** Full names, or families such as `sonnet`; undefined = any model, as in the trial at the start. */
  readonly models: readonly string[] | undefined;
  readonly isWebSearchAllowed: boolean;
}

/** A body that may go on as it is, with the letters of its texts, files in base64 left out; or what it was refused for. */
export type BodyVerdict = { readonly textLength: number } | { readonly refused: string };

// What the CLI sends and the fields of Anthropic's Messages API that neither reach out nor cost more. Not here:
// mcp_servers, container, speed, fallbacks (other models), inference_geo (dearer), thread and safeguards (not seen).
const messagesKeys: ReadonlySet<string> = new Set([
  'model', 'messages', 'system', 'tools', 'tool_choice', 'metadata', 'max_tokens', 'stream', 'stop_sequences', 'temperature',
  'top_k', 'top_p', 'thinking', 'output_config', 'context_management', 'diagnostics', 'cache_control', 'service_tier',
]);
const countKeys: ReadonlySet<string> = new Set([
  'model', 'messages', 'system', 'tools', 'tool_choice', 'thinking', 'output_config', 'context_management', 'cache_control',
]);

// The API reads none of these as a request of its own, and a tool's argument may be called "source".
const opaqueKeys: ReadonlySet<string> = new Set(['input_schema', 'input_examples']);
const refusedKeys: ReadonlySet<string> = new Set(['mcp_servers', 'container', 'speed', 'fallbacks']);
const sourceTypes: ReadonlySet<unknown> = new Set(['base64', 'text', 'content']);
const maxSearches = 8; // what the CLI itself asks for

// The CLI's bodies have a depth of 12 and some thousand values. Without the bounds 32 MiB of brackets would take a
// gigabyte, and a thread without memory takes the whole process along (measured).
const maxDepth = 100;
const maxValues = 500_000;

/** Reads a body as the API would, and checks it. What is refused is told in words fit for the log. Never throws. */
export function checkBody(bytes: Buffer, target: Target, rules: BodyRules): BodyVerdict {
  if (!isUtf8(bytes)) return { refused: 'a body that is no JSON object' };
  const { names, values, depth } = jsonShapeOf(bytes);
  if (depth > maxDepth || values > maxValues) return { refused: 'a body of too many values' };
  const value = parseJson(bytes.toString());
  if (!isObject(value)) return { refused: 'a body that is no JSON object' };
  const walk: Walk = { rules, textLength: 0, names: 0 };
  const refused = topLevelProblem(value, target, rules) ?? problemIn(value, walk);
  // With fewer names than in the text one stands twice in an object: the API might take the value that was not looked at.
  if (refused === undefined && walk.names === names) return { textLength: walk.textLength };
  return { refused: refused ?? 'a name that stands twice' };
}

interface Walk {
  readonly rules: BodyRules;
  textLength: number;
  names: number;
}

function topLevelProblem(body: Json, target: Target, rules: BodyRules): string | undefined {
  const known = target === 'messages' ? messagesKeys : countKeys;
  const unknown = Object.keys(body).find((key) => !known.has(key));
  if (unknown !== undefined) return `the field ${named(unknown)}`;
  const tier = body['service_tier'];
  if (tier !== undefined && tier !== 'standard_only') return `the service tier ${named(tier)}`;
  const { model, tools = [] } = body;
  if (typeof model !== 'string' || !isAllowedModel(model, rules.models)) return `the model ${named(model)}`;
  if (!Array.isArray(tools)) return 'tools that are no list';
  return firstOf(tools, (tool) => toolProblem(tool, rules));
}

/** Whether a request for this model matches one of the names: the same but for `[1m]`, or of the family named. */
function isAllowedModel(model: string, names: readonly string[] | undefined): boolean {
  if (names === undefined) return true;
  return names.some((name) => {
    const plain = name.replace(/\[1m\]$/i, '');
    return plain === model || (/^[a-z]+$/.test(plain) && model.startsWith('claude-') && model.split('-').includes(plain));
  });
}

/** What is wrong anywhere in a value; in an opaque one nothing is. */
function problemIn(value: unknown, walk: Walk, isOpaque = false): string | undefined {
  if (typeof value === 'string') walk.textLength += value.length;
  if (Array.isArray(value)) return firstOf(value, (element) => problemIn(element, walk, isOpaque));
  if (!isObject(value)) return undefined;
  const keys = Object.keys(value);
  walk.names += keys.length;
  const own = isOpaque ? undefined : ownProblem(value, walk.rules);
  return own ?? firstOf(keys, (key) => memberProblem(value, key, walk, isOpaque));
}

function memberProblem(object: Json, key: string, walk: Walk, isOpaque: boolean): string | undefined {
  const member = object[key];
  if (isOpaque) return problemIn(member, walk, true);
  if (refusedKeys.has(key)) return `the field ${named(key)}`;
  if (key === 'data' && object['type'] === 'base64' && typeof member === 'string') return undefined;
  return problemIn(member, walk, opaqueKeys.has(key) || isOpaqueMember(object['type'], key));
}

/** A tool's arguments and a schema for answers: the model's and the caller's words, which the API only passes on. */
function isOpaqueMember(type: unknown, key: string): boolean {
  return (key === 'input' && (type === 'tool_use' || type === 'server_tool_use')) || (key === 'schema' && type === 'json_schema');
}

function ownProblem(object: Json, rules: BodyRules): string | undefined {
  const { type, source, definition } = object;
  // Anthropic fetches a URL, opens a stored file: a way out, or into the operator's account.
  const isInBody = source === undefined || (isObject(source) && sourceTypes.has(source['type']));
  if (!isInBody) return `a source of type ${named(isObject(source) ? source['type'] : typeof source)}`;
  // Tools may also be added in the midst of the messages.
  const defined = definition === undefined ? undefined : toolProblem(definition, rules);
  if (defined !== undefined) return defined;
  // Tools that run at Anthropic carry a date in their type, and so do edits of the context, which are harmless.
  const isDated = typeof type === 'string' && /_\d{8}/.test(type);
  return isDated && !/^(?:clear_thinking|clear_tool_uses|compact)_/.test(type) ? toolProblem(object, rules) : undefined;
}

function toolProblem(tool: unknown, rules: BodyRules): string | undefined {
  if (!isObject(tool)) return 'a tool that is no object';
  const { type = 'custom', max_uses: maxUses } = tool;
  if (type === 'custom') return undefined;
  if (typeof type !== 'string' || !/^web_search_\d{8}$/.test(type) || !rules.isWebSearchAllowed) return `the tool ${named(type)}`;
  const isBounded = typeof maxUses === 'number' && maxUses >= 1 && maxUses <= maxSearches;
  return isBounded ? undefined : `more than ${maxSearches} web searches at once`;
}

/** The client's words cut down to what a log line can carry. */
function named(value: unknown): string {
  return typeof value === 'string' ? value.slice(0, 60).replace(/[^\w.:/@[\]-]/g, '?') : typeof value;
}

function firstOf<T>(values: readonly T[], ask: (value: T) => string | undefined): string | undefined {
  for (const value of values) {
    const answer = ask(value);
    if (answer !== undefined) return answer;
  }
  return undefined;
}
