import { Chance } from './chance.ts';
import { brokenChunks, chunks } from './http-requests.ts';

/** What must become of a request: it reaches the API, it never does, or either, so long as what arrives is allowed. */
export type Fate = 'passes' | 'refused' | 'unsure';

/** One request to the API proxy, and what must become of it. */
export interface Drawn {
  /** Stands in the body, so that what arrives can be told. */
  readonly id: string;
  readonly bytes: Buffer;
  /** What the API gets when it passes. */
  readonly body: Buffer;
  readonly isCount: boolean;
  readonly fate: Fate;
  readonly isHead: boolean;
  /** Whether the next request on the connection is certain to be read as one. */
  readonly isFramed: boolean;
  /** Whether the proxy waits for more of it: `body`: for so long and no longer. */
  readonly lacks: 'nothing' | 'body' | 'something';
}

export const models = ['claude-sonnet-5-5', 'haiku'];
const goodPaths = ['/v1/messages?beta=true', '/v1/messages', '/v1/messages/count_tokens?beta=true', '/v1/messages/count_tokens'];

/** Request lines that are HTTP and stand in no list. */
const otherLines = [
  ...['GET', 'HEAD', 'PUT', 'DELETE', 'PATCH', 'OPTIONS', 'PROPFIND', 'TRACE'].map((method) => `${method} /v1/messages?beta=true`), 'OPTIONS *',
  ...['http://api.anthropic.com', 'http://evil.example', 'https://evil.example:1', 'http://u:p@evil.example'].map((origin) => `POST ${origin}/v1/messages?beta=true`),
  ...[
    '/', '/v1/files', '/v1/files?beta=true', '/v1/messages/batches', '/v1/messages/', '//v1/messages', '/v1//messages', '/v1/./messages', '/v1/x/../messages', '/../v1/messages', '/v1/messages/../files', '/v1/messages/%2e%2e/files',
    '/v1/messages%2f..%2ffiles', '/v1/%6dessages', '/V1/messages', '/v1/messages?beta=true&x=1', '/v1/messages?beta=false', '/v1/messages?', '/v1/messages??beta=true', '/v1/messages;x', '/v1/messages%00', '/v1/messages%20', '/v1/messages%0d%0aX:y',
    '/v1/messages#x', '/v1/messages?beta=true#', '/v1/messages\\..\\files', '/v1/messages/count_tokens/x', '/v1/organizations', '/v1/oauth/token', '/api/web/domain_info', `/v1/messages?${'x'.repeat(9000)}`, '/v1/messages?beta=tru%65', '/__proto__', '/constructor',
  ].map((path) => `POST ${path}`),
];

/** Request lines that a parser may refuse, or may read as something else. */
const oddLines = [
  'post /v1/messages', 'POST  /v1/messages', 'POST /v1/messages ', 'POST\t/v1/messages', ' POST /v1/messages', 'POST evil.example:443', 'POST @evil.example/v1/messages', 'POST ?beta=true', 'POST *', 'CONNECT api.anthropic.com:443', 'POST', 'POST /v1/messages\0', 'POST /v1/mess\xe9ges',
  'PRI * HTTP/2.0', '\x16\x03\x01\x02\0', 'POST /v1/messages /v1/files', 'POST /v1/messages HTTP/1.1\rX:', 'FOO /v1/messages', 'QUERY /v1/messages', `POST /${'x'.repeat(20_000)}`, '\0\0', 'POST /v1/messages\x7f',
];

// The words EVIL and PLACEHOLDER must never arrive in a head.
const goodHeaders = [
  'Accept: application/json', 'User-Agent: claude-cli/2.1.331 (external, sdk-cli)', 'anthropic-version: 2023-06-01', 'X-App: cli', 'X-Stainless-OS: Linux', 'X-Claude-Code-Session-Id: 1-2-3', 'x-client-request-id: abc', 'Anthropic-Beta: claude-code-20250219,effort-2025-11-24',
  'anthropic-beta: EVIL-files-api-2025-04-14, oauth-2025-04-20', 'anthropic-beta:  EVIL,,EVIL code-execution', 'anthropic-beta: interleaved-thinking-2025-05-14',
];
const otherHeaders = [
  'X-Api-Key: PLACEHOLDER', 'x-api-key: EVIL', 'Authorization: Basic EVIL', 'authorization: Bearer EVIL', 'Cookie: EVIL', 'X-Forwarded-Host: EVIL', 'Forwarded: for=EVIL', 'Via: EVIL', 'Proxy-Authorization: EVIL', 'TE: trailers', 'Anthropic-Organization: EVIL', 'X-HTTP-Method-Override: GET',
  'X-Original-URL: /v1/files', 'Content-Type: text/EVIL', 'Accept-Encoding: gzip, EVIL', 'X-App_: EVIL', 'x-stainless-evil: EVIL', 'X-Claude-Code-Evil: EVIL', 'Upgrade: websocket\r\nConnection: Upgrade', 'Connection: x-api-key, host', 'Connection: keep-alive', 'Keep-Alive: timeout=9', '__proto__: EVIL', 'constructor: EVIL',
  'Expect: 100-continue', 'Trailer: X-Api-Key', `X-Big: ${'EVIL'.repeat(500)}`, 'Host_: EVIL', 'X-Api-Key:', 'Max-Forwards: 0', 'Range: bytes=0-1', 'Origin: http://EVIL', 'anthropic-dangerous-direct-browser-access:',
];
const oddHeaders = [
  'X-App : EVIL', 'X-App: a\r\n x-api-key: EVIL', 'X-App: a\nx-api-key: EVIL', 'X-App: a\rx-api-key: EVIL', 'X-App: a\0EVIL', 'X-App\0: EVIL', ': EVIL', 'EVIL', 'X(: EVIL', `X-App: ${'x'.repeat(40_000)}`, 'X-App: \x01', 'Expect: EVIL', 'Host: EVIL', 'Content-Length: 5', 'Content-Length: 0', 'Content-Length: +5',
  'Content-Length: 5, 5', 'Content-Length: 0x5', 'Content-Length:', 'Content-Length : 5', 'Content-Length: 99999999999999999999', 'Transfer-Encoding: chunked', 'Transfer-Encoding: identity', 'Transfer-Encoding: xchunked', 'Transfer-Encoding: chunked, identity', 'Transfer-Encoding:\x0bchunked', 'Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked', 'Transfer-Encoding : chunked',
];

export const allowedNames = /^(?:accept|user-agent|anthropic-version|x-app|x-stainless-os|x-claude-code-session-id|x-client-request-id|anthropic-dangerous-direct-browser-access|anthropic-beta)$/;
const smuggled = 'POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n';

/** A request of any kind. At most one thing is wrong with it, so that its fate is known. */
export function drawRequest(chance: Chance, id: string): Drawn {
  const path = chance.pick(goodPaths);
  const flaw = chance.is(0.65) ? 'none' : chance.pick(['line', 'line', 'odd line', 'header', 'header', 'coded', 'chunks', 'short', 'long', 'cut', 'LF', 'no host', 'version']);
  const isCount = path.includes('count') && flaw !== 'odd line';
  const body = drawBody(chance, id, isCount);
  const isChunked = flaw === 'chunks' || (chance.is(0.1) && !['header', 'short', 'long'].includes(flaw));
  const line = flaw === 'line' ? chance.pick(otherLines) : flaw === 'odd line' ? chance.pick(oddLines) : `POST ${path}`;
  const length = flaw === 'long' ? body.length + chance.int(1, 5000) : flaw === 'short' ? chance.int(0, Math.max(0, body.length - 1)) : body.length;
  const named = [...new Map(Array.from({ length: chance.int(0, 6) }, () => chance.pick([...goodHeaders, ...otherHeaders])).map((header) => [header.replace(/:.*/s, ''), header])).values()];
  const headers = [
    'Authorization: Bearer PLACEHOLDER', ...named, ...(flaw === 'no host' ? [] : ['Host: EVIL.example']), isChunked ? 'Transfer-Encoding: chunked' : `Content-Length: ${length}`,
    ...(flaw === 'header' ? [chance.pick(oddHeaders)] : flaw === 'coded' ? [chance.pick(['Content-Encoding: gzip', 'content-encoding: identity', 'Content-Encoding:'])] : []),
  ].sort(() => chance.int(0, 2) - 1);
  const version = flaw === 'version' ? chance.pick(['HTTP/1.0', 'HTTP/0.9', 'HTTP/2.0', 'http/1.1', 'HTTP/1.1 x', 'ICE/1.0', '']) : 'HTTP/1.1';
  const eol = flaw === 'LF' ? '\n' : '\r\n';
  const head = Buffer.from([`${line} ${version}`, ...headers, '', ''].join(eol), 'latin1');
  const tail = flaw === 'chunks' ? brokenChunks(chance, body) : isChunked ? chunks(chance, body) : body;
  const whole = Buffer.concat([head, tail]);
  const isOdd = ['odd line', 'header', 'LF', 'no host', 'version'].includes(flaw);
  const said = flaw === 'short' && !isChunked ? body.subarray(0, length) : body;
  const isRefused = ['line', 'coded', 'chunks', 'long', 'cut', 'no host'].includes(flaw) || !isAllowed(said, isCount);
  return {
    id, body: said, isCount,
    bytes: flaw === 'cut' ? whole.subarray(0, chance.int(1, whole.length - 1)) : whole,
    fate: isOdd && !isRefused ? 'unsure' : isRefused ? 'refused' : 'passes',
    isHead: line.startsWith('HEAD'),
    // What comes along with an Upgrade, behind its body, is dropped by Node.
    isFramed: (['none', 'line', 'coded'].includes(flaw) || (flaw === 'short' && length === body.length)) && !headers.some((header) => header.startsWith('Upgrade')),
    lacks: flaw === 'long' ? 'body' : flaw === 'cut' ? 'something' : 'nothing',
  };
}

const day = '_20250825';
const evil: ReadonlyArray<readonly [string, unknown]> = [
  ['mcp_servers', [{ type: 'url', url: 'http://evil.example', name: 'x' }]], ['mcp_servers', null], ['container', 'c'], ['speed', 'fast'], ['fallbacks', []], ['source', { type: 'url', url: 'http://evil.example/x.png' }], ['source', { type: 'file', file_id: 'f' }], ['source', 'http://evil.example'], ['source', null], ['source', [{ type: 'text' }]],
  ['source', {}], ['source', { type: ['text'] }], ['source', { type: 'text ', url: 'x' }], ['definition', { type: 'mcp_toolset' }], ['definition', { type: `code_execution${day}` }], ['definition', 1], ['tool', { type: `web_fetch${day}`, name: 'f' }], ['tool', { type: `code_execution${day}`, definition: { name: 'x' } }],
  ['tool', { type: `code_execution${day}`, source: { type: 'text', data: 'x' } }], ['tool', { type: `web_search${day}` }], ['tool', { type: `web_search${day}`, max_uses: 9 }], ['tool', { type: `web_search${day}`, max_uses: '8' }], ['tool', { type: `bash${day}` }], ['tool', { type: `xclear_thinking${day}` }],
  ['input', { type: 'tool_use', source: { type: 'url' } }], ['schema', { source: { type: 'url' } }], ['input_schemas', { mcp_servers: 1 }],
];
const good: ReadonlyArray<readonly [string, unknown]> = [
  ['source', { type: 'base64', media_type: 'image/png', data: 'iVBORw0KGgo=' }], ['source', { type: 'text', data: '{"mcp_servers":[1]}' }], ['source', { type: 'content', content: [{ type: 'text', text: 'x' }] }], ['input_schema', { type: 'object', properties: { source: { type: 'url' }, mcp_servers: {} } }], ['input_examples', [{ source: 'u' }]],
  ['use', { type: 'tool_use', input: { source: 'u', container: 1, type: `web_fetch${day}` } }], ['format', { type: 'json_schema', schema: { speed: 1, source: 2 } }], ['definition', { name: 'x', input_schema: {} }], ['tool', { type: `web_search${day}`, max_uses: 8 }], ['edit', { type: `clear_tool_uses${day}` }], ['__proto__', { x: 1 }], ['MCP_SERVERS', 1],
  ['text', 'a "quoted\\" \\\\": mcp_servers: {"source":{"type":"url"}}, 🦊 \ud800 \u2028 żółć'], ['constructor', { prototype: 1 }], ['', ['', [], {}, null, true, 1e300]], ['mcp_servers ', 1], ['type', 'url'],
];
const topGood: ReadonlyArray<readonly [string, unknown]> = [['service_tier', 'standard_only'], ['stream', true], ['temperature', 0.5], ['metadata', { user_id: 'u' }], ['thinking', { type: 'adaptive' }], ['tools', []], ['tools', [{ type: `web_search${day}`, max_uses: 1 }, { name: 'x', type: 'custom' }]], ['model', 'claude-haiku-4-5']];
const topEvil: ReadonlyArray<readonly [string, unknown]> = [
  ['service_tier', 'auto'], ['service_tier', 'priority'], ['service_tier', null], ['model', 'claude-opus-5-5'], ['model', 'opus'], ['model', ['claude-sonnet-5-5']], ['model', null], ['model', 'claude-sonnet-5-5[1m]'], ['model', 'xclaude-haiku-1'], ['model', 'claude-haikus'], ['tools', {}], ['tools', null], ['tools', [1]], ['tools', [{ type: 'mcp_toolset' }]],
  ['tools', [{ type: `web_search${day}`, max_uses: 0 }]], ['tools', [{ type: `computer${day}` }]], ['inference_geo', 'us'], ['thread', 'x'], ['__proto__', { model: 'x' }], ['constructor', 1], ['Model', 'claude-opus-5-5'], ['toString', 1], ['betas', ['files-api']],
];

/** A body that the API would take, one with something forbidden in it, or no JSON at all. */
function drawBody(chance: Chance, id: string, isCount: boolean): Buffer {
  const body: Record<string, unknown> = { model: models[0], ...(!isCount && { max_tokens: 9 }), messages: [{ role: 'user', content: `${id} hello` }] };
  const set = (object: object, [key, value]: readonly [string, unknown]): object => Object.defineProperty(object, key, { value, enumerable: true, configurable: true });
  for (let i = chance.int(0, 3); i > 0; i -= 1) {
    const piece = set(chance.is(0.5) ? { type: chance.pick(['text', 'document', 'tool_result', 'json_schema']) } : {}, chance.pick(chance.is(0.15) ? evil : good));
    let nested: unknown = piece;
    for (let depth = chance.is(0.05) ? chance.int(80, 110) : chance.int(0, 8); depth > 0; depth -= 1) nested = chance.is(0.5) ? [nested] : set({}, [chance.pick(['content', 'a', 'data', 'cache_control', 'input']), nested]);
    if (chance.is(0.5)) (body['messages'] as unknown[]).push({ role: chance.pick(['user', 'assistant']), content: [nested] });
    else body[chance.pick(['system', 'tool_choice', 'output_config', 'context_management', 'thinking'])] = nested;
  }
  if (chance.is(0.3)) set(body, chance.pick(chance.is(0.3) ? topEvil : topGood));
  if (chance.is(0.01)) body['system'] = 'я and words '.repeat(chance.int(1000, 60_000));
  let text = JSON.stringify(body, null, chance.pick([undefined, undefined, 1, '\t', '\r\n']));
  if (chance.is(0.2)) text = text.replace(/[a-z_]/g, (letter) => (chance.is(0.1) ? `\\u${letter.charCodeAt(0).toString(16).padStart(4, '0')}` : letter));
  if (chance.is(0.08)) text = doubled(chance, text);
  if (chance.is(0.9)) return Buffer.from(text);
  const bytes = Buffer.from(text);
  const at = chance.int(0, bytes.length);
  const added = chance.pick([[0], [0xff], [0xc0, 0xa2], [0xed, 0xa0, 0x80], [0xef, 0xbb, 0xbf], ...'{}[]":,\\ 0'].map((each) => Buffer.from(each as string)));
  return chance.pick([bytes.subarray(0, at), Buffer.alloc(0), Buffer.from(text, 'utf16le'), Buffer.from(`\ufeff${text}`), Buffer.from(`${text}${text}`), Buffer.from(`[${text}]`), Buffer.from(smuggled), Buffer.from('['.repeat(9000)), ...Array<Buffer>(4).fill(Buffer.concat([bytes.subarray(0, at), added, bytes.subarray(at)]))]);
}

/** The text with one of its names twice in the same object, in other letters now and then. */
function doubled(chance: Chance, text: string): string {
  const names = [...text.matchAll(/"(\w+)":/g)];
  if (names.length === 0) return text;
  const { 1: name = '', index } = chance.pick(names);
  const again = chance.is(0.5) ? name : `\\u${name.charCodeAt(0).toString(16).padStart(4, '0')}${name.slice(1)}`;
  return `${text.slice(0, index)}"${again}":${chance.pick(['1', '"claude-sonnet-5-5"', '{"type":"text"}', '[]'])},${text.slice(index)}`;
}

const countKeys = ['model', 'messages', 'system', 'tools', 'tool_choice', 'thinking', 'output_config', 'context_management', 'cache_control'];
const messagesKeys = [...countKeys, 'metadata', 'max_tokens', 'stream', 'stop_sequences', 'temperature', 'top_k', 'top_p', 'diagnostics', 'service_tier'];
type Json = Readonly<Record<string, unknown>>;

/** Whether the API may have this body, thought out without the proxy's own code. */
export function isAllowed(bytes: Buffer, isCount: boolean): boolean {
  let body: Json;
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    body = JSON.parse(text) as Json;
    if (typeof body !== 'object' || body === null || Array.isArray(body) || !isPlain(text)) return false;
  } catch {
    return false;
  }
  const { model, tools, service_tier: tier } = body;
  if (Object.keys(body).some((key) => !(isCount ? countKeys : messagesKeys).includes(key)) || (tier !== undefined && tier !== 'standard_only')) return false;
  if (typeof model !== 'string' || !(models.includes(model) || /^claude-(?:.*-)?haiku(?:-|$)/.test(model))) return false;
  return (tools === undefined || (Array.isArray(tools) && tools.every(isTool))) && isHarmless(body);
}

/** No name twice in an object, and nothing deeper than 100. */
function isPlain(text: string): boolean {
  const open: Array<Set<string>> = [];
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"(?:\s*:)?|[{}[\]]/gs)) {
    if (token === '{' || token === '[') open.push(new Set());
    else if (token === '}' || token === ']') open.pop();
    else if (token.endsWith(':')) {
      const name = String(JSON.parse(token.slice(0, -1)));
      if (open.at(-1)?.has(name)) return false;
      open.at(-1)?.add(name);
    }
    if (open.length > 100) return false;
  }
  return true;
}

function isHarmless(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return true;
  if (Array.isArray(value)) return value.every(isHarmless);
  const { type } = value as Json;
  return Object.entries(value).every(([key, member]: [string, unknown]) => {
    if (['mcp_servers', 'container', 'speed', 'fallbacks'].includes(key)) return false;
    if (key === 'source' && !['base64', 'text', 'content'].includes((member as Json | null)?.['type'] as string)) return false;
    if (key === 'definition' && !isTool(member)) return false;
    if (key === 'type' && typeof member === 'string' && /_\d{8}$/.test(member) && !/^(?:clear_thinking|clear_tool_uses|compact)_/.test(member) && !isTool(value)) return false;
    const isWords = ['input_schema', 'input_examples'].includes(key) || (key === 'input' && ['tool_use', 'server_tool_use'].includes(String(type))) || (key === 'schema' && type === 'json_schema');
    return isWords || isHarmless(member);
  });
}

function isTool(value: unknown): boolean {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
  const { type = 'custom', max_uses: uses } = value as Json;
  return type === 'custom' || (typeof type === 'string' && /^web_search_\d{8}$/.test(type) && typeof uses === 'number' && uses >= 1 && uses <= 8);
}
