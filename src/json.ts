/** A JSON object. */
export type Json = Readonly<Record<string, unknown>>;

/** The value of a JSON text; undefined for what is none. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Whether a value is an object, and no list. */
export function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The value itself where it is an object, else one that is empty. */
export function asObject(value: unknown): Json {
  return isObject(value) ? value : {};
}
