/** Pictures: the radiograph, and over it the heatmap and the outline of the lungs. */

import { interpolation, peak, spread } from "./heatmap.js";
import { LUNG } from "./lungs.js";
import { resize } from "./imaging/preprocess.js";
import { TURBO } from "./turbo.js";

/** Longer side of the radiograph on the page (pixels). */
const SIDE = 1024;
/** A map whose peak is lower (contribution to the logit) is drawn faint, not stretched to full colour. */
const FAINT_LOGIT = 0.1;
const OUTLINE = [255, 0, 255, 255];
const STRIP_PIXELS = 4_000_000;

/** Height and width of a radiograph on the page; the aspect ratio is kept. */
export function pictureSize({ height, width }) {
  const factor = Math.min(1, SIDE / Math.max(height, width));
  return { height: Math.max(1, Math.round(height * factor)), width: Math.max(1, Math.round(width * factor)) };
}

/** A canvas with the radiograph, reduced by area averaging. */
export function drawRadiograph(gray) {
  const { height, width } = pictureSize(gray);
  return canvasOf(resize(gray, height, width));
}

/** Canvases that show the radiograph at its original size, one below the other, because iOS limits their area. */
export function drawOriginal({ values, height, width }) {
  const rows = Math.max(1, Math.floor(STRIP_PIXELS / width));
  const strips = [];
  for (let top = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    strips.push(canvasOf({ values: values.subarray(top * width, (top + count) * width), height: count, width }));
  }
  return strips;
}

function canvasOf({ values, height, width }) {
  return paint(height, width, (data) => {
    values.forEach((value, at) => {
      data[4 * at] = data[4 * at + 1] = data[4 * at + 2] = value;
      data[4 * at + 3] = 255;
    });
  });
}

/** Largest contribution that the colours stand for. */
export function fullScale(heatmap) {
  return Math.max(peak(heatmap), FAINT_LOGIT);
}

/** A canvas with the heatmap: colour and opacity increase with the contribution, from 0 to the peak of the map. */
export function drawHeatmap(heatmap, model, { height, width }) {
  const rows = interpolation(height, model.input.height, heatmap.length, model.heatmap);
  const columns = interpolation(width, model.input.width, heatmap[0].length, model.heatmap);
  const scale = 255 / fullScale(heatmap);
  const heat = spread(rows, heatmap, columns);
  return paint(height, width, (data) => {
    heat.forEach((value, at) => {
      const level = Math.min(255, Math.round(value * scale));
      data.set(TURBO.subarray(3 * level, 3 * level + 3), 4 * at);
      data[4 * at + 3] = level;
    });
  });
}

/** A canvas with the line where the map of the lungs crosses 0.5. */
export function drawOutline(lungs, { height, width }) {
  const centred = { origin: 0, stride: 1 };
  const inside = spread(
    interpolation(height, lungs.length, lungs.length, centred),
    lungs,
    interpolation(width, lungs[0].length, lungs[0].length, centred),
  );
  const isInside = (y, x) => y >= 0 && x >= 0 && y < height && x < width && inside[y * width + x] >= LUNG;
  return paint(height, width, (data) => {
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at += 4) {
        const around = isInside(y - 1, x) && isInside(y + 1, x) && isInside(y, x - 1) && isInside(y, x + 1);
        if (isInside(y, x) && !around) data.set(OUTLINE, at);
      }
    }
  });
}

function paint(height, width, fill) {
  const canvas = document.createElement("canvas");
  canvas.height = height;
  canvas.width = width;
  const image = new ImageData(width, height);
  fill(image.data);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
