const LF = 0x0a;

/**
 * Cuts a byte stream into lines of UTF-8 text, without their line feed. Splits on LF alone: U+2028 is legal inside a
 * JSON string, and node:readline breaks lines there from Node 24. Time is linear in the bytes, however they are cut.
 */
export class LineSplitter {
  readonly #maxLineBytes: number;
  #parts: Buffer[] = [];
  #pendingBytes = 0;

  constructor(maxLineBytes: number) {
    this.#maxLineBytes = maxLineBytes;
  }

  /** The lines this chunk completes. Throws, and drops what it holds, once a line, finished or not, exceeds the limit. */
  push(chunk: Buffer): string[] {
    const lines: string[] = [];
    let start = 0;
    for (let end = chunk.indexOf(LF); end !== -1; end = chunk.indexOf(LF, start)) {
      this.#keep(chunk.subarray(start, end));
      lines.push(this.end());
      start = end + 1;
    }
    this.#keep(chunk.subarray(start));
    return lines;
  }

  /** What came after the last line feed; the splitter is empty afterwards. */
  end(): string {
    const line = Buffer.concat(this.#parts).toString('utf8');
    this.#parts = [];
    this.#pendingBytes = 0;
    return line;
  }

  #keep(part: Buffer): void {
    if (part.length === 0) return;
    this.#pendingBytes += part.length;
    if (this.#pendingBytes > this.#maxLineBytes) {
      this.end();
      throw new Error(`a line is longer than ${this.#maxLineBytes} bytes`);
    }
    this.#parts.push(part);
  }
}
