/** The fields beside images and prompt: which a model takes, its defaults, and what is set. */

import { $, make } from "./dom.js";

/** @typedef {import("./request.js").Field} Field */

const NUMBERS = ["n", "strength", "guidance_scale", "num_inference_steps", "output_compression", "partial_images"];
const OTHERS = ["seed", "negative_prompt", "custom_size"];
const SQUARES = [256, 512, 768, 1024, 1536, 2048].map((side) => [side, side]);
const OBLONGS = [[768, 512], [512, 768], [1024, 768], [768, 1024], [1536, 1024], [1024, 1536]];
const OWN = "";
const CUSTOM = "custom";

/** A field that holds what cannot be sent at all. */
export class Unsendable extends Error {
  /** @param {string} field @param {string} message */
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

/** Listen and set up, once. @param {() => void} put all was put back */
export function start(put) {
  $("size").onchange = () => {
    show("custom_size", $("size").value === CUSTOM);
    if ($("size").value === CUSTOM) $("custom_size").focus();
  };
  $("output_format").onchange = () => show("output_compression", $("output_format").value !== "png");
  $("reset").onclick = () => {
    reset();
    put();
  };
  reset();
}

/** Show the fields that a model takes, with its defaults. @param {any} model as /v1/models lists it */
export function suit(model) {
  const { capabilities, defaults, limits } = model;
  show("strength", capabilities.strength);
  show("guidance_scale", capabilities.guidance_scale);
  show("negative_prompt", capabilities.negative_prompt);
  show("kontext_max_mode", capabilities.max_mode);
  show("partial_images", limits.max_partial_images > 0);
  for (const [name, value] of Object.entries(defaults)) {
    // Of single precision on its way here: 0.7 is not 0.699999988079071.
    if ($(name)) $(name).placeholder = String(Number(value.toPrecision(6)));
  }
  $("partial_images").max = limits.max_partial_images;
  $("partial_images").placeholder = String(Math.min(2, limits.max_partial_images));
  offerSizes(limits);
}

/**
 * What is set, of the fields that are shown; what is empty is not sent. Throws Unsendable.
 * @returns {Field[]}
 */
export function values() {
  const field = (name, value = text(name), bare = false) => (value ? [{ name, text: value, bare }] : []);
  const number = (name) => field(name, numeric(name), true);
  const format = text("output_format");
  const seed = text("seed").replace(/^0+(?=\d)/, "");
  return [
    ...field("negative_prompt"),
    ...field("model"),
    ...number("n"),
    ...field("size", sizeText()),
    ...number("strength"),
    ...number("guidance_scale"),
    ...number("num_inference_steps"),
    ...field("seed", seed, /^\d+$/.test(seed)),
    ...field("output_format", format === "png" ? "" : format),
    ...number("output_compression"),
    ...field("kontext_max_mode", $("kontext_max_mode").checked && text("kontext_max_mode"), true),
  ];
}

/** How many previews of each image are wanted: what is set, else what the placeholder says. Throws Unsendable. */
export function previews() {
  if (hidden("partial_images")) return "0";
  return numeric("partial_images") || $("partial_images").placeholder;
}

/** Set the seed, where it can be seen. @param {string} seed */
export function useSeed(seed) {
  $("more").open = true;
  $("seed").value = seed;
  $("seed").dispatchEvent(new Event("input", { bubbles: true }));
  $("seed").focus();
}

const hidden = (name) => $(name).closest(".field").hidden;

/** What is hidden counts as empty. */
const text = (name) => (hidden(name) ? "" : $(name).value.trim());

/** As JSON writes it. */
function numeric(name) {
  if (!hidden(name) && $(name).validity.badInput) throw new Unsendable(name, "must be a number");
  return text(name) && String(Number(text(name)));
}

function sizeText() {
  const chosen = $("size").value;
  return chosen === CUSTOM ? $("custom_size").value.trim().toLowerCase().replace(/\s*[x×*]\s*/, "x") : chosen;
}

function offerSizes({ size_multiple, min_pixels, max_pixels }) {
  const fits = ([width, height]) =>
    width % size_multiple === 0 &&
    height % size_multiple === 0 &&
    width * height >= min_pixels &&
    width * height <= max_pixels;
  const chosen = $("size").value;
  const offered = [...SQUARES, ...OBLONGS].filter(fits).map((size) => size.join("x"));
  $("size").replaceChildren(
    make("option", { value: OWN }, "As the image"),
    ...offered.map((size) => make("option", { value: size }, size)),
    make("option", { value: CUSTOM }, "Custom"),
  );
  $("size").value = [...offered, CUSTOM].includes(chosen) ? chosen : OWN;
  show("custom_size", $("size").value === CUSTOM);
}

function reset() {
  for (const name of [...NUMBERS, ...OTHERS, "size"]) $(name).value = "";
  $("output_format").value = "png";
  $("kontext_max_mode").checked = false;
  show("custom_size", false);
  show("output_compression", false);
}

function show(name, shown) {
  $(name).closest(".field").hidden = !shown;
}
