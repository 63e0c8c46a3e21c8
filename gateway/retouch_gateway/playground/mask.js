/** The mask editor: brush, keys and buttons over a picture. */

import { $ } from "./dom.js";
import { encoded } from "./photo.js";
import { Strokes } from "./strokes.js";

// Of the picture's shorter side.
const STEP = 0.02;
const FAR = 0.1;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The editor of the one mask that there is. */
export class MaskEditor {
  #painted = false;
  #taken = true;
  #photo = null;
  #place = { x: 0, y: 0 };

  /** @param {() => void} changed after each change of what is painted, or of whether it is open */
  constructor(changed) {
    this.changed = changed;
    this.canvas = $("mask-canvas");
    this.strokes = new Strokes(this.canvas);
    $("mask").onclick = () => this.open(!this.isOpen);
    $("mask-undo").onclick = () => this.#do(() => this.strokes.undo());
    $("mask-redo").onclick = () => this.#do(() => this.strokes.redo());
    $("mask-invert").onclick = () => this.#do(() => this.strokes.invert());
    $("mask-clear").onclick = () => this.#do(() => this.strokes.clear());
    $("brush-size").oninput = () => this.#showBrush();
    $("mask-editor").onkeydown = (event) => this.#key(event);
    this.#listen();
  }

  /** Whether anything is painted, and the model takes it. */
  get painted() {
    return this.#painted && this.#taken;
  }

  get isOpen() {
    return !$("mask-editor").hidden;
  }

  /** @param {boolean} open */
  open(open) {
    $("mask-editor").hidden = !open;
    $("mask").setAttribute("aria-expanded", String(open));
    document.body.classList.toggle("masking", open);
    if (open) {
      $("mask-editor").scrollIntoView({ block: "nearest" });
      this.canvas.focus({ preventScroll: true });
    }
    this.changed();
  }

  /**
   * The picture to paint on; another one is begun anew.
   * @param {import("./photo.js").Photo | undefined} photo
   * @param {boolean} taken whether the model takes a mask
   */
  show(photo, taken) {
    this.#taken = taken;
    $("mask").disabled = !photo;
    $("mask").hidden = !taken;
    if ((!photo || !taken) && this.isOpen) this.open(false);
    if (this.#photo?.blob === photo?.blob) return;
    this.#photo = photo && { ...photo };
    $("mask-photo").src = photo?.url ?? "";
    if (!photo) $("mask-photo").removeAttribute("src");
    const { width, height } = photo ?? { width: 1, height: 1 };
    // Before the picture is there to say so: nothing is to move under the hand.
    Object.assign($("mask-surface").style, { width: `min(100%, ${(75 * width) / height}vh)`, aspectRatio: `${width} / ${height}` });
    this.strokes.reset(width, height);
    this.#place = { x: this.canvas.width / 2, y: this.canvas.height / 2 };
    this.#settle();
  }

  /** White where to edit, of the picture's own size. */
  async png() {
    const { width, height } = this.#photo;
    return encoded(this.strokes.drawn(width, height), "image/png");
  }

  /** Pixels of the canvas. */
  get #width() {
    return Math.max(1, ($("brush-size").valueAsNumber / 100) * this.#side);
  }

  get #side() {
    return Math.min(this.canvas.width, this.canvas.height);
  }

  get #brush() {
    const erase = document.querySelector("[name=brush-mode][value=erase]").checked;
    return { erase, width: this.#width };
  }

  #do(work) {
    work();
    this.#settle();
  }

  /** What follows from what is painted now. */
  #settle() {
    this.#painted = this.strokes.painted;
    $("mask-undo").disabled = !this.strokes.canUndo;
    $("mask-redo").disabled = !this.strokes.canRedo;
    this.changed();
  }

  #listen() {
    const { canvas, strokes } = this;
    canvas.onpointerdown = (event) => {
      if (event.button !== 0 && event.button !== 5) return;
      if (!event.isPrimary) return strokes.abandon(); // a second finger means something else
      canvas.setPointerCapture(event.pointerId);
      this.#place = this.#at(event);
      const eraser = event.button === 5; // the other end of a pen
      strokes.begin(eraser ? { ...this.#brush, erase: true } : this.#brush, this.#place);
      this.#showBrush();
    };
    canvas.onpointermove = (event) => {
      if (!event.isPrimary) return;
      const moves = event.getCoalescedEvents?.() ?? [];
      this.#place = this.#at(event);
      if (event.buttons) strokes.extend((moves.length ? moves : [event]).map((move) => this.#at(move)));
      this.#showBrush();
    };
    canvas.onpointerup = () => this.#do(() => strokes.end());
    canvas.onpointercancel = () => this.#do(() => strokes.abandon());
    canvas.onpointerleave = () => ($("brush").hidden = document.activeElement !== canvas);
    canvas.onfocus = () => this.#showBrush();
    canvas.onblur = () => {
      // Only then: what is pressed to blur it must not be made anew under the pointer.
      if (strokes.underWay) this.#do(() => strokes.end());
      $("brush").hidden = true;
    };
    canvas.onkeyup = (event) => {
      if (event.key === " " || event.key === "Enter") this.#do(() => strokes.end());
    };
  }

  #at({ clientX, clientY }) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return {
      x: ((clientX - left) / width) * this.canvas.width,
      y: ((clientY - top) / height) * this.canvas.height,
    };
  }

  #key(event) {
    const command = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    const undone = command && key === "z" && !event.shiftKey;
    const redone = command && (key === "y" || (key === "z" && event.shiftKey));
    if (undone) this.#do(() => this.strokes.undo());
    else if (redone) this.#do(() => this.strokes.redo());
    else if (event.target !== this.canvas || command || !this.#canvasKey(event)) return;
    event.preventDefault();
  }

  #canvasKey({ key, shiftKey, repeat }) {
    if (key in ARROWS) this.#step(ARROWS[key], shiftKey ? FAR : STEP);
    else if (key === "[" || key === "]") {
      $("brush-size").valueAsNumber += key === "]" ? 1 : -1;
      this.#showBrush();
    } else if (key === " " || key === "Enter") {
      if (!repeat) this.strokes.begin(this.#brush, this.#place);
    } else return false;
    return true;
  }

  #step([across, down], far) {
    const { width, height } = this.canvas;
    const within = (value, most) => Math.min(Math.max(value, 0), most);
    const x = within(this.#place.x + across * far * this.#side, width);
    const y = within(this.#place.y + down * far * this.#side, height);
    this.#place = { x, y };
    this.strokes.extend([this.#place]); // where a key holds the brush down
    this.#showBrush();
    $("mask-place").textContent = `${Math.round((100 * x) / width)} % across, ${Math.round((100 * y) / height)} % down`;
  }

  #showBrush() {
    const scale = this.canvas.clientWidth / this.canvas.width;
    const { x, y } = this.#place;
    const { style } = $("brush");
    style.width = style.height = `${this.#width * scale}px`;
    style.translate = `${x * scale}px ${y * scale}px`;
    $("brush").hidden = false;
  }
}
