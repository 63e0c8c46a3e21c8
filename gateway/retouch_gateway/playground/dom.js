/** Elements, made short. */

/** The element with that id. @param {string} id @returns {any} */
export const $ = (id) => document.getElementById(id);

/**
 * A new element. Properties that it has are set as such, the others as attributes; `undefined` is left out.
 * @param {string} tag
 * @param {Record<string, any>} given
 * @param {...(Node | string)} children
 * @returns {any}
 */
export function make(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined) continue;
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Bytes as people write them. @param {number} bytes */
export function bytes(bytes) {
  return bytes < 2 ** 20 ? `${Math.ceil(bytes / 1024)} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

/** Keep a file, by the browser's download. @param {Blob} blob @param {string} name */
export function save(blob, name) {
  const href = URL.createObjectURL(blob);
  make("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

/**
 * Put text on the clipboard, and say so on the button for a moment.
 * @param {string} text @param {HTMLButtonElement} button
 */
export async function copy(text, button) {
  const said = (button.dataset.said ??= button.textContent ?? "");
  button.textContent = (await copied(text)) ? "Copied" : "Select and copy by hand";
  setTimeout(() => (button.textContent = said), 1500);
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Outside HTTPS and localhost there is no navigator.clipboard.
    const area = make("textarea", { value: text, className: "away" });
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (focused instanceof HTMLElement) focused.focus();
    return done;
  }
}
