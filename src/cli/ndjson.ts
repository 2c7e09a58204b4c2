const LF = 0x0a;

/** Memory for the unfinished lines of all processes. */
export interface LineMemory {
  leftBytes: number;
}

/**
 * Cuts a byte stream into lines of UTF-8 text, without their line feed. Splits on LF alone: U+2028 is legal inside a
 * JSON string, and node:readline breaks lines there from Node 24. Time is linear in the bytes, however they are cut.
 * A line may be as long as what it leaves of the memory: half of it when it is alone, and nobody takes all from others.
 */
export class LineSplitter {
  readonly #memory: LineMemory;
  #parts: Buffer[] = [];
  #pendingBytes = 0;

  constructor(memory: LineMemory) {
    this.#memory = memory;
  }

  /** The lines this chunk completes. Throws, and drops what it holds, once a line, finished or not, is too long. */
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
    this.drop();
    return line;
  }

  /** Gives the memory of an unfinished line back. */
  drop(): void {
    this.#memory.leftBytes += this.#pendingBytes;
    this.#parts = [];
    this.#pendingBytes = 0;
  }

  #keep(part: Buffer): void {
    if (part.length === 0) return;
    this.#pendingBytes += part.length;
    this.#memory.leftBytes -= part.length;
    if (this.#pendingBytes > this.#memory.leftBytes) {
      this.drop();
      throw new Error('a line is too long');
    }
    this.#parts.push(part);
  }
}
