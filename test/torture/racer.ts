// An end user's program that swaps files and folders of its own for links, FIFOs and folders as fast as it can.
// usage: racer.ts FOLDER OUTSIDE SEED; ends when its standard input does.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, realpathSync, renameSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { seededRandom } from '../random.ts';
import { Chance } from './chance.ts';

const [folder = '', outside = '', seed = '0'] = process.argv.slice(2);
const chance = new Chance(seededRandom(Number(seed)));
const ids = Array.from({ length: 4 }, (_, i) => `${i}`.repeat(8) + '-0000-4000-8000-000000000000');
const fifo = join(folder, 'tmp/.fifo');
if (!existsSync(fifo)) execFileSync('mkfifo', [fifo]);

const put: Readonly<Record<string, (path: string) => void>> = {
  folder: (path) => mkdirSync(join(path, 'deeper'), { recursive: true }),
  file: (path) => {
    writeFileSync(path, '{}\n', { flag: 'wx' });
    utimesSync(path, 0, 0);
  },
  'link out': (path) => symlinkSync(outside, path),
  'link to a file outside': (path) => symlinkSync(join(outside, `${chance.pick(ids)}.jsonl`), path),
  nothing: () => {},
};

function swap(path: string, kinds: readonly string[]): void {
  try {
    // Its own links lead out too; what is inside a sandbox could not write there.
    if (!realpathSync(dirname(path)).startsWith(`${folder}/`)) return;
    const next = `${path}.next`;
    rmSync(next, { recursive: true, force: true }); // a link that leads out may have been left there
    put[chance.pick(kinds)]?.(next);
    rmSync(`${path}.last`, { recursive: true, force: true });
    if (existsSync(path)) renameSync(path, `${path}.last`);
    if (existsSync(next)) renameSync(next, path);
  } catch {
    // The server was quicker.
  }
}

process.stdin.on('end', () => process.exit(0)).resume();
setInterval(() => {
  for (let i = 0; i < 200; i += 1) {
    const projects = join(folder, 'home/projects');
    const work = join(projects, 'work');
    const files = [...ids.map((id) => join(work, `${id}.jsonl`)), ...ids.map((id) => join(work, id))];
    const inTmp = ['a', 'a/deeper', 'b'].map((name) => join(folder, 'tmp', name));
    if (chance.is(0.02)) swap(chance.pick([projects, work]), ['folder', 'link out', 'nothing']);
    else swap(chance.pick([...files, ...files, ...inTmp]), Object.keys(put));
    if (chance.is(0.2)) putBack(work);
  }
}, 1);

function putBack(work: string): void {
  const projects = dirname(work);
  try {
    if (realpathSync(projects) !== projects) rmSync(projects);
    mkdirSync(projects, { recursive: true });
    if (existsSync(work) && realpathSync(work) !== work) rmSync(work);
    mkdirSync(work, { recursive: true });
  } catch {
    // The server was quicker.
  }
}
