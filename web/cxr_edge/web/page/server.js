/** The engine that asks `cxr-edge serve`; docs/serve.md describes its answers. */

import { readImage } from "./imaging/decode.js";
import { EngineError, ImageError } from "./imaging/errors.js";
import { decodePng } from "./imaging/png.js";

const TRIES = 5;

export async function openServer() {
  const model = await (await ask("v1/model")).json();
  return {
    model: { ...model, engine: "server" },
    where: "The image is sent to this server, which does not store it.",
    async predict(file) {
      const gray = await readImage(file).catch(leaveToServer);
      const record = await askForPrediction(file, gray === null);
      const shown = gray ?? (await radiographOf(record, file.name));
      return { prediction: withoutDecision(record), lungs: null, gray: shown, isOriginal: gray !== null };
    },
  };
}

/** The server reads formats that the browser does not, and says what is wrong with the others. */
function leaveToServer(error) {
  if (error instanceof ImageError) return null;
  throw error;
}

async function askForPrediction(file, withRadiograph) {
  const body = new FormData();
  body.append("file", file, file.name);
  const response = await ask(`v1/predict?heatmap=array${withRadiograph ? "&radiograph=png" : ""}`, {
    method: "POST",
    body,
  });
  const [record] = (await response.json()).predictions;
  if (record.error) throw new ImageError(record.error.message.replace(/^image:/, `${file.name}:`)); // it does not repeat names
  return record;
}

/** The answer to a request; a busy server is asked again after the time that it names. */
async function ask(path, options) {
  for (let attempt = 1; ; attempt++) {
    const response = await fetch(path, options).catch((error) => {
      throw new EngineError(`The server cannot be reached (${error.message}). Check that it runs, then try again.`);
    });
    if (response.ok || response.status === 422) return response;
    if (response.status !== 503 || attempt === TRIES) throw new EngineError(await reasonOf(response));
    await pause(Number(response.headers.get("Retry-After")) || 1);
  }
}

async function reasonOf(response) {
  const body = await response.json().catch(() => ({}));
  return `The server answered ${response.status}: ${body.error?.message ?? response.statusText}`;
}

function pause(seconds) {
  return new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
}

function radiographOf(record, name) {
  const bytes = Uint8Array.from(atob(record.radiograph_png), (letter) => letter.charCodeAt(0));
  return decodePng(bytes, name, Infinity);
}

/** The fields that do not depend on the operating point. */
function withoutDecision({ path, label, operating_point, threshold, rule_out, radiograph_png, ...prediction }) {
  return prediction;
}
