import { isFileName, maxFiles, maxFilesBytes, type TurnFile } from '../host/turn-files.ts';

/** What is wrong with a field of a request; `detail` is a sentence. */
export interface FieldError {
  readonly field: string;
  readonly detail: string;
}

/** The files of a request, decoded, or everything that is wrong with them. Nothing is decoded that is too much. */
export function readFiles(value: unknown): { readonly files: readonly TurnFile[]; readonly errors: readonly FieldError[] } {
  if (value === undefined) return { files: [], errors: [] };
  if (!Array.isArray(value)) return { files: [], errors: [wrong('files', 'must be a list of {"name": …, "data": …}')] };
  if (value.length > maxFiles) return { files: [], errors: [wrong('files', `must be ${maxFiles} at most`)] };
  const entries = value.map(readEntry);
  const errors = entries.flatMap((entry) => ('errors' in entry ? entry.errors : []));
  const whole = entries.flatMap((entry) => ('data' in entry ? [entry] : []));
  const twice = whole.find(({ name }, i) => whole.findIndex((other) => other.name === name) < i);
  if (twice !== undefined) errors.push(wrong('files', `must have different names; ${JSON.stringify(twice.name)} is there twice`));
  const bytes = whole.reduce((sum, { data }) => sum + Buffer.byteLength(data, 'base64'), 0);
  if (bytes > maxFilesBytes) errors.push(wrong('files', `must have ${maxFilesBytes} bytes together at most; these have ${bytes}`));
  if (errors.length > 0) return { files: [], errors };
  return { files: whole.map(({ name, data }) => ({ name, bytes: Buffer.from(data, 'base64') })), errors };
}

function readEntry(value: unknown, index: number): { readonly name: string; readonly data: string } | { readonly errors: FieldError[] } {
  const field = `files[${index}]`;
  if (typeof value !== 'object' || value === null) return { errors: [wrong(field, 'must be an object with name and data')] };
  const { name: given, data, ...unknown } = value as Readonly<Record<string, unknown>>;
  // macOS takes names apart (NFD); the same name must not be two.
  const name = typeof given === 'string' ? given.normalize('NFC') : '';
  const errors = Object.keys(unknown).slice(0, 3).map((key) => wrong(`${field}.${key.slice(0, 100)}`, 'is no known field'));
  if (!isFileName(name)) {
    errors.push(wrong(`${field}.name`, 'must be a file name of at most 200 bytes, without / and control characters, not . or ..'));
  }
  if (typeof data === 'string' && isBase64(data)) return errors.length === 0 ? { name, data } : { errors };
  return { errors: [...errors, wrong(`${field}.data`, 'must be base64 with padding, without line breaks (RFC 4648 section 4)')] };
}

/** Strictly: Node decodes what it can, and leaves out the rest. */
function isBase64(text: string): boolean {
  return text.length % 4 === 0 && /^[A-Za-z0-9+/]*={0,2}$/.test(text);
}

function wrong(field: string, fault: string): FieldError {
  return { field, detail: `${field} ${fault}.` };
}
