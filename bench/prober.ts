// A process of its own, so that its clock does not wait for the bench's other work. Without arguments it is the bare
// handler. With ports it asks their /health by turns until it is told to stop, and says how long each answer took.
import { Agent, createServer, get } from 'node:http';
import type { AddressInfo } from 'node:net';

const agent = new Agent({ keepAlive: true, maxSockets: 1 });

function ask(port: number): Promise<number> {
  const startedAt = performance.now();
  return new Promise((resolve, reject) => {
    get({ port, path: '/health', agent }, (res) => {
      res.resume();
      res.on('end', () => resolve(performance.now() - startedAt));
    }).on('error', reject);
  });
}

const ports = process.argv.slice(2).map(Number);
let isOver = false;
process.once('message', () => (isOver = true));
process.once('disconnect', () => process.exit());
if (ports.length === 0) {
  const bare = createServer((_, res) => res.writeHead(200, { 'Content-Type': 'application/json' }).end('{"status":"ok"}'));
  bare.listen(0, '127.0.0.1', () => process.send?.((bare.address() as AddressInfo).port));
} else {
  const times: number[][] = ports.map(() => []);
  while (!isOver) {
    for (const [i, port] of ports.entries()) {
      times[i]?.push(await ask(port));
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
  process.send?.(times, () => process.exit());
}
