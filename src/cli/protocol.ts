import type { TurnFile } from '../host/turn-files.ts';
import { asObject, jsonShapeOf, type Json } from '../json.ts';
import { imageType } from './image.ts';

/** What one line of the CLI's stream-json output tells us; lines that tell us nothing give no event. */
export type CliEvent =
  | { readonly type: 'init'; readonly sessionId: string; readonly version: string; readonly tools: readonly string[] }
  | { readonly type: 'message_start'; readonly messageId: string }
  | { readonly type: 'text_delta'; readonly text: string }
  | { readonly type: 'message_complete' }
  | { readonly type: 'text_block'; readonly messageId: string; readonly text: string }
  | { readonly type: 'tool'; readonly name: string }
  | { readonly type: 'api_error'; readonly errorClass: string }
  | { readonly type: 'api_retry'; readonly status: number | undefined; readonly delayMs: number }
  | { readonly type: 'limit_reached'; readonly resetsAtSeconds: number }
  | ({ readonly type: 'result' } & CliResult);

/** The line that ends a turn. */
export interface CliResult {
  readonly subtype: string;
  readonly isError: boolean;
  /** Claude's final text, or the CLI's own sentence about an error; absent when the turn was cut short. */
  readonly text: string | undefined;
  readonly errors: readonly string[];
  readonly apiStatus: number | undefined;
  readonly terminalReason: string | undefined;
  readonly sessionId: string;
  /** US dollars of this turn alone. What the CLI says: it may be no number at all. */
  readonly costUsd: number;
}

/** What the CLI is to answer. */
export interface Message {
  readonly prompt: string;
  readonly files?: readonly TurnFile[] | undefined;
}

/**
 * One user message as a line for the CLI's stdin, with the names of the files, which lie in `inbox`, and with those that
 * are pictures as such. A prompt that begins with `/` gets a space in front: the CLI would take it for a command of its
 * own, such as `/config` (fact 3).
 */
export function userLine({ prompt, files = [] }: Message, inbox: string): string {
  const names = files.map(({ name }) => JSON.stringify(name)).join(', ');
  const parts = [prompt.startsWith('/') ? ` ${prompt}` : prompt, ...(names === '' ? [] : [`[Files in ${inbox}: ${names}]`])];
  const text = parts.filter((part) => part.trim() !== '').join('\n\n');
  const images = files.flatMap(imageBlocks);
  const content = images.length === 0 ? text : [...images, { type: 'text', text }];
  return JSON.stringify({ type: 'user', message: { role: 'user', content } }) + '\n';
}

function imageBlocks({ bytes }: TurnFile): object[] {
  const mediaType = imageType(bytes);
  if (mediaType === undefined) return [];
  return [{ type: 'image', source: { type: 'base64', media_type: mediaType, data: bytes.toString('base64') } }];
}

/** The request whose answer shows that the CLI is up; it prints nothing of itself before the first turn. The cheapest (fact 1). */
export const readinessLine = controlLine('mcp_status');

/** The request to give up the running turn; harmless when none runs (fact 15). */
export const interruptLine = controlLine('interrupt');

function controlLine(subtype: string): string {
  return JSON.stringify({ type: 'control_request', request_id: subtype, request: { subtype } }) + '\n';
}

// An answer of megabytes has few values, however long they are. Of 60 MiB of empty ones JSON.parse makes more than a gigabyte,
// and a server without memory is gone.
const maxValues = 100_000;

/**
 * The events of one output line. A line that does not begin with `{` is noise some builds print, and gives none;
 * so do unknown types. Throws SyntaxError on a line that begins like JSON and is not, or has more values than any of the CLI's.
 */
export function parseLine(line: string): readonly CliEvent[] {
  // Tool results can be megabytes and say nothing we need: not worth parsing.
  if (!line.startsWith('{') || line.startsWith('{"type":"user"')) return [];
  if (line.length > maxValues && jsonShapeOf(Buffer.from(line)).values > maxValues) throw new SyntaxError('too many values');
  const message = asObject(JSON.parse(line));
  switch (message['type']) {
    case 'system':
      return systemEvents(message);
    case 'stream_event':
      return isSubagent(message) ? [] : streamEvents(asObject(message['event']));
    case 'assistant':
      return assistantEvents(message);
    case 'rate_limit_event':
      return limitEvents(asObject(message['rate_limit_info']));
    case 'result':
      return [{ type: 'result', ...parseResult(message) }];
    default:
      return [];
  }
}

function systemEvents(message: Json): CliEvent[] {
  if (message['subtype'] === 'init') {
    const { session_id: sessionId, claude_code_version: version, tools } = message;
    const names = Array.isArray(tools) ? tools.map(String) : [];
    return [{ type: 'init', sessionId: asText(sessionId) ?? '', version: asText(version) ?? '', tools: names }];
  }
  if (message['subtype'] === 'api_retry') {
    return [{ type: 'api_retry', status: asNumber(message['error_status']), delayMs: asNumber(message['retry_delay_ms']) ?? 0 }];
  }
  return [];
}

function streamEvents(event: Json): CliEvent[] {
  const delta = asObject(event['delta']);
  switch (event['type']) {
    case 'message_start':
      return [{ type: 'message_start', messageId: asText(asObject(event['message'])['id']) ?? '' }];
    case 'content_block_delta':
      return delta['type'] === 'text_delta' ? [{ type: 'text_delta', text: asText(delta['text']) ?? '' }] : [];
    case 'message_delta':
      return delta['stop_reason'] == null ? [] : [{ type: 'message_complete' }];
    default:
      return [];
  }
}

function assistantEvents(line: Json): CliEvent[] {
  const message = asObject(line['message']);
  const errorClass = asText(line['error']);
  if (isSubagent(line)) return [];
  if (errorClass !== undefined) return [{ type: 'api_error', errorClass }];
  // The CLI words its own notices as messages of a model called <synthetic>; Claude did not say them.
  if (message['model'] === '<synthetic>') return [];
  const messageId = asText(message['id']) ?? '';
  return asList(message['content']).flatMap((item): CliEvent[] => {
    const block = asObject(item);
    if (block['type'] === 'text') return [{ type: 'text_block', messageId, text: asText(block['text']) ?? '' }];
    if (block['type'] === 'tool_use') return [{ type: 'tool', name: asText(block['name']) ?? '' }];
    return [];
  });
}

function limitEvents(info: Json): CliEvent[] {
  const resetsAtSeconds = asNumber(info['resetsAt']);
  return info['status'] === 'rejected' && resetsAtSeconds !== undefined ? [{ type: 'limit_reached', resetsAtSeconds }] : [];
}

function isSubagent(line: Json): boolean {
  return typeof line['parent_tool_use_id'] === 'string';
}

function parseResult(message: Json): CliResult {
  return {
    subtype: asText(message['subtype']) ?? '',
    isError: message['is_error'] !== false,
    text: asText(message['result']),
    errors: asList(message['errors']).flatMap((error) => asText(error) ?? []),
    apiStatus: asNumber(message['api_error_status']),
    terminalReason: asText(message['terminal_reason']),
    sessionId: asText(message['session_id']) ?? '',
    costUsd: sumOfCosts(asObject(message['model_usage_since_last_result'])),
  };
}

/** What each model cost, together; NaN when one of them names no number. */
function sumOfCosts(modelUsage: Json): number {
  const costs = Object.values(modelUsage).map((usage) => asNumber(asObject(usage)['costUSD']) ?? NaN);
  // Sums of binary fractions end in noise such as 0.0006000000000000001.
  return Math.round(costs.reduce((sum, cost) => sum + cost, 0) * 1e10) / 1e10;
}

function asList(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

function asText(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined;
}

function asNumber(value: unknown): number | undefined {
  return typeof value === 'number' ? value : undefined;
}
