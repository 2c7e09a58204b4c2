import { BlockList, isIP, isIPv4 } from 'node:net';
import { networkInterfaces } from 'node:os';

/** Says whether an address is one of the public internet, and neither this machine's nor of the networks it is in. */
export interface AddressCheck {
  /** `address` is an IP address in any spelling that node:net knows; whatever else is none. Throws what `networkInterfaces` throws. */
  isPublic(address: string): boolean;
}

const ownAddressesMs = 60_000;

// All but global unicast: the IANA special-purpose registries (RFC 6890 and its updates).
const special: ReadonlyArray<readonly [network: string, prefix: number]> = [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['127.0.0.0', 8],
  ['169.254.0.0', 16],
  ['172.16.0.0', 12],
  ['192.0.0.0', 24],
  ['192.0.2.0', 24],
  ['192.88.99.0', 24], // relays of 6to4
  ['192.168.0.0', 16],
  ['198.18.0.0', 15],
  ['198.51.100.0', 24],
  ['203.0.113.0', 24],
  ['224.0.0.0', 3], // multicast, reserved, broadcast
  // Below 2000::/3 is what stands for IPv4 (mapped, NAT64) besides loopback; above it local, link and multicast.
  ['::', 3],
  ['4000::', 2],
  ['8000::', 1],
  ['2001::', 23], // Teredo, benchmarks, ORCHID
  ['2001:db8::', 32],
  ['2002::', 16], // 6to4
  ['3fff::', 20],
];

/** The check for this machine. Its own addresses are read again when they are older than a minute. */
export function createAddressCheck(interfaces: typeof networkInterfaces = networkInterfaces): AddressCheck {
  let blocked = blockLists({});
  let readAt = -Infinity;
  return {
    isPublic(address) {
      // A zone (fe80::1%eth0) is of this machine by itself, and BlockList does not know it.
      if (isIP(address) === 0 || address.includes('%')) return false;
      if (performance.now() - readAt >= ownAddressesMs) {
        blocked = blockLists(interfaces());
        readAt = performance.now();
      }
      const family = familyOf(address);
      return !blocked[family].check(address, family);
    },
  };
}

/** One for each family: BlockList looks for an IPv4 address in its IPv6 networks too (fact 71), and ::/3 has them all. */
function blockLists(interfaces: ReturnType<typeof networkInterfaces>): Record<Family, BlockList> {
  const addresses = Object.values(interfaces).flatMap((each = []) => each);
  const own = addresses.map(({ address, cidr }) => [address, prefixOf(cidr)] as const);
  const lists = { ipv4: new BlockList(), ipv6: new BlockList() };
  for (const [network, prefix] of [...special, ...own]) {
    const family = familyOf(network);
    lists[family].addSubnet(network, prefix ?? (family === 'ipv4' ? 32 : 128), family);
  }
  return lists;
}

/** The length of the network that goes with an address; undefined where the system tells none. */
function prefixOf(cidr: string | null): number | undefined {
  const prefix = cidr?.split('/')[1];
  return prefix === undefined ? undefined : Number(prefix);
}

type Family = 'ipv4' | 'ipv6';

function familyOf(address: string): Family {
  return isIPv4(address) ? 'ipv4' : 'ipv6';
}
