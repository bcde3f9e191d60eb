/** Where the cells of the heatmap lie, by the rules of `runtime/explanation/gradcam.py`. */

/**
 * Bilinear weights of the cells for each pixel along one axis: `pixels` rows of `cells` weights, which sum to 1.
 *
 * The value of a cell belongs to the centre of its receptive field, the pixel origin + stride · i of the network.
 */
export function interpolation(pixels, networkPixels, cells, { origin, stride }) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const centre = (pixel + 0.5) * (networkPixels / pixels) - 0.5;
    const position = Math.min(Math.max((centre - origin) / stride, 0), cells - 1);
    return Array.from({ length: cells }, (_, cell) => Math.max(1 - Math.abs(position - cell), 0));
  });
}

/** rows · map · columnsᵀ: the map (an array of rows) interpolated over a picture, row by row. */
export function spread(rows, map, columns) {
  const result = new Float32Array(rows.length * columns.length);
  rows.forEach((weights, y) => {
    const line = map[0].map((_, j) => weights.reduce((sum, weight, i) => sum + weight * map[i][j], 0));
    columns.forEach((shares, x) => {
      let sum = 0;
      for (let j = 0; j < shares.length; j++) sum += shares[j] * line[j];
      result[y * columns.length + x] = sum;
    });
  });
  return result;
}

/** Largest value of a map. */
export function peak(map) {
  return Math.max(...map.map((row) => Math.max(...row)));
}
