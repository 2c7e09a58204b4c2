import { storageUnavailable } from '../host/storage.ts';
import { spawnCli, statusPipeOf, type CliProcess, type Launch } from './launch.ts';
import { Dialogue, type TurnEnd, type TurnEvent } from './dialogue.ts';
import { machineExhausted } from '../host/memory.ts';
import { heldBytes, killGroup, peakBytes, treeOf } from '../host/processes.ts';
import { sandboxUnavailable, tooManyRefusals, withApiReport, type ExitStatus } from './outcome.ts';
import { endMarked } from './strays.ts';
import { LineMemory, LineSplitter } from './ndjson.ts';
import { readPaced } from './pace.ts';
import { errorCode, type Problem } from '../problem.ts';
import type { TurnReport } from '../sandbox/api-turn.ts';
import { hasProgramRun } from '../sandbox/sandbox.ts';
import { inTime } from '../waiting.ts';
import { interruptLine, parseLine, readinessLine, userLine, type Message } from './protocol.ts';
import { lastWords } from './words.ts';

// A line of 32 MiB must pass; endless ones of twenty processes must not fill the memory of a small VPS.
const lineMemory = new LineMemory(96 * 1024 * 1024);
// Enough for the error that ended the CLI, small enough for a log line.
const stderrTailBytes = 4096;
// How long each step of a stop may take before the next, harder one (facts 15 to 18).
const stepMs = 2000;
// A tool may hold our pipe open long after the CLI is gone; what the CLI itself wrote is there at once.
const drainMs = 500;
// An honest turn's tools have ended by then.
const toolsEndMs = 1000;

/** One live CLI process, taking one turn at a time. Ends together with the server where setpriv or a sandbox exists. */
export class Worker {
  /** Resolves when the CLI is up and reading, or gone; never rejects. */
  readonly started: Promise<void>;
  /** Resolves when the process is gone; never rejects. */
  readonly exited: Promise<void>;
  readonly #child: CliProcess;
  readonly #launch: Launch;
  readonly #lines = new LineSplitter(lineMemory);
  readonly #dialogue: Dialogue;
  #exit: ExitStatus | undefined;
  #stopping: Promise<void> | undefined;
  #stderrTail = '';
  #status = '';
  #isAsking = false;
  #report: TurnReport | undefined;
  #treeCheck: NodeJS.Timeout | undefined;

  constructor(launch: Launch) {
    this.#launch = launch;
    this.#dialogue = new Dialogue(launch.sessionId, launch.sandbox !== undefined, () => void this.stop());
    this.#child = spawnCli(launch);
    this.exited = new Promise((resolve) => this.#watch(resolve));
    // Without a descriptor left there are no pipes either, whatever the types say.
    if (this.#child.stdin === undefined) throw machineExhausted();
    // The CLI says nothing before its first message, but it answers this one as soon as it is up (fact 1).
    this.#child.stdin.write(readinessLine);
    const spoke = new Promise<void>((resolve) => this.#child.stdout.once('data', () => resolve()));
    this.started = Promise.race([spoke, this.exited]);
  }

  /** Whether another turn may be sent: alive, idle, its folders still there, and nothing went wrong so far. */
  get isReusable(): boolean {
    return this.#dialogue.isReady && this.#stopping === undefined && this.#exit === undefined && this.#launch.isInPlace();
  }

  /** Bytes of memory that would come back if it ended now, with all it started; 0 when it is gone. Takes about 0.1 ms. */
  heldBytes(): number {
    return this.#launch.group?.heldBytes() ?? heldBytes(this.#child.pid ?? 0);
  }

  /** The most bytes of memory it has had, pages of files included; 0 when it is gone. */
  peakBytes(): number {
    return peakBytes(this.#child.pid ?? 0);
  }

  /**
   * Sends a message and resolves when the result line arrives, not when the process ends, with the files Claude gave;
   * without one, when the process is gone. Never rejects. When `signal` aborts, the turn is interrupted and the process
   * stopped, and the turn resolves within 5 s.
   */
  turn(message: Message, signal: AbortSignal, onEvent: (event: TurnEvent) => void): Promise<TurnEnd> {
    const { boxes, inbox } = this.#launch;
    const stop = (): void => void this.stop();
    signal.addEventListener('abort', stop);
    if (signal.aborted) stop();
    const end = boxes.around(message.files ?? [], signal, () => this.#say(userLine(message, inbox), onEvent));
    return end.finally(() => signal.removeEventListener('abort', stop));
  }

  /** Throws when a turn is running already. */
  #say(line: string, onEvent: (event: TurnEvent) => void): Promise<TurnEnd> {
    const end = this.#dialogue.begin(onEvent);
    if (this.#exit !== undefined) {
      this.#failTurn();
      return end;
    }
    this.#beginApiTurn();
    this.#child.stdin.write(line);
    return end.then((turnEnd) => {
      this.#endApiTurn();
      return this.#report === undefined ? turnEnd : withApiReport(turnEnd, this.#report);
    });
  }

  #beginApiTurn(): void {
    if (this.#launch.sandbox === undefined) return;
    clearTimeout(this.#treeCheck);
    const { api, limits } = this.#launch.sandbox;
    this.#report = undefined;
    this.#isAsking = true;
    api.beginTurn({ ...limits, onTooManyRefusals: () => this.#dialogue.giveUp(tooManyRefusals()) });
  }

  /** Once, whichever comes first: the turn's end or the process's. */
  #endApiTurn(): void {
    if (!this.#isAsking) return;
    this.#isAsking = false;
    this.#report = this.#launch.sandbox?.api.endTurn();
    this.#treeCheck = setTimeout(() => this.#stopIfBusy(), toolsEndMs).unref();
  }

  /** A result that a tool forged, or a program left in the background, must not go on working in a warm process. */
  #stopIfBusy(): void {
    if (this.isReusable && this.countProcesses() > (this.#launch.sandbox?.processes ?? Infinity)) void this.stop();
  }

  /** How many processes there are now, what they started included. */
  countProcesses(): number {
    return treeOf(this.#child.pid ?? 0).length;
  }

  /** Whether the CLI read the login at its start, so that another one is used only by another process. */
  get hasOwnLogin(): boolean {
    return this.#launch.sandbox === undefined;
  }

  /**
   * Ends the process and everything it started: asks (interrupt, end of stdin), then SIGINT where no sandbox stands before
   * it, then SIGKILL to the group and to whatever still carries the marker. Takes at most 10 s, about 50 ms when idle.
   * Never rejects; safe to repeat.
   * `atOnce` asks nobody: where memory is short a process takes seconds to leave by itself, and an idle one has its
   * dialogue on disk.
   */
  stop(atOnce = false): Promise<void> {
    if (atOnce) killGroup(this.#child.pid);
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  async #stop(): Promise<void> {
    this.#child.stdin.write(interruptLine);
    // After an interrupt or an answer the CLI leaves by itself once stdin ends, with its transcript written.
    this.#child.stdin.end();
    // SIGTERM is not on the ladder: it may leave running tools behind (fact 17).
    const force = [() => killGroup(this.#child.pid), () => this.#child.stdout.destroy()];
    const harder = this.#launch.sandbox === undefined ? [() => this.#child.kill('SIGINT'), ...force] : force;
    for (const step of harder) {
      if (await inTime(this.exited.then(() => true), stepMs, false)) break;
      step();
    }
    // Also after the CLI's own end: what it started without our marker may still be in its group.
    killGroup(this.#child.pid);
    await (this.#launch.group?.end() ?? endMarked(this.#launch.marker));
    this.#endApiTurn();
    await this.#launch.sandbox?.api.close();
    // Its user may have left more in them than can be removed while somebody waits.
    await inTime(this.#launch.boxes.remove(), stepMs, undefined);
  }

  #watch(resolveExited: () => void): void {
    const { stdin, stdout, stderr } = this.#child;
    // A CLI that is gone turns a write into EPIPE; without a listener that would end the server.
    stdin?.on('error', () => {});
    if (stdout) readPaced(stdout, (chunk) => this.#read(chunk));
    stdout?.on('error', () => {});
    if (stderr) {
      readPaced(stderr, (chunk) => {
        this.#stderrTail = (this.#stderrTail + chunk.toString('utf8')).slice(-stderrTailBytes);
      });
    }
    stderr?.on('error', () => {});
    statusPipeOf(this.#child)?.setEncoding('utf8').on('data', (text: string) => (this.#status += text)).on('error', () => {});
    const onGone = (exit: ExitStatus): void => {
      if (this.#exit !== undefined) return;
      this.#exit = exit;
      resolveExited();
      void this.#drain().then((isAll) => {
        this.#lines.drop();
        if (!isAll) this.#dialogue.doubt();
        this.#failTurn();
      });
    };
    this.#child.on('error', (error) => onGone({ code: null, signal: null, spawnError: errorCode(error) ?? '' }));
    // 'exit', not 'close': a tool the CLI started may hold our pipe open for minutes.
    this.#child.on('exit', (code, signal) => onGone({ code, signal }));
  }

  /** Waits for what the CLI wrote before it ended; the result may be in it. Gives whether nobody is left who may write more. */
  async #drain(): Promise<boolean> {
    const { stdout } = this.#child;
    if (this.#exit?.spawnError !== undefined) return true;
    const open = [stdout, statusPipeOf(this.#child)].filter((stream) => stream !== undefined && !stream.closed);
    const closed = Promise.all(open.map((stream) => new Promise((resolve) => stream?.once('close', resolve))));
    const isAll = await inTime(closed.then(() => true), drainMs, false);
    stdout.destroy();
    this.#child.stderr.destroy();
    return isAll;
  }

  #read(chunk: Buffer): void {
    try {
      for (const line of this.#lines.push(chunk)) {
        for (const event of parseLine(line)) {
          this.#dialogue.hear(event);
          if (event.type === 'init') this.#launch.onTools?.(event.tools);
        }
      }
    } catch {
      // Neither half a line nor half a protocol can be trusted again.
      this.#failTurn();
      void this.stop();
    }
  }

  #failTurn(): void {
    this.#dialogue.fail(this.#exit, lastWords(this.#stderrTail), this.#sandboxProblem());
  }

  /** Why there was no sandbox for the CLI, if that is how it ended: bubblewrap ended by itself, and nothing had run in it. */
  #sandboxProblem(): Problem | undefined {
    if (this.#launch.sandbox === undefined || this.#exit === undefined) return undefined;
    const { signal, spawnError } = this.#exit;
    const isUnfound = spawnError === 'ENOENT' || spawnError === 'EACCES';
    const isUnmade = spawnError === undefined && signal === null && !hasProgramRun(this.#status);
    if (!isUnfound && !isUnmade) return undefined;
    return this.#launch.isInPlace() ? sandboxUnavailable() : storageUnavailable(new Error('folders of a user were removed or replaced'));
  }
}
