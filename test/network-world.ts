// Run by itself in a network of its own (unshare --net --mount), as root: DNS on 127.0.0.1, and a public address that is
// this machine's. Prints as JSON what the network proxy, with nothing of the test's in it, says to CONNECT.
import { execFileSync } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { mkdtemp, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { createLog } from '../src/log.ts';
import { createAddressCheck } from '../src/sandbox/addresses.ts';
import { createNetworkProxy } from '../src/sandbox/network-proxy.ts';

const address = '93.184.215.14';
const folder = await mkdtemp(join(tmpdir(), 'network-world-'));
await writeFile(join(folder, 'resolv.conf'), 'nameserver 127.0.0.1\n');
for (const command of ['ip link set lo up', `ip addr add ${address}/32 dev lo`, `mount --bind ${folder}/resolv.conf /etc/resolv.conf`]) execFileSync('/bin/sh', ['-c', command]);

// Every A question about site.example is answered, any other name is not known (RFC 1035, section 4.1).
const dns = createSocket('udp4', (question, from) => {
  const isKnown = question.includes('\x04site\x07example\x00\x00\x01', 0, 'latin1');
  const answer = Buffer.concat([question.subarray(0, 2), Buffer.from([0x81, isKnown ? 0x80 : 0x83, 0, 1, 0, isKnown ? 1 : 0, 0, 0, 0, 0]), question.subarray(12, question.indexOf(0, 12) + 5)]);
  const record = Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, ...address.split('.').map(Number)]);
  dns.send(isKnown ? Buffer.concat([answer, record]) : answer, from.port, from.address);
});
dns.bind(53, '127.0.0.1');
const site = createServer((socket) => socket.on('error', () => {}).end('hello'));
site.listen(443, address);
await Promise.all([once(dns, 'listening'), once(site, 'listening')]);

async function ask(addresses: ReturnType<typeof createAddressCheck>, target: string): Promise<string> {
  const own = await mkdtemp(join(folder, 'socket-'));
  const socket = await createNetworkProxy({ hosts: 'public', addresses, log: createLog('json', { write: () => {} }) }).open(own);
  socket.beginTurn({});
  const asking = request({ socketPath: join(own, 'n'), method: 'CONNECT', path: target });
  asking.end();
  const answered = await new Promise<string>((resolve) => {
    asking.on('connect', ({ statusCode, statusMessage }, stream, head) => {
      if (statusCode !== 200) return resolve(`${statusCode} ${statusMessage}`);
      stream.unshift(head);
      void text(stream).then(resolve);
    });
  });
  await socket.close();
  return answered;
}

const elsewhere = createAddressCheck(() => ({}));
const answers = [
  await ask(elsewhere, 'site.example:443'),
  await ask(elsewhere, 'unknown.example:443'),
  await ask(createAddressCheck(), 'site.example:443'),
  await ask(createAddressCheck(), `${address}:443`),
];
console.log(JSON.stringify(answers));
process.exit(0);
