/** Resizing to the input of the network, by the rules of `runtime/imaging/preprocess.py`. */

import { roundHalfToEven } from "./gray.js";

/** Resize gray pixels without keeping the aspect ratio: area averaging, or bilinear if a side has to grow. */
export function resize(gray, height, width) {
  if (gray.height === height && gray.width === width) return gray;
  const shrinks = gray.height >= height && gray.width >= width;
  return { values: (shrinks ? areaAverage : bilinear)(gray, height, width), height, width };
}

/**
 * Average the area under each pixel of the result.
 *
 * The runtime does the same on an integral image. Here the sums run along with the rows, so that 20 megapixels need
 * no 80 MB. The operations on doubles and their order are the same, and so are the bits of the result.
 */
function areaAverage({ values, height: sourceHeight, width: sourceWidth }, height, width) {
  const [rows, down] = edges(sourceHeight, height);
  const [columns, right] = edges(sourceWidth, width);
  const scale = (height * width) / (sourceHeight * sourceWidth);
  const totals = new Float64Array(sourceWidth); // sum of each column above the current row
  const result = new Uint8Array(height * width);
  let above = new Float64Array(width + 1);
  let here = new Float64Array(width + 1);
  let y = 0;
  for (let row = 0; row <= height; row++) {
    for (; y < rows[row]; y++) addRow(totals, values, y * sourceWidth);
    const upper = atColumns(totals, columns, right);
    const lower = atColumns(values.subarray(y * sourceWidth, (y + 1) * sourceWidth), columns, right);
    for (let x = 0; x <= width; x++) here[x] = upper[x] + lower[x] * down[row];
    for (let x = 0; row && x < width; x++) {
      const area = here[x + 1] - above[x + 1] - (here[x] - above[x]);
      result[(row - 1) * width + x] = roundHalfToEven(area * scale);
    }
    [above, here] = [here, above];
  }
  return result;
}

function addRow(totals, values, start) {
  for (let x = 0; x < totals.length; x++) totals[x] += values[start + x];
}

/** The integral along one row of sums at the given columns. */
function atColumns(sums, columns, right) {
  const result = new Float64Array(columns.length);
  let integral = 0;
  let x = 0;
  for (let edge = 0; edge < columns.length; edge++) {
    for (; x < columns[edge]; x++) integral += sums[x];
    result[edge] = integral + sums[x] * right[edge];
  }
  return result;
}

/** Edges of `parts` equal parts of `size` pixels: index of the pixel, and position within it in [0, 1]. */
function edges(size, parts) {
  const whole = new Int32Array(parts + 1);
  const position = new Float64Array(parts + 1);
  for (let part = 0; part <= parts; part++) {
    const edge = part * (size / parts);
    whole[part] = Math.min(Math.trunc(edge), size - 1);
    position[part] = edge - whole[part];
  }
  return [whole, position];
}

/** OpenCV's bilinear interpolation of bytes: weights of 11 bits, and its rounding. */
function bilinear({ values, height: sourceHeight, width: sourceWidth }, height, width) {
  const rows = weights(sourceHeight, height);
  const columns = weights(sourceWidth, width);
  const result = new Uint8Array(height * width);
  rows.forEach(([top, bottom, upper, lower], y) => {
    columns.forEach(([left, right, first, second], x) => {
      const a = values[top * sourceWidth + left] * first + values[top * sourceWidth + right] * second;
      const b = values[bottom * sourceWidth + left] * first + values[bottom * sourceWidth + right] * second;
      result[y * width + x] = (((upper * (a >> 4)) >> 16) + ((lower * (b >> 4)) >> 16) + 2) >> 2;
    });
  });
  return result;
}

/** For each pixel of the result: its two source pixels and their weights, which sum to 2048. */
function weights(size, parts) {
  return Array.from({ length: parts }, (_, part) => {
    const centre = Math.fround((part + 0.5) * (size / parts) - 0.5);
    const first = Math.min(Math.max(Math.floor(centre), 0), size - 1);
    const second = Math.min(first + 1, size - 1);
    const share = roundHalfToEven(Math.min(Math.max(centre - first, 0), 1) * 2048);
    return [first, second, 2048 - share, share];
  });
}
