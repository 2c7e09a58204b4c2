import { execFile } from 'node:child_process';
import { readFile, stat } from 'node:fs/promises';
import { asObject, parseJson } from '../json.ts';

/** A claude.ai login as the CLI keeps it. */
interface FileLogin {
  readonly accessToken: string;
  /** Milliseconds since 1970. */
  readonly expiresAtMs: number;
  /** `max`, `pro`, …; undefined where the file does not say. */
  readonly subscriptionType: string | undefined;
}

/** The operator's login file, kept fresh. */
export interface LoginFile {
  /** The login now, refreshed first where it is about to end; undefined when there is none. Never throws. */
  current(): Promise<FileLogin | undefined>;
  /** After the API refused this token: whether there is another one to try. Never throws. */
  renew(refusedToken: string): Promise<boolean>;
}

// The CLI refreshes when about five minutes are left, and does nothing before (fact 41).
const refreshBeforeMs = 4 * 60_000;
// A login that cannot be refreshed must not cost a process at each request.
const refreshPauseMs = 60_000;

/**
 * Runs `claude auth status`, which renews an expired login file in 0.3–0.7 s without asking the API anything (fact 41);
 * several at once renew it once. Outside the sandbox, as the service user. Resolves when it has ended, however it did: the
 * file tells, not the exit code.
 */
export function refreshByCli(binary: string, env: Readonly<Record<string, string>>): Promise<void> {
  return new Promise((resolve) => {
    const options = { env, cwd: '/', timeout: 30_000, killSignal: 'SIGKILL' } as const;
    execFile(binary, ['auth', 'status'], options, () => resolve());
  });
}

/**
 * The login file at `path`, read again when it changed. `refresh` has the CLI renew it: the client's id, the turning of
 * refresh tokens and the lock between processes are the CLI's business.
 */
export function createLoginFile(path: string, refresh: () => Promise<void>, nowMs: () => number = Date.now): LoginFile {
  let known: { readonly version: string; readonly login: FileLogin | undefined } = { version: '', login: undefined };
  let refreshing: Promise<void> | undefined;
  let refreshedAtMs = -Infinity;

  async function read(): Promise<FileLogin | undefined> {
    const version = await stat(path).then(({ ino, mtimeMs, size }) => `${ino} ${mtimeMs} ${size}`, () => '');
    if (version === known.version) return known.login;
    const text = await readFile(path, 'utf8').catch(() => '');
    known = { version, login: parseLogin(text) };
    return known.login;
  }

  /** At most one at a time, and one a minute. */
  function refreshNow(): Promise<void> {
    if (refreshing !== undefined) return refreshing;
    if (nowMs() - refreshedAtMs < refreshPauseMs) return Promise.resolve();
    refreshedAtMs = nowMs();
    refreshing = refresh().finally(() => (refreshing = undefined));
    return refreshing;
  }

  return {
    async current() {
      const login = await read();
      if (login === undefined || login.expiresAtMs - nowMs() > refreshBeforeMs) return login;
      await refreshNow();
      return read();
    },
    async renew(refusedToken) {
      const isAnother = (login: FileLogin | undefined): boolean => login !== undefined && login.accessToken !== refusedToken;
      if (isAnother(await read())) return true; // another request had it renewed
      await refreshNow();
      return isAnother(await read());
    },
  };
}

function parseLogin(text: string): FileLogin | undefined {
  const { accessToken, expiresAt, subscriptionType: type } = asObject(asObject(parseJson(text))['claudeAiOauth']);
  // The CLI empties the tokens of a login that cannot be refreshed any more.
  if (typeof accessToken !== 'string' || accessToken === '') return undefined;
  return {
    accessToken,
    expiresAtMs: typeof expiresAt === 'number' ? expiresAt : Infinity,
    subscriptionType: typeof type === 'string' ? type : undefined,
  };
}
