// The thread where the sources run as they are: Node 20 reads no TypeScript there, and tsx leaves threads alone. The
// build has no use for this file and leaves it out. To be deleted with Node 20.
import { register } from 'tsx/esm/api';

register();
await import('./big-bodies-thread.ts');
