// Calls functions of the page's modules in Node.js: JSON on standard input, a list of {module, name, args}.
import { readFileSync } from "node:fs";

const [folder] = process.argv.slice(2);
const revive = (_, value) => (value?.bytes === undefined ? value : new Uint8Array(Buffer.from(value.bytes, "base64")));
const flatten = (_, value) =>
  value instanceof Uint8Array
    ? { bytes: Buffer.from(value).toString("base64") }
    : ArrayBuffer.isView(value)
      ? [...value]
      : value;
const results = [];
for (const { module, name, args } of JSON.parse(readFileSync(0, "utf-8"), revive)) {
  try {
    results.push({ value: await (await import(`${folder}/${module}`))[name](...args) });
  } catch (error) {
    results.push({ error: error.message });
  }
}
process.stdout.write(JSON.stringify(results, flatten));
