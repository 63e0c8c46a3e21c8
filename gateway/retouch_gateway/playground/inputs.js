/** The input images: the first is edited, the others are references. */

import { $, bytes, make } from "./dom.js";
import { fit, read } from "./photo.js";

/** @typedef {import("./photo.js").Photo} Photo */

const SHORT = 300; // milliseconds of reading that need no words

/** The list, and what is in it. */
export class Inputs {
  /** @type {Photo[]} */
  photos = [];
  // How many the model takes, and of how many bytes each.
  #limits = { max_images: 16, max_image_bytes: Infinity };
  #model = "";
  #busy = Promise.resolve();

  /**
   * @param {() => void} changed after each change
   * @param {(message: string) => void} failed a file that cannot be added, and why
   */
  constructor(changed, failed) {
    this.changed = changed;
    this.failed = failed;
  }

  /** The image that is edited. */
  get first() {
    return this.photos[0];
  }

  /** Those that the model takes: more are kept for another model, and not sent. */
  get sent() {
    return this.photos.slice(0, this.#limits.max_images);
  }

  /** When all that was given so far is read. */
  ready() {
    return this.#busy;
  }

  /**
   * Put files behind those that are there; or one in the place of the first.
   * @param {Iterable<File>} files
   * @param {{made?: boolean, replace?: boolean}} how `made`: not from a disk
   */
  add(files, { made = false, replace = false } = {}) {
    return this.#then(async () => {
      for (const file of files) {
        const others = () => (replace ? this.photos.slice(1) : this.photos);
        const told = setTimeout(() => ($("reading").textContent = `Reading ${file.name} …`), SHORT);
        try {
          const photo = await read(file, names(others()), made);
          await this.#fit(photo);
          // Meanwhile some may have been removed.
          const kept = others();
          if (replace) this.#drop(this.first);
          this.photos = replace ? [photo, ...kept] : [...kept, photo];
        } catch (error) {
          this.failed(error.message);
        } finally {
          clearTimeout(told);
          $("reading").textContent = "";
        }
      }
    });
  }

  /** Fit to what a model takes. @param {any} model as /v1/models lists it */
  suit(model) {
    return this.#then(async () => {
      const other = model.limits.max_image_bytes !== this.#limits.max_image_bytes;
      this.#limits = model.limits;
      this.#model = model.id;
      if (other) for (const photo of this.photos) await this.#fit(photo);
    });
  }

  /** @param {Photo} photo */
  remove(photo) {
    this.#drop(photo);
    this.photos = this.photos.filter((other) => other !== photo);
    this.#show();
  }

  /** @param {Photo} photo */
  makeFirst(photo) {
    this.photos = [photo, ...this.photos.filter((other) => other !== photo)];
    this.#show();
  }

  async #fit(photo) {
    const others = this.photos.filter((other) => other !== photo);
    try {
      await fit(photo, this.#limits.max_image_bytes, names(others));
    } catch (error) {
      photo.note = `It may be refused: ${error.message}.`;
    }
  }

  #drop(photo) {
    if (photo) URL.revokeObjectURL(photo.url);
  }

  /** One thing after the other: reading takes a while. */
  #then(work) {
    this.#busy = this.#busy.then(work).then(() => this.#show());
    return this.#busy;
  }

  #show() {
    const list = $("inputs");
    list.replaceChildren(...this.photos.map((photo, i) => this.#item(photo, i)));
    list.hidden = !this.photos.length;
    const unsent = this.photos.slice(this.sent.length).map(({ name }) => name);
    $("unsent").textContent = unsent.length ? `Not sent: ${unsent.join(", ")}` : ""; // dimming is not heard
    $("welcome").hidden = !list.hidden;
    $("images").labels[0].classList.toggle("primary", list.hidden);
    this.changed();
  }

  #item(photo, i) {
    const { name, size, file } = photo;
    const most = this.#limits.max_images;
    const note = i < most ? photo.note : `Not sent: ${this.#model} takes ${most === 1 ? "one image" : `${most} images`}.`;
    const button = (what, label, work) =>
      make("button", { type: "button", className: "small", "aria-label": label, onclick: work }, what);
    return make(
      "li",
      { id: `input-${i}`, className: i < most ? "" : "unsent" },
      make("span", { className: "shown" }, make("img", { src: photo.url, alt: name })),
      make(
        "div",
        { className: "about" },
        make("span", { className: "name" }, name),
        make("span", { className: "hint" }, `${size.width} × ${size.height} · ${bytes(file.size)}`),
      ),
      make(
        "div",
        { className: "row" },
        ...(i ? [button("Make first", `Make ${name} the first`, () => this.#moved(() => this.makeFirst(photo), 0))] : []),
        button("Remove", `Remove ${name}`, () => this.#moved(() => this.remove(photo), i)),
      ),
      ...(note ? [make("p", { className: "hint note" }, note)] : []),
    );
  }

  /** Do it, and leave the focus where the next thing to do is. */
  #moved(work, i) {
    work();
    const items = $("inputs").children;
    const next = items[Math.min(i, items.length - 1)];
    (next?.querySelector("button") ?? $("images")).focus();
  }
}

/** What no other photo may be called, nor what is sent of it. */
const names = (photos) => new Set(photos.flatMap(({ name, sent }) => [name, sent]));
