/** Decoding of image files to gray at full size, by the rules of `runtime/imaging/image.py`. */

import { ImageError } from "./errors.js";
import { luminance, upright } from "./gray.js";
import { readJpeg } from "./jpeg.js";
import { decodePng } from "./png.js";

/** The largest radiographs have about 20 million pixels. */
export const MAX_PIXELS = 100_000_000;
const MIN_SIDE = 32;
/** Pixels that are copied from the browser at once; iOS limits a canvas to 16 million. */
const STRIP_PIXELS = 2_000_000;

/**
 * Read one image file.
 *
 * @param {File} file
 * @returns {Promise<import("./gray.js").Gray>} at full size, upright
 * @throws {ImageError} if it is empty, no image, corrupt, cut short, too large or too small
 */
export async function readImage(file) {
  const bytes = new Uint8Array(await contentOf(file));
  const kind = sniff(bytes);
  if (!kind) throw new ImageError(notAnImage(bytes, file.name));
  const gray =
    kind === "PNG" ? await decodePng(bytes, file.name, MAX_PIXELS) : await decodeWithBrowser(bytes, kind, file.name);
  if (Math.min(gray.height, gray.width) < MIN_SIDE) {
    throw new ImageError(
      `${file.name}: ${gray.width}×${gray.height} pixels; expected at least ${MIN_SIDE} a side of a radiograph`,
    );
  }
  return gray;
}

async function contentOf(file) {
  try {
    return await file.arrayBuffer();
  } catch (error) {
    throw new ImageError(`${file.name}: cannot be read (${error.message}); choose the file again`);
  }
}

/** The format by the first bytes; undefined if it is none that the page reads. */
function sniff(bytes) {
  const head = String.fromCharCode(...bytes.subarray(0, 12));
  if (head.startsWith("\xff\xd8\xff")) return "JPEG";
  if (head.startsWith("\x89PNG\r\n\x1a\n")) return "PNG";
  if (head.startsWith("RIFF") && head.endsWith("WEBP")) return "WebP";
  return head.startsWith("BM") ? "BMP" : undefined;
}

function notAnImage(bytes, name) {
  if (!bytes.length) return `${name}: empty (0 bytes); copy the file again`;
  const head = String.fromCharCode(...bytes.subarray(0, 4));
  const isDicom = String.fromCharCode(...bytes.subarray(128, 132)) === "DICM";
  const known = isDicom ? "DICOM" : ["II*\0", "MM\0*", "II+\0", "MM\0+"].includes(head) ? "TIFF" : "";
  if (known)
    return `${name}: found ${known}, which browsers do not decode; save it as PNG, or use \`cxr-edge predict\``;
  const start = Array.from(bytes.subarray(0, 8), (byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return `${name}: not an image; found a file that starts with ${start}, expected JPEG, PNG, WebP or BMP`;
}

async function decodeWithBrowser(bytes, kind, name) {
  const file = kind === "JPEG" ? readJpeg(bytes, name) : { bytes, toGray: luminance, orientation: 1 };
  checkSize(file.width, file.height, name);
  let bitmap;
  try {
    // Profiles are ignored, as the runtime does.
    bitmap = await createImageBitmap(new Blob([file.bytes], { type: `image/${kind.toLowerCase()}` }), {
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch {
    throw new ImageError(
      `${name}: ${kind} data is corrupt, or of a kind that this browser does not read; copy the file again, or save it as PNG`,
    );
  }
  checkSize(bitmap.width, bitmap.height, name);
  if (file.width && (bitmap.width !== file.width || bitmap.height !== file.height)) {
    throw new ImageError(
      `${name}: the browser read ${bitmap.width}×${bitmap.height} pixels, expected ${file.width}×${file.height}; use another browser`,
    );
  }
  const gray = { values: grayOf(bitmap, file.toGray), height: bitmap.height, width: bitmap.width };
  bitmap.close();
  return upright(gray, file.orientation);
}

function checkSize(width, height, name) {
  if (width * height > MAX_PIXELS) {
    throw new ImageError(`${name}: ${width}×${height} pixels; expected at most ${MAX_PIXELS}. Reduce the picture`);
  }
}

/** Copy the pixels in strips and turn them gray. */
function grayOf(bitmap, toGray) {
  const { width, height } = bitmap;
  const strip = Math.min(height, Math.max(1, Math.floor(STRIP_PIXELS / width)));
  const canvas = new OffscreenCanvas(width, strip);
  const context = canvas.getContext("2d", { willReadFrequently: true }); // in memory, where pixels stay exact
  context.globalCompositeOperation = "copy";
  const values = new Uint8Array(width * height);
  for (let top = 0; top < height; top += strip) {
    const rows = Math.min(strip, height - top);
    context.drawImage(bitmap, 0, -top);
    const { data } = context.getImageData(0, 0, width, rows);
    for (let at = 0, to = top * width; at < data.length; at += 4, to++) {
      values[to] = toGray(data[at], data[at + 1], data[at + 2]);
    }
  }
  return values;
}
