/** A kind of picture that Claude sees, told by its bytes whatever its name is. */
interface Format {
  readonly mediaType: string;
  /** Whether it begins as such a picture does. */
  readonly begins: (bytes: Buffer) => boolean;
  /** Whether its end is there too: the CLI passes half a picture on as it is (fact 63). */
  readonly ends: (bytes: Buffer) => boolean;
  /** Width and height in pixels, by its header; undefined where there is none. May throw RangeError beyond the end. */
  readonly size: (bytes: Buffer) => readonly [width: number, height: number] | undefined;
}

// The API's limits, in base64 and where a dialogue has many. What it refuses it refuses again at every further turn; a larger
// picture is in the inbox, and made smaller where Claude reads it there (fact 63).
const maxBytes = 3_932_160;
const maxSide = 2_000;

const formats: readonly Format[] = [
  {
    mediaType: 'image/png',
    begins: (bytes) => has(bytes, 0, '\x89PNG\r\n\x1a\n') && has(bytes, 12, 'IHDR'),
    ends: (bytes) => has(bytes, bytes.length - 8, 'IEND\xae\x42\x60\x82'),
    size: (bytes) => [bytes.readUInt32BE(16), bytes.readUInt32BE(20)],
  },
  {
    mediaType: 'image/jpeg',
    begins: (bytes) => has(bytes, 0, '\xff\xd8\xff'),
    ends: (bytes) => has(bytes, bytes.length - 2, '\xff\xd9'),
    size: jpegSize,
  },
  {
    mediaType: 'image/gif',
    begins: (bytes) => has(bytes, 0, 'GIF87a') || has(bytes, 0, 'GIF89a'),
    ends: (bytes) => has(bytes, bytes.length - 1, ';'),
    size: (bytes) => [bytes.readUInt16LE(6), bytes.readUInt16LE(8)],
  },
  {
    mediaType: 'image/webp',
    begins: (bytes) => has(bytes, 0, 'RIFF') && has(bytes, 8, 'WEBP'),
    ends: (bytes) => bytes.readUInt32LE(4) + 8 === bytes.length,
    size: webpSize,
  },
];

/** The media type of a whole PNG, JPEG, GIF or WebP that the API takes; undefined for anything else. Looks at header and end alone. */
export function imageType(bytes: Buffer): string | undefined {
  if (bytes.length > maxBytes) return undefined;
  try {
    const format = formats.find(({ begins }) => begins(bytes));
    const sides = format?.ends(bytes) ? format.size(bytes) : undefined;
    return sides?.every((side) => side >= 1 && side <= maxSide) ? format?.mediaType : undefined;
  } catch {
    return undefined; // shorter than its header
  }
}

/** From segment to segment up to the frame header (ITU-T T.81, B.1.1.4 and B.2.2). */
function jpegSize(bytes: Buffer): [number, number] | undefined {
  let at = 2;
  while (bytes.readUInt8(at) === 0xff) {
    const marker = bytes.readUInt8(at + 1);
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) return [bytes.readUInt16BE(at + 7), bytes.readUInt16BE(at + 5)];
    // A marker may be led by any number of bytes of ones.
    at += marker === 0xff ? 1 : 2 + bytes.readUInt16BE(at + 2);
  }
  return undefined;
}

/** By the first chunk: lossy, lossless or extended (RFC 9649, section 2). */
function webpSize(bytes: Buffer): [number, number] | undefined {
  if (has(bytes, 12, 'VP8X')) return [bytes.readUIntLE(24, 3) + 1, bytes.readUIntLE(27, 3) + 1];
  if (has(bytes, 12, 'VP8L')) return [(bytes.readUInt32LE(21) & 0x3fff) + 1, ((bytes.readUInt32LE(21) >>> 14) & 0x3fff) + 1];
  if (has(bytes, 12, 'VP8 ')) return [bytes.readUInt16LE(26) & 0x3fff, bytes.readUInt16LE(28) & 0x3fff];
  return undefined;
}

function has(bytes: Buffer, at: number, text: string): boolean {
  return bytes.toString('latin1', Math.max(at, 0), at + text.length) === text;
}
