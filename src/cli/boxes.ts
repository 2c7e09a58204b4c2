import { chmodSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { Folder } from '../host/folder.ts';
import { storageUnavailable } from '../host/storage.ts';
import { isFileName, maxFiles, maxFilesBytes, type TurnFile } from '../host/turn-files.ts';
import { toProblem } from '../problem.ts';
import { unlessAborted } from '../waiting.ts';
import type { TurnEnd } from './dialogue.ts';

/** What Claude left for the user in a turn. */
export interface Given {
  /** `data` in base64, as it is sent and kept. */
  readonly files: ReadonlyArray<{ readonly name: string; readonly data: string }>;
  /** The names of what is not among them: too large, too many, or no plain file. */
  readonly omitted: readonly string[];
}

// Somebody may have made millions; of more than these not even the names are told.
const maxNames = 1_000;

/**
 * The two folders of one process through which files go into its turns and come out of them. They lie in one that the
 * end user cannot write; what is in the outbox is theirs.
 */
export class Boxes {
  readonly inbox: string;
  readonly outbox: string;
  readonly #folder: string;
  #last: Promise<unknown> = Promise.resolve();

  /** `folder` is this process's alone; `in` and `out` in it are made by whoever starts the process. */
  constructor(folder: string) {
    this.#folder = folder;
    this.inbox = join(folder, 'in');
    this.outbox = join(folder, 'out');
  }

  /**
   * A turn with these files in the inbox and nothing in the outbox; what Claude puts there is added to its answer. Never
   * rejects: where the inbox cannot be filled there is no turn. Nor when `signal` aborts before it is, with the reason for
   * its problem; the filling then still goes on, so the process must be stopped.
   */
  async around(files: readonly TurnFile[], signal: AbortSignal, turn: () => Promise<TurnEnd>): Promise<TurnEnd> {
    try {
      await unlessAborted(this.#inOrder(() => this.#fill(files)), signal);
    } catch (error) {
      const problem = signal.aborted ? toProblem(signal.reason) : storageUnavailable(error);
      return { wasHeard: false, costUsd: 0, outcome: { problem } };
    }
    const end = await turn();
    if ('problem' in end.outcome) return end;
    const given = await this.#inOrder(() => this.#collect());
    void this.#inOrder(() => this.#empty());
    return { ...end, outcome: { ...end.outcome, given } };
  }

  /** Removes both, with all that is in them. To be called when the process is gone; never rejects. */
  remove(): Promise<void> {
    return this.#inOrder(() => Folder.use(dirname(this.#folder), [], (turns) => turns.remove(basename(this.#folder))));
  }

  async #fill(files: readonly TurnFile[]): Promise<void> {
    // The outbox as well, at the last moment: what a program left behind put there meanwhile is not this turn's.
    await this.#empty();
    const inbox = Folder.open(this.inbox);
    try {
      for (const { name, bytes } of files) await inbox.write(name, bytes);
    } finally {
      inbox.close();
    }
  }

  async #empty(): Promise<void> {
    await Folder.use(this.inbox, [], (inbox) => inbox.empty());
    await this.#useOutbox((outbox) => outbox.empty());
  }

  async #collect(): Promise<Given> {
    const files: Array<{ name: string; data: string }> = [];
    const omitted: string[] = [];
    let leftBytes = maxFilesBytes;
    await this.#useOutbox(async (outbox) => {
      for (const { name, text } of await someNames(outbox)) {
        const isWanted = files.length < maxFiles && isFileName(text) && files.every((other) => other.name !== text);
        const bytes = isWanted ? await outbox.read(name, leftBytes) : undefined;
        leftBytes -= bytes?.length ?? 0;
        if (bytes === undefined) omitted.push(text);
        else files.push({ name: text, data: bytes.toString('base64') });
      }
    });
    return { files, omitted };
  }

  async #useOutbox(use: (outbox: Folder) => Promise<void>): Promise<void> {
    try {
      // The end user may have closed it, but cannot put a link in its place.
      chmodSync(this.outbox, 0o700);
    } catch {
      return;
    }
    await Folder.use(this.outbox, [], use);
  }

  /** One after the other: the process may end while the files of its last turn are being read. */
  #inOrder<T>(act: () => Promise<T>): Promise<T> {
    const done = this.#last.then(act);
    this.#last = done.catch(() => {});
    return done;
  }
}

/** The first names there are, in order, as bytes and as the caller is told them: in NFC, and what no name may hold replaced. */
async function someNames(folder: Folder): Promise<Array<{ readonly name: Buffer; readonly text: string }>> {
  const names = [];
  for await (const name of folder.names()) {
    names.push({ name, text: name.toString().normalize('NFC').replace(/\p{Cc}/gu, '\ufffd') });
    if (names.length === maxNames) break;
  }
  return names.sort((one, other) => Buffer.compare(one.name, other.name));
}
