/** Errors, each where it can be mended. */

import { $, make } from "./dom.js";

// What an error may be about, in the gateway's words: `size.width`, `images[1]`.
const FIELD = /^([a-z_]+)(?:\[(\d+)\])?(?:\.\w+)?: (.*)$/s;
const NEXT = /; (?=[a-z_]+(?:\[\d+\])?(?:\.\w+)?: )/;

/** What stands at which control. @type {Map<HTMLElement, HTMLElement>} */
const errors = new Map();
let countdown = 0;

/** Forget what was shown. */
export function clear() {
  clearInterval(countdown);
  $("alert").replaceChildren();
  for (const [control, told] of errors) remove(control, told);
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
  if (errors.has(control)) remove(control, errors.get(control));
  const told = make("p", { id: `error-${control.id}`, className: "error" }, text);
  errors.set(control, told);
  place.append(told);
  control.setAttribute("aria-invalid", "true");
  control.setAttribute("aria-describedby", [...described(control), told.id].join(" "));
  if (focus) {
    control.focus();
    told.scrollIntoView({ block: "nearest" }); // a canvas or a list may be taller than the window
  }
  // Not at a mere click into a field: who goes there to mend it is still to read it.
  const mended = control.matches("button, canvas") ? "pointerup" : "input";
  control.addEventListener(mended, () => remove(control, told), { once: true });
  return true;
}

/**
 * Show what concerns no field, and when it is worth trying again.
 * @param {string} message @param {number} [seconds]
 * @param {boolean} [itself] whether the page is going to do that
 */
export function alert(message, seconds = 0, itself = false) {
  clearInterval(countdown);
  const [told, counted] = $("alert").children;
  counted?.remove();
  // Told once: who listens is not to hear it at each try, nor each second.
  if (told?.textContent !== message) $("alert").replaceChildren(make("span", {}, message));
  if (!seconds) return;
  const left = make("span", { role: "timer", "aria-live": "off" });
  const until = Date.now() + seconds * 1000;
  const tell = () => {
    const rest = Math.ceil((until - Date.now()) / 1000);
    const words = itself ? [" The page tries again", "."] : [" Try again", " now."];
    left.textContent = words[0] + (rest > 0 ? ` in ${rest} s.` : words[1]);
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

const described = (control) => (control.getAttribute("aria-describedby") ?? "").split(" ").filter(Boolean);

function remove(control, told) {
  if (errors.get(control) !== told) return; // another took its place
  errors.delete(control);
  told.remove();
  control.removeAttribute("aria-invalid");
  const others = described(control).filter((id) => id !== told.id);
  if (others.length) control.setAttribute("aria-describedby", others.join(" "));
  else control.removeAttribute("aria-describedby");
}
