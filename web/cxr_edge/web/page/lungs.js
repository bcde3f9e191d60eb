/** What the map of the lungs says, by the rules of `runtime/explanation/lungs.py`. */

import { interpolation, peak, spread } from "./heatmap.js";

/** Probability from which a tile belongs to a lung. */
export const LUNG = 0.5;
const SMALLEST_LUNG = 0.015;
const CUT_OFF = 0.6;
const EMPTY_LOGIT = 1e-3;

/**
 * Find the lungs in their map, an array of rows in [0, 1].
 *
 * @returns {{found: string, hull: Uint8Array}} `both`, `one`, `none` or `cut off`; 1 for each tile in the convex hull
 */
export function findLungs(map) {
  const height = map.length;
  const width = map[0].length;
  const regions = connected(map, height, width)
    .sort((a, b) => b.length - a.length)
    .slice(0, 2)
    .filter((region) => region.length >= SMALLEST_LUNG * height * width);
  const cutOff = regions.some((region) => isCutOff(region, height, width));
  return {
    found: cutOff ? "cut off" : ["none", "one", "both"][regions.length],
    hull: convexHull(regions.flat(), height, width),
  };
}

/** Regions of lung tiles that share sides, each a list of [x, y]. */
function connected(map, height, width) {
  const open = new Set();
  map.forEach((row, y) => row.forEach((value, x) => value >= LUNG && open.add(y * width + x)));
  const regions = [];
  for (const start of open) {
    const region = [];
    const next = [start];
    open.delete(start);
    while (next.length) {
      const tile = next.pop();
      const x = tile % width;
      region.push([x, (tile - x) / width]);
      const neighbours = [
        tile - width,
        tile + width,
        ...(x > 0 ? [tile - 1] : []),
        ...(x < width - 1 ? [tile + 1] : []),
      ];
      for (const neighbour of neighbours) if (open.delete(neighbour)) next.push(neighbour);
    }
    regions.push(region);
  }
  return regions;
}

/** Whether a region touches a border along a large part of its own width or height. */
function isCutOff(region, height, width) {
  const columns = region.map(([x]) => x);
  const rows = region.map(([, y]) => y);
  const wide = CUT_OFF * (Math.max(...columns) - Math.min(...columns) + 1);
  const high = CUT_OFF * (Math.max(...rows) - Math.min(...rows) + 1);
  const touches = (places, border, least) =>
    places.includes(border) && places.filter((p) => p === border).length >= least;
  return (
    touches(columns, 0, high) ||
    touches(columns, width - 1, high) ||
    touches(rows, 0, wide) ||
    touches(rows, height - 1, wide)
  );
}

/**
 * Convex hull of tile centres, as OpenCV's `fillConvexPoly` draws it: each side is drawn as a line, each row is filled
 * between the sides, and both round ties in their own way.
 */
export function convexHull(points, height, width) {
  const hull = new Uint8Array(height * width);
  const corners = hullCorners(points);
  const spans = new Map();
  corners.forEach((corner, at) => {
    const before = corners.at(at - 1);
    for (const [x, y] of [...line(before, corner), ...crossings(before, corner)]) {
      const [low, high] = spans.get(y) ?? [x, x];
      spans.set(y, [Math.min(low, x), Math.max(high, x)]);
    }
  });
  for (const [y, [low, high]] of spans) hull.fill(1, y * width + low, y * width + high + 1);
  return hull;
}

/** Corners of the convex hull in order (A. M. Andrew 1979, monotone chain). */
function hullCorners(points) {
  const sorted = [...points].sort(([x, y], [u, v]) => x - u || y - v);
  const chain = (ordered) => {
    const side = [];
    for (const point of ordered) {
      while (side.length > 1 && cross(side.at(-2), side.at(-1), point) <= 0) side.pop();
      side.push(point);
    }
    return side.slice(0, -1);
  };
  return sorted.length < 2 ? sorted : [...chain(sorted), ...chain(sorted.toReversed())];
}

function cross([ax, ay], [bx, by], [cx, cy]) {
  return (bx - ax) * (cy - ay) - (by - ay) * (cx - ax);
}

/** Pixels of a line between two points (Bresenham 1965), always drawn in the direction in which x grows. */
function* line(from, to) {
  const [start, end] = from[0] <= to[0] ? [from, to] : [to, from];
  const wide = end[0] - start[0];
  const high = Math.abs(end[1] - start[1]);
  const down = end[1] < start[1] ? -1 : 1;
  const steep = high > wide;
  const [long, short] = steep ? [high, wide] : [wide, high];
  let [x, y] = start;
  let error = long - 2 * short;
  for (let step = 0; step <= long; step++) {
    yield [x, y];
    const aside = error < 0;
    error += 2 * (aside ? long : 0) - 2 * short;
    if (steep || aside) y += down;
    if (!steep || aside) x += 1;
  }
}

/** Where a side crosses each row, in OpenCV's fixed point of 16 bits. */
function crossings(from, to) {
  const [[x, y], [endX, endY]] = from[1] <= to[1] ? [from, to] : [to, from];
  const rows = endY - y;
  if (rows === 0) return [];
  const step = Math.trunc(((endX - x) * 131072 + rows) / (2 * rows));
  return Array.from({ length: rows + 1 }, (_, row) => [x + Math.floor((step * row + 32768) / 65536), y + row]);
}

/** Share of the heatmap's evidence inside a hull of tiles, in [0, 1]; null if the heatmap is empty. */
export function evidenceInside(heatmap, hull, rows, columns, geometry, input) {
  if (peak(heatmap) < EMPTY_LOGIT) return null;
  const evidence = spread(
    tileWeights(input.height, rows, heatmap.length, geometry),
    heatmap,
    tileWeights(input.width, columns, heatmap[0].length, geometry),
  );
  let inside = 0;
  let all = 0;
  evidence.forEach((value, tile) => {
    all += value;
    if (hull[tile]) inside += value;
  });
  return inside / all;
}

/** Weights of the cells in the mean of each tile's pixels along one axis. */
function tileWeights(pixels, tiles, cells, geometry) {
  const weights = interpolation(pixels, pixels, cells, geometry);
  return Array.from({ length: tiles }, (_, tile) => {
    const start = (tile * pixels) / tiles;
    const end = ((tile + 1) * pixels) / tiles;
    const mean = new Array(cells).fill(0);
    for (let pixel = Math.floor(start); pixel < end; pixel++) {
      const overlap = Math.min(pixel + 1, end) - Math.max(pixel, start);
      weights[pixel].forEach((weight, cell) => (mean[cell] += (overlap * tiles * weight) / pixels));
    }
    return mean;
  });
}
