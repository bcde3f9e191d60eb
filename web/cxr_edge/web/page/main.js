/** The page with the engine of the server. `cxr-edge export --format web` replaces this module by `site/main.js`. */

import { start } from "./app.js";
import { openServer } from "./server.js";

start(openServer);
