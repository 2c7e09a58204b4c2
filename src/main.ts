import { readFile } from 'node:fs/promises';
import { createApp, StartError } from './app.ts';
import { ConfigError, machineEnv, parseConfig, type Config } from './env.ts';
import { platformProblems } from './host/platform.ts';
import { chooseLogFormat, createLog, outputTo } from './log.ts';
import { describeBug, errorCode } from './problem.ts';
import { closeInheritedDescriptors } from './sandbox/sandbox.ts';

// sysexits.h: a configuration error, on which systemd does not restart, and an internal one.
const exitCodes = { config: 78, bug: 70 } as const;
// One Ctrl-C comes from the terminal, npm and node --watch each; a person's next one takes longer.
const sameStopMs = 300;

async function main(): Promise<void> {
  const config = await readConfig();
  const { stdout } = process;
  const log = createLog(chooseLogFormat(process.env['JOURNAL_STREAM'], stdout.isTTY), outputTo(stdout));
  closeInheritedDescriptors(Number(process.env['NODE_CHANNEL_FD'] ?? -1));
  const terminal = [stdout, process.stderr].find((stream) => stream.isTTY);
  const app = await createApp(config, { log, terminal, onRefusal });

  let stoppedAt: number | undefined;
  let exitCode = 0;
  /** Drains at the first call, quits at the next. */
  const end = async (graceMs: number): Promise<void> => {
    if (stoppedAt !== undefined) exitCode ||= 1;
    const ended = stoppedAt === undefined ? app.stop(graceMs) : app.quit();
    stoppedAt ??= performance.now();
    await ended;
    process.exit(exitCode);
  };
  function onRefusal(error: StartError): void {
    say(error);
    exitCode ||= error.exitCode;
    void end(0);
  }
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
    process.on(signal, () => {
      if (stoppedAt !== undefined && performance.now() - stoppedAt < sameStopMs) return;
      log('info', stoppedAt === undefined ? 'draining' : 'quitting', { signal });
      void end(config.drainTimeoutMs);
    });
  }
  process.on('uncaughtException', (error) => {
    log('error', 'bug', { message: 'a bug ends the server; please report it', cause: describeBug(error) });
    exitCode = exitCodes.bug;
    void end(0);
  });
  await app.listen();
}

async function readConfig(): Promise<Config> {
  const problems = platformProblems(process.platform, process.versions.node);
  if (problems.length > 0) throw new ConfigError(problems);
  const text = await readFile('.env', 'utf8').catch((error: unknown) => {
    if (errorCode(error) === 'ENOENT') return '';
    throw new ConfigError([`.env: cannot be read (${errorCode(error)})`]);
  });
  return parseConfig(machineEnv(process.env), text, process.getuid?.() === 0);
}

function fail(error: unknown): never {
  if (!(error instanceof ConfigError || error instanceof StartError)) throw error;
  say(error);
  process.exit(error instanceof ConfigError ? exitCodes.config : error.exitCode);
}

function say(error: Error): void {
  for (const line of error.message.split('\n')) process.stderr.write(`claude-api: ${line}\n`);
}

await main().catch(fail);
