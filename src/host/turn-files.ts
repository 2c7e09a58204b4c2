/** A file that goes into a turn or comes out of it. */
export interface TurnFile {
  /** As `isFileName` says. */
  readonly name: string;
  readonly bytes: Buffer;
}

/** How many there may be in one turn, each way. */
export const maxFiles = 20;
/** All of them together, each way. */
export const maxFilesBytes = 8 * 1024 * 1024;

/** Whether a file of a turn may be called so: one segment of a path, in NFC, 200 bytes of UTF-8 at most, no control characters. */
export function isFileName(name: string): boolean {
  const isSegment = !['', '.', '..'].includes(name) && !/[/\p{Cc}\p{Surrogate}]/u.test(name);
  return isSegment && Buffer.byteLength(name) <= 200 && name.normalize('NFC') === name;
}
