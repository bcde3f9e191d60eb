/**
 * From the outputs of a network to a prediction, by the rules of `runtime/prediction.py` and `runtime/predictor.py`.
 *
 * @typedef {object} Prediction the object that `cxr-edge predict --format jsonl` writes, without its decision
 * @property {number} probability
 * @property {number} logit
 * @property {number} novelty
 * @property {boolean} in_distribution
 * @property {?string} unlike
 * @property {?string} lungs_found
 * @property {?number} evidence_in_lungs
 * @property {?string} calibrated
 * @property {?number} site_probability
 * @property {number[][]} heatmap
 * @property {Object<string, number>} timings_ms
 */

import { evidenceInside, findLungs } from "./lungs.js";

/** The kind of an image that is out of distribution but resembles no kind of outlier. */
export const UNKNOWN = "unknown";
const UNSURE = "UNSURE";

/** Label, threshold and name of an operating point for a probability. */
export function decide(probability, point, classes) {
  const thresholds = point.rule_out === null ? [point.threshold] : [point.rule_out, point.threshold];
  const answers = thresholds.length === 1 ? classes : [classes[0], UNSURE, classes[1]];
  const label = answers[thresholds.filter((threshold) => probability >= threshold).length];
  return { label, operating_point: point.name, threshold: point.threshold, rule_out: point.rule_out };
}

/**
 * A prediction from the outputs of a model file.
 *
 * @param {Object<string, Float32Array>} outputs
 * @param manifest the manifest of the bundle
 * @returns {{prediction: Prediction, lungs: ?number[][]}}
 */
export function readOutputs(outputs, manifest, timings_ms) {
  const [probability, logit, novelty] = ["probability", "logit", "novelty"].map((name) => outputs[name][0]);
  const side = Math.sqrt(outputs.heatmap.length);
  const heatmap = rowsOf(outputs.heatmap, side, side);
  const known = novelty <= manifest.novelty_threshold;
  const lungs = manifest.lungs ? rowsOf(outputs.lungs, manifest.lungs.height, manifest.lungs.width) : null;
  const prediction = {
    probability,
    logit,
    novelty,
    in_distribution: known,
    unlike: known ? null : kindOf(outputs.unlike, novelty, manifest.novelty_kinds),
    ...aboutLungs(lungs, heatmap, manifest),
    calibrated: manifest.site?.date ?? null,
    site_probability: manifest.site ? siteProbability(manifest.site, logit) : null,
    heatmap,
    timings_ms,
  };
  return { prediction, lungs };
}

function rowsOf(values, height, width) {
  return Array.from({ length: height }, (_, y) => Array.from(values.subarray(y * width, (y + 1) * width)));
}

function aboutLungs(lungs, heatmap, manifest) {
  if (!lungs) return { lungs_found: null, evidence_in_lungs: null };
  const { found, hull } = findLungs(lungs);
  const { height, width } = manifest.lungs;
  return {
    lungs_found: found,
    evidence_in_lungs: evidenceInside(heatmap, hull, height, width, manifest.heatmap, manifest.input),
  };
}

/** Probability at the site that calibrated the bundle, for a logit of the network. */
export function siteProbability({ slope, bias }, logit) {
  return 1 / (1 + Math.exp(-(slope * logit + bias)));
}

/** The kind of outlier that explains more than half of the squared novelty, or `unknown`. */
export function kindOf(beyond, novelty, kinds) {
  if (!beyond || !kinds.length) return UNKNOWN;
  const explained = beyond.reduce((sum, part) => sum + part * part, 0);
  return 2 * explained > novelty * novelty ? kinds[beyond.indexOf(Math.max(...beyond))] : UNKNOWN;
}
