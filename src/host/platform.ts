/** What package.json asks for too: AbortSignal.any is there from this one on. */
const leastNode = '20.3';

/** Why the server cannot run here, each a sentence for the operator; none where it can. */
export function platformProblems(platform: string, nodeVersion: string): string[] {
  const isOldNode = nodeVersion.localeCompare(leastNode, 'en', { numeric: true }) < 0;
  return [
    ...(platform === 'linux' ? [] : [`this is ${platform}, and the server needs Linux`]),
    ...(isOldNode ? [`this is Node ${nodeVersion}, and the server needs ${leastNode} or newer`] : []),
  ];
}
