/** A file read as a photo, and made to fit where the gateway would refuse it as it is. */

import { bytes } from "./dom.js";

// What the server decodes at most, and what every browser's canvas holds.
const MAX_PIXELS = 50_000_000;
const CANVAS_PIXELS = 16_777_216;
const QUALITY = 0.92;
/** What is taken as it is, and how files of it are named. */
export const EXTENSIONS = { "image/png": "png", "image/jpeg": "jpg", "image/webp": "webp" };

/**
 * `name` tells it apart from the others; `size` is how it is shown, upright. What is sent is `blob`, under the name `sent`
 * and of `width` and `height`: `file` untouched, unless `note` says otherwise. `url` shows `file`. `made`: there is no
 * such file on a disk.
 * @typedef {{name: string, file: Blob, size: {width: number, height: number}, url: string, made: boolean,
 *   blob: Blob, sent: string, width: number, height: number, note: string}} Photo
 */

/**
 * Read a file. Throws Error, in words for its giver, where it is none that this browser can show.
 * @param {File} file
 * @param {Set<string>} taken names that it may not have
 * @param {boolean} made not from a disk
 * @returns {Promise<Photo>}
 */
export async function read(file, taken, made) {
  const type = await kind(file);
  const blob = file.slice(0, file.size, type);
  const size = await measure(blob, file.name, type);
  const name = unique(clean(file.name, type), taken);
  const url = URL.createObjectURL(blob);
  return { name, file: blob, size, url, made: made || name !== file.name, ...asItIs(blob, name, size) };
}

/**
 * Make what is sent of a photo fit; what fits already stays as it is, to the byte. Throws Error.
 * @param {Photo} photo
 * @param {number} maxBytes
 * @param {Set<string>} taken names that what is sent may not have
 */
export async function fit(photo, maxBytes, taken) {
  const { file, name, size } = photo;
  Object.assign(photo, asItIs(file, name, size));
  const sendable = file.type in EXTENSIONS;
  const small = file.size <= maxBytes && size.width * size.height <= MAX_PIXELS;
  if (sendable && small) return;
  const bitmap = await createImageBitmap(file);
  const blob = await encode(bitmap, maxBytes, small).finally(() => bitmap.close());
  const { width, height } = await measure(blob, name, blob.type);
  const was = `${bytes(file.size)}, ${size.width} × ${size.height}`;
  const why = small ? "Not a PNG, JPEG or WebP" : `Larger than the model takes (${was})`;
  const scaled = width === size.width ? "" : ` of ${width} × ${height}`;
  const kind = blob.type === "image/png" ? "PNG" : "JPEG";
  photo.note = `${why}: sent as ${kind}${scaled}, ${bytes(blob.size)}.`;
  const sent = unique(`${name.replace(/\.[^.]*$/s, "")}-sent.${EXTENSIONS[blob.type]}`, taken);
  // A mask is drawn in the pixels of what is sent.
  Object.assign(photo, { blob, sent, width, height });
}

const asItIs = (blob, sent, size) => ({ blob, sent, ...size, note: "" });

/**
 * A photo as the server cuts it for a result of that size: scaled to cover it, the middle of it, on white.
 * @param {Blob} blob @param {number} width @param {number} height
 * @returns {Promise<Blob>}
 */
export async function cut(blob, width, height) {
  const bitmap = await createImageBitmap(blob);
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const [across, down] = [bitmap.width * scale, bitmap.height * scale];
  const canvas = drawn(width, height, (context) =>
    context.drawImage(bitmap, (width - across) / 2, (height - down) / 2, across, down),
  );
  bitmap.close();
  return encoded(canvas, "image/jpeg", QUALITY);
}

/** @param {HTMLCanvasElement} canvas @param {string} type @param {number} [quality] 0..1 @returns {Promise<Blob>} */
export function encoded(canvas, type, quality) {
  return new Promise((resolve, reject) => {
    const given = (blob) => (blob ? resolve(blob) : reject(new Error("This browser has no room for a picture of that size.")));
    canvas.toBlob(given, type, quality);
  });
}

async function encode(bitmap, maxBytes, lossless) {
  const pixels = bitmap.width * bitmap.height;
  let scale = Math.min(1, Math.sqrt(CANVAS_PIXELS / pixels));
  if (lossless) {
    const blob = await at(bitmap, scale, "image/png");
    if (blob.size <= maxBytes) return blob;
  }
  for (let tries = 0; tries < 8; tries++) {
    const blob = await at(bitmap, scale, "image/jpeg");
    if (blob.size <= maxBytes) return blob;
    scale *= 0.95 * Math.sqrt(maxBytes / blob.size);
  }
  throw new Error(`cannot be made smaller than ${bytes(maxBytes)}`);
}

function at(bitmap, scale, type) {
  const size = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  return encoded(drawn(...size, (context, ...all) => context.drawImage(bitmap, 0, 0, ...all)), type, QUALITY);
}

/** On white, as the server lays what is transparent. */
function drawn(width, height, draw) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  draw(context, width, height);
  return canvas;
}

async function measure(blob, name, type) {
  try {
    const bitmap = await createImageBitmap(blob);
    const { width, height } = bitmap;
    bitmap.close();
    return { width, height };
  } catch {
    const what = type === "image/heic" ? "HEIC, which this browser cannot read" : "No image that this browser can read";
    throw new Error(`${what}: ${name}. PNG, JPEG and WebP are taken.`);
  }
}

/** By its content; a name may say anything. */
async function kind(file) {
  const head = new Uint8Array(await file.slice(0, 12).arrayBuffer().catch(() => new ArrayBuffer(0)));
  const text = String.fromCharCode(...head);
  if (text.startsWith("\x89PNG")) return "image/png";
  if (text.startsWith("\xff\xd8\xff")) return "image/jpeg";
  if (text.startsWith("RIFF") && text.endsWith("WEBP")) return "image/webp";
  if (/^....ftyp(hei|hev|mif1|msf1)/s.test(text)) return "image/heic";
  return /^image\/(?!svg)/.test(file.type) ? file.type : "";
}

/** A name fit for a disk and a command line. */
function clean(name, type) {
  // eslint-disable-next-line no-control-regex
  const plain = name.replace(/[\x00-\x1f\x7f/\\]/g, "_").trim();
  return plain || `photo.${EXTENSIONS[type] ?? "png"}`;
}

function unique(name, taken) {
  const [, stem, extension] = name.match(/^(.*?)(\.[^.]*)?$/s) ?? ["", name, ""];
  for (let i = 2, tried = name; ; i++) {
    if (!taken.has(tried)) return tried;
    tried = `${stem}-${i}${extension ?? ""}`;
  }
}
