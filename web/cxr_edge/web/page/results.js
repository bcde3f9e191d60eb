/** Results as files: the fields of `cxr-edge predict --format json` and `--format csv`. */

import { decide } from "./decide.js";

const COLUMNS = [
  "path",
  "label",
  "probability",
  "logit",
  "operating_point",
  "threshold",
  "rule_out",
  "novelty",
  "in_distribution",
  "unlike",
  "lungs_found",
  "evidence_in_lungs",
  "calibrated",
  "site_probability",
  "error",
];

/** One row for each image, with the decision at an operating point. */
export function rowsOf(entries, point, classes) {
  return entries
    .filter(({ prediction, error }) => prediction || error)
    .map(({ name, prediction, error }) =>
      error ? { path: name, error } : { path: name, ...rounded(prediction, point, classes) },
    );
}

function rounded(prediction, point, classes) {
  const to = (digits) => (value) => Number(value.toFixed(digits));
  const { label, ...rule } = decide(prediction.probability, point, classes);
  const { probability, logit, heatmap, timings_ms, ...rest } = prediction;
  const timings = Object.entries(timings_ms).map(([stage, ms]) => [stage, to(3)(ms)]);
  return {
    label,
    probability,
    logit,
    ...rule,
    ...rest,
    heatmap: heatmap.map((row) => row.map(to(5))),
    timings_ms: Object.fromEntries(timings),
  };
}

export function toJson(rows) {
  return JSON.stringify(rows, null, 2) + "\n";
}

export function toCsv(rows) {
  const lines = rows.map((row) => COLUMNS.map((column) => cell(row[column])));
  return [COLUMNS, ...lines].map((line) => line.join(",") + "\n").join("");
}

function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "boolean") return value ? "True" : "False"; // as Python writes it
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
