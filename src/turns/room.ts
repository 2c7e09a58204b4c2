const mib = 1024 * 1024;
// Less than a CLI has at its start (fact 60), and more than it should ever have.
const leastPeakBytes = 150 * mib;
const mostPeakBytes = 600 * mib;
// Until the first one has been seen.
const unknownPeakBytes = 300 * mib;
const peaksKept = 20;
// Kept left: the part of the CLI's program that is in use lies there, and with less every turn reads it from disk again
// (fact 61).
export const reserveBytes = 64 * mib;
// What is left with nothing starting: with about 100 MiB a control group is so busy with reading its programs again that the
// server itself stands still for seconds, and the kernel ends somebody (fact 61).
export const restingReserveBytes = 2 * reserveBytes;
// The CLI's program, which a start reads from disk: where its pages do not stay in memory, starts side by side take many
// times as long as one after the other (fact 62).
const programBytes = 400 * mib;

/**
 * What a process takes at its start, in bytes: the median of the last 20 starts, within 150 and 600 MiB, so that no
 * single dialogue can teach it nonsense.
 */
export class StartPeak {
  readonly #last: number[] = [];

  get bytes(): number {
    const sorted = [...this.#last].sort((a, b) => a - b);
    const median = sorted[Math.floor(sorted.length / 2)] ?? unknownPeakBytes;
    return Math.min(mostPeakBytes, Math.max(leastPeakBytes, median));
  }

  /** Notes the most that one had when its start was over; 0 from one that had gone. */
  note(bytes: number): void {
    if (bytes > 0) this.#last.push(bytes);
    if (this.#last.length > peaksKept) this.#last.shift();
  }
}

/** All that decides about starts, at one moment. */
export interface RoomView {
  /** Bytes that may still be used. */
  readonly leftBytes: number;
  /** Bytes that processes which are starting will take besides what they have. */
  readonly promisedBytes: number;
  /** Bytes that stopping processes will give back, and idle ones could. */
  readonly comingBytes: number;
  readonly idleBytes: number;
  readonly peakBytes: number;
  readonly starting: number;
  readonly stopping: number;
  readonly idle: number;
  /** Processes there are, in whatever state, and how many there may be. */
  readonly processes: number;
  readonly maxProcesses: number;
}

/**
 * Room for processes at one moment, and what of it is given away meanwhile. A start fits while what is left covers its
 * peak and the reserve; beside another start the program must stay in memory besides. Where no process is left any start fits that may
 * succeed at all: nothing would get better by waiting.
 */
export class Room {
  #freeBytes: number;
  #comingBytes: number;
  #freeSlots: number;
  #comingSlots: number;
  #starting: number;
  #startBytes: number;
  readonly #view: RoomView;

  constructor(view: RoomView) {
    this.#freeBytes = view.leftBytes - view.promisedBytes - reserveBytes;
    this.#comingBytes = view.comingBytes;
    this.#freeSlots = view.maxProcesses - view.processes;
    this.#comingSlots = view.stopping;
    this.#starting = view.starting;
    this.#view = view;
    this.#startBytes = view.processes > view.stopping ? view.peakBytes : leastPeakBytes - reserveBytes;
  }

  /** How many more processes fit, one started after the other. */
  get count(): number {
    return Math.max(0, Math.min(this.#freeSlots, Math.floor(this.#freeBytes / this.#view.peakBytes)));
  }

  /** Whether one more fits, and only must not start beside others. */
  get waitsForStart(): boolean {
    return this.#starting > 0 && this.#freeSlots > 0 && this.#freeBytes >= this.#startBytes && !this.fits;
  }

  /** Whether one more may start now. */
  get fits(): boolean {
    return this.#freeSlots > 0 && this.#freeBytes >= this.#startBytes + (this.#starting > 0 ? programBytes : 0);
  }

  /** Gives room to one that starts now. */
  take(): void {
    this.#starting += 1;
    this.#give();
  }

  /** Gives room to one that starts when those that are stopping have gone. Gives false when that is not enough. */
  takeComing(): boolean {
    const isEnough = this.#freeSlots + this.#comingSlots > 0 && this.#freeBytes + this.#comingBytes >= this.#startBytes;
    if (isEnough) this.#give();
    return isEnough;
  }

  /** Whether one more would fit if all idle ones gave way. */
  get canBeMade(): boolean {
    const { idle, idleBytes, processes, stopping } = this.#view;
    const isAloneThen = processes === stopping + idle;
    return idle > 0 && this.#freeBytes + this.#comingBytes + idleBytes >= (isAloneThen ? leastPeakBytes - reserveBytes : this.#startBytes);
  }

  /** One more is stopping, with so many bytes. */
  addComing(bytes: number): void {
    this.#comingBytes += bytes;
    this.#comingSlots += 1;
  }

  #give(): void {
    this.#startBytes = this.#view.peakBytes;
    this.#freeBytes -= this.#startBytes;
    this.#freeSlots -= 1;
  }
}

/** The first of these that together give back as much as is short; all when even that is not enough. */
export function victims<S extends { readonly heldBytes: number }>(candidates: Iterable<S>, shortBytes: number): S[] {
  const chosen: S[] = [];
  let missing = shortBytes;
  for (const slot of candidates) {
    if (missing <= 0) break;
    chosen.push(slot);
    missing -= slot.heldBytes;
  }
  return chosen;
}

/** What `make` gives, made when it is first asked for. */
export function lazy<T extends object>(make: () => T): () => T {
  let made: T | undefined;
  return () => (made ??= make());
}
