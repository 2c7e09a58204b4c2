/** A JSON object. */
export type Json = Readonly<Record<string, unknown>>;

/** The value of a JSON text; undefined for what is none. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Whether a value is an object, and no list. */
export function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The value itself where it is an object, else one that is empty. */
export function asObject(value: unknown): Json {
  return isObject(value) ? value : {};
}

/** What the bytes of a JSON text say of its shape. Of a text that is no JSON it says something, and `JSON.parse` the rest. */
interface JsonShape {
  /** Names of members, with those that stand twice. */
  readonly names: number;
  /** About as many values as there are: each costs the memory of an object, however few bytes it has. */
  readonly values: number;
  /** Lists and objects within each other. */
  readonly depth: number;
}

const [quote, backslash, comma, colon, openList, closeList, openObject, closeObject] = Buffer.from('"\\,:[]{}');

/** Counts in one pass, without making anything of what it reads: 10 ms for 32 MiB of texts, 0.1 s for 32 MiB of brackets. */
export function jsonShapeOf(bytes: Buffer): JsonShape {
  let [names, values, depth, deepest] = [0, 0, 0, 0];
  for (let i = 0; i < bytes.length; i += 1) {
    const byte = bytes[i];
    if (byte === quote) i = endOfString(bytes, i);
    else if (byte === colon) names += 1;
    else if (byte === comma) values += 1;
    else if (byte === closeList || byte === closeObject) depth -= 1;
    else if (byte === openList || byte === openObject) {
      values += 1;
      depth += 1;
      if (depth > deepest) deepest = depth;
    }
  }
  return { names, values, depth: deepest };
}

/** Where the string that begins at `start` has its closing quote; the end of the text when it has none. */
function endOfString(bytes: Buffer, start: number): number {
  for (let end = bytes.indexOf(0x22, start + 1); end !== -1; end = bytes.indexOf(0x22, end + 1)) {
    let backslashes = 0;
    while (bytes[end - 1 - backslashes] === backslash) backslashes += 1;
    if (backslashes % 2 === 0) return end;
  }
  return bytes.length;
}
