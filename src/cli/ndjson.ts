const LF = 0x0a;

// Parts below it are joined: a buffer has half a kilobyte of its own, and one may write byte by byte.
const smallBytes = 4096;

/** Memory for the unfinished lines of all processes. Where it is short the longest of them is given up, whoever asks. */
export class LineMemory {
  readonly maxBytes: number;
  readonly #held = new Map<LineSplitter, number>();
  #heldBytes = 0;

  constructor(maxBytes: number) {
    this.maxBytes = maxBytes;
  }

  /** A splitter holds so many bytes from now on. */
  hold(splitter: LineSplitter, bytes: number): void {
    this.#heldBytes += bytes - (this.#held.get(splitter) ?? 0);
    if (bytes === 0) this.#held.delete(splitter);
    else this.#held.set(splitter, bytes);
    if (this.#heldBytes <= this.maxBytes) return;
    const [[longest] = []] = [...this.#held].sort(([, a], [, b]) => b - a);
    longest?.giveUp();
  }
}

/**
 * Cuts a byte stream into lines of UTF-8 text, without their line feed. Splits on LF alone: U+2028 is legal inside a
 * JSON string, and node:readline breaks lines there from Node 24. Time is linear in the bytes, however they are cut.
 * A line may have half of the memory.
 */
export class LineSplitter {
  readonly #memory: LineMemory;
  #parts: Buffer[] = [];
  #pendingBytes = 0;
  #isGivenUp = false;

  constructor(memory: LineMemory) {
    this.#memory = memory;
  }

  /** The lines this chunk completes. Throws, and drops what it holds, once a line, finished or not, is too long, and ever after. */
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
    this.#parts = [];
    this.#pendingBytes = 0;
    this.#memory.hold(this, 0);
  }

  /** Drops an unfinished line for good: from now on `push` throws. */
  giveUp(): void {
    this.#isGivenUp = true;
    this.drop();
  }

  #keep(part: Buffer): void {
    if (part.length > 0 && !this.#isGivenUp) this.#add(part);
    if (this.#isGivenUp) throw new Error('a line is too long');
  }

  #add(part: Buffer): void {
    const last = this.#parts.at(-1);
    if (last !== undefined && last.length < smallBytes && part.length < smallBytes) {
      this.#parts.pop();
      this.#parts.push(Buffer.concat([last, part]));
    } else this.#parts.push(part);
    this.#pendingBytes += part.length;
    if (this.#pendingBytes > this.#memory.maxBytes / 2) this.giveUp();
    else this.#memory.hold(this, this.#pendingBytes);
  }
}
