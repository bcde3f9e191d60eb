/**
 * A decoder of PNG files (ISO/IEC 15948) to gray. Browsers reduce 16 bits to 8 and apply gamma and colour profiles; the
 * runtime stretches 16 bits and applies neither. Only the decompression is the browser's.
 */

import { ImageError } from "./errors.js";
import { exifOrientation, stretch, truncatedLuminance, upright } from "./gray.js";

const CHANNELS = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };
const PALETTE = 3;
/** Start and step of the seven passes of Adam7: x, y. */
const ADAM7 = [
  [0, 0, 8, 8],
  [4, 0, 8, 8],
  [0, 4, 4, 8],
  [2, 0, 4, 4],
  [0, 2, 2, 4],
  [1, 0, 2, 2],
  [0, 1, 1, 2],
];
const WHOLE = [[0, 0, 1, 1]];

/** Decode a PNG file: {values, height, width} upright, in [0, 255]. */
export async function decodePng(bytes, name, maxPixels) {
  const chunks = readChunks(bytes, name);
  const header = readHeader(chunks, name, maxPixels);
  const passes = passesOf(header);
  const size = passes.reduce((sum, pass) => sum + pass.height * (1 + pass.bytes), 0);
  const data = await inflate(
    chunks.filter(({ kind }) => kind === "IDAT").map(({ content }) => content),
    size,
    name,
  );
  const samples =
    header.depth === 16 ? new Uint16Array(header.height * header.width) : new Uint8Array(header.height * header.width);
  let at = 0;
  for (const pass of passes) {
    const rows = unfilter(data.subarray(at, at + pass.height * (1 + pass.bytes)), pass, header, name);
    placePass(samples, rows, pass, header);
    at += pass.height * (1 + pass.bytes);
  }
  const values = header.depth === 16 ? stretch(samples) : samples;
  const exif = chunks.find(({ kind }) => kind === "eXIf");
  return upright({ values, height: header.height, width: header.width }, exif ? exifOrientation(exif.content) : 1);
}

function readChunks(bytes, name) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const chunks = [];
  for (let at = 8, kind = ""; kind !== "IEND";) {
    const size = at + 12 <= bytes.length ? view.getUint32(at) : Infinity;
    if (at + 12 + size > bytes.length) throw new ImageError(`${name}: PNG file is cut short; copy the file again`);
    kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (crc32(bytes.subarray(at + 4, at + 8 + size)) !== view.getUint32(at + 8 + size)) {
      throw new ImageError(
        `${name}: PNG file is corrupt: the checksum of ${kind} at byte ${at} is wrong; copy the file again`,
      );
    }
    chunks.push({ kind, content: bytes.subarray(at + 8, at + 8 + size) });
    at += 12 + size;
  }
  return chunks;
}

function readHeader(chunks, name, maxPixels) {
  const { kind, content } = chunks[0];
  if (kind !== "IHDR" || content.length !== 13)
    throw new ImageError(`${name}: PNG file has no header; copy the file again`);
  const view = new DataView(content.buffer, content.byteOffset);
  const header = { width: view.getUint32(0), height: view.getUint32(4), depth: content[8], colour: content[9] };
  const palette = chunks.find((chunk) => chunk.kind === "PLTE")?.content;
  const known = header.colour in CHANNELS && [1, 2, 4, 8, 16].includes(header.depth) && content[12] < 2;
  if (!known || (header.colour === PALETTE && !palette)) {
    throw new ImageError(`${name}: PNG file has colour type ${header.colour} with ${header.depth} bits; save it again`);
  }
  if (chunks.some((chunk) => chunk.kind === "acTL")) {
    throw new ImageError(`${name}: PNG file is animated; expected one picture. Save one frame of it`);
  }
  if (!(header.width * header.height > 0 && header.width * header.height <= maxPixels)) {
    throw new ImageError(
      `${name}: ${header.width}×${header.height} pixels; expected at most ${maxPixels}. Reduce the picture`,
    );
  }
  return { ...header, channels: CHANNELS[header.colour], interlaced: content[12] === 1, palette };
}

/** Size of each pass in pixels, and bytes of its rows. */
function passesOf({ width, height, depth, channels, interlaced }) {
  return (interlaced ? ADAM7 : WHOLE)
    .map(([x, y, dx, dy]) => ({
      x,
      y,
      dx,
      dy,
      width: Math.ceil((width - x) / dx),
      height: Math.ceil((height - y) / dy),
    }))
    .filter((pass) => pass.width > 0 && pass.height > 0)
    .map((pass) => ({ ...pass, bytes: Math.ceil((pass.width * depth * channels) / 8) }));
}

/** Decompress `size` bytes and not one more, however much the file holds. */
async function inflate(parts, size, name) {
  const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const data = new Uint8Array(size);
  let at = 0;
  try {
    while (at < size) {
      const { done, value } = await reader.read();
      if (done) break;
      data.set(value.subarray(0, size - at), at);
      at += value.length;
    }
  } catch (error) {
    throw new ImageError(`${name}: PNG data is corrupt (${error.message}); copy the file again`);
  }
  reader.cancel().catch(() => {});
  if (at < size) throw new ImageError(`${name}: PNG data is cut short; copy the file again`);
  return data;
}

/** Undo the filters of one pass in place; each row keeps its filter byte in front. */
function unfilter(data, { height, bytes }, { depth, channels }, name) {
  const step = Math.max(1, (depth * channels) >> 3);
  let above = new Uint8Array(bytes);
  for (let y = 0; y < height; y++) {
    const filter = data[y * (1 + bytes)];
    const row = data.subarray(y * (1 + bytes) + 1, (y + 1) * (1 + bytes));
    if (!(filter in FILTERS))
      throw new ImageError(`${name}: PNG data is corrupt: row ${y} has filter ${filter}; copy the file again`);
    FILTERS[filter](row, above, step);
    above = row;
  }
  return data;
}

const FILTERS = {
  0: () => {},
  1: (row, above, step) => {
    for (let x = step; x < row.length; x++) row[x] += row[x - step];
  },
  2: (row, above) => {
    for (let x = 0; x < row.length; x++) row[x] += above[x];
  },
  3: (row, above, step) => {
    for (let x = 0; x < row.length; x++) row[x] += ((x < step ? 0 : row[x - step]) + above[x]) >> 1;
  },
  4: (row, above, step) => {
    for (let x = 0; x < step; x++) row[x] += above[x];
    for (let x = step; x < row.length; x++) row[x] += paeth(row[x - step], above[x], above[x - step]);
  },
};

function paeth(left, up, corner) {
  const a = Math.abs(up - corner);
  const b = Math.abs(left - corner);
  const c = Math.abs(left + up - 2 * corner);
  if (a <= b && a <= c) return left;
  return b <= c ? up : corner;
}

/** Write the gray samples of one pass to their places. */
function placePass(samples, rows, pass, header) {
  const read = reader(header);
  for (let y = 0; y < pass.height; y++) {
    const row = rows.subarray(y * (1 + pass.bytes) + 1, (y + 1) * (1 + pass.bytes));
    const start = (pass.y + y * pass.dy) * header.width + pass.x;
    for (let x = 0; x < pass.width; x++) samples[start + x * pass.dx] = read(row, x);
  }
}

/** A function (row, x) -> gray sample of pixel x; transparency is ignored, as the runtime does. */
function reader({ depth, colour, channels, palette }) {
  if (colour === PALETTE) {
    return (row, x) => {
      const at = 3 * packed(row, x, depth);
      return truncatedLuminance(palette[at], palette[at + 1], palette[at + 2]);
    };
  }
  if (depth < 8) return (row, x) => (packed(row, x, depth) * 255) / ((1 << depth) - 1);
  const size = depth >> 3;
  const sample = depth === 8 ? (row, at) => row[at] : (row, at) => row[at] * 256 + row[at + 1];
  if (channels < 3) return (row, x) => sample(row, x * channels * size);
  return (row, x) => {
    const at = x * channels * size;
    return truncatedLuminance(sample(row, at), sample(row, at + size), sample(row, at + 2 * size));
  };
}

function packed(row, x, depth) {
  const bit = x * depth;
  return (row[bit >> 3] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
