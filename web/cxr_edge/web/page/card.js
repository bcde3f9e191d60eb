/** The card of one image: doubt first, then the decision, then the picture. */

import { decide, UNKNOWN } from "./decide.js";
import { drawHeatmap, drawOutline, drawRadiograph, fullScale, pictureSize } from "./picture.js";

/** A new card that says only the name of its file. */
export function newCard(name, onRemove) {
  const card = document.getElementById("card").content.firstElementChild.cloneNode(true);
  card.querySelector(".name").textContent = name;
  const remove = card.querySelector(".remove");
  remove.setAttribute("aria-label", `Remove ${name}`);
  remove.addEventListener("click", onRemove);
  card.setAttribute("aria-busy", "true");
  return card;
}

export function showError(card, message) {
  card.removeAttribute("aria-busy");
  show(card.querySelector(".error"), message);
}

/** Show what does not depend on the operating point. */
export function showPrediction(card, entry, model, openOriginal) {
  const { prediction, lungs, gray, isOriginal, name } = entry;
  card.removeAttribute("aria-busy");
  card.classList.toggle("unlike", !prediction.in_distribution);
  if (!prediction.in_distribution) show(card.querySelector(".doubt"), doubtOf(prediction));
  card.querySelector(".lungs").textContent = aboutLungs(prediction);
  fillFigures(card.querySelector(".figures"), prediction, model);
  card.querySelector(".answer").hidden = false;
  showPicture(card, prediction, lungs, gray, model, name);
  const original = card.querySelector(".original");
  original.hidden = !isOriginal;
  original.setAttribute("aria-label", `Original size of ${name}`);
  original.addEventListener("click", openOriginal);
}

/** Show the decision at an operating point. */
export function showDecision(card, prediction, point, classes) {
  const { label } = decide(prediction.probability, point, classes);
  const decision = card.querySelector(".decision");
  decision.dataset.label = label;
  decision.querySelector(".label").textContent = label;
  const lead = prediction.in_distribution ? "at the operating point" : "would be the answer at the operating point";
  decision.querySelector(".at").textContent = `${lead} ${point.name}`;
  card.querySelector(".probability").textContent = probabilityText(prediction.probability, point);
  fillScale(card.querySelector(".scale"), prediction.probability, point);
}

export function doubtOf({ unlike }) {
  const kind = unlike === UNKNOWN ? "It resembles no kind of image that the model knows." : `It resembles: ${unlike}.`;
  return `Unlike the training set. ${kind} Do not rely on the decision.`;
}

export function probabilityText(probability, { threshold, rule_out }) {
  const rule =
    rule_out === null
      ? `threshold ${threshold.toFixed(3)}`
      : `unsure from ${rule_out.toFixed(3)}, pneumonia from ${threshold.toFixed(3)}`;
  return `Probability of pneumonia ${probability.toFixed(3)}; ${rule}`;
}

/** A bar for the probability and a mark at each threshold. */
function fillScale(scale, probability, { threshold, rule_out }) {
  scale.querySelectorAll(".mark").forEach((mark) => mark.remove());
  scale.querySelector(".bar").style.width = `${100 * probability}%`;
  for (const value of [rule_out, threshold].filter((value) => value !== null)) {
    const mark = document.createElement("span");
    mark.className = "mark";
    mark.style.left = `${100 * value}%`;
    scale.append(mark);
  }
}

const FOUND = {
  both: "Both lungs found.",
  one: "Only one lung found.",
  none: "No lungs found.",
  "cut off": "The lungs are cut off at the border of the image.",
};

function aboutLungs({ lungs_found, evidence_in_lungs }) {
  if (lungs_found === null) return "";
  if (lungs_found === "none") return FOUND.none;
  const share =
    evidence_in_lungs === null
      ? "The heatmap is empty."
      : `${Math.round(100 * evidence_in_lungs)} % of the evidence lies in the hull of the lungs.`;
  return `${FOUND[lungs_found]} ${share}`;
}

function fillFigures(list, prediction, model) {
  const total = prediction.timings_ms.total;
  const figures = {
    Logit: prediction.logit.toFixed(3),
    "Distance from the training set": `${prediction.novelty.toFixed(2)}, limit ${model.novelty_threshold.toFixed(2)}`,
    Time: `${total.toFixed(0)} ms`,
    ...aboutSite(prediction),
  };
  for (const [term, text] of Object.entries(figures)) {
    for (const [tag, content] of [
      ["dt", term],
      ["dd", text],
    ]) {
      const element = document.createElement(tag);
      element.textContent = content;
      list.append(element);
    }
  }
}

function aboutSite({ calibrated, site_probability }) {
  if (calibrated === null) return {};
  return { "Probability at the site": `${site_probability.toFixed(3)}, calibrated ${calibrated.slice(0, 10)}` };
}

function showPicture(card, prediction, lungs, gray, model, name) {
  const size = pictureSize(gray);
  const radiograph = drawRadiograph(gray);
  radiograph.setAttribute("role", "img");
  radiograph.setAttribute("aria-label", `Radiograph ${name} with its heatmap`);
  const heat = layer(drawHeatmap(prediction.heatmap, model, size), "heat");
  const picture = card.querySelector(".picture");
  picture.style.setProperty("--ratio", size.width / size.height);
  picture.append(radiograph, heat);
  card.querySelector(".peak").textContent = fullScale(prediction.heatmap).toFixed(2);
  bindOpacity(card.querySelector(".opacity"), heat, name);
  const outline = lungs ? layer(drawOutline(lungs, size), "outline") : null;
  if (outline) picture.append(outline);
  bindOutline(card.querySelector(".outline-field"), outline);
  card.querySelector("figure").hidden = false;
}

function layer(canvas, name) {
  canvas.className = `layer ${name}`;
  canvas.setAttribute("aria-hidden", "true");
  return canvas;
}

function bindOpacity(slider, heat, name) {
  slider.setAttribute("aria-label", `Opacity of the heatmap of ${name}`);
  const apply = () => {
    heat.style.opacity = String(slider.value / 100);
    slider.setAttribute("aria-valuetext", `${slider.value} %`);
  };
  slider.addEventListener("input", apply);
  apply();
}

function bindOutline(field, outline) {
  field.hidden = outline === null;
  field.querySelector("input").addEventListener("change", (event) => (outline.hidden = !event.target.checked));
}

function show(element, text) {
  element.textContent = text;
  element.hidden = false;
}
