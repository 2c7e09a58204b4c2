import { spawn, type ChildProcessByStdio } from 'node:child_process';
import { readFileSync } from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import { Dialogue, type TurnEnd, type TurnEvent } from './dialogue.ts';
import { machineExhausted } from '../host/memory.ts';
import { problemOfEnd, type ExitStatus } from './outcome.ts';
import { endMarked, markerName } from './strays.ts';
import { LineSplitter } from './ndjson.ts';
import { errorCode } from '../problem.ts';
import { initializeLine, interruptLine, parseLine, userLine } from './protocol.ts';
import { lastWords } from './words.ts';

/** Everything needed to start one CLI process. */
export interface Launch {
  readonly command: string;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  /** An existing folder: a missing one would look like a missing binary (fact 34). */
  readonly cwd: string;
  /** The value of the marker variable, this worker's alone. */
  readonly marker: string;
  /** The session it serves, which the CLI is told by an argument. */
  readonly sessionId: string;
  /** Whether the folders it works in are still there. */
  readonly isInPlace: () => boolean;
}

// Four times the largest answer seen; a 32 MiB line must pass, an endless one must not fill the memory of a small VPS.
const maxLineBytes = 64 * 1024 * 1024;
// Enough for the error that ended the CLI, small enough for a log line.
const stderrTailBytes = 4096;
// How long each step of a stop may take before the next, harder one (facts 15 to 18).
const stepMs = 2000;
// A tool may hold our pipe open long after the CLI is gone; what the CLI itself wrote is there at once.
const drainMs = 500;

/** One live CLI process, taking one turn at a time. Ends together with the server where setpriv exists. */
export class Worker {
  /** Resolves when the CLI is up and reading, or gone; never rejects. */
  readonly started: Promise<void>;
  /** Resolves when the process is gone; never rejects. */
  readonly exited: Promise<void>;
  readonly #child: ChildProcessByStdio<Writable, Readable, Readable>;
  readonly #marker: string;
  readonly #isInPlace: () => boolean;
  readonly #lines = new LineSplitter(maxLineBytes);
  readonly #dialogue: Dialogue;
  #exit: ExitStatus | undefined;
  #stopping: Promise<void> | undefined;
  #stderrTail = '';

  constructor(launch: Launch) {
    this.#marker = launch.marker;
    this.#isInPlace = launch.isInPlace;
    this.#dialogue = new Dialogue(launch.sessionId, () => void this.stop());
    this.#child = spawnCli(launch);
    this.exited = new Promise((resolve) => this.#watch(resolve));
    // Without a descriptor left there are no pipes either, whatever the types say.
    if (this.#child.stdin === undefined) throw machineExhausted();
    // The CLI says nothing before its first message, but it answers this one as soon as it is up (fact 1).
    this.#child.stdin.write(initializeLine);
    const spoke = new Promise<void>((resolve) => this.#child.stdout.once('data', () => resolve()));
    this.started = Promise.race([spoke, this.exited]);
  }

  /** Whether another turn may be sent: alive, idle, its folders still there, and nothing went wrong so far. */
  get isReusable(): boolean {
    return this.#dialogue.isReady && this.#stopping === undefined && this.#exit === undefined && this.#isInPlace();
  }

  /** Bytes of memory the process holds now; 0 when it is gone. */
  residentBytes(): number {
    try {
      const [, kibibytes] = /^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${this.#child.pid}/status`, 'latin1')) ?? [];
      return Number(kibibytes ?? 0) * 1024;
    } catch {
      return 0;
    }
  }

  /**
   * Sends a prompt and resolves when the result line arrives, not when the process ends; without one, when the process
   * is gone. Never rejects. When `signal` aborts, the turn is interrupted and the process stopped, and the turn
   * resolves within 5 s. Throws when a turn is running already.
   */
  turn(prompt: string, signal: AbortSignal, onEvent: (event: TurnEvent) => void): Promise<TurnEnd> {
    const end = this.#dialogue.begin(onEvent);
    if (this.#exit !== undefined) {
      this.#failTurn();
      return end;
    }
    const stop = (): void => void this.stop();
    signal.addEventListener('abort', stop, { once: true });
    if (signal.aborted) stop();
    this.#child.stdin.write(userLine(prompt));
    return end.finally(() => signal.removeEventListener('abort', stop));
  }

  /**
   * Ends the process and everything it started: asks (interrupt, end of stdin), then SIGINT, then SIGKILL to the group
   * and to whatever still carries the marker. Takes at most 8 s, about 50 ms when idle. Never rejects; safe to repeat.
   */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  async #stop(): Promise<void> {
    this.#child.stdin.write(interruptLine);
    // After an interrupt or an answer the CLI leaves by itself once stdin ends, with its transcript written.
    this.#child.stdin.end();
    // SIGTERM is not on the ladder: it may leave running tools behind (fact 17).
    const harder = [() => this.#child.kill('SIGINT'), () => this.#killGroup(), () => this.#child.stdout.destroy()];
    for (const step of harder) {
      if (await this.#exitsWithin(stepMs)) break;
      step();
    }
    this.#killGroup();
    await endMarked(this.#marker);
  }

  /** Also after the CLI's own end: what it started without our marker may still be in its group. */
  #killGroup(): void {
    try {
      if (this.#child.pid !== undefined) process.kill(-this.#child.pid, 'SIGKILL');
    } catch {
      // Nobody is left in it.
    }
  }

  #exitsWithin(timeoutMs: number): Promise<boolean> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => resolve(false), timeoutMs);
      void this.exited.then(() => {
        clearTimeout(timer);
        resolve(true);
      });
    });
  }

  #watch(resolveExited: () => void): void {
    const { stdin, stdout, stderr } = this.#child;
    // A CLI that is gone turns a write into EPIPE; without a listener that would end the server.
    stdin?.on('error', () => {});
    stdout?.on('data', (chunk: Buffer) => this.#read(chunk));
    stdout?.on('error', () => {});
    stderr?.on('data', (chunk: Buffer) => {
      this.#stderrTail = (this.#stderrTail + chunk.toString('utf8')).slice(-stderrTailBytes);
    });
    stderr?.on('error', () => {});
    const onGone = (exit: ExitStatus): void => {
      if (this.#exit !== undefined) return;
      this.#exit = exit;
      resolveExited();
      void this.#drain().then(() => this.#failTurn());
    };
    this.#child.on('error', (error) => onGone({ code: null, signal: null, spawnError: errorCode(error) ?? '' }));
    // 'exit', not 'close': a tool the CLI started may hold our pipe open for minutes.
    this.#child.on('exit', (code, signal) => onGone({ code, signal }));
  }

  /** Waits for what the CLI wrote before it ended; the result may be in it. */
  async #drain(): Promise<void> {
    const { stdout } = this.#child;
    if (this.#exit?.spawnError !== undefined || stdout.closed) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, drainMs);
      stdout.once('close', () => {
        clearTimeout(timer);
        resolve();
      });
    });
    stdout.destroy();
    this.#child.stderr.destroy();
  }

  #read(chunk: Buffer): void {
    try {
      for (const line of this.#lines.push(chunk)) {
        for (const event of parseLine(line)) this.#dialogue.hear(event);
      }
    } catch {
      // Neither half a line nor half a protocol can be trusted again.
      this.#failTurn();
      void this.stop();
    }
  }

  #failTurn(): void {
    this.#dialogue.fail(this.#exit, lastWords(this.#stderrTail));
  }
}

function spawnCli({ command, args, env, cwd, marker }: Launch): ChildProcessByStdio<Writable, Readable, Readable> {
  try {
    return spawn(command, args, { cwd, env: { ...env, [markerName]: marker }, stdio: ['pipe', 'pipe', 'pipe'], detached: true });
  } catch (error) {
    // Node tells some failures by an event and throws others, such as ENOMEM, at once. Too long settings stay so.
    const spawnError = errorCode(error) ?? '';
    if (spawnError === 'E2BIG') throw error;
    throw problemOfEnd({ code: null, signal: null, spawnError }, false).with({ cause: error });
  }
}
