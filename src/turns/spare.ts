/** What decides about the spare: the process started ahead for the next new dialogue. */
interface SpareView {
  /** Who last began a dialogue; undefined when nobody did, or when the last spare was not wanted. */
  readonly wantedUserId: number | undefined;
  /** Whose spare there is, starting ones included. */
  readonly spareUserId: number | undefined;
  /** Whether it can be stopped: it is up, and waits. */
  readonly isSpareIdle: boolean;
  /** Whether turns wait, or other processes start: they come first. */
  readonly isBusy: boolean;
  readonly hasRoom: boolean;
}

/** What to do about the spare now. Whoever began a dialogue is likely to begin another. */
export function spareAction({ wantedUserId, spareUserId, isSpareIdle, isBusy, hasRoom }: SpareView): 'start' | 'stop' | 'nothing' {
  if (wantedUserId === undefined || wantedUserId === spareUserId || isBusy) return 'nothing';
  if (spareUserId !== undefined) return isSpareIdle ? 'stop' : 'nothing';
  return hasRoom ? 'start' : 'nothing';
}
