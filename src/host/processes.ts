import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** A process and all it started, its children's children too; those that made themselves independent of it are not found. */
export function treeOf(pid: number, root = '/'): number[] {
  const folder = join(root, 'proc', String(pid), 'task');
  // Each thread has children of its own (proc(5)).
  const children = threadsOf(folder).flatMap((thread) => read(join(folder, thread, 'children')).split(' ').filter((text) => text !== ''));
  return [pid, ...children.flatMap((child) => treeOf(Number(child), root))];
}

/** Bytes of memory that would come back if this process and all it started ended: pages of files are not theirs alone. */
export function heldBytes(pid: number, root = '/'): number {
  return sumOf(/^RssAnon:\s+(\d+)/m, pid, root);
}

/** The most bytes of memory, pages of files included, that this process and those it started have had at any time. */
export function peakBytes(pid: number, root = '/'): number {
  return sumOf(/^VmHWM:\s+(\d+)/m, pid, root);
}

function sumOf(field: RegExp, pid: number, root: string): number {
  const kibibytes = treeOf(pid, root).map((each) => Number(field.exec(read(join(root, 'proc', String(each), 'status')))?.[1] ?? 0));
  return kibibytes.reduce((sum, count) => sum + count, 0) * 1024;
}

function threadsOf(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    // It is gone.
    return [];
  }
}

/** The file's text; empty when it cannot be read. */
export function read(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
}

/** Ends a process and its group at once; nobody in it is no failure. Without a pid nothing was started. */
export function killGroup(pid: number | undefined): void {
  if (pid !== undefined) killQuietly(-pid);
}

/** Ends a process at once, or with a minus a group; that there is none is no failure. */
export function killQuietly(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // Gone already.
  }
}
