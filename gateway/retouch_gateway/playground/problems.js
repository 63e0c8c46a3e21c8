/** Errors, each where it can be mended. */

import { $, make } from "./dom.js";

// What an error may be about, in the gateway's words: `size.width`, `images[1]`.
const FIELD = /^([a-z_]+)(?:\[(\d+)\])?(?:\.\w+)?: (.*)$/s;
const NEXT = /; (?=[a-z_]+(?:\[\d+\])?(?:\.\w+)?: )/;

let countdown = 0;

/** Forget what was shown. */
export function clear() {
  clearInterval(countdown);
  $("alert").replaceChildren();
  for (const told of document.querySelectorAll(".error")) remove(told);
}

/**
 * Show what went wrong: at its fields, as far as they are on the page, else above the button.
 * @param {{message: string, param?: string | null, retryAfter?: number}} error `retryAfter`: seconds
 */
export function show({ message, param = null, retryAfter = 0 }) {
  clear();
  const rest = [];
  let focused = false;
  for (const part of param ? message.split(NEXT) : []) {
    const [, name, index, text] = part.match(FIELD) ?? [null, param.replace(/\W.*/s, ""), undefined, part];
    const shown = at(name, text, index, !focused);
    if (!shown) rest.push(part);
    focused ||= shown;
  }
  if (!param || rest.length) alert(param ? rest.join("; ") : message, retryAfter);
}

/**
 * Show what is wrong with a field.
 * @param {string} name as the gateway names it
 * @param {string} text
 * @param {string} [index] of which image
 * @param {boolean} [focus] whether to go there
 * @returns {boolean} false where there is no such field to be seen
 */
export function at(name, text, index, focus = true) {
  const control = controlOf(name);
  if (!control) return false;
  const place = (index !== undefined && $(`input-${index}`)) || control.closest(".field, .mask-editor") || control.parentElement;
  control.closest("details")?.setAttribute("open", "");
  if (!control.checkVisibility()) return false;
  const id = `error-${control.id}`;
  $(id)?.remove();
  const told = make("p", { id, className: "error" }, text);
  place.append(told);
  control.setAttribute("aria-invalid", "true");
  const described = (control.getAttribute("aria-describedby") ?? "").split(" ").filter((other) => other && other !== id);
  control.setAttribute("aria-describedby", [...described, id].join(" "));
  if (focus) control.focus();
  for (const event of ["input", "change", "pointerup"]) control.addEventListener(event, () => remove(told), { once: true });
  return true;
}

/**
 * Show what concerns no field, and when it is worth trying again.
 * @param {string} message @param {number} [seconds]
 */
export function alert(message, seconds = 0) {
  clearInterval(countdown);
  const told = $("alert").firstChild?.textContent === message ? $("alert").firstChild : make("span", {}, message);
  $("alert").replaceChildren(told);
  if (!seconds) return;
  // Told once: who listens is not to hear each second.
  const left = make("span", { role: "timer", "aria-live": "off" });
  const until = Date.now() + seconds * 1000;
  const tell = () => {
    const rest = Math.ceil((until - Date.now()) / 1000);
    left.textContent = rest > 0 ? ` Try again in ${rest} s.` : " Try again now.";
    if (rest <= 0) clearInterval(countdown);
  };
  tell();
  $("alert").append(left);
  countdown = window.setInterval(tell, 1000);
}

function controlOf(name) {
  if (name === "image" || name === "images") return $("images");
  if (name === "mask") return $("mask-editor").hidden ? $("mask") : $("mask-canvas");
  if (name === "size") return $("custom-field").hidden ? $("size") : $("custom_size");
  return $(name)?.closest(".field") ? $(name) : null;
}

function remove(told) {
  told.remove();
  const control = $(told.id.replace("error-", ""));
  control.removeAttribute("aria-invalid");
  const others = (control.getAttribute("aria-describedby") ?? "").split(" ").filter((id) => id !== told.id);
  if (others.join("")) control.setAttribute("aria-describedby", others.join(" "));
  else control.removeAttribute("aria-describedby");
}
