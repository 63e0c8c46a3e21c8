/** The gateway's routes. */

import { events } from "./sse.js";

// This module lies one folder below the routes, wherever a proxy has put both.
const ROOT = new URL("../", import.meta.url);
const EDITS = "v1/images/edits";
const SOON = 3; // seconds, where it is worth trying again and not said when
const LOST = "The connection was lost before the edit was done. Nothing sends it again by itself.";
const UNREACHABLE = "The gateway cannot be reached. Is it running?";

/** What went wrong, as the gateway says it: `status` 0 where it could not be asked. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} message
   * @param {{param?: string | null, retryAfter?: number}} more `retryAfter`: seconds
   */
  constructor(status, message, { param = null, retryAfter = 0 } = {}) {
    super(message);
    this.status = status;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

let ahead = 0; // milliseconds by which the gateway's clock is before ours

/** The gateway's time, milliseconds since 1970. */
export const now = () => Date.now() + ahead;

/** Where the API is, for programs. */
export const baseUrl = () => new URL("v1", ROOT).href;

/**
 * What is served, the default first. Throws ApiError.
 * @param {string} key "" for none
 * @returns {Promise<any[]>}
 */
export async function models(key) {
  const response = await ask("v1/models", { headers: bearer(key), cache: "no-store" });
  return (await response.json()).data;
}

/** The sample photo. Throws ApiError. */
export const sample = async () => (await ask("playground/sample.jpg", {})).blob();

/**
 * Run an edit and tell of it until it has ended. Throws ApiError, and what `signal` aborts with.
 * @param {{body: Blob, type: string}} form
 * @param {string} key
 * @param {AbortSignal} signal
 * @yields {{kind: "queued", ahead: number} | {kind: "step", image: number, step: number, total: number}
 *   | {kind: "preview", image: number, src: string} | {kind: "done", image: number, size: string,
 *   seed: string, url: string | undefined, expiresAt: number, blob: Blob, warning: string | undefined}
 *   | {kind: "lost", message: string}} lost: made, hosted, and not to be had from there
 */
export async function* edit({ body, type }, key, signal) {
  const headers = { "content-type": type, ...bearer(key) };
  const response = await ask(EDITS, { method: "POST", body, headers, signal });
  if (!response.body) throw new ApiError(0, LOST);
  try {
    for await (const { comment, event, data } of events(response.body)) {
      const told = comment === undefined ? await fromEvent(event, data, signal) : fromComment(comment);
      if (told) yield told;
    }
  } catch (error) {
    if (error instanceof ApiError || signal.aborted) throw error;
    throw new ApiError(0, LOST);
  }
}

/** What it means that an edit's events are over too early. */
export const cutShort = () => new ApiError(0, LOST);

function fromComment(comment) {
  const [word, ...rest] = comment.split(" ");
  if (word !== "queued" && word !== "step") return null;
  const { position, image_index, step, total } = JSON.parse(rest.join(" "));
  return word === "queued" ? { kind: word, ahead: position } : { kind: word, image: image_index, step, total };
}

async function fromEvent(event, data, signal) {
  const said = JSON.parse(data);
  if (event === "error") {
    const { code, message, param } = said.error;
    throw new ApiError(code, message, { param });
  }
  const image = said.image_index;
  const type = `image/${said.output_format}`;
  if (event === "image_edit.partial_image") {
    return { kind: "preview", image, src: `data:${type};base64,${said.b64_json}` };
  }
  if (event !== "image_edit.completed") return null;
  const about = {
    image,
    size: said.size,
    seed: seedOf(data),
    url: said.url,
    expiresAt: (said.expires_at ?? 0) * 1000,
    warning: said.warning,
  };
  if (said.b64_json) return { kind: "done", ...about, blob: fromBase64(said.b64_json, type) };
  try {
    return { kind: "done", ...about, blob: await hosted(said.url, signal) };
  } catch (error) {
    if (signal.aborted) throw error;
    return { kind: "lost", message: `An image is made, but does not come: ${error.message} It is at ${said.url}` };
  }
}

/** All its digits: a number of JavaScript holds 53 bits of the 64. Within a string its quotes would be escaped. */
const seedOf = (data) => data.match(/"seed":\s*(\d+)/)?.[1] ?? "";

function fromBase64(text, type) {
  return new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type });
}

/** A hosted image from this very gateway, whatever name of it the URL has: that may be one for others to use. */
async function hosted(url, signal) {
  const name = new URL(url).pathname.split("/").pop();
  return (await ask(`images/${name}`, { signal })).blob();
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(new URL(path, ROOT), options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, UNREACHABLE);
  }
  const date = Date.parse(response.headers.get("date") ?? "");
  if (date) ahead = apart(date);
  if (response.ok) return response;
  const error = (await response.json().catch(() => ({}))).error ?? {};
  const soon = response.status === 429 || response.status === 503 ? SOON : 0;
  const retryAfter = Number(response.headers.get("retry-after")) || soon;
  const message = error.message ?? `The answer was HTTP ${response.status}, and not the gateway's own.`;
  throw new ApiError(response.status, message, { param: error.param, retryAfter });
}

/** A date has whole seconds: what is less than two is no difference of clocks. */
function apart(date) {
  const milliseconds = date - Date.now();
  return Math.abs(milliseconds) < 2000 ? 0 : milliseconds;
}

function bearer(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}
