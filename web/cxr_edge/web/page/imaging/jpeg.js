/**
 * JPEG: the checks of `runtime/imaging/jpeg.py`, and the same gray from the decoder of the browser.
 *
 * The runtime takes the luminance that the file stores. A browser gives RGB, which it computed from luminance and
 * colour. Therefore the file is rewritten before the browser decodes it: without the marker of JFIF and with Adobe's
 * marker "no transform", so that the browser returns the stored luminance as red, untouched. Colour profile and
 * orientation are removed too, because browsers treat them differently.
 */

import { ImageError } from "./errors.js";
import { exifOrientation, luminance } from "./gray.js";

/** Huffman-coded frames of 8×8 transforms (ITU-T T.81, table B.1): baseline, extended sequential, progressive. */
const DECODED = [0xc0, 0xc1, 0xc2];
const SCAN = 0xda;
const EXIF = "Exif\0\0";
/** Adobe's segment: version 100, no flags, transform 0, which means that the components are red, green and blue. */
const NO_TRANSFORM = [0xff, 0xee, 0, 14, 0x41, 0x64, 0x6f, 0x62, 0x65, 0, 100, 0, 0, 0, 0, 0];

/**
 * Read the segments before the first scan.
 *
 * @returns {{height: number, width: number, orientation: number, bytes: Uint8Array, toGray: Function}} `bytes` is the
 *   file for the browser, and `toGray` turns its red, green and blue into gray
 */
export function readJpeg(bytes, name) {
  const segments = readSegments(bytes, name);
  const frame = readFrame(segments, name);
  if (lastMarker(bytes, segments.at(-1).end) !== 0xd9) {
    throw new ImageError(`${name}: JPEG data is cut short; copy the file again`);
  }
  const exif = segments.find(({ marker, content }) => marker === 0xe1 && startsWith(content, EXIF));
  return {
    ...frame,
    orientation: exif ? exifOrientation(exif.content.subarray(6)) : 1,
    bytes: withoutColour(bytes, segments, frame.components),
    toGray: frame.components === 1 || isLuminance(segments) ? (red) => red : luminance,
  };
}

function readSegments(bytes, name) {
  const segments = [];
  let at = 2;
  for (let marker = 0; marker !== SCAN;) {
    while (bytes[at] === 0xff && bytes[at + 1] === 0xff) at++; // padding
    marker = bytes[at + 1];
    const size = bytes[at + 2] * 256 + bytes[at + 3];
    const valid = bytes[at] === 0xff && marker >= 0xc0 && !(marker >= 0xd0 && marker <= 0xd9) && size >= 2;
    if (!valid || at + 2 + size > bytes.length) {
      throw new ImageError(`${name}: JPEG header is corrupt or cut short at byte ${at}; copy the file again`);
    }
    segments.push({ marker, start: at, content: bytes.subarray(at + 4, at + 2 + size), end: at + 2 + size });
    at += 2 + size;
  }
  return segments;
}

function readFrame(segments, name) {
  const frames = segments.filter(({ marker }) => isFrame(marker));
  if (frames.length !== 1 || frames[0].content.length < 9) {
    throw new ImageError(
      `${name}: JPEG header is corrupt: found ${frames.length} frames, expected 1; copy the file again`,
    );
  }
  const [precision, h1, h0, w1, w0, components] = frames[0].content;
  if (!DECODED.includes(frames[0].marker) || precision !== 8 || ![1, 3].includes(components)) {
    throw new ImageError(
      `${name}: JPEG of ${precision} bits with ${components} components, process ${frames[0].marker - 0xc0}; expected ` +
        "a baseline or progressive JPEG of 8 bits in gray or colour. Save it as PNG",
    );
  }
  return { height: h1 * 256 + h0, width: w1 * 256 + w0, components };
}

function isFrame(marker) {
  return marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
}

/** The last marker of the scans, without restarts and padding; a complete file ends with D9. */
function lastMarker(bytes, start) {
  for (let at = bytes.length - 2; at >= start; at--) {
    const marker = bytes[at + 1];
    if (bytes[at] === 0xff && marker >= 0xc0 && marker !== 0xff && !(marker >= 0xd0 && marker <= 0xd7)) return marker;
  }
  return 0;
}

/** Whether the first of three components is luminance, by the rules of libjpeg. */
function isLuminance(segments) {
  if (segments.some(({ marker, content }) => marker === 0xe0 && startsWith(content, "JFIF\0"))) return true;
  const adobe = segments.find(({ marker, content }) => marker === 0xee && startsWith(content, "Adobe"));
  if (adobe) return adobe.content[11] !== 0;
  const { content } = segments.find(({ marker }) => isFrame(marker));
  return !(content[6] === 82 && content[9] === 71 && content[12] === 66); // the letters R, G and B
}

/** The file without the segments of applications and comments. */
function withoutColour(bytes, segments, components) {
  const kept = segments.filter(({ marker }) => marker < 0xe0);
  const parts = kept.map(({ start, end }) => bytes.subarray(start, end));
  const marker = components === 3 ? NO_TRANSFORM : [];
  return join([[0xff, 0xd8], marker, ...parts, bytes.subarray(segments.at(-1).end)]);
}

function join(parts) {
  const result = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    result.set(part, at);
    at += part.length;
  }
  return result;
}

function startsWith(content, text) {
  return [...text].every((letter, at) => content[at] === letter.charCodeAt(0));
}
