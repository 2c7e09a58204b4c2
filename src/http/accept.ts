/**
 * How much an Accept header wants a media type, from 0 (not at all) to 1: the weight of the most specific range that
 * matches it (RFC 9110 section 12.5.1; no parameter but `q` is looked at). An empty header wants everything alike.
 */
export function weightOf(accept: string, type: string): number {
  if (accept.trim() === '') return 1;
  const [main = ''] = type.split('/');
  for (const range of [type, `${main}/*`, '*/*']) {
    const weight = ownWeightOf(accept, range);
    if (weight !== undefined) return weight;
  }
  return 0;
}

/** Whether an Accept header names a type itself, no wildcard, and wants it no less than another one. */
export function namedOver(accept: string, type: string, other: string): boolean {
  const weight = ownWeightOf(accept, type) ?? 0;
  return weight > 0 && weight >= weightOf(accept, other);
}

/** The highest weight of a range that is written in the header; undefined when it is not there. */
function ownWeightOf(accept: string, range: string): number | undefined {
  const weights = accept.split(',').flatMap((part) => {
    const [name = '', ...parameters] = part.toLowerCase().split(';').map((text) => text.trim());
    if (name !== range) return [];
    const q = parameters.find((parameter) => parameter.startsWith('q='));
    return q === undefined ? [1] : [Number.parseFloat(q.slice(2)) || 0];
  });
  return weights.length === 0 ? undefined : Math.max(...weights);
}
