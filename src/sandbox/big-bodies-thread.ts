import { parentPort } from 'node:worker_threads';
import { answerTo, type BodyQuestion } from './big-bodies.ts';

// Runs as a thread of its own. The bytes come and go without being copied.
parentPort?.on('message', (question: BodyQuestion) => {
  parentPort?.postMessage(answerTo(question), [question.bytes.buffer]);
});
