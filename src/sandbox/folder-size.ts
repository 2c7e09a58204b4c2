import { execFile } from 'node:child_process';

/** What a folder holds on its disk, with all that is in it. */
export interface FolderSize {
  /** What it takes: a file with holes less than its length, one with several names once. */
  readonly bytes: number;
  /** Names, folders among them. */
  readonly files: number;
}

/** More than anybody may have. */
const tooMuch: FolderSize = { bytes: Infinity, files: Infinity };

// Names do not pass: they are the user's, and may hold a line's end. A folder closed to its owner is opened: its files count too.
const script = `find "$1" -type d ! -perm -500 -exec chmod u+rx {} ';' , -printf '%n %D:%i %b\\n' 2>/dev/null |
  head -n "$2" | awk '$1 > 1 && seen[$2]++ { next } { blocks += $3 } END { printf "%.0f %.0f\\n", NR, blocks * 512 }'`;

/** The program that counts what the folder holds, but no more than so many files. It follows no link. */
export function sizeProgram(folder: string, maxFiles: number): [command: string, ...args: string[]] {
  return ['/bin/sh', '-c', script, 'sh', folder, String(maxFiles)];
}

/**
 * What `sizeProgram` says when it is run so. One that takes longer than `timeoutMs` is ended and gives infinitely much;
 * one that fails gives undefined. Never rejects.
 */
export function runSizeProgram(
  [command, ...args]: readonly [string, ...string[]], env: Readonly<Record<string, string>>, timeoutMs: number,
): Promise<FolderSize | undefined> {
  return new Promise((resolve) => {
    execFile(command, args, { cwd: '/', env, timeout: timeoutMs, killSignal: 'SIGKILL' }, (error, stdout) => {
      const [, files, bytes] = /^(\d+) (\d+)\n$/.exec(stdout) ?? [];
      if (files !== undefined) resolve({ files: Number(files), bytes: Number(bytes) });
      else resolve(error?.killed ? tooMuch : undefined);
    });
  });
}
