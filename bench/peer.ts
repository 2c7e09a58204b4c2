import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type Server } from 'node:http';

/** What other servers do: one start of the CLI for every message, behind a handler as small as can be. */
export function createPeer(binary: string, env: Readonly<Record<string, string>>, cwd: string): Server {
  return createServer(async (req, res) => {
    let body = '';
    for await (const chunk of req) body += String(chunk);
    const { prompt, session_id: sessionId } = JSON.parse(body) as { prompt: string; session_id?: string };
    const args = ['-p', '--output-format=json', ...(sessionId === undefined ? [] : [`--resume=${sessionId}`])];
    const child = spawn(binary, args, { cwd, env, stdio: ['pipe', 'pipe', 'ignore'] });
    child.stdin.end(prompt);
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
    await once(child, 'close');
    const result = JSON.parse(output) as { result: string; session_id: string; is_error: boolean };
    if (result.is_error) throw new Error('the CLI did not answer');
    res.end(JSON.stringify({ content: result.result, session_id: result.session_id }));
  });
}
