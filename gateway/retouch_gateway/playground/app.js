/** The playground: what happens on which event. */

import * as api from "./api.js";
import * as arrivals from "./arrivals.js";
import { LANGUAGES } from "./code.js";
import { $, copy, make, save } from "./dom.js";
import { Inputs } from "./inputs.js";
import * as knobs from "./knobs.js";
import { MaskEditor } from "./mask.js";
import { cut } from "./photo.js";
import * as problems from "./problems.js";
import { Progress } from "./progress.js";
import { fields, form, watching } from "./request.js";
import { Results } from "./results.js";

const KEY = "retouch.api-key"; // of this tab's storage; nothing else is kept anywhere
const PATIENCE = 3; // seconds between two looks for a model

/** @type {any[]} */
let models = [];
/** @type {AbortController | null} */
let running = null;
let language = "curl";
let again = 0; // the timer of the next look for models

const inputs = new Inputs(changed, (message) => problems.at("images", message));
const mask = new MaskEditor(changed);
const progress = new Progress();
const results = new Results({ useSeed: knobs.useSeed, useImage });

const key = () => sessionStorage.getItem(KEY) ?? "";
const model = () => models.find(({ id }) => id === $("model").value);

async function loadModels() {
  clearTimeout(again);
  try {
    models = await api.models(key());
    problems.clear();
    $("key-form").hidden = !key();
    const chosen = model()?.id;
    $("model").replaceChildren(...models.map(({ id }) => make("option", { value: id, selected: id === chosen }, id)));
    suit();
  } catch (error) {
    if (error.status === 401) return askForKey(error);
    const seconds = error.retryAfter || PATIENCE;
    problems.alert(error.message, seconds, true);
    again = window.setTimeout(loadModels, 1000 * seconds);
  }
}

/** @param {Error} error @param {boolean} [refused] whether something was that the user did */
function askForKey({ message }, refused = false) {
  problems.clear();
  $("key-form").hidden = false;
  // To a key that it does not know the gateway says that one is needed.
  if (key()) problems.at("api_key", message.includes("expired") ? message : "The gateway does not know this key");
  else if (refused) problems.at("api_key", "The gateway wants a key");
  changed();
}

/** Take up the model that is chosen. */
function suit() {
  const chosen = model();
  if (!chosen) return;
  knobs.suit(chosen);
  const examples = chosen.examples ?? [];
  $("examples").hidden = !examples.length;
  $("examples").replaceChildren(...examples.map((text) => make("button", { type: "button", className: "chip", title: text, onclick: () => usePrompt(text) }, text)));
  inputs.suit(chosen);
}

function usePrompt(text) {
  $("prompt").value = text;
  $("prompt").dispatchEvent(new Event("input", { bubbles: true }));
  $("prompt").focus();
}

/** @param {File} file */
async function useImage(file) {
  problems.clear();
  await inputs.add([file], { made: true, replace: true });
  $("prompt").focus();
}

async function useSample() {
  try {
    await useImage(new File([await api.sample()], "sample.jpg"));
  } catch (error) {
    problems.alert(error.message);
  }
}

/** What would be sent now, without the mask's bytes. Throws Unsendable. */
function current() {
  const images = inputs.sent.map(({ sent, blob }) => ({ name: sent, blob }));
  return { images, masked: mask.painted, prompt: $("prompt").value, knobs: knobs.values() };
}

/** Show what follows from what is set. */
function changed() {
  mask.show(inputs.first, model()?.capabilities.mask ?? true);
  showMask();
  showRequest();
}

/** The same as a program, and the files that it names. */
function showRequest() {
  const made = inputs.sent.filter((photo) => photo.made || photo.note);
  const files = made.map(({ sent, blob }) => [sent, () => save(blob, sent)]);
  if (mask.painted) files.push(["mask.png", async () => save(await mask.png(), "mask.png")]);
  $("files").replaceChildren(...files.map(([name, onclick]) => make("button", { type: "button", className: "small", onclick }, `Save ${name}`)));
  try {
    $("watch").textContent = watching(knobs.previews()).map(({ name, text }) => `${name}=${text}`).join(", ");
    const told = { fields: fields(current()), baseUrl: api.baseUrl(), keyed: !$("key-form").hidden };
    $("code").textContent = LANGUAGES[language](told);
  } catch (error) {
    if (!(error instanceof knobs.Unsendable)) throw error;
  }
}

/** What is painted, over the photo in the list too. */
function showMask() {
  const shown = document.querySelector("#input-0 .shown");
  shown?.querySelector("canvas")?.remove();
  if (!shown || !mask.painted) return;
  const { width, height } = mask.canvas;
  const scale = Math.min(1, 640 / Math.max(width, height));
  const canvas = make("canvas", { width: Math.ceil(width * scale), height: Math.ceil(height * scale), "aria-hidden": "true" });
  canvas.getContext("2d").drawImage(mask.canvas, 0, 0, canvas.width, canvas.height);
  shown.append(canvas);
}

async function edit() {
  if (running) return;
  const { signal } = (running = new AbortController());
  problems.clear();
  under(true);
  try {
    await inputs.ready();
    signal.throwIfAborted();
    const photo = inputs.first;
    if (!photo) throw new knobs.Unsendable("images", "Add an image first");
    if (!$("prompt").value.trim()) throw new knobs.Unsendable("prompt", "Say what to change");
    const wanted = current();
    progress.start(count(wanted), photo.url, aspect(wanted, photo));
    const masked = wanted.masked ? await mask.png() : null;
    await run({ ...wanted, mask: masked }, photo, signal);
  } catch (error) {
    failed(error, signal);
  } finally {
    running = null;
    under(false);
  }
}

async function run(wanted, photo, signal) {
  const sent = form([...fields(wanted), ...watching(knobs.previews())]);
  const made = [];
  const lost = [];
  try {
    for await (const event of api.edit(sent, key(), signal)) {
      if (event.kind === "queued") progress.queued(event.ahead);
      else if (event.kind === "step") progress.step(event);
      else if (event.kind === "preview") progress.preview(event);
      else if (event.kind === "done") made.push(event);
      else lost.push(event.message);
    }
  } finally {
    if (made.length) {
      const [width, height] = made[0].size.split("x").map(Number);
      // Without room to cut it, as it is: what is made is not to be lost for that.
      const before = await cut(photo.blob, width, height).catch(() => photo.blob);
      progress.end(); // first: what stood in their place is above them
      results.add(made, before, wanted.prompt);
    }
  }
  if (lost.length) throw new api.ApiError(0, lost.join("; "));
  if (made.length < count(wanted)) throw api.cutShort();
}

function failed(error, signal) {
  progress.end(signal.aborted ? "Cancelled" : "");
  if (signal.aborted) return;
  if (error instanceof knobs.Unsendable) problems.at(error.field, error.message);
  else if (error.status === 401) askForKey(error, true);
  else if (error instanceof api.ApiError) problems.show(error);
  else problems.alert(error.message);
}

/** @param {boolean} way whether an edit is under way */
function under(way) {
  const [from, to] = way ? [$("edit"), $("cancel")] : [$("cancel"), $("edit")];
  const focused = document.activeElement === from;
  $("edit").disabled = way;
  $("cancel").hidden = !way;
  if (focused) to.focus();
}

/** How many images are to come, if the gateway takes it. */
function count({ knobs }) {
  const n = Number(knobs.find(({ name }) => name === "n")?.text ?? 1);
  return Math.min(10, Math.max(1, Math.floor(n))) || 1;
}

function aspect({ knobs }, { width, height }) {
  const size = knobs.find(({ name }) => name === "size")?.text.match(/^(\d+)x(\d+)$/);
  return size ? `${size[1]} / ${size[2]}` : `${width} / ${height}`;
}

/** @param {HTMLElement} tab */
function choose(tab) {
  for (const other of document.querySelectorAll("[role=tab]")) {
    other.setAttribute("aria-selected", String(other === tab));
    other.tabIndex = other === tab ? 0 : -1;
  }
  language = tab.id.replace("tab-", "");
  $("code-panel").setAttribute("aria-labelledby", tab.id);
  changed();
}

function listenToForms() {
  $("edit-form").onsubmit = (event) => {
    event.preventDefault();
    edit();
  };
  $("edit-form").oninput = showRequest;
  $("edit-form").onchange = showRequest;
  $("cancel").onclick = () => running?.abort();
  $("model").onchange = () => {
    problems.clear();
    suit();
  };
  $("sample").onclick = useSample;
  // What was said of an image or a model may not be true of another in its place.
  $("inputs").addEventListener("click", problems.clear, { capture: true });
  // A browser leaves what is seen in part as it is.
  $("examples").addEventListener("focusin", ({ target }) => target.scrollIntoView({ block: "nearest", inline: "nearest" }));
  $("key-form").onsubmit = (event) => {
    event.preventDefault();
    const given = $("api_key").value.trim();
    if (/[^!-~]/.test(given)) return problems.at("api_key", "A key has letters, digits and signs of ASCII alone");
    if (given) sessionStorage.setItem(KEY, given);
    else sessionStorage.removeItem(KEY);
    loadModels();
  };
  $("copy-code").onclick = () => copy($("code").textContent, $("copy-code"));
}

function listenToKeys() {
  document.onkeydown = (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape" && running) running.abort();
    else if (event.key === "Escape" && $("mask-editor").contains(document.activeElement)) {
      mask.open(false);
      $("mask").focus();
    }
  };
  for (const name of ["prompt", "negative_prompt"]) {
    $(name).onkeydown = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) edit();
    };
  }
  const tabs = [...document.querySelectorAll("[role=tab]")];
  tabs.forEach((tab, i) => {
    tab.onclick = () => choose(tab);
    tab.onkeydown = ({ key }) => {
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1 + tabs.length, Home: 0, End: tabs.length - 1 }[key];
      if (to === undefined) return;
      choose(tabs[to % tabs.length]);
      tabs[to % tabs.length].focus();
    };
  });
}

$("api_key").value = key();
knobs.start(() => {
  problems.clear();
  changed();
});
listenToForms();
listenToKeys();
arrivals.listen((files, made) => {
  problems.clear();
  inputs.add(files, { made });
});
changed();
loadModels();
