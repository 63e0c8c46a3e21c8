/** An edit under way: how far it is, in words, as a bar, and as what can be seen of it. */

import { $, make } from "./dom.js";

// Who has the screen read to them is to keep up: of many steps not each is told, but one in so many milliseconds.
const MANY = 30;
const PACE = 1000;

/** What is seen of the edit under way. */
export class Progress {
  #started = 0;
  #steps = [];
  #figures = [];
  #told = 0;
  #later = 0;

  /**
   * @param {number} images how many are to come
   * @param {string} src what stands in their place until something of them is seen
   * @param {string} aspect CSS's aspect-ratio
   */
  start(images, src, aspect) {
    this.#started = performance.now();
    this.#steps = Array(images).fill(0);
    this.#figures = this.#steps.map((_, i) => placeholder(i, src, aspect));
    $("pending").replaceChildren(...this.#figures);
    $("pending").hidden = false;
    $("nothing").hidden = true;
    $("progress").hidden = false;
    $("progress").removeAttribute("value");
    this.#say("Sending");
  }

  /** @param {number} ahead edits before this one */
  queued(ahead) {
    this.#say(ahead ? `In the queue, ${ahead} ahead` : "Next in the queue");
  }

  /** @param {{image: number, step: number, total: number}} step */
  step({ image, step, total }) {
    const images = this.#steps.length;
    this.#steps[image] = step;
    $("progress").max = total * images;
    $("progress").value = this.#steps.reduce((sum, steps) => sum + steps, 0);
    this.#tell(images > 1 ? `Image ${image + 1} of ${images}, step ${step} of ${total}` : `Step ${step} of ${total}`);
  }

  /** @param {{image: number, src: string}} preview */
  preview({ image, src }) {
    const figure = this.#figures[image];
    if (!figure) return;
    figure.firstChild.src = src;
    figure.classList.add("seen");
  }

  /** @param {string} [said] "" where an error says it */
  end(said = `Done in ${((performance.now() - this.#started) / 1000).toFixed(1)} s`) {
    $("pending").replaceChildren();
    $("pending").hidden = $("progress").hidden = true;
    $("nothing").hidden = $("results").childElementCount > 0;
    this.#say(said);
  }

  #tell(text) {
    clearTimeout(this.#later);
    const pace = $("progress").max > MANY ? PACE : 0;
    const wait = this.#told + pace - performance.now();
    if (wait <= 0) this.#say(text);
    else this.#later = window.setTimeout(() => this.#say(text), wait);
  }

  #say(text) {
    clearTimeout(this.#later);
    this.#told = performance.now();
    $("status").textContent = text;
  }
}

function placeholder(i, src, aspect) {
  const figure = make("figure", { className: "pending" }, make("img", { src, alt: `Preview of image ${i + 1}` }));
  figure.style.aspectRatio = aspect;
  return figure;
}
