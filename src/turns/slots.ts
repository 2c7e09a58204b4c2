import { sessionKey, type SessionState } from './queue.ts';

/** `starting`: no process yet. `leased`: lent to a turn. `idle`: kept warm. `stopping`: its process is leaving. */
export type SlotState = 'starting' | 'leased' | 'idle' | 'stopping';

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
  /** Turns it has had. */
  turns: number;
  idleTimer: NodeJS.Timeout | undefined;
}

/** All slots, found by their session; each has one state. A change of state takes the same time however many there are. */
export class Slots<W> {
  readonly #bySession = new Map<string, Slot<W>>();
  readonly #inState: Readonly<Record<SlotState, Set<Slot<W>>>> = {
    starting: new Set(), leased: new Set(), idle: new Set(), stopping: new Set(),
  };
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

  find(userId: number, sessionId: string): Slot<W> | undefined {
    return this.#bySession.get(sessionKey(userId, sessionId));
  }

  /** The idle ones, the longest idle first. */
  idle(): Iterable<Slot<W>> {
    return this.#inState.idle;
  }

  /** What the next turn of this session finds. */
  sessionState(userId: number, sessionId: string | undefined): SessionState {
    const slot = sessionId === undefined ? undefined : this.find(userId, sessionId);
    return slot === undefined ? 'none' : sessionStateOf(slot.state);
  }

  /** Makes one that is starting. */
  add(facts: Pick<Slot<W>, 'userId' | 'sessionId' | 'isNew' | 'generation'>): Slot<W> {
    const slot: Slot<W> = { ...facts, state: 'starting', worker: undefined, turns: 0, idleTimer: undefined };
    const key = sessionKey(slot.userId, slot.sessionId);
    this.#bySession.set(key, slot);
    this.#inState.starting.add(slot);
    this.#onChange(key, 'busy');
    return slot;
  }

  move(slot: Slot<W>, state: SlotState): void {
    this.#inState[slot.state].delete(slot);
    this.#inState[state].add(slot);
    slot.state = state;
    this.#onChange(sessionKey(slot.userId, slot.sessionId), sessionStateOf(state));
  }

  remove(slot: Slot<W>): void {
    const key = sessionKey(slot.userId, slot.sessionId);
    this.#inState[slot.state].delete(slot);
    this.#bySession.delete(key);
    this.#onChange(key, 'none');
  }
}

function sessionStateOf(state: SlotState): SessionState {
  return state === 'idle' ? 'idle' : 'busy';
}
