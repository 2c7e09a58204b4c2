import { Readable } from 'node:stream';
import type { Credentials } from './credentials.ts';
import type { Upstream, UpstreamRequest } from './upstream.ts';

/** An upstream that costs nothing: it answers each request itself, and tells which models were asked for. */
interface CannedApi extends Upstream {
  /** In order of the first request for each. */
  readonly models: ReadonlySet<string>;
}

/** What goes with it: no secret leaves for an API that is not there. */
export const cannedLogin: Credentials = {
  current: async () => ({ headers: {} }),
  renew: async () => false,
  placeholders: async () => ({}),
};

/** For the trial at the start: every message is answered with this text. */
export function createCannedApi(text: string): CannedApi {
  const models = new Set<string>();
  return {
    models,
    async send({ path, body }: UpstreamRequest) {
      const { model, stream }: { readonly model?: unknown; readonly stream?: unknown } = JSON.parse(Buffer.from(body).toString()) ?? {};
      models.add(String(model));
      if (path.includes('count_tokens')) return json({ input_tokens: 1 });
      const content = [{ type: 'text', text }];
      const message = { id: 'msg_trial', type: 'message', role: 'assistant', model, content, usage, ...ending };
      return stream === true ? events(message, text) : json(message);
    },
    close() {},
  };
}

const ending = { stop_reason: 'end_turn', stop_sequence: null };
const usage = { input_tokens: 0, output_tokens: 0, cache_creation_input_tokens: 0, cache_read_input_tokens: 0 };

function json(value: unknown) {
  return { status: 200, headers: { 'content-type': 'application/json' }, body: Readable.from([Buffer.from(JSON.stringify(value))]) };
}

/** The events of a streamed message (docs.anthropic.com, "Streaming Messages"). */
function events(message: Readonly<Record<string, unknown>>, text: string) {
  const list = [
    { type: 'message_start', message: { ...message, content: [], stop_reason: null } },
    { type: 'content_block_start', index: 0, content_block: { type: 'text', text: '' } },
    { type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text } },
    { type: 'content_block_stop', index: 0 },
    { type: 'message_delta', delta: ending, usage: { output_tokens: 0 } },
    { type: 'message_stop' },
  ];
  const stream = list.map((event) => `event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`).join('');
  return { status: 200, headers: { 'content-type': 'text/event-stream' }, body: Readable.from([Buffer.from(stream)]) };
}
