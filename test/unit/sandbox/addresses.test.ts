import assert from 'node:assert/strict';
import { isIPv4 } from 'node:net';
import { networkInterfaces } from 'node:os';
import { test } from 'node:test';
import { createAddressCheck } from '../../../src/sandbox/addresses.ts';

const { isPublic } = createAddressCheck(() => ({}));

// Each block's first and last address, and those beside them where these are public.
const blocks: ReadonlyArray<readonly [first: string, last: string, before?: string | undefined, after?: string]> = [
  ['0.0.0.0', '0.255.255.255', undefined, '1.0.0.0'],
  ['10.0.0.0', '10.255.255.255', '9.255.255.255', '11.0.0.0'],
  ['100.64.0.0', '100.127.255.255', '100.63.255.255', '100.128.0.0'],
  ['127.0.0.0', '127.255.255.255', '126.255.255.255', '128.0.0.0'],
  ['169.254.0.0', '169.254.255.255', '169.253.255.255', '169.255.0.0'],
  ['172.16.0.0', '172.31.255.255', '172.15.255.255', '172.32.0.0'],
  ['192.0.0.0', '192.0.0.255', '191.255.255.255', '192.0.1.0'],
  ['192.0.2.0', '192.0.2.255', '192.0.1.255', '192.0.3.0'],
  ['192.88.99.0', '192.88.99.255', '192.88.98.255', '192.88.100.0'],
  ['192.168.0.0', '192.168.255.255', '192.167.255.255', '192.169.0.0'],
  ['198.18.0.0', '198.19.255.255', '198.17.255.255', '198.20.0.0'],
  ['198.51.100.0', '198.51.100.255', '198.51.99.255', '198.51.101.0'],
  ['203.0.113.0', '203.0.113.255', '203.0.112.255', '203.0.114.0'],
  ['224.0.0.0', '255.255.255.255', '223.255.255.255'],
  ['::', '1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff', undefined, '2000::'],
  ['2001::', '2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff', '2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff', '2001:200::'],
  ['2001:db8::', '2001:db8:ffff:ffff:ffff:ffff:ffff:ffff', '2001:db7:ffff:ffff:ffff:ffff:ffff:ffff', '2001:db9::'],
  ['2002::', '2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff', '2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff', '2003::'],
  ['3fff::', '3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff', '3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff', '3fff:1000::'],
  ['4000::', 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff', '3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff'],
];

test('the edges of every block that is not of the public internet', () => {
  for (const [first, last, before, after] of blocks) {
    for (const address of [first, last]) assert.equal(isPublic(address), false, address);
    for (const address of [before, after]) if (address !== undefined) assert.equal(isPublic(address), true, address);
  }
});

const within = blocks.flatMap(([first, last]) => (isIPv4(first) ? [first, last] : []));
const wellKnown = ['127.0.0.1', '127.1.2.3', '10.0.0.1', '100.100.100.200', '169.254.169.254', '169.254.170.2', '172.17.0.1', '192.168.1.1', '0.0.0.0', '255.255.255.255', '8.8.8.8', '93.184.215.14'];

/** What writes an IPv4 address inside an IPv6 address, in small letters and capitals, short and long. */
function embeddings(address: string): string[] {
  const bytes = address.split('.').map(Number);
  const hex = (i: number): string => ((bytes[i] ?? 0) * 256 + (bytes[i + 1] ?? 0)).toString(16);
  const [high, low] = [hex(0), hex(2)];
  const pad = (group: string): string => group.padStart(4, '0');
  const inverted = bytes.map((byte) => 255 - byte);
  const forms = [
    `::ffff:${address}`, `::ffff:${high}:${low}`, `0:0:0:0:0:ffff:${high}:${low}`, `0000:0000:0000:0000:0000:ffff:${pad(high)}:${pad(low)}`, `0::ffff:${address}`, // mapped
    `::${address}`, `::${high}:${low}`, // compatible
    `::ffff:0:${address}`, `::ffff:0:${high}:${low}`, // translated
    `64:ff9b::${address}`, `64:ff9b::${high}:${low}`, `0064:ff9b:0:0:0:0:${pad(high)}:${pad(low)}`, `64:ff9b:1::${address}`, `64:ff9b:1:${high}:${low}::`, // NAT64
    `2002:${high}:${low}::`, `2002:${high}:${low}::1`, `2002:${pad(high)}:${pad(low)}:0:0:0:0:1`, // 6to4
    `2001::${high}:${low}`, `2001:0:${high}:${low}::1`, `2001:0:4136:e378:8000:63bf:${inverted.map((byte) => byte.toString(16).padStart(2, '0')).join('').replace(/(....)(....)/, '$1:$2')}`, // Teredo
    `fe80::5efe:${address}`, `fe80::200:5efe:${high}:${low}`, // ISATAP
  ];
  return forms.flatMap((form) => [form, form.toUpperCase()]);
}

test('no IPv4 address is reached inside an IPv6 one, a public one neither', () => {
  const spelt = [...within, ...wellKnown].flatMap(embeddings);
  assert.ok(spelt.length > 1000);
  for (const address of spelt) assert.equal(isPublic(address), false, address);
});

/** What inet_aton(3) takes for the same address. */
function oldSpellings(address: string): string[] {
  const [a = 0, b = 0, c = 0, d = 0] = address.split('.').map(Number);
  const whole = ((a * 256 + b) * 256 + c) * 256 + d;
  return [
    String(whole), `0x${whole.toString(16)}`, `0${whole.toString(8)}`, `${a}.${(b * 256 + c) * 256 + d}`, `${a}.${b}.${c * 256 + d}`, `0x${a.toString(16)}.${b}.${c}.${d}`,
    `0${a.toString(8)}.0${b.toString(8)}.0${c.toString(8)}.0${d.toString(8)}`, `00${a}.${b}.${c}.${d}`, `${a}.${b}.${c}.${d}.`, ` ${address}`, `${address} `, `${address}:443`, `[${address}]`, `${address}/32`,
    `${address}\0`, `http://${address}`, address.replaceAll('.', '。'),
  ];
}

test('what is no address as it is written down today is none', () => {
  for (const text of [...within, ...wellKnown].flatMap(oldSpellings)) assert.equal(isPublic(text), false, text);
  for (const text of ['', 'localhost', 'example.com', '::1%lo', 'fe80::1%eth0', '2606:2800::1%eth0', '[::1]', '[2606:2800::1]', '1:2:3', '2606:2800::1::', '2606:2800:1:2:3:4:5:6:7', 'ff02::1', '5fff::1', '6000::1', '9000::1', 'b000::1']) assert.equal(isPublic(text), false, text);
});

test('public addresses are', () => {
  for (const address of ['1.1.1.1', '8.8.8.8', '140.82.121.3', '104.16.24.34', '2606:4700::6810:1822', '2a00:1450:4001:82a::200e', '2606:4700:0:0:0:0:6810:1822', '2A00:1450:4001:82A::200E']) assert.equal(isPublic(address), true, address);
});

test('the machine\'s own addresses are refused, with the networks they are in, and are read again after a minute', (t) => {
  let nowMs = performance.now();
  t.mock.method(performance, 'now', () => nowMs);
  const one = { netmask: '', mac: '', internal: false } as const;
  let own: ReturnType<typeof networkInterfaces> = { eth0: [{ ...one, family: 'IPv4', address: '5.9.10.11', cidr: '5.9.10.11/26' }, { ...one, family: 'IPv6', address: '2a01:4f8:1:2::1', cidr: '2a01:4f8:1:2::1/64', scopeid: 0 }] };
  const check = createAddressCheck(() => own);
  for (const address of ['5.9.10.11', '5.9.10.1', '5.9.10.63', '2a01:4f8:1:2::1', '2A01:4F8:1:2:0:0:0:1', '2a01:4f8:1:2:ffff::']) assert.equal(check.isPublic(address), false, address);
  for (const address of ['5.9.10.64', '5.9.9.255', '2a01:4f8:1:3::1']) assert.equal(check.isPublic(address), true, address);
  own = { eth0: [{ ...one, family: 'IPv4', address: '5.9.20.1', cidr: null }, { ...one, family: 'IPv6', address: '2a01:4f8:1:9::1', cidr: null, scopeid: 0 }], eth1: undefined };
  nowMs += 59_000;
  assert.equal(check.isPublic('5.9.20.1'), true, 'not yet');
  nowMs += 1_000;
  assert.deepEqual(['5.9.20.1', '5.9.20.2', '5.9.10.11'].map(check.isPublic), [false, true, true]);
  assert.deepEqual(['2a01:4f8:1:9::1', '2a01:4f8:1:9::', '2a01:4f8:1:9::2'].map(check.isPublic), [false, true, true]);
});

test('a machine that does not tell its addresses lets nothing through', () => {
  const check = createAddressCheck(() => {
    throw new Error('no netlink');
  });
  assert.throws(() => check.isPublic('8.8.8.8'));
});

test('of this very machine no address is public', () => {
  const check = createAddressCheck();
  for (const { address } of Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? [])) assert.equal(check.isPublic(address), false, address);
});
