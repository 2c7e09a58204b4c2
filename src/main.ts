import { readFile } from 'node:fs/promises';
import { createApp, StartError } from './app.ts';
import { ConfigError, machineEnv, parseConfig, type Config } from './env.ts';
import { chooseLogFormat, createLog } from './log.ts';
import { describeBug, errorCode } from './problem.ts';

// sysexits.h: a configuration error, on which systemd does not restart, and an internal one.
const exitConfig = 78;
const exitBug = 70;

async function main(): Promise<void> {
  const config = await readConfig();
  process.stdout.on('error', () => {});
  const log = createLog(chooseLogFormat(process.env['JOURNAL_STREAM'], process.stdout.isTTY), (line) => process.stdout.write(line));
  for (const message of config.warnings) log('warning', 'config', { message });
  const app = await createApp(config, { log, terminal: [process.stdout, process.stderr].find((stream) => stream.isTTY) });

  let isStopping = false;
  let exitCode = 0;
  /** Drains at the first call, quits at the next. */
  const end = async (graceMs: number): Promise<void> => {
    if (isStopping) exitCode ||= 1;
    const ended = isStopping ? app.quit() : app.stop(graceMs);
    isStopping = true;
    await ended;
    process.exit(exitCode);
  };
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.on(signal, () => {
      log('info', isStopping ? 'quitting' : 'draining', { signal });
      void end(config.drainTimeoutMs);
    });
  }
  process.on('uncaughtException', (error) => {
    log('error', 'bug', { message: 'a bug ends the server; please report it', cause: describeBug(error) });
    exitCode = exitBug;
    void end(0);
  });
  await app.listen();
}

async function readConfig(): Promise<Config> {
  const text = await readFile('.env', 'utf8').catch((error: unknown) => {
    if (errorCode(error) === 'ENOENT') return '';
    throw new ConfigError([`.env: cannot be read (${errorCode(error)})`]);
  });
  return parseConfig(machineEnv(process.env), text, process.getuid?.() === 0);
}

function fail(error: unknown): never {
  if (error instanceof ConfigError) exit(exitConfig, [...error.warnings.map((warning) => `warning: ${warning}`), ...error.problems]);
  if (error instanceof StartError) exit(1, [error.message]);
  throw error;
}

function exit(status: number, problems: readonly string[]): never {
  for (const problem of problems) process.stderr.write(`claude-api: ${problem}\n`);
  process.exit(status);
}

await main().catch(fail);
