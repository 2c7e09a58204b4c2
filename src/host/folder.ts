import { randomUUID } from 'node:crypto';
import { chmodSync, closeSync, constants, fstatSync, opendirSync, openSync, type Stats } from 'node:fs';
import { open, opendir, rename, rmdir, unlink, writeFile } from 'node:fs/promises';

const { O_RDONLY, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK } = constants;
const folderFlags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW;
const fileFlags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK;
// O_PATH of open(2), which Node has no name for: a folder is held that may neither be read nor written.
const heldFlags = 0o10000000 | O_DIRECTORY | O_NOFOLLOW;

// Each level holds two descriptors while it is walked; what lies deeper is moved up first.
const maxDepth = 64;

// A folder of ext4 that held millions of names stays as large when they are gone, and all of it is read to see that it is empty.
const mostAtOnceBytes = 64 * 1024;

/** The removal of all that lies in a folder. */
interface Emptying {
  readonly top: Folder;
  /** Whether something was moved up to the top, where it may have been passed by. */
  hasMoved: boolean;
}

/**
 * A folder held open, in which names are used one at a time. What lies in it is somebody else's: no link is followed, no
 * FIFO waited for, and a folder that is swapped for a link meanwhile leads nowhere else (openat(2), by /proc/self/fd).
 */
export class Folder {
  readonly #fd: number;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /**
   * Opens a folder by its path, whose parents nobody else can write, and from there on name by name what lies inside.
   * Throws what open(2) says: ENOENT, ELOOP for a link, ENOTDIR.
   */
  static open(path: string, inside: ReadonlyArray<string | Buffer> = []): Folder {
    let folder = new Folder(openSync(path, folderFlags));
    for (const name of inside) {
      const outer = folder;
      try {
        folder = new Folder(openSync(outer.#pathOf(name), folderFlags));
      } finally {
        outer.close();
      }
    }
    return folder;
  }

  /** Opens a folder for a while; nothing happens where there is none, or none that can be opened or used. Never rejects. */
  static use(path: string, inside: ReadonlyArray<string | Buffer>, use: (folder: Folder) => Promise<void>): Promise<void> {
    return useAndClose(() => Folder.open(path, inside), use);
  }

  /** What lies here under this name, itself and not what it points to. Throws what open(2) says; a link is ELOOP. */
  stat(name: string | Buffer): Stats {
    const fd = openSync(this.#pathOf(name), fileFlags);
    try {
      return fstatSync(fd);
    } finally {
      closeSync(fd);
    }
  }

  /**
   * The bytes of a plain file that has this name alone, `maxBytes` at most, and stays as it is meanwhile; undefined where
   * something else lies here. Waits for nobody: neither at a FIFO nor for a lease (fcntl(2)). Never rejects.
   */
  async read(name: string | Buffer, maxBytes: number): Promise<Buffer | undefined> {
    try {
      const file = await open(this.#pathOf(name), fileFlags);
      try {
        const entry = await file.stat();
        if (!entry.isFile() || entry.nlink !== 1 || entry.size > maxBytes) return undefined;
        // One byte more shows whether it grows.
        const bytes = Buffer.alloc(entry.size + 1);
        let length = 0;
        for (let count = -1; count !== 0 && length < bytes.length; length += count) {
          count = (await file.read(bytes, length, bytes.length - length, null)).bytesRead;
        }
        return length === entry.size ? bytes.subarray(0, length) : undefined;
      } finally {
        await file.close();
      }
    } catch {
      return undefined;
    }
  }

  /** Writes a new file. Rejects with what open(2) and write(2) say, EEXIST where anything lies here. */
  async write(name: string, bytes: Buffer): Promise<void> {
    await writeFile(this.#pathOf(name), bytes, { flag: 'wx', mode: 0o600 });
  }

  /** The names in it, as bytes: not every name is UTF-8. */
  async *names(): AsyncGenerator<Buffer> {
    if (fstatSync(this.#fd).size <= mostAtOnceBytes && this.#isEmpty()) return;
    // The types know only text here; the option gives bytes all the same.
    for await (const { name } of await opendir(`/proc/self/fd/${this.#fd}`, { encoding: 'buffer' as BufferEncoding })) {
      yield Buffer.from(name as string | Buffer);
    }
  }

  /** At once, not through the thread pool, where it takes ten times as long (fact 36): most turns have no files. */
  #isEmpty(): boolean {
    const folder = opendirSync(`/proc/self/fd/${this.#fd}`);
    try {
      return folder.readSync() === null;
    } finally {
      folder.closeSync();
    }
  }

  /** Removes what lies here under this name, a folder with all that is in it. What cannot be removed stays; never rejects. */
  async remove(name: string | Buffer): Promise<void> {
    if (!(await works(unlink(this.#pathOf(name))))) await this.#removeFolder(name, (folder) => folder.empty());
  }

  /** Removes all that lies in it, as `remove` does, however deep. Rejects where it cannot be listed. */
  async empty(): Promise<void> {
    const emptying = { top: this, hasMoved: true };
    while (emptying.hasMoved) {
      emptying.hasMoved = false;
      await this.#emptyLevel(emptying, 1);
    }
  }

  close(): void {
    closeSync(this.#fd);
  }

  async #emptyLevel(emptying: Emptying, depth: number): Promise<void> {
    for await (const name of this.names()) {
      if (await works(unlink(this.#pathOf(name)))) continue;
      if (depth < maxDepth) await this.#removeFolder(name, (folder) => folder.#emptyLevel(emptying, depth + 1));
      else if (await works(this.#moveUp(name, emptying.top))) emptying.hasMoved = true;
    }
  }

  /** Moves a folder from here into another, under a name that nobody knows. */
  async #moveUp(name: Buffer, top: Folder): Promise<void> {
    // A closed one cannot be moved.
    this.#openToEmpty(name).close();
    await rename(this.#pathOf(name), top.#pathOf(randomUUID()));
  }

  async #removeFolder(name: string | Buffer, empty: (folder: Folder) => Promise<void>): Promise<void> {
    await useAndClose(() => this.#openToEmpty(name), empty);
    await works(rmdir(this.#pathOf(name)));
  }

  /** Opens a folder in here that is to go, also where whoever made it has closed it. */
  #openToEmpty(name: string | Buffer): Folder {
    const held = openSync(this.#pathOf(name), heldFlags);
    try {
      chmodSync(`/proc/self/fd/${held}`, 0o700);
      // No O_NOFOLLOW: the link in /proc leads to what is held, whatever has this name by now.
      return new Folder(openSync(`/proc/self/fd/${held}`, O_RDONLY | O_DIRECTORY));
    } finally {
      closeSync(held);
    }
  }

  #pathOf(name: string | Buffer): Buffer {
    return Buffer.concat([Buffer.from(`/proc/self/fd/${this.#fd}/`), Buffer.from(name)]);
  }
}

/** Opens a folder for a while. Never rejects. */
async function useAndClose(open: () => Folder, use: (folder: Folder) => Promise<void>): Promise<void> {
  let folder: Folder | undefined;
  try {
    folder = open();
    await use(folder);
  } catch {
    // Gone, or swapped for something else; what stays is the user's own loss.
  } finally {
    folder?.close();
  }
}

function works(act: Promise<void>): Promise<boolean> {
  return act.then(() => true, () => false);
}
