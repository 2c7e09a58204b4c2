import { keyVariables } from '../host/login.ts';
import type { LoginFile } from './login-file.ts';

/** What a login puts into a request to the API. */
interface LoginHeaders {
  readonly headers: Readonly<Record<string, string>>;
  /** A beta the login needs, whether or not the client asked for it. */
  readonly beta?: string;
}

/** The operator's login, as the proxy uses it. */
export interface Credentials {
  /** The login now; undefined when there is none. Never throws. */
  current(): Promise<LoginHeaders | undefined>;
  /** After the API answered 401 to these: whether others are there to try now. Never throws. */
  renew(refused: LoginHeaders): Promise<boolean>;
  /**
   * The variables that stand for the login inside: of the same kind, because the CLI behaves by it, and without a secret.
   * There are some also without a login: the CLI would not ask at all.
   */
  placeholders(): Promise<Readonly<Record<string, string>>>;
}

const oauthBeta = 'oauth-2025-04-20';
const placeholder = 'placeholder';

/**
 * The login that a CLI with this environment would use, in its own order: API key, auth token, setup-token, login file.
 * The file is looked at for each request, so that one that appears later is used.
 */
export function createCredentials(env: Readonly<Record<string, string>>, file: LoginFile): Credentials {
  const name = keyVariables.find((variable) => env[variable]);
  const secret = (env[name ?? ''] ?? '').trim();
  if (name === 'ANTHROPIC_API_KEY') return fixed({ headers: { 'x-api-key': secret } }, tokenInside);
  if (name === 'ANTHROPIC_AUTH_TOKEN') return fixed(bearer(secret), tokenInside);
  const setupTokenInside = oauthInside(env['CLAUDE_CODE_SUBSCRIPTION_TYPE']);
  if (name === 'CLAUDE_CODE_OAUTH_TOKEN') return fixed({ ...bearer(secret), beta: oauthBeta }, setupTokenInside);
  return {
    async current() {
      const login = await file.current();
      return login && { ...bearer(login.accessToken), beta: oauthBeta };
    },
    renew: (refused) => file.renew(refused.headers['authorization']?.replace(/^Bearer /, '') ?? ''),
    placeholders: async () => oauthInside((await file.current())?.subscriptionType),
  };
}

// With a key as the placeholder the CLI waits 17 s at each start for settings of an organisation (fact 43).
const tokenInside = { ANTHROPIC_AUTH_TOKEN: placeholder };

/** Without a type, or with another than these two, the CLI waits as it does with a key (fact 43). */
function oauthInside(type: string | undefined): Readonly<Record<string, string>> {
  return { CLAUDE_CODE_OAUTH_TOKEN: placeholder, CLAUDE_CODE_SUBSCRIPTION_TYPE: type === 'pro' ? 'pro' : 'max' };
}

function bearer(token: string): LoginHeaders {
  return { headers: { authorization: `Bearer ${token}` } };
}

function fixed(login: LoginHeaders, inside: Readonly<Record<string, string>>): Credentials {
  return { current: async () => login, renew: async () => false, placeholders: async () => inside };
}
