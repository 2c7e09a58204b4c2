import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import type { TestContext } from 'node:test';
import { promisify } from 'node:util';
import { apiKey, within } from './running-server.ts';

/** A proxy that cuts every connection after so many milliseconds; gives its port, and how many connections it had. */
export async function startCutter(t: TestContext, port: number, cutAfterMs: number): Promise<{ port: number; connections: () => number }> {
  let connections = 0;
  const proxy = createServer((client) => {
    connections += 1;
    const upstream = connect(port, '127.0.0.1');
    const cut = (): void => {
      clearTimeout(timer);
      for (const socket of [client, upstream]) socket.destroy();
    };
    const timer = setTimeout(cut, cutAfterMs);
    for (const socket of [client, upstream]) socket.on('error', () => {}).on('close', cut);
    client.pipe(upstream).pipe(client);
  }).listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  t.after(() => proxy.close());
  const address = proxy.address();
  return { port: typeof address === 'object' && address !== null ? address.port : 0, connections: () => connections };
}

/** What the `curl --retry` lines of README.md get for this prompt, on another port and with the key of the tests. */
export async function askByCurl(port: number, prompt: string): Promise<Record<string, unknown>> {
  const readme = await readFile(new URL('../README.md', import.meta.url), 'utf8');
  const [lines = ''] = /^curl --retry[^]*?(?=\n```)/m.exec(readme) ?? [];
  const command = lines.replace('127.0.0.1:8001', `127.0.0.1:${port}`).replace('<CLAUDE_API_KEY>', apiKey).replace(/"prompt": "[^"]*"/, `"prompt": "${prompt}"`);
  const { stdout } = await within('curl', 60_000, promisify(execFile)('sh', ['-c', command]));
  return JSON.parse(stdout) as Record<string, unknown>;
}
