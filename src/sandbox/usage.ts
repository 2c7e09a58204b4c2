import { asObject, parseJson, type Json } from '../json.ts';

/** Tokens as Anthropic bills them, by its own count. */
export interface Tokens {
  readonly input: number;
  readonly output: number;
  readonly cacheWrite: number;
  readonly cacheRead: number;
}

export const noTokens: Tokens = { input: 0, output: 0, cacheWrite: 0, cacheRead: 0 };

/** Both counts together. */
export function addTokens(a: Tokens, b: Tokens): Tokens {
  return {
    input: a.input + b.input,
    output: a.output + b.output,
    cacheWrite: a.cacheWrite + b.cacheWrite,
    cacheRead: a.cacheRead + b.cacheRead,
  };
}

/** Reads the usage out of an answer while it passes by. */
interface Meter {
  /** Takes the next bytes; they may end anywhere, within a letter too. Never throws. */
  push(chunk: Buffer): void;
  /** What the answer told up to now. */
  reading(): Reading;
}

interface Reading {
  readonly tokens: Tokens;
  /** Whether the message is whole, so that the tokens are final. */
  readonly isWhole: boolean;
  /** Anthropic's name for what went wrong, such as `overloaded_error`, in an error answer or in the midst of a stream. */
  readonly errorType: string | undefined;
}

// An answer of the longest kind has a tenth of it; a line or body beyond it is not read for its usage.
const maxHeldBytes = 8 * 1024 * 1024;

/** A meter for an answer of this Content-Type: a stream of events, or else one JSON object. */
export function createMeter(contentType: string | undefined): Meter {
  return isEventStream(contentType) ? eventMeter() : jsonMeter();
}

/** Whether answers of this Content-Type come in pieces, with pings between them. */
export function isEventStream(contentType: string | undefined): boolean {
  return /^text\/event-stream\b/i.test(contentType ?? '');
}

function jsonMeter(): Meter {
  const chunks: Buffer[] = [];
  let heldBytes = 0;
  return {
    push(chunk) {
      heldBytes += chunk.length;
      if (heldBytes <= maxHeldBytes) chunks.push(chunk);
    },
    reading() {
      const message = asObject(parseJson(Buffer.concat(chunks).toString()));
      return { tokens: merge(noTokens, message['usage']), isWhole: message['usage'] !== undefined, errorType: errorTypeOf(message) };
    },
  };
}

function eventMeter(): Meter {
  let tokens = noTokens;
  let [isWhole, unreadTokens, errorType]: [boolean, number, string | undefined] = [false, 0, undefined];
  const takeLine = (line: string): void => {
    if (!line.startsWith('data:')) return;
    unreadTokens += roughTokens(line);
    // Quotes inside a text are escaped, so these three are never anybody's words.
    if (!/"(?:usage|error|message_stop)"/.test(line)) return;
    const event = asObject(parseJson(line.slice('data:'.length)));
    if (event['type'] === 'message_start') tokens = merge(tokens, asObject(event['message'])['usage']);
    if (event['type'] === 'message_delta') {
      tokens = merge(tokens, event['usage']);
      unreadTokens = 0;
    }
    if (event['type'] === 'message_stop') isWhole = true;
    errorType ??= errorTypeOf(event);
  };
  const lines = lineSplitter(takeLine);
  return {
    push: lines,
    // A client that hangs up before the last count has had these tokens all the same.
    reading: () => ({ tokens: { ...tokens, output: tokens.output + unreadTokens }, isWhole, errorType }),
  };
}

/** The tokens one piece of text is likely to be: four letters each, at least one. */
function roughTokens(line: string): number {
  return line.includes('"content_block_delta"') ? Math.max(1, Math.ceil((line.length - 90) / 4)) : 0; // 90: the event around a text
}

/** Splits on LF alone, like the format (html.spec.whatwg.org, "Server-sent events"); a line too long to hold is left out. */
function lineSplitter(takeLine: (line: string) => void): (chunk: Buffer) => void {
  let pieces: Buffer[] = [];
  let heldBytes = 0;
  const hold = (piece: Buffer): void => {
    heldBytes += piece.length;
    if (heldBytes <= maxHeldBytes) pieces.push(piece);
    else pieces = [];
  };
  return (chunk) => {
    let start = 0;
    for (let end = chunk.indexOf(0x0a); end !== -1; end = chunk.indexOf(0x0a, start)) {
      hold(chunk.subarray(start, end));
      takeLine(Buffer.concat(pieces).toString());
      [pieces, heldBytes, start] = [[], 0, end + 1];
    }
    hold(chunk.subarray(start));
  };
}

/** The counts of a usage object over those known before: the API repeats them as running totals, not as differences. */
function merge(known: Tokens, value: unknown): Tokens {
  const usage = asObject(value);
  const count = (name: string, before: number): number => {
    const told = usage[name];
    return typeof told === 'number' && Number.isFinite(told) && told >= 0 ? told : before;
  };
  return {
    input: count('input_tokens', known.input),
    output: count('output_tokens', known.output),
    cacheWrite: count('cache_creation_input_tokens', known.cacheWrite),
    cacheRead: count('cache_read_input_tokens', known.cacheRead),
  };
}

function errorTypeOf(value: Json): string | undefined {
  const { type } = asObject(value['error']);
  return typeof type === 'string' ? type.slice(0, 60) : undefined;
}
