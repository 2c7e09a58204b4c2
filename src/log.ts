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

/** A log that writes one line an event. Never throws. */
export function createLog(format: LogFormat, write: (line: string) => void, now: () => Date = () => new Date()): Log {
  return (level, event, fields = {}) => {
    const line = format === 'text' ? textLine(now(), level, event, fields) : jsonLine(now(), level, event, fields);
    write((format === 'journal' ? journalPriority[level] : '') + line + '\n');
  };
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
