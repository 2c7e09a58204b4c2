import type { IncomingMessage } from 'node:http';
import { answerTo, type BigBodies } from './big-bodies.ts';
import type { BodyRules } from './request-body.ts';
import type { Target } from './request-head.ts';
import type { Share } from './share.ts';

/** What all sockets have together for bodies. */
export interface BodyMemory {
  /** Bytes of small bodies held at once. */
  readonly smallBytes: Share;
  /** Bytes of large bodies held at once. */
  readonly largeBytes: Share;
  readonly bigBodies: BigBodies;
}

interface Intake {
  readonly memory: BodyMemory;
  /** Large bodies of one process: one, so that nobody can hold all the memory there is. */
  readonly largeBodies: Share;
  readonly target: Target;
  readonly rules: BodyRules;
  readonly signal: AbortSignal;
}

/** Something that no CLI of ours asks for, in words for the log. */
export class Refused extends Error {}

/** The API's own limit. */
export const maxBodyBytes = 32 * 1024 * 1024;
/** Above it a body is large: 2 MiB can be made to take 0.2 s to read (measured), which nobody else shall wait for. */
const maxSmallBytes = 256 * 1024;

// The CLI sends a body at once; one that drips holds memory that others wait for.
const smallBodyMs = 5_000;
const largeBodyMs = 20_000;

/** A body that was read and checked. */
interface CheckedBody {
  readonly body: Uint8Array;
  readonly textLength: number;
  /** Gives the memory back; may be called twice. */
  readonly release: () => void;
}

/**
 * Waits for memory, reads the body and checks it. Rejects with Refused for one that no CLI of ours sends, and with the
 * signal's reason; then nothing is held.
 */
export async function takeBody(req: IncomingMessage, { memory, largeBodies, target, rules, signal }: Intake): Promise<CheckedBody> {
  const declared = req.headers['content-length'];
  const length = declared === undefined ? maxBodyBytes : Number(declared);
  if (length > maxBodyBytes) throw new Refused('a body of more than 32 MiB');
  const isLarge = length > maxSmallBytes;
  const held: Array<() => void> = [];
  const release = (): void => held.forEach((giveBack) => giveBack());
  try {
    if (isLarge) held.push(await largeBodies.take(1, signal));
    held.push(await (isLarge ? memory.largeBytes : memory.smallBytes).take(length, signal));
    const question = { bytes: await readBody(req, length, isLarge ? largeBodyMs : smallBodyMs, signal), target, rules };
    const { bytes, verdict } = isLarge ? await memory.bigBodies.check(question) : answerTo(question);
    if ('refused' in verdict) throw new Refused(verdict.refused);
    return { body: bytes, textLength: verdict.textLength, release };
  } catch (error) {
    release();
    throw error;
  }
}

/** The body. Rejects with the signal's reason, or Refused for what does not arrive or has more than `length` bytes. */
function readBody(req: IncomingMessage, length: number, timeoutMs: number, signal: AbortSignal): Promise<Uint8Array<ArrayBuffer>> {
  return new Promise((resolve, reject) => {
    // One piece of memory, so that it can be handed to a thread; what is never written to takes none.
    const bytes = new Uint8Array(length);
    let readBytes = 0;
    const settle = (act: () => void): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
      req.off('data', onData).off('end', onEnd);
      act();
    };
    const onAbort = (): void => settle(() => reject(signal.reason));
    const onEnd = (): void => settle(() => resolve(bytes.subarray(0, readBytes)));
    const onData = (chunk: Buffer): void => {
      if (readBytes + chunk.length > length) return settle(() => reject(new Refused('a body of more than 32 MiB')));
      bytes.set(chunk, readBytes);
      readBytes += chunk.length;
    };
    const timer = setTimeout(() => settle(() => reject(new Refused('a body that does not arrive'))), timeoutMs);
    signal.addEventListener('abort', onAbort, { once: true });
    req.on('data', onData).on('end', onEnd);
  });
}
