/** What one line of the CLI's stream-json output tells us; lines that tell us nothing give no event. */
export type CliEvent =
  | { readonly type: 'init'; readonly sessionId: string; readonly version: string }
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
  /** The process's running total, from CLI 2.1.277 on the session's. */
  readonly totalCostUsd: number;
  /** This turn alone; only CLIs from about 2.1.305 on say it. */
  readonly turnCostUsd: number | undefined;
}

type Json = Readonly<Record<string, unknown>>;

/**
 * One user message as a line for the CLI's stdin. A prompt that begins with `/` gets a space in front: the CLI would
 * take it for a command of its own (measured: `/config` changes the operator's configuration).
 */
export function userLine(prompt: string): string {
  const content = prompt.startsWith('/') ? ` ${prompt}` : prompt;
  return JSON.stringify({ type: 'user', message: { role: 'user', content } }) + '\n';
}

/** The request whose answer shows that the CLI is up; it prints nothing of itself before the first turn. */
export const initializeLine = JSON.stringify({ type: 'control_request', request_id: 'initialize', request: { subtype: 'initialize' } }) + '\n';

/** The request to give up the running turn; harmless when none runs (measured). */
export const interruptLine = JSON.stringify({ type: 'control_request', request_id: 'interrupt', request: { subtype: 'interrupt' } }) + '\n';

/**
 * The events of one output line. A line that does not begin with `{` is noise some builds print, and gives none;
 * so do unknown types. Throws SyntaxError on a line that begins like JSON and is not.
 */
export function parseLine(line: string): readonly CliEvent[] {
  // Tool results can be megabytes and say nothing we need: not worth parsing.
  if (!line.startsWith('{') || line.startsWith('{"type":"user"')) return [];
  const message = asJson(JSON.parse(line));
  switch (message['type']) {
    case 'system':
      return systemEvents(message);
    case 'stream_event':
      return isSubagent(message) ? [] : streamEvents(asJson(message['event']));
    case 'assistant':
      return assistantEvents(message);
    case 'rate_limit_event':
      return limitEvents(asJson(message['rate_limit_info']));
    case 'result':
      return [{ type: 'result', ...parseResult(message) }];
    default:
      return [];
  }
}

function systemEvents(message: Json): CliEvent[] {
  if (message['subtype'] === 'init') {
    return [{ type: 'init', sessionId: asText(message['session_id']) ?? '', version: asText(message['claude_code_version']) ?? '' }];
  }
  if (message['subtype'] === 'api_retry') {
    return [{ type: 'api_retry', status: asNumber(message['error_status']), delayMs: asNumber(message['retry_delay_ms']) ?? 0 }];
  }
  return [];
}

function streamEvents(event: Json): CliEvent[] {
  const delta = asJson(event['delta']);
  switch (event['type']) {
    case 'message_start':
      return [{ type: 'message_start', messageId: asText(asJson(event['message'])['id']) ?? '' }];
    case 'content_block_delta':
      return delta['type'] === 'text_delta' ? [{ type: 'text_delta', text: asText(delta['text']) ?? '' }] : [];
    case 'message_delta':
      return delta['stop_reason'] == null ? [] : [{ type: 'message_complete' }];
    default:
      return [];
  }
}

function assistantEvents(line: Json): CliEvent[] {
  const message = asJson(line['message']);
  const errorClass = asText(line['error']);
  if (isSubagent(line)) return [];
  if (errorClass !== undefined) return [{ type: 'api_error', errorClass }];
  // The CLI words its own notices as messages of a model called <synthetic>; Claude did not say them.
  if (message['model'] === '<synthetic>') return [];
  const messageId = asText(message['id']) ?? '';
  return asList(message['content']).flatMap((item): CliEvent[] => {
    const block = asJson(item);
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
  const sinceLastResult = message['model_usage_since_last_result'];
  return {
    subtype: asText(message['subtype']) ?? '',
    isError: message['is_error'] !== false,
    text: asText(message['result']),
    errors: asList(message['errors']).flatMap((error) => asText(error) ?? []),
    apiStatus: asNumber(message['api_error_status']),
    terminalReason: asText(message['terminal_reason']),
    totalCostUsd: asNumber(message['total_cost_usd']) ?? 0,
    turnCostUsd: sinceLastResult === undefined ? undefined : sumOfCosts(asJson(sinceLastResult)),
  };
}

function sumOfCosts(modelUsage: Json): number {
  return Object.values(modelUsage).reduce<number>((sum, usage) => sum + (asNumber(asJson(usage)['costUSD']) ?? 0), 0);
}

/**
 * US dollars of this turn alone, in every generation of the CLI (measured). `startedFromUsd` is the total the process
 * began with or last reported. It is only subtracted where the CLI does not name the turn's own cost: after a SIGKILL
 * the CLI forgets the last turn's cost, and the difference of two totals would then be too small.
 */
export function costOfTurn(result: CliResult, startedFromUsd: number): number {
  const { totalCostUsd } = result;
  const difference = totalCostUsd >= startedFromUsd ? totalCostUsd - startedFromUsd : totalCostUsd;
  // Sums of binary fractions end in noise such as 0.0006000000000000001.
  return Math.round((result.turnCostUsd ?? difference) * 1e10) / 1e10;
}

/** Whether this CLI goes on counting from the session's total after `--resume` (measured: 2.1.277 does, 2.1.276 starts at 0). */
export function carriesCostOver(version: string): boolean {
  return compareVersions(version, '2.1.277') >= 0;
}

/** Negative, zero or positive, as `a` is older than, the same as or newer than `b`; missing parts count as 0. */
export function compareVersions(a: string, b: string): number {
  const partsOf = (version: string): number[] => version.split('.').map((part) => Number.parseInt(part, 10) || 0);
  const [left, right] = [partsOf(a), partsOf(b)];
  const difference = [0, 1, 2].map((i) => (left[i] ?? 0) - (right[i] ?? 0)).find((d) => d !== 0);
  return difference ?? 0;
}

function asJson(value: unknown): Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Json) : {};
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
