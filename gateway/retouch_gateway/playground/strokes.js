/** A mask as it is painted: strokes on a canvas, which can be undone. What is opaque is to be edited. */

// A mask of more pixels is painted on a smaller canvas: it must keep up with the hand, and no model works at that size.
const MAX_PIXELS = 4_000_000;
const MAX_UNDO = 100;
const COLOUR = "#e0218a";

/** @typedef {{x: number, y: number}} Point in pixels of the canvas */

/** What is painted on one canvas. */
export class Strokes {
  #done = [];
  #undone = [];
  // What was painted before the oldest stroke that can be undone.
  #base;
  #under = null;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.#base = document.createElement("canvas");
  }

  /** Begin anew, for a picture of that size. @param {number} width @param {number} height */
  reset(width, height) {
    const scale = Math.min(1, Math.sqrt(MAX_PIXELS / (width * height)));
    for (const canvas of [this.canvas, this.#base]) {
      canvas.width = Math.max(1, Math.round(width * scale));
      canvas.height = Math.max(1, Math.round(height * scale));
    }
    this.#done = [];
    this.#undone = [];
    this.#under = null;
  }

  /** @param {{erase: boolean, width: number}} brush `width`: pixels of the canvas @param {Point} point */
  begin(brush, point) {
    this.#under = { ...brush, points: [] };
    this.extend([point]);
  }

  /** @param {Point[]} points */
  extend(points) {
    if (!this.#under) return;
    const from = this.#under.points.length;
    this.#under.points.push(...points);
    this.#paint(this.#under, from);
  }

  get underWay() {
    return this.#under !== null;
  }

  end() {
    if (this.#under) this.#keep(this.#under);
    this.#under = null;
  }

  /** The stroke under way was none. */
  abandon() {
    if (!this.#under) return;
    this.#under = null;
    this.#repaint();
  }

  invert() {
    this.#keep({ invert: true });
    this.#paint({ invert: true });
  }

  clear() {
    this.#keep({ clear: true });
    this.#paint({ clear: true });
  }

  undo() {
    this.#move(this.#done, this.#undone);
  }

  redo() {
    this.#move(this.#undone, this.#done);
  }

  get canUndo() {
    return this.#done.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  /** Whether anything is painted. */
  get painted() {
    const last = this.#done.at(-1);
    if (last?.points && !last.erase) return true;
    // Looked at on a copy: a canvas that is read often is taken from the graphics card for good.
    const copy = document.createElement("canvas");
    [copy.width, copy.height] = [this.canvas.width, this.canvas.height];
    const context = copy.getContext("2d", { willReadFrequently: true });
    context.drawImage(this.canvas, 0, 0);
    const pixels = new Uint32Array(context.getImageData(0, 0, copy.width, copy.height).data.buffer);
    return pixels.some((pixel) => pixel !== 0);
  }

  /**
   * White on black, opaque, at that size.
   * @param {number} width @param {number} height
   * @returns {HTMLCanvasElement}
   */
  drawn(width, height) {
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d");
    context.drawImage(this.canvas, 0, 0, width, height);
    for (const [rule, colour] of [["source-in", "#fff"], ["destination-over", "#000"]]) {
      context.globalCompositeOperation = rule;
      context.fillStyle = colour;
      context.fillRect(0, 0, width, height);
    }
    return canvas;
  }

  #keep(act) {
    this.#undone = [];
    this.#done.push(act);
    if (this.#done.length <= MAX_UNDO) return;
    this.#paint(this.#done.shift(), 0, this.#base.getContext("2d"));
  }

  #move(from, to) {
    if (!from.length || this.#under) return;
    to.push(from.pop());
    this.#repaint();
  }

  #repaint() {
    const { width, height } = this.canvas;
    this.context.clearRect(0, 0, width, height);
    this.context.drawImage(this.#base, 0, 0);
    for (const act of this.#done) this.#paint(act);
  }

  /** An act; of a stroke, what begins at its point `from`. */
  #paint(act, from = 0, context = this.context) {
    const { width, height } = this.canvas;
    if (act.clear) context.clearRect(0, 0, width, height);
    context.fillStyle = context.strokeStyle = COLOUR;
    if (act.invert) {
      context.globalCompositeOperation = "source-out";
      context.fillRect(0, 0, width, height);
    } else if (act.points) {
      context.globalCompositeOperation = act.erase ? "destination-out" : "source-over";
      line(context, act, from);
    }
    context.globalCompositeOperation = "source-over";
  }
}

function line(context, { points, width }, from) {
  context.lineWidth = width;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  if (from === 0) {
    context.arc(points[0].x, points[0].y, width / 2, 0, 2 * Math.PI);
    context.fill();
    context.beginPath();
  }
  const before = points[Math.max(0, from - 1)];
  context.moveTo(before.x, before.y);
  for (const { x, y } of points.slice(from)) context.lineTo(x, y);
  context.stroke();
}
