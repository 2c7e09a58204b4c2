/** Text that is not .env syntax. The message has the rule and the line, counted from 1; never what stands there. */
export class EnvSyntaxError extends Error {
  override name = 'EnvSyntaxError';
  readonly line: number;

  constructor(line: number, rule: string) {
    super(`line ${line}: ${rule}`);
    this.line = line;
  }
}

/**
 * Parses .env text: dotenv's grammar, but what is doubtful is an error. Later keys win; nothing is interpolated.
 * Warnings name key and line. Throws EnvSyntaxError; values are in neither. Time grows linearly with the text.
 */
export function parseEnv(content: string): { values: Map<string, string>; warnings: string[] } {
  const source = content.replace(/\r\n?/g, '\n');
  const values = new Map<string, string>();
  const warnings: string[] = [];
  const nul = source.indexOf('\0');
  if (nul !== -1) throw new EnvSyntaxError(1 + countNewlines(source.slice(0, nul)), 'NUL character');

  let line = 1;
  for (let at = 0; at < source.length; ) {
    // A search ends at the end of its line, or else ends the parse by failing: that keeps the whole linear.
    const text = source.slice(at, lineEnd(source, at));
    if (isBlankOrComment(text)) {
      at += text.length + 1;
      line += 1;
      continue;
    }
    // \s matches the no-break space and the BOM too, here and in trim(): both are blanks to dotenv.
    const head = /^\s*(?:export\s+)?([A-Za-z_][\w.-]*)\s*=\s*/.exec(text);
    const key = head?.[1];
    if (!head || key === undefined) throw new EnvSyntaxError(line, 'expected NAME=value');

    const start = head[0].length;
    const isQuoted = /["'`]/.test(text.charAt(start));
    const { value, length, isCut } = isQuoted ? readQuoted(source, at + start, line) : readUnquoted(text, start);
    if (isCut) warnings.push(`line ${line}: the value of ${key} ends before a #; quote it if the # belongs to it`);
    values.set(key, value);
    line += 1 + countNewlines(source.slice(at, at + start + length));
    at += start + length + 1;
  }
  return { values, warnings };
}

function countNewlines(text: string): number {
  return text.split('\n').length - 1;
}

function lineEnd(source: string, from: number): number {
  const end = source.indexOf('\n', from);
  return end === -1 ? source.length : end;
}

function isBlankOrComment(text: string): boolean {
  return /^\s*(?:#|$)/.test(text);
}

/** `length`: from where the value begins to the end of its last line. */
interface ReadValue {
  readonly value: string;
  readonly length: number;
  /** A # without a blank before it ended the value, which may have been meant to hold it. */
  readonly isCut: boolean;
}

function readQuoted(source: string, open: number, line: number): ReadValue {
  const quote = source.charAt(open);
  let close = source.indexOf(quote, open + 1);
  while (quote === '"' && close !== -1 && source[close - 1] === '\\') close = source.indexOf(quote, close + 1);
  if (close === -1) throw new EnvSyntaxError(line, `expected a closing ${quote}`);

  const raw = source.slice(open + 1, close);
  const end = lineEnd(source, close);
  if (!isBlankOrComment(source.slice(close + 1, end))) {
    const rule = `text after the closing ${quote} of the value begun on line ${line}`;
    throw new EnvSyntaxError(line + countNewlines(raw), rule);
  }
  const value = quote === '"' ? raw.replaceAll('\\n', '\n').replaceAll('\\r', '\r') : raw;
  return { value, length: end - open, isCut: false };
}

function readUnquoted(text: string, start: number): ReadValue {
  const hash = text.indexOf('#', start);
  const value = text.slice(start, hash === -1 ? undefined : hash).trim();
  return { value, length: text.length - start, isCut: hash !== -1 && !/\s/.test(text.charAt(hash - 1)) };
}
