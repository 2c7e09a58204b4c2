import type { StartSession } from '../claude.ts';
import type { Memory } from '../host/memory.ts';
import { reserveBytes, restingReserveBytes, Room, StartPeak, victims } from './room.ts';
import { Slots, type Slot } from './slots.ts';

/** What is needed of a process; `Worker` has it. */
export interface Poolable {
  /** Alive, idle, in the folders it was started in, and nothing went wrong so far. */
  readonly isReusable: boolean;
  /** Resolves once the start-up is over, one way or the other. */
  readonly started: Promise<void>;
  /** Resolves once the process is gone. */
  readonly exited: Promise<void>;
  /** Bytes of memory that would come back if it ended now, with all it started; 0 when it is gone. */
  heldBytes(): number;
  /** The most bytes of memory it has had, pages of files included; 0 when it is gone. */
  peakBytes(): number;
  /** Resolves once it and all it started are gone, `atOnce` without being asked to leave; never rejects. */
  stop(atOnce?: boolean): Promise<void>;
}

/** How many processes there may be, how long they stay, and how one is started. */
export interface ProcessOptions<W extends Poolable> {
  /** Starts a process for one session. Throws a Problem when it cannot. */
  readonly start: (session: StartSession) => Promise<W>;
  /** What is left for more processes; asked at each decision. */
  readonly memory: Pick<Memory, 'leftBytes'>;
  /** Running and idle processes together, at most; Infinity where memory alone decides. */
  readonly maxProcesses: number;
  /** How long an idle process is kept; 0 keeps none. */
  readonly warmMs: number;
  /** Processes that may be starting at once: each takes a whole core for about a second. */
  readonly maxStarts: number;
}

/** Who must know what becomes of processes. */
interface Listener<W> {
  /** Whenever one came up or has gone. */
  readonly onChange: () => void;
  /** Before one is stopped. */
  readonly onStop: (slot: Slot<W>) => void;
}

// A process grows by about 1 MB a turn (fact 33), and after a prompt of megabytes at once.
const maxTurnsPerProcess = 100;
const maxHeldBytes = 400 * 1024 * 1024;
// A CLI that hangs at its start (it happens) must not keep the others from theirs; one that starts takes a second.
const maxStartMs = 10_000;

/** The CLI processes there are, and the memory they take: starts them, keeps them warm, and has idle ones give way. */
export class Processes<W extends Poolable> {
  readonly slots: Slots<W>;
  readonly #options: ProcessOptions<W>;
  readonly #listener: Listener<W>;
  readonly #startPeak = new StartPeak();
  /** Those whose process is not up yet, so that it will take more memory than it has. */
  readonly #starting = new Set<Slot<W>>();
  #generation = 0;

  constructor(options: ProcessOptions<W>, slots: Slots<W>, listener: Listener<W>) {
    this.#options = options;
    this.slots = slots;
    this.#listener = listener;
  }

  /** Whether starting ones leave no core for another. */
  get isStartingMany(): boolean {
    return this.#starting.size >= this.#options.maxStarts;
  }

  /** Whether any is on its way up or down: what is left of memory is about to change. */
  get isChanging(): boolean {
    return this.#starting.size > 0 || this.slots.count('stopping') > 0;
  }

  /** What there is room for now. */
  room(): Room {
    const peakBytes = this.#startPeak.bytes;
    return new Room({
      leftBytes: this.#options.memory.leftBytes(),
      promisedBytes: this.#promisedBytes(),
      comingBytes: this.slots.bytes('stopping'),
      idleBytes: this.slots.bytes('idle'),
      peakBytes,
      starting: this.#starting.size,
      stopping: this.slots.count('stopping'),
      idle: this.slots.count('idle'),
      processes: this.slots.size,
      maxProcesses: this.#options.maxProcesses,
    });
  }

  /** What those that start will take besides what they have. */
  #promisedBytes(): number {
    const promised = [...this.#starting].map(({ worker }) => Math.max(0, this.#startPeak.bytes - (worker?.heldBytes() ?? 0)));
    return promised.reduce((sum, bytes) => sum + bytes, 0);
  }

  /** Has idle processes give way until there will be room for one more. Gives false when all together do not suffice. */
  makeRoom(room: Room): boolean {
    if (room.takeComing()) return true;
    if (!room.canBeMade) return false;
    for (const slot of this.slots.idle()) {
      room.addComing(slot.heldBytes);
      void this.stop(slot);
      if (room.takeComing()) return true;
    }
    return false;
  }

  /** Has idle processes give way where memory ran short without any turn asking, before the kernel must end one. */
  relieve(): void {
    // One that starts had room for it, and somebody else may take that meanwhile.
    const wantedBytes = this.#starting.size > 0 ? reserveBytes + this.#promisedBytes() : restingReserveBytes;
    const shortBytes = wantedBytes - this.#options.memory.leftBytes() - this.slots.bytes('stopping');
    for (const slot of victims(this.slots.idle(), shortBytes)) void this.stop(slot, true);
  }

  /** A slot for this session, to be filled by `start`. */
  add(session: StartSession, isSpare = false): Slot<W> {
    return this.slots.add({ ...session, generation: this.#generation }, isSpare);
  }

  /** Starts a process in a slot, once one that was there before is gone. Throws what the start throws. */
  async start(slot: Slot<W>): Promise<W> {
    this.#starting.add(slot);
    const started = (): void => {
      if (!this.#starting.delete(slot)) return;
      this.#startPeak.note(slot.worker?.peakBytes() ?? 0);
      this.#weigh(slot);
      this.#listener.onChange();
    };
    try {
      await slot.worker?.stop();
      slot.worker = undefined;
      const { userId, sessionId } = slot;
      const worker = await this.#options.start({ userId, sessionId, isNew: slot.isNew && slot.turns === 0 });
      slot.worker = worker;
      const tooLong = new Promise<void>((resolve) => setTimeout(resolve, maxStartMs).unref());
      void Promise.race([worker.started, tooLong]).then(started);
      void worker.exited.then(() => {
        if (slot.state === 'idle' && slot.worker === worker) void this.stop(slot);
      });
      return worker;
    } catch (error) {
      started();
      throw error;
    }
  }

  /** Lends the process to a turn. */
  lease(slot: Slot<W>): void {
    clearTimeout(slot.idleTimer);
    this.slots.move(slot, 'leased');
  }

  /** Keeps the process warm after a turn where it is fit for another; stops it where it is not. Gives whether it is kept. */
  endTurn(slot: Slot<W>): boolean {
    slot.turns += 1;
    this.#weigh(slot);
    const isFit = slot.worker?.isReusable === true && slot.turns < maxTurnsPerProcess && slot.heldBytes < maxHeldBytes;
    if (!isFit) void this.stop(slot);
    return isFit && this.keepWarm(slot);
  }

  /** Makes a slot idle, the last one to give way; one that was retired meanwhile is stopped. Gives whether it is kept. */
  keepWarm(slot: Slot<W>): boolean {
    if (slot.generation !== this.#generation || this.#options.warmMs === 0) {
      void this.stop(slot);
      return false;
    }
    this.slots.move(slot, 'idle');
    slot.idleTimer = setTimeout(() => void this.stop(slot), this.#options.warmMs).unref();
    return true;
  }

  /** Stops the idle processes, and those in use after their turn. */
  retireAll(): void {
    this.#generation += 1;
    for (const slot of [...this.slots.idle()]) void this.stop(slot);
  }

  /** Ends a slot's process; the slot is free, and its session too, only when the process is gone. Never rejects. */
  async stop(slot: Slot<W>, atOnce = false): Promise<void> {
    clearTimeout(slot.idleTimer);
    this.#listener.onStop(slot);
    this.slots.move(slot, 'stopping');
    await slot.worker?.stop(atOnce);
    this.slots.remove(slot);
    this.#listener.onChange();
  }

  #weigh(slot: Slot<W>): void {
    this.slots.weigh(slot, slot.worker?.heldBytes() ?? 0);
  }
}
