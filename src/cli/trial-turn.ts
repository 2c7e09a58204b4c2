import type { Log } from '../log.ts';
import { createApiProxy } from '../sandbox/api-proxy.ts';
import { cannedLogin, createCannedApi } from '../sandbox/canned-api.ts';
import { withNetwork, type NetworkProxy } from '../sandbox/network-proxy.ts';
import type { Launch } from './launch.ts';
import { Worker } from './worker.ts';

/** What the turn of a trial showed: the models that were asked for and the processes there are, or what failed, as a sentence. */
export type TrialTurn = { readonly models: readonly string[]; readonly processes: number } | { readonly problem: string };

/** What it asks; the answer is canned. */
const message = { prompt: 'Answer with the word ready.' };

interface TrialOptions {
  /** Starts the CLI with `socketFolder` bound. */
  readonly launch: Omit<Launch, 'sandbox'>;
  readonly openFilter: () => number;
  readonly socketFolder: string;
  readonly network: NetworkProxy | undefined;
  readonly log: Log;
  readonly timeoutMs: number;
}

/**
 * One turn in a sandbox through an API proxy that answers by itself, at no cost: it shows that the CLI takes the way
 * through the socket, and for which models. Never throws.
 */
export async function tryTurn({ launch, openFilter, socketFolder, network, log, timeoutMs }: TrialOptions): Promise<TrialTurn> {
  const canned = createCannedApi('ready');
  const rules = { models: undefined, isWebSearchAllowed: true };
  const proxy = createApiProxy({ upstream: canned, credentials: cannedLogin, rules: () => rules, log });
  try {
    const api = await withNetwork(await proxy.open(socketFolder), network);
    const worker = new Worker({ ...launch, sandbox: { openFilter, api, limits: { maxRequests: 20 }, processes: Infinity } });
    let processes: number;
    try {
      const { outcome } = await worker.turn(message, AbortSignal.timeout(timeoutMs), () => {});
      if ('problem' in outcome) return { problem: `a turn of the CLI fails inside: ${outcome.problem.message}` };
      processes = worker.countProcesses();
    } finally {
      await worker.stop();
    }
    const models = [...canned.models];
    return models.length > 0 ? { models, processes } : { problem: 'the CLI does not ask through its socket (ANTHROPIC_UNIX_SOCKET).' };
  } catch (error) {
    return { problem: `a turn of the CLI cannot be tried: ${error instanceof Error ? error.message : ''}` };
  } finally {
    proxy.close();
  }
}
