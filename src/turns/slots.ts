import { sessionKey, type SessionState } from './queue.ts';

/** `starting`: no process yet. `leased`: lent to a turn. `idle`: kept warm. `stopping`: its process is leaving. */
type SlotState = 'starting' | 'leased' | 'idle' | 'stopping';

/** Room for one CLI process, and the process in it. */
export interface Slot<W> {
  readonly userId: number;
  readonly sessionId: string;
  /** Whether the session began here, and not by resuming. */
  readonly isNew: boolean;
  /** Counts the calls of `Pool.retireAll` before it was made. */
  readonly generation: number;
  state: SlotState;
  worker: W | undefined;
  /** Bytes its process held when it was last looked at; changed by `Slots.weigh` alone. */
  heldBytes: number;
  /** Turns it has had. */
  turns: number;
  idleTimer: NodeJS.Timeout | undefined;
}

// An idle process holds 95 to 145 MB (facts 60, 75); one with twice as much has read a file of megabytes, or a long dialogue.
const fatBytes = 256 * 1024 * 1024;

/** All slots, found by their session; each has one state. A change of state takes the same time however many there are. */
export class Slots<W> {
  readonly #bySession = new Map<string, Slot<W>>();
  readonly #inState: Readonly<Record<SlotState, Set<Slot<W>>>> = {
    starting: new Set(), leased: new Set(), idle: new Set(), stopping: new Set(),
  };
  readonly #bytesIn: Record<SlotState, number> = { starting: 0, leased: 0, idle: 0, stopping: 0 };
  #spare: Slot<W> | undefined;
  readonly #fatIdle = new Set<Slot<W>>();
  /** How many slots each user has that start or are lent. */
  readonly #running = new Map<number, number>();
  readonly #onChange: (key: string, state: SessionState) => void;

  /** `onChange` hears what the next turn of a session finds from now on. */
  constructor(onChange: (key: string, state: SessionState) => void) {
    this.#onChange = onChange;
  }

  get size(): number {
    return this.#bySession.size;
  }

  count(state: SlotState): number {
    return this.#inState[state].size;
  }

  /** Bytes that the processes in this state held when they were last looked at; those of all without one. */
  bytes(state?: SlotState): number {
    return state === undefined ? Object.values(this.#bytesIn).reduce((sum, bytes) => sum + bytes, 0) : this.#bytesIn[state];
  }

  /** How many processes start for this user's turns, or are lent to them. */
  runningOf(userId: number): number {
    return this.#running.get(userId) ?? 0;
  }

  find(userId: number, sessionId: string): Slot<W> | undefined {
    return this.#bySession.get(sessionKey(userId, sessionId));
  }

  /** The one that starts, or waits, for the next dialogue of its user. */
  get spare(): Slot<W> | undefined {
    return this.#spare;
  }

  /** The idle ones in the order in which they give way: the spare, fat ones, then the longest idle. */
  *idle(): Generator<Slot<W>> {
    const spare = this.#spare;
    if (spare?.state === 'idle') yield spare;
    for (const slot of this.#fatIdle) if (slot !== spare) yield slot;
    for (const slot of this.#inState.idle) if (slot !== spare && !this.#fatIdle.has(slot)) yield slot;
  }

  /** Notes what the slot's process holds, where there still is such a slot. */
  weigh(slot: Slot<W>, bytes: number): void {
    if (this.#bySession.get(keyOf(slot)) !== slot) return;
    this.#leave(slot);
    slot.heldBytes = bytes;
    this.#enter(slot);
  }

  /** What the next turn of this session finds. */
  sessionState(userId: number, sessionId: string | undefined): SessionState {
    const slot = sessionId === undefined ? undefined : this.find(userId, sessionId);
    return slot === undefined ? 'none' : sessionStateOf(slot.state);
  }

  /** Makes one that is starting. */
  add(facts: Pick<Slot<W>, 'userId' | 'sessionId' | 'isNew' | 'generation'>, isSpare: boolean): Slot<W> {
    const slot: Slot<W> = { ...facts, state: 'starting', worker: undefined, heldBytes: 0, turns: 0, idleTimer: undefined };
    this.#bySession.set(keyOf(slot), slot);
    if (isSpare) this.#spare = slot;
    this.#enter(slot);
    this.#onChange(keyOf(slot), 'busy');
    return slot;
  }

  move(slot: Slot<W>, state: SlotState): void {
    this.#leave(slot);
    slot.state = state;
    if (slot === this.#spare && (state === 'leased' || state === 'stopping')) this.#spare = undefined;
    this.#enter(slot);
    this.#onChange(keyOf(slot), sessionStateOf(state));
  }

  remove(slot: Slot<W>): void {
    this.#leave(slot);
    this.#bySession.delete(keyOf(slot));
    this.#onChange(keyOf(slot), 'none');
  }

  #enter(slot: Slot<W>): void {
    this.#inState[slot.state].add(slot);
    this.#bytesIn[slot.state] += slot.heldBytes;
    if (slot.state === 'idle' && slot.heldBytes >= fatBytes) this.#fatIdle.add(slot);
    if (isRunning(slot)) this.#running.set(slot.userId, this.runningOf(slot.userId) + 1);
  }

  #leave(slot: Slot<W>): void {
    this.#inState[slot.state].delete(slot);
    this.#bytesIn[slot.state] -= slot.heldBytes;
    this.#fatIdle.delete(slot);
    if (!isRunning(slot)) return;
    if (this.runningOf(slot.userId) > 1) this.#running.set(slot.userId, this.runningOf(slot.userId) - 1);
    else this.#running.delete(slot.userId);
  }
}

function keyOf({ userId, sessionId }: Slot<unknown>): string {
  return sessionKey(userId, sessionId);
}

function isRunning({ state }: Slot<unknown>): boolean {
  return state === 'starting' || state === 'leased';
}

function sessionStateOf(state: SlotState): SessionState {
  return state === 'idle' ? 'idle' : 'busy';
}
