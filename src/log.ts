import type { Writable } from 'node:stream';

/** How much a line matters: `error` wants a person, `warning` may, `info` does not. */
export type Level = 'error' | 'warning' | 'info';

/** Plain values an event carries; `undefined` ones are left out. Never a prompt, an answer, a key or a path. */
export type Fields = Readonly<Record<string, string | number | boolean | undefined>>;

/** Writes one event. */
export type Log = (level: Level, event: string, fields?: Fields) => void;

/** How lines look: one JSON object, the same with the journal's level prefix (sd-daemon(3)), or short text for a person. */
export type LogFormat = 'json' | 'journal' | 'text';

/** JSON, with the journal's levels where systemd reads along (systemd.exec(5)), and text on a terminal. */
export function chooseLogFormat(journalStream: string | undefined, isTerminal: boolean): LogFormat {
  if (journalStream !== undefined) return 'journal';
  return isTerminal ? 'text' : 'json';
}

const journalPriority = { error: '<3>', warning: '<4>', info: '<6>' } as const satisfies Record<Level, string>;

/** Where lines go. */
interface Output {
  readonly write: (line: string) => void;
  /** Whether as much waits for a reader as may. */
  readonly isFull?: () => boolean;
}

// Writing to a pipe does not wait (fact 46), so what is behind one that nobody reads would grow without end.
const maxUnreadBytes = 1024 * 1024;

/** A stream as the output of a log, full when 1 MiB waits in it. That its reader goes away is no error. */
export function outputTo(stream: Writable): Output {
  stream.on('error', () => {});
  return { write: (line) => stream.write(line), isFull: () => stream.writableLength > maxUnreadBytes };
}

/** A log that writes one line an event. What comes while its output is full is dropped, and counted. Never throws. */
export function createLog(format: LogFormat, { write, isFull }: Output, now: () => Date = () => new Date()): Log {
  let dropped = 0;
  const log: Log = (level, event, fields = {}) => {
    if (isFull?.()) {
      dropped += 1;
      return;
    }
    const lines = dropped;
    dropped = 0;
    if (lines > 0) log('warning', 'log_dropped', { lines, message: 'nobody read the log, and it was full' });
    const line = format === 'text' ? textLine(now(), level, event, fields) : jsonLine(now(), level, event, fields);
    write((format === 'journal' ? journalPriority[level] : '') + line + '\n');
  };
  return log;
}

function jsonLine(time: Date, level: Level, event: string, fields: Fields): string {
  return JSON.stringify({ time: time.toISOString(), level, event, ...fields });
}

function textLine(time: Date, level: Level, event: string, fields: Fields): string {
  const { message, ...rest } = fields;
  const pairs = Object.entries(rest).flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${value}`]));
  const mark = level === 'info' ? '' : `${level}: `;
  const line = [time.toTimeString().slice(0, 8), mark + event, message, ...pairs].filter((part) => part !== undefined).join('  ');
  // A value with a line break, or with codes a terminal obeys, must not write lines of its own.
  return line.replace(/\p{Cc}+/gu, ' ');
}
