// A path begins with ~/, ./, ../ or /name/ where neither a word nor the // of an address goes before; /login is none.
const quotedPath = /(['"`])(?:(?:~|\.{1,2})\/|\/{1,2}[^\s/'"`]+\/)[^'"`]*\1/g;
const barePath = /file:\/\/\S+|(?<![\w/.~-])(?:(?:~|\.{1,2})\/|(?:\/|(?<!:)\/\/)[^\s/]+\/)[^\s'")`<>\]]*/g;
const apiKey = /\bsk-[\w-]{8,}/g;
const longToken = /[\w-]{24,}/g;

/** The CLI's own words cut to what fits an answer: one line, no paths, no keys, at most 300 characters. */
export function sentence(text: string): string {
  const [firstLine = ''] = text.trim().split(/\r?\n/);
  return firstLine.replace(quotedPath, '$1<path>$1').replace(apiKey, '<secret>').replace(barePath, '<path>').slice(0, 300);
}

/**
 * The last thing the CLI said on stderr, fit for a log line: the last line that is no stack frame, without what may be
 * a quoted prompt, a path or a secret. Undefined when it said nothing.
 */
export function lastWords(stderrTail: string): string | undefined {
  const line = stderrTail.split('\n').findLast((text) => text.trim() !== '' && !/^\s*at /.test(text));
  return line && sentence(line.replace(/[{[].*$/s, '').replace(longToken, '<secret>'));
}
