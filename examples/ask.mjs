// One prompt to claude-api, asked again with the same key where the line breaks, so that it is never a second turn.
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';

async function ask(prompt, userId, sessionId = null) {
  const url = `${process.env.CLAUDE_API_URL ?? 'http://127.0.0.1:8001'}/api/v1/chat`;
  const headers = { Authorization: `Bearer ${process.env.CLAUDE_API_KEY}`, 'Content-Type': 'application/json', 'Idempotency-Key': randomUUID() };
  const body = JSON.stringify({ prompt, user_id: userId, session_id: sessionId });
  for (let waitMs = 1000; waitMs < 60_000; waitMs *= 2) {
    try {
      const response = await fetch(url, { method: 'POST', headers, body });
      if (response.status < 500) return await response.json();
    } catch {
      // The line broke; the turn goes on.
    }
    await sleep(waitMs);
  }
  throw new Error('no answer');
}

const { content, detail } = await ask(process.argv[2], 1);
console.log(content ?? detail);
