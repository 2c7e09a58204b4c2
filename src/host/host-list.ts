/** Hosts by name, `*.` before one for all below it; `public`: all there are. An empty list has none. */
export type HostList = 'public' | readonly string[];

/** `none`, `public`, or names with a point in them, separated by commas; undefined for anything else. */
export function parseHostList(text: string): HostList | undefined {
  if (text === 'public') return text;
  if (text === 'none') return [];
  const names = text.split(',').map((name) => name.trim().toLowerCase());
  const isRight = names.every((name) => name.includes('.') && isHostName(name.replace(/^\*\./, '')));
  return isRight ? names : undefined;
}

/** Whether the list has this host; capitals and a point at the end make no difference. */
export function hasHost(list: HostList, host: string): boolean {
  const name = host.toLowerCase().replace(/\.$/, '');
  return list === 'public' || list.some((entry) => (entry.startsWith('*.') ? name.endsWith(entry.slice(1)) : name === entry));
}

/** RFC 1123, section 2.1; a number as the last label makes it an IPv4 address, or one with a mistake in it. */
export function isHostName(text: string): boolean {
  const labels = text.split('.');
  const isLabel = (label: string): boolean => /^(?!-)[A-Za-z0-9-]{1,63}(?<!-)$/.test(label);
  return text.length <= 253 && labels.every(isLabel) && !/^(?:\d+|0x[\da-f]*)$/i.test(labels.at(-1) ?? '');
}
