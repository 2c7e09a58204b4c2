// The stand-in for Anthropic beside the booted machine, on the port of the first argument. It answers with all prompts of
// the dialogue, so that one sees whether it went on; "bash …" makes the CLI run that, and is
// answered with what came out.
import { callTools, MessagesApi, promptsOf, say, toolResultsOf } from '../messages-api.ts';

const api = new MessagesApi();
api.script = (request) => {
  const prompts = promptsOf(request);
  const last = prompts.at(-1) ?? '';
  if (!last.startsWith('bash ')) return say(prompts.join(' | '));
  const results = toolResultsOf(request);
  const isRun = results.length === prompts.filter((prompt) => prompt.startsWith('bash ')).length;
  return isRun ? say(results.at(-1)?.text ?? '') : callTools([{ name: 'Bash', input: { command: last.slice('bash '.length) } }]);
};
await api.listen(Number(process.argv[2]));
