/**
 * The page: it takes files, asks an engine about one after the other, and shows a card for each.
 *
 * @typedef {object} Engine
 * @property {object} model the fields of `GET /v1/model`: file, classes, operating_points, heatmap, input, …
 * @property {string} where a sentence: where the image goes
 * @property {function(File): Promise<object>} predict returns {prediction, lungs, gray, isOriginal}: `decide.Prediction`,
 *   map of the lungs or null, gray pixels to show, and whether these are the file's own at full size; throws ImageError
 */

import { newCard, probabilityText, showDecision, showError, showPrediction } from "./card.js";
import { decide } from "./decide.js";
import { readImage } from "./imaging/decode.js";
import { ImageError } from "./imaging/errors.js";
import { drawOriginal } from "./picture.js";
import { rowsOf, toCsv, toJson } from "./results.js";

const byId = (id) => document.getElementById(id);
const entries = [];
let engine = null;
let queue = Promise.resolve();

/** Open the engine, then take files. Files that arrive before wait. */
export function start(open) {
  queue = open().then(ready, (error) => {
    say(error.message);
    console.error(error);
    throw error;
  });
  queue.catch(() => {});
  takeFiles();
  byId("point").addEventListener("change", redecide);
  byId("clear").addEventListener("click", () => [...entries].forEach(remove));
  byId("save-json").addEventListener("click", () => save("decisions.json", "application/json", toJson));
  byId("save-csv").addEventListener("click", () => save("decisions.csv", "text/csv", toCsv));
  return queue;
}

function ready(opened) {
  engine = opened;
  const { model } = engine;
  byId("where").textContent = engine.where;
  byId("model").textContent = `Model ${model.name}, ${model.file.path}, sha256 ${model.file.sha256.slice(0, 12)}`;
  for (const point of model.operating_points) byId("point").add(new Option(point.name, point.name));
  explainRule();
  document.documentElement.dataset.ready = model.engine;
  say("Ready. Add a radiograph.");
}

function takeFiles() {
  for (const id of ["files", "camera"]) {
    byId(id).addEventListener("change", (event) => {
      add([...event.target.files]);
      event.target.value = ""; // the same file can be chosen again
    });
  }
  document.addEventListener("paste", (event) => add([...event.clipboardData.files]));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop").hidden = !event.dataTransfer.types.includes("Files");
  });
  document.addEventListener("dragleave", (event) => (byId("drop").hidden ||= event.relatedTarget === null));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").hidden = true;
    add([...event.dataTransfer.files]);
  });
}

function add(files) {
  for (const file of files) {
    const entry = { name: file.name, file };
    entry.card = newCard(file.name, () => remove(entry));
    entries.push(entry);
    byId("results").append(entry.card);
    queue = queue.then(() => process(entry));
    queue.catch(() => {});
  }
  byId("controls").hidden = entries.length === 0;
}

async function process(entry) {
  if (!entries.includes(entry)) return; // removed while it waited
  say(`Reading ${entry.name} …`);
  try {
    const { gray, lungs, isOriginal, prediction } = await engine.predict(entry.file);
    entry.prediction = prediction;
    showPrediction(entry.card, { name: entry.name, prediction, lungs, gray, isOriginal }, engine.model, () =>
      openOriginal(entry),
    );
    showDecision(entry.card, prediction, chosenPoint(), engine.model.classes);
    say(summary(entry));
  } catch (error) {
    entry.error = error.message;
    showError(entry.card, error.message);
    say(error.message);
    if (!(error instanceof ImageError)) console.error(error);
  }
}

/** One sentence for the screen reader; doubt comes first. */
function summary({ name, prediction }) {
  const { label } = decide(prediction.probability, chosenPoint(), engine.model.classes);
  const doubt = prediction.in_distribution
    ? ""
    : `unlike the training set${prediction.unlike === "unknown" ? "" : ` (${prediction.unlike})`}; `;
  return `${name}: ${doubt}${label}. ${probabilityText(prediction.probability, chosenPoint())}.`;
}

function chosenPoint() {
  return engine.model.operating_points.find(({ name }) => name === byId("point").value);
}

function explainRule() {
  byId("rule").textContent = chosenPoint().chosen;
}

function redecide() {
  explainRule();
  for (const { card, prediction } of entries)
    if (prediction) showDecision(card, prediction, chosenPoint(), engine.model.classes);
  say(`Operating point ${chosenPoint().name}.`);
}

function remove(entry) {
  const at = entries.indexOf(entry);
  if (at < 0) return;
  entries.splice(at, 1);
  const next = (entries[at] ?? entries[at - 1])?.card.querySelector(".remove") ?? byId("files");
  entry.card.remove();
  byId("controls").hidden = entries.length === 0;
  next.focus();
}

/** The radiograph is read again, so that cards need no memory for the pixels of large files. */
async function openOriginal({ file, name }) {
  const gray = await readImage(file);
  byId("original-title").textContent = `${name}, ${gray.width}×${gray.height} pixels`;
  byId("original-picture").replaceChildren(...drawOriginal(gray));
  byId("original").showModal();
  byId("original").addEventListener("close", () => byId("original-picture").replaceChildren(), { once: true });
}

function save(name, type, write) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([write(rowsOf(entries, chosenPoint(), engine.model.classes))], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  say(`Saved ${name}.`);
}

function say(text) {
  byId("status").textContent = text;
}
