/** The engine in the page: LiteRT, compiled to WebAssembly. The image stays on the device. */

import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";

import { readOutputs } from "../page/decide.js";
import { readImage } from "../page/imaging/decode.js";
import { EngineError } from "../page/imaging/errors.js";
import { resize } from "../page/imaging/preprocess.js";
import { litertFiles } from "./simd.js";

/**
 * Load the model and check that this browser computes what `verify` has passed: the golden outputs of the file, and
 * the pixels of a small JPEG, because some browsers alter pixels that a page reads.
 */
export async function openLiteRT(wanted) {
  if (!isSecureContext)
    throw new EngineError("Browsers run this page only over https, or from localhost. Open it there.");
  const manifest = JSON.parse(await text("model/manifest.json"));
  const file = manifest.files.find(({ path }) => path === wanted) ?? manifest.files[0];
  const [content] = await Promise.all([bytes(`model/${file.path}`), loadLiteRt(litertFiles()[0])]);
  await checkHash(content, file);
  const network = await loadAndCompile(content, { accelerator: "wasm" });
  await checkGolden(network, manifest, file);
  await checkPixels();
  return {
    model: { ...manifest, file, engine: "page" },
    where: "The image stays on this device.",
    predict: (image) => predict(network, manifest, image),
  };
}

async function predict(network, manifest, image) {
  const start = performance.now();
  const gray = await readImage(image);
  const decoded = performance.now();
  const { values } = resize(gray, manifest.input.height, manifest.input.width);
  const preprocessed = performance.now();
  const outputs = await run(network, values, manifest.input);
  const end = performance.now();
  const timings = {
    decode: decoded - start,
    preprocess: preprocessed - decoded,
    inference: end - preprocessed,
    total: end - start,
  };
  return { ...readOutputs(outputs, manifest, timings), gray, isOriginal: true, outputs, resized: values };
}

/** Run the network on gray bytes, row by row: name of each output -> Float32Array. */
async function run(network, values, { name, height, width }) {
  const image = new Tensor(values, [1, height, width, 1]);
  const tensors = await network.run({ [name]: image });
  image.delete();
  const outputs = {};
  for (const [output, tensor] of Object.entries(tensors)) {
    outputs[output] = tensor.toTypedArray().slice();
    tensor.delete();
  }
  return outputs;
}

async function checkHash(content, { path, sha256 }) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== sha256)
    throw new EngineError(
      `${path}: found sha256 ${found.slice(0, 12)}, expected ${sha256.slice(0, 12)}. Export the site again.`,
    );
}

async function checkGolden(network, manifest, { path }) {
  const golden = JSON.parse(await text("model/golden/golden.json")).files[path];
  for (const [name, expected] of Object.entries(golden.outputs)) {
    const outputs = await run(network, await bytes(`model/golden/${name}.bin`), manifest.input);
    for (const [output, values] of Object.entries(expected)) {
      const distance = farthest(outputs[output], [values].flat(2));
      if (!(distance <= golden.tolerance[output])) {
        throw new EngineError(
          `This browser computes other values than the verified model: ${output} of ${name} differs by ${distance}, ` +
            `expected at most ${golden.tolerance[output]}. Use another browser, or cxr-edge predict.`,
        );
      }
    }
  }
}

async function checkPixels() {
  const { values } = await readImage(new File([await bytes("check.jpg")], "check.jpg"));
  const distance = farthest(values, await bytes("check.bin"));
  if (!(distance <= 1)) {
    throw new EngineError(
      `This browser alters the pixels that a page reads, by up to ${distance} gray levels. Switch off its protection ` +
        "against fingerprinting for this page, or use another browser.",
    );
  }
}

/** Largest absolute difference; NaN if the lengths differ. */
function farthest(values, expected) {
  if (values?.length !== expected.length) return NaN;
  return expected.reduce((most, value, at) => Math.max(most, Math.abs(value - values[at])), 0);
}

async function bytes(path) {
  return new Uint8Array(await (await get(path)).arrayBuffer());
}

async function text(path) {
  return (await get(path)).text();
}

async function get(path) {
  const response = await fetch(path);
  if (!response.ok)
    throw new EngineError(
      `${path}: the server answered ${response.status}. Export the site again and copy the whole folder.`,
    );
  return response;
}
