import { createServer } from 'node:net';

/**
 * Claims a name on this machine until the process ends, however it ends: an abstract socket (unix(7)) is gone with its
 * owner, so no stale lock is ever left. Gives false when another process has it.
 */
export function claim(name: string): Promise<boolean> {
  return new Promise((resolve) => {
    const holder = createServer();
    holder.on('error', () => resolve(false));
    holder.listen(`\0${name}`, () => resolve(true));
    holder.unref();
  });
}
