/** An image file that the page cannot read. The message names the file, what was found, and what to do. */
export class ImageError extends Error {}

/** An engine that cannot answer; no file is to blame. */
export class EngineError extends Error {}
