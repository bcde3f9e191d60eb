/**
 * Gray pixels, by the rules of `runtime/imaging`.
 *
 * @typedef {{values: Uint8Array, height: number, width: number}} Gray row by row, in [0, 255]; dense tissue is bright
 */

/** Luminance of ITU-R 601, as OpenCV computes it for all formats but PNG: 15 bits, rounded. */
export function luminance(red, green, blue) {
  return (9798 * red + 19235 * green + 3735 * blue + 16384) >> 15;
}

/** The same as libpng computes it: 15 bits, cut off. The product of 16-bit samples does not fit into 32 bits. */
export function truncatedLuminance(red, green, blue) {
  return Math.floor((9798 * red + 19235 * green + 3735 * blue) / 32768);
}

/** Map [min, max] of 16-bit samples to [0, 255] in single precision, because detectors use only 10 to 14 bits. */
export function stretch(samples) {
  let low = 65535;
  let high = 0;
  for (const sample of samples) {
    if (sample < low) low = sample;
    if (sample > high) high = sample;
  }
  const factor = Math.fround(255 / Math.max(high - low, 1e-12));
  const table = new Uint8Array(65536);
  for (let sample = low; sample <= high; sample++)
    table[sample] = roundHalfToEven(Math.fround((sample - low) * factor));
  return Uint8Array.from(samples, (sample) => table[sample]);
}

/** Round as IEEE 754 and numpy do. */
export function roundHalfToEven(value) {
  const down = Math.floor(value);
  const rest = value - down;
  return rest > 0.5 || (rest === 0.5 && down % 2 === 1) ? down + 1 : down;
}

/** Turn pixels upright: `orientation` is the value of EXIF, in [1, 8]. */
export function upright({ values, height, width }, orientation) {
  if (orientation === 1) return { values, height, width };
  const turned = orientation > 4;
  const mirrored = [2, 3, 6, 7].includes(orientation);
  const flipped = [3, 4, 7, 8].includes(orientation);
  const rows = turned ? width : height;
  const columns = turned ? height : width;
  const result = new Uint8Array(values.length);
  for (let y = 0, at = 0; y < rows; y++) {
    const v = flipped ? rows - 1 - y : y;
    for (let x = 0; x < columns; x++, at++) {
      const u = mirrored ? columns - 1 - x : x;
      result[at] = turned ? values[u * width + v] : values[v * width + u];
    }
  }
  return { values: result, height: rows, width: columns };
}

/** The orientation in an EXIF block (a small TIFF file), in [1, 8]; 1 (upright) if there is none. */
export function exifOrientation(exif) {
  const view = new DataView(exif.buffer, exif.byteOffset, exif.byteLength);
  if (exif.length < 8) return 1;
  const mark = view.getUint32(0);
  if (mark !== 0x49492a00 && mark !== 0x4d4d002a) return 1;
  const little = mark === 0x49492a00;
  try {
    const start = view.getUint32(4, little);
    const entries = view.getUint16(start, little);
    for (let entry = start + 2; entry < start + 2 + 12 * entries; entry += 12) {
      if (view.getUint16(entry, little) !== 0x0112) continue;
      const value = view.getUint16(entry + 8, little);
      return value >= 1 && value <= 8 ? value : 1;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // cut short
  }
  return 1;
}
