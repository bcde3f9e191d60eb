/** The page with LiteRT as its engine; `cxr-edge export --format web` makes it the site's `main.js`. */

import { start } from "../page/app.js";
import { openLiteRT } from "./litert.js";

/** A site may hold several files of a model: `?file=model.int8.tflite` takes another than the first. */
const file = new URLSearchParams(location.search).get("file");
const opened = openLiteRT(file);

if ("serviceWorker" in navigator) navigator.serviceWorker.register("sw.js").catch(console.error);
start(() => opened);

/** `cxr-edge verify` asks the page's own engine. */
globalThis.cxrEdge = opened;
opened.catch(() => {});
