// JavaScript, since Node 20 loads reporters without the loader that understands TypeScript; tsc checks it all the same.

/**
 * A reporter beside the usual one: the last lines of `npm test` say what was not tested here and what that takes, each
 * reason once. It says nothing where nothing was skipped.
 *
 * @param {AsyncIterable<import('node:test/reporters').TestEvent>} events
 */
export default async function* summary(events) {
  /** @type {Map<string, number>} */
  const counts = new Map();
  for await (const event of events) {
    if (event.type !== 'test:pass' && event.type !== 'test:fail') continue;
    const { skip } = event.data;
    if (skip === undefined || skip === false) continue;
    const reason = typeof skip === 'string' && skip !== '' ? skip : 'no reason given';
    counts.set(reason, (counts.get(reason) ?? 0) + 1);
  }
  if (counts.size > 0) yield '\nNot tested on this machine:\n';
  for (const [reason, count] of [...counts].sort()) yield `  ${reason} (${count} skipped)\n`;
}
