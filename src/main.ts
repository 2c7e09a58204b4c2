import { readFile } from 'node:fs/promises';
import { createApp, StartError } from './app.ts';
import { ConfigError, machineEnv, parseConfig, type Config } from './env.ts';
import { platformProblems } from './host/platform.ts';
import { chooseLogFormat, createLog, outputTo } from './log.ts';
import { describeBug, errorCode } from './problem.ts';
import { closeInheritedDescriptors } from './sandbox/sandbox.ts';
import { createEnding } from './shutdown.ts';

// sysexits.h: an internal error.
const exitBug = 70;

async function main(): Promise<void> {
  const config = await readConfig();
  const { stdout } = process;
  const log = createLog(chooseLogFormat(process.env['JOURNAL_STREAM'], stdout.isTTY), outputTo(stdout));
  closeInheritedDescriptors(Number(process.env['NODE_CHANNEL_FD'] ?? -1));
  const terminal = [stdout, process.stderr].find((stream) => stream.isTTY);
  const app = await createApp(config, {
    log,
    terminal,
    onRefusal: (error) => {
      say(error);
      ending.byFailure(error.exitCode);
    },
  });
  const ending = createEnding(app, process.exit, log);
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, () => ending.bySignal(signal, config.drainTimeoutMs));
  process.on('uncaughtException', (error) => {
    log('error', 'bug', { message: 'a bug ends the server; please report it', cause: describeBug(error) });
    ending.byFailure(exitBug);
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
  process.exit(error.exitCode);
}

function say(error: Error): void {
  for (const line of error.message.split('\n')) process.stderr.write(`claude-api: ${line}\n`);
}

await main().catch(fail);
