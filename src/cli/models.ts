import type { CliConfig } from './way.ts';

// The CLI asks it by itself for small things, whatever the dialogue's own model is.
const smallModel = 'haiku';

/** What makes subagents use the operator's model too. */
export function subagentModel({ models: [model] }: Pick<CliConfig, 'models'>): Record<string, string> {
  return model === undefined ? {} : { CLAUDE_CODE_SUBAGENT_MODEL: model };
}

/** The models a sandbox may ask for: those the operator names, anywhere, or the CLI's own choice. */
export function allowedModels({ models, childEnv }: Pick<CliConfig, 'childEnv' | 'models'>, learnt: readonly string[]): readonly string[] {
  const named = Object.entries(childEnv).filter(([name]) => /^ANTHROPIC_.*MODEL$|^CLAUDE_CODE_SUBAGENT_MODEL$/.test(name));
  return [...(models.length > 0 ? models : learnt), ...named.map(([, model]) => model), smallModel];
}
