/** Finished edits, newest first: each beside what it was made from. */

import { now } from "./api.js";
import { $, copy, make } from "./dom.js";
import { EXTENSIONS } from "./photo.js";

const MOST = 40;

/**
 * @typedef {{size: string, seed: string, url: string | undefined, expiresAt: number, blob: Blob,
 *   warning: string | undefined}} Made
 */

/** The list of results; the oldest go when there are too many. */
export class Results {
  #shown = [];

  /** @param {{useSeed: (seed: string) => void, useImage: (file: File) => void}} uses what the buttons do */
  constructor(uses) {
    this.uses = uses;
    setInterval(() => this.#shown.forEach(({ tick }) => tick()), 1000);
  }

  /**
   * Put the images of one edit in front.
   * @param {Made[]} made @param {Blob} before what they were made from, cut as they are @param {string} prompt
   */
  add(made, before, prompt) {
    const results = made.map((each) => this.#result(each, before, prompt));
    $("results").prepend(...results.map(({ item }) => item));
    this.#shown.unshift(...results);
    for (const { item, urls } of this.#shown.splice(MOST)) {
      item.remove();
      urls.forEach((url) => URL.revokeObjectURL(url));
    }
    reveal($("results").firstElementChild);
  }

  #result(made, before, prompt) {
    const { blob, seed, url, warning } = made;
    const urls = [URL.createObjectURL(before), URL.createObjectURL(blob)];
    const name = `retouch-${seed}.${EXTENSIONS[blob.type]}`;
    const button = (text, onclick, more = {}) => make("button", { type: "button", className: "small", onclick, ...more }, text);
    const link = (text, given) => make("a", { className: "button small", ...given }, text);
    const hosted = url ? [
      link("Open URL", { href: url, target: "_blank", rel: "noopener" }),
      button("Copy URL", (event) => copy(url, event.currentTarget)),
    ] : [];
    const left = make("span", { className: "hint left" });
    const item = make(
      "li",
      { className: "card result" },
      compare(made.size, urls, prompt),
      make("p", { className: "said", title: prompt }, prompt),
      make("div", { className: "row wrap" }, make("span", { className: "hint" }, `Seed ${seed}`), button("Use seed", () => this.uses.useSeed(seed)), left),
      make(
        "div",
        { className: "row wrap" },
        button("Use as input", () => this.uses.useImage(new File([blob], name, { type: blob.type }))),
        link("Download", { href: urls[1], download: name }),
        ...hosted,
      ),
      ...(warning ? [make("p", { className: "hint note" }, warning)] : []),
    );
    const tick = () => {
      if (!url) return;
      const rest = Math.floor((made.expiresAt - now()) / 1000);
      left.textContent = rest > 0 ? `${clock(rest)} left` : "Expired";
      if (rest <= 0) hosted.forEach((each) => (each.hidden = true));
    };
    tick();
    return { item, urls, tick };
  }
}

/** Scroll to what is wholly out of sight, as on a phone. */
function reveal(element) {
  const { top, bottom } = element.getBoundingClientRect();
  if (top < innerHeight && bottom > 0) return;
  const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "instant" : "smooth";
  element.scrollIntoView({ block: "nearest", behavior });
}

function compare(size, [before, after], prompt) {
  const [width, height] = size.split("x").map(Number);
  const slider = make("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": "Compare before and after" });
  const figure = make(
    "figure",
    { className: "compare" },
    make("img", { src: before, alt: "Before", width, height }),
    make("img", { className: "after", src: after, alt: `After: ${prompt}`, width, height }),
    make("span", { className: "tag", "aria-hidden": "true" }, "Before"),
    make("span", { className: "tag after-tag", "aria-hidden": "true" }, "After"),
    make("span", { className: "handle", "aria-hidden": "true" }),
    slider,
  );
  figure.style.aspectRatio = `${width} / ${height}`;
  slider.oninput = () => {
    figure.style.setProperty("--at", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `${slider.value} % before, ${100 - slider.valueAsNumber} % after`);
  };
  slider.oninput();
  return figure;
}

function clock(seconds) {
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(seconds % 60)}` : `${minutes}:${two(seconds % 60)}`;
}
