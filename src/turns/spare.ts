/** What decides about the spare: the process started ahead for the next new dialogue. */
interface SpareView {
  /** Who last began a dialogue; undefined when nobody did, or when the last spare was not wanted. */
  readonly wantedUserId: number | undefined;
  /** Whose spare there is, starting ones included. */
  readonly spareUserId: number | undefined;
  /** Whether it can be stopped: it is up, and waits. */
  readonly isSpareIdle: boolean;
  /** Whether turns wait, or other processes start or stop: they come first. */
  readonly isBusy: boolean;
  readonly hasRoom: () => boolean;
  /** Idle processes, the spare not counted. */
  readonly idle: number;
}

// With fewer, a dialogue that goes on is likelier than one that begins.
const leastIdle = 4;

/** What to do about the spare now. Whoever began a dialogue is likely to begin another. */
export function spareAction(view: SpareView): 'start' | 'stop' | 'makeRoom' | 'nothing' {
  const { wantedUserId, spareUserId, isSpareIdle, isBusy, hasRoom, idle } = view;
  if (wantedUserId === undefined || wantedUserId === spareUserId || isBusy) return 'nothing';
  if (spareUserId !== undefined) return isSpareIdle ? 'stop' : 'nothing';
  if (hasRoom()) return 'start';
  return idle >= leastIdle ? 'makeRoom' : 'nothing';
}
