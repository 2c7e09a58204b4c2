import type { ProblemCode } from '../src/problem.ts';
import { apiKey, asJson, good, maxBodyBytes, withKey, type Json } from './http-stage.ts';

export const badKeys: ReadonlyArray<readonly [string, readonly string[], ProblemCode]> = [
  ['no key', [], 'missing_api_key'],
  ['a wrong key', ['Authorization: Bearer 00000000000000000000000000000000'], 'invalid_api_key'],
  ['an empty header', ['Authorization:'], 'invalid_api_key'],
  ['a malformed header', [`Authorization: ${apiKey}`], 'invalid_api_key'],
  ['another scheme', [`Authorization: Basic ${Buffer.from(`claude:${apiKey}`).toString('base64')}`], 'invalid_api_key'],
  ['the key twice', [withKey, withKey], 'invalid_api_key'],
  ['a wrong key after the right one', [withKey, 'authorization: Bearer x'], 'invalid_api_key'],
  ['the key in another header', [`X-Api-Key: ${apiKey}`], 'missing_api_key'],
  ['the key in a cookie', [`Cookie: Authorization=Bearer ${apiKey}`], 'missing_api_key'],
];

export const malformed: Readonly<Record<string, string | Buffer>> = {
  'no body': '',
  'cut JSON': '{"prompt":"LEAK',
  'JSON with more after it': '{"prompt":"LEAK","user_id":1} LEAK',
  'a bad escape': '{"prompt":"LEAK\\x"}',
  'a raw line break in a string': '{"prompt":"LEAK\n"}',
  'single quotes': "{'prompt':'LEAK'}",
  'a form': 'prompt=LEAK&user_id=1',
  'a bare word': 'LEAK',
  'an array': '["LEAK"]',
  null: 'null',
  'a string': '"LEAK"',
  'a number': '5',
  'bytes that are not UTF-8': Buffer.concat([Buffer.from('{"prompt":"LEAK'), Buffer.from([0xff, 0xfe]), Buffer.from('","user_id":1}')]),
  'Latin-1': Buffer.from('{"prompt":"LEAK é","user_id":1}', 'latin1'),
  'half a character': Buffer.concat([Buffer.from('{"prompt":"LEAK'), Buffer.from([0xf0, 0x9f]), Buffer.from('","user_id":1}')]),
  'a surrogate in UTF-8': Buffer.concat([Buffer.from('{"prompt":"LEAK'), Buffer.from([0xed, 0xa0, 0x80]), Buffer.from('","user_id":1}')]),
  'UTF-16': Buffer.from('\uFEFF{"prompt":"LEAK","user_id":1}', 'utf16le'),
  'deep nesting': '['.repeat(maxBodyBytes),
  'deep nesting that is closed': '['.repeat(maxBodyBytes / 2) + ']'.repeat(maxBodyBytes / 2),
};

export const refusedTypes: ReadonlyArray<readonly string[]> = [
  ['Content-Type: text/plain'],
  ['Content-Type: application/x-www-form-urlencoded'],
  ['Content-Type: multipart/form-data; boundary=x'],
  ['Content-Type: application/json; charset=latin1'],
  ['Content-Type: application/json; charset=utf-16'],
  ['Content-Type: application/jsonx'],
  ['Content-Type: xapplication/json'],
  ['Content-Type: text/json'],
  ['Content-Type:'],
  [asJson, 'Content-Encoding: gzip'],
  [asJson, 'Content-Encoding: br'],
];

export const invalid: ReadonlyArray<readonly [string, Json | string, Readonly<Record<string, RegExp>>]> = [
  ['nothing at all', {}, { prompt: /is required/, user_id: /is required/ }],
  ['every field wrong and one unknown', { prompt: 5, user_id: '1', session_id: 7, sesion_id: 's-1' }, { prompt: /string/, user_id: /integer/, session_id: /null for a new dialogue/, sesion_id: /^Unknown field "sesion_id"; did you mean "session_id"\?$/ }],
  ['a misspelt session_id', { ...good, sessionid: 's-1' }, { sessionid: /did you mean "session_id"\?/ }],
  ['an unknown field that is null', { ...good, x: null }, { x: /^Unknown field "x"\.$/ }],
  ['two unknown fields', { ...good, a: 1, b: 2 }, { a: /Unknown/, b: /Unknown/ }],
  ['an unknown field with an odd name', '{"prompt":"x","user_id":1,"__proto__":{"user_id":2},"constructor":1}', { ['__proto__']: /Unknown/, constructor: /Unknown/ }],
  ['a prompt that is null', { ...good, prompt: null }, { prompt: /string/ }],
  ['a prompt that is a list', { ...good, prompt: ['x'] }, { prompt: /string/ }],
  ['an empty prompt', { ...good, prompt: '' }, { prompt: /empty/ }],
  ['a prompt of blanks', { ...good, prompt: ' \t\r\n\u00a0\u2028\uFEFF' }, { prompt: /empty/ }],
  ['NUL in the prompt', { ...good, prompt: 'a\0b' }, { prompt: /NUL/ }],
  ['half a surrogate pair at the end of the prompt', '{"prompt":"a\\ud83e","user_id":1}', { prompt: /surrogate/ }],
  ['half a surrogate pair inside the prompt', '{"prompt":"a\\udd8ab","user_id":1}', { prompt: /surrogate/ }],
  ['a surrogate pair the wrong way round', '{"prompt":"\\udd8a\\ud83e","user_id":1}', { prompt: /surrogate/ }],
  ...['0', '-1', '-0', '1.5', '9007199254740992', '1e400', '"1"', 'true', 'null', '[1]', '{}'].map(
    (value) => [`user_id ${value}`, `{"prompt":"x","user_id":${value}}`, { user_id: /integer from 1 to 9007199254740991/ }] as const,
  ),
  ...['', '-a', '_a', 'a.b', 'a/b', '../a', 'a b', ' a', 'a\n', 'a\0', 'ż', 'a'.repeat(129)].map(
    (value) => [`session_id ${JSON.stringify(value)}`, { ...good, session_id: value }, { session_id: /that of an earlier answer/ }] as const,
  ),
  ...[0, 7, true, [], {}, ['s-1']].map((value) => [`session_id ${JSON.stringify(value)}`, { ...good, session_id: value }, { session_id: /that of an earlier answer/ }] as const),
];
