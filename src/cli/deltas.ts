import type { CliEvent } from './protocol.ts';

/**
 * Turns the CLI's streamed pieces into text that only grows. When the connection to Anthropic breaks, the CLI says the
 * message again, streamed or in one piece (fact 7); what the caller already has of it is not repeated, unless the
 * new wording differs, which then follows in full.
 */
export class Deltas {
  #messageId = '';
  #isStreamed = false;
  /** What the CLI has said of this message. */
  #heard = '';
  /** What the caller already has of a message that was cut and is being said again; '' otherwise. */
  #known = '';

  /** The new text this event brings; '' for none. */
  push(event: CliEvent): string {
    switch (event.type) {
      case 'message_start':
        this.#begin(event.messageId, true);
        return '';
      case 'text_delta':
        return this.#hear(event.text);
      case 'message_complete':
        this.#heard = this.#known = '';
        return '';
      case 'text_block':
        if (event.messageId === this.#messageId && this.#isStreamed) return '';
        if (event.messageId !== this.#messageId) this.#begin(event.messageId, false);
        return this.#hear(event.text);
      default:
        return '';
    }
  }

  #begin(messageId: string, isStreamed: boolean): void {
    // A message that came in one piece was whole; only a streamed one can have been cut.
    this.#known = this.#isStreamed ? this.#known || this.#heard : '';
    this.#messageId = messageId;
    this.#isStreamed = isStreamed;
    this.#heard = '';
  }

  #hear(text: string): string {
    this.#heard += text;
    // Comparing the whole text at each of thousands of pieces would be quadratic, and is only needed after a cut.
    if (this.#known === '') return text;
    if (this.#known.startsWith(this.#heard)) return '';
    const isContinuation = this.#heard.startsWith(this.#known);
    const fresh = isContinuation ? this.#heard.slice(this.#known.length) : this.#heard;
    this.#known = '';
    return fresh;
  }
}
