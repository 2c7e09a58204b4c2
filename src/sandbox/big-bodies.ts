import { Worker } from 'node:worker_threads';
import { checkBody, type BodyRules, type BodyVerdict } from './request-body.ts';
import type { Target } from './request-head.ts';

/** A body to be checked. */
export interface BodyQuestion {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly target: Target;
  readonly rules: BodyRules;
}

/** The same bytes, and what `checkBody` says of them. */
interface BodyAnswer {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly verdict: BodyVerdict;
}

/** The answer in this thread. Never throws. */
export function answerTo({ bytes, target, rules }: BodyQuestion): BodyAnswer {
  return { bytes, verdict: checkBody(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length), target, rules) };
}

/** Checks of large bodies, one at a time and beside the server's own thread. */
export interface BigBodies {
  /** The bytes are handed over: look at the answer's from then on. Rejects only after `close`. */
  check(question: BodyQuestion): Promise<BodyAnswer>;
  close(): void;
}

// Nothing that passes the bounds of checkBody comes near it (at most 200 MB, measured), whatever V8 makes of a small machine.
const maxHeapMb = 512;
// Half a second is what 32 MiB take; a machine whose cores are all in use by others takes longer.
const maxCheckMs = 20_000;
// The thread's own memory is given back when nothing large has come for a while.
const idleMs = 10_000;

// Built, both files are JavaScript; the compiler does not rewrite a name in a string.
const threadFile = new URL(import.meta.url.endsWith('.ts') ? './big-bodies-from-source.mjs' : './big-bodies-thread.js', import.meta.url);

/** No thread yet: it starts with the first large body. */
export function createBigBodies(): BigBodies {
  let thread: Worker | undefined;
  let last: Promise<unknown> = Promise.resolve();
  let idleTimer: NodeJS.Timeout | undefined;
  let isClosed = false;

  function stop(): void {
    clearTimeout(idleTimer);
    void thread?.terminate();
    thread = undefined;
  }

  async function ask(question: BodyQuestion): Promise<BodyAnswer> {
    if (isClosed) throw new Error('the API proxy is closed');
    clearTimeout(idleTimer);
    thread ??= startThread();
    const answer = await answerOf(thread, question);
    if (answer === undefined) stop();
    idleTimer = setTimeout(stop, idleMs).unref();
    return answer ?? { bytes: new Uint8Array(), verdict: { refused: 'a body that takes too long to read' } };
  }

  return {
    check(question) {
      const answer = last.then(() => ask(question));
      last = answer.then(() => {}, () => {}); // what stands here for the next one keeps no body
      return answer;
    },
    close() {
      isClosed = true;
      stop();
    },
  };
}

function startThread(): Worker {
  const thread = new Worker(threadFile, { resourceLimits: { maxOldGenerationSizeMb: maxHeapMb }, stdout: true, stderr: true });
  // Its end tells all there is to know; an error nobody listens to would take the server along.
  return thread.on('error', () => {});
}

/** The thread's answer; undefined when it died of the question or took too long. */
function answerOf(thread: Worker, question: BodyQuestion): Promise<BodyAnswer | undefined> {
  return new Promise((resolve) => {
    const settle = (answer: BodyAnswer | undefined): void => {
      clearTimeout(timer);
      thread.off('message', settle).off('exit', onEnd).unref();
      resolve(answer);
    };
    const onEnd = (): void => settle(undefined);
    const timer = setTimeout(onEnd, maxCheckMs);
    thread.on('message', settle).on('exit', onEnd).ref();
    thread.postMessage(question, [question.bytes.buffer]);
  });
}
