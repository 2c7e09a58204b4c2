import assert from 'node:assert/strict';
import { test } from 'node:test';
import { imageType } from '../../../src/cli/image.ts';
import { gif, jpeg, png, webp } from '../../pictures.ts';

const pictures: Readonly<Record<string, { readonly type: string; readonly make: (width: number, height: number) => Buffer }>> = {
  PNG: { type: 'image/png', make: png },
  JPEG: { type: 'image/jpeg', make: jpeg },
  'progressive JPEG': { type: 'image/jpeg', make: (width, height) => jpeg(width, height, { marker: 0xc2 }) },
  'JPEG with bytes of ones between its segments': { type: 'image/jpeg', make: (width, height) => jpeg(width, height, { fill: 3 }) },
  GIF: {
    type: 'image/gif',
    make: (width, height) => {
      const bytes = Buffer.from(gif);
      bytes.writeUInt16LE(width, 6);
      bytes.writeUInt16LE(height, 8);
      return bytes;
    },
  },
  'lossy WebP': { type: 'image/webp', make: (width, height) => webp('VP8 ', width, height) },
  'lossless WebP': { type: 'image/webp', make: (width, height) => webp('VP8L', width, height) },
  'extended WebP': { type: 'image/webp', make: (width, height) => webp('VP8X', width, height) },
};

for (const [name, { type, make }] of Object.entries(pictures)) {
  test(`a ${name} is told by its bytes, with sides up to 2,000 pixels`, () => {
    assert.deepEqual([make(1, 1), make(2000, 3), make(3, 2000)].map(imageType), [type, type, type]);
    assert.deepEqual([make(2001, 3), make(3, 2001)].map(imageType), [undefined, undefined]);
  });

  test(`a ${name} that is cut short anywhere is none`, () => {
    const whole = make(20, 30);
    for (let length = 0; length < whole.length; length += 1) assert.equal(imageType(whole.subarray(0, length)), undefined, `${length} of ${whole.length} bytes`);
  });
}

test('a picture has 3,932,160 bytes at most', () => {
  const spare = 3_932_160 - png(8, 8, 1).length + 1;
  assert.deepEqual([imageType(png(8, 8, spare)), imageType(png(8, 8, spare + 1))], ['image/png', undefined]);
});

test('a picture without a pixel is none, and neither is anything else', () => {
  const others = [png(0, 4), jpeg(4, 0), Buffer.from('%PDF-1.7'), Buffer.from('<svg/>'), Buffer.from('BM'), Buffer.alloc(100, 0xff), Buffer.alloc(0)];
  // Segments that lead nowhere: to themselves, and to no frame.
  others.push(Buffer.from([0xff, 0xd8, 0xff, 0xe0, 0, 0, 0xff, 0xd9]), Buffer.from([0xff, 0xd8, 0xff, 0xe0, 0, 2, 0xff, 0xd9]));
  for (const bytes of others) assert.equal(imageType(bytes), undefined, bytes.toString('latin1'));
});
