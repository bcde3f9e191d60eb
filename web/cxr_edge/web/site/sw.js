/** The service worker: it keeps all files of the site, so that the page works offline after the first visit. */

import { litertFiles } from "./simd.js";

/* global SITE_FILES, SITE_VERSION -- `cxr-edge export` fills them in: the list of files, and a hash of their contents */
const PREFIX = `cxr-edge ${self.registration.scope} `; // other sites of the same host keep theirs
const CACHE = PREFIX + SITE_VERSION;

self.addEventListener("install", (event) => {
  const keep = async () => {
    const cache = await caches.open(CACHE);
    await cache.addAll([".", ...SITE_FILES, ...litertFiles()]);
    await self.skipWaiting();
  };
  event.waitUntil(keep());
});

self.addEventListener("activate", (event) => {
  const dropOthers = async () => {
    const names = await caches.keys();
    await Promise.all(
      names.filter((name) => name.startsWith(PREFIX) && name !== CACHE).map((name) => caches.delete(name)),
    );
    await self.clients.claim();
  };
  event.waitUntil(dropOthers());
});

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET") return;
  const answer = async () => {
    const cache = await caches.open(CACHE);
    return (await cache.match(event.request, { ignoreSearch: true })) ?? fetch(event.request);
  };
  event.respondWith(answer());
});
