import type { Readable } from 'node:stream';

// What an end user's program says through the CLI may have no pause: it gets a tenth of the thread that serves all. In rounds
// so short that a process that ended is still heard to its end.
const roundMs = 250;
const mostCpuMicros = 25_000;

/** Reads a stream to its end, and rests for the rest of a round in which reading took more than a tenth of it. */
export function readPaced(stream: Readable, read: (chunk: Buffer) => void): void {
  let roundBeganAt = -Infinity;
  let takenMicros = 0;
  stream.on('data', (chunk: Buffer) => {
    const now = performance.now();
    if (now - roundBeganAt >= roundMs) [roundBeganAt, takenMicros] = [now, 0];
    // Not by the clock, which goes on while other processes have the core.
    const before = process.cpuUsage();
    read(chunk);
    const { user, system } = process.cpuUsage(before);
    takenMicros += user + system;
    if (takenMicros < mostCpuMicros) return;
    stream.pause();
    setTimeout(() => stream.resume(), Math.max(0, roundBeganAt + roundMs - performance.now())).unref();
  });
}
