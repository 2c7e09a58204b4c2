import { spawn, type ChildProcessByStdio } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import { LineMemory, LineSplitter } from '../src/cli/ndjson.ts';

/** The CLI driven directly over its own stdin: what the server is measured against. Same arguments, same environment. */
export class DirectCli {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #lines = new LineSplitter(new LineMemory(96 * 1024 * 1024));
  #onResult: (() => void) | undefined;

  constructor(binary: string, args: readonly string[], env: Readonly<Record<string, string>>, cwd: string) {
    mkdirSync(cwd, { recursive: true });
    this.#child = spawn(binary, args, { cwd, env, stdio: ['pipe', 'pipe', 'ignore'] });
    this.#child.stdout.on('data', (chunk: Buffer) => {
      for (const line of this.#lines.push(chunk)) {
        const message = JSON.parse(line) as { type?: string; is_error?: boolean };
        if (message.type !== 'result') continue;
        if (message.is_error !== false) throw new Error('the CLI did not answer');
        this.#onResult?.();
      }
    });
  }

  /** Resolves when the result of this prompt is there. */
  turn(prompt: string): Promise<void> {
    return new Promise((resolve) => {
      this.#onResult = resolve;
      this.#child.stdin.write(JSON.stringify({ type: 'user', message: { role: 'user', content: prompt } }) + '\n');
    });
  }

  /** Resolves when the process is gone. */
  end(): Promise<void> {
    return new Promise((resolve) => {
      this.#child.once('exit', () => resolve());
      this.#child.stdin.end();
    });
  }
}
