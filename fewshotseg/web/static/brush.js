// A pair on a canvas, and a brush that changes its mask. Colours are those of drawing.js.
import { COLOURS } from "./drawing.js";

// Draws a picture (anything that can be drawn) `factor` times as large, and the outlines of its mask.
export function paintPair(canvas, { bitmap, mask, width, height }, factor, outlined) {
  Object.assign(canvas, { width: width * factor, height: height * factor });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  if (!outlined) return;
  const layer = new ImageData(canvas.width, canvas.height);
  const reach = Math.max(2, Math.round(canvas.width / 110));
  const at = (x, y) => {
    if (x < 0 || y < 0 || x >= canvas.width || y >= canvas.height) return 0;
    return mask[Math.floor(y / factor) * width + Math.floor(x / factor)];
  };
  for (let y = 0, i = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++, i += 4) {
      const id = at(x, y);
      if (!id) continue;
      const edge = at(x - reach, y) !== id || at(x + reach, y) !== id || at(x, y - reach) !== id || at(x, y + reach) !== id;
      if (!edge) continue;
      const [red, green, blue] = COLOURS[(id - 1) % COLOURS.length];
      layer.data.set([red, green, blue, 255], i);
    }
  }
  const over = new OffscreenCanvas(canvas.width, canvas.height);
  over.getContext("2d").putImageData(layer, 0, 0);
  context.drawImage(over, 0, 0);
}

// Paints on a copy of a mask; `changed` is called after every dab.
export class Brush {
  constructor(canvas, pair, options, changed) {
    this.pair = pair;
    this.mask = pair.mask.slice();
    this.before = []; // a copy per stroke
    this.options = options; // () => { radius, id }
    this.changed = changed;
    this.last = null;
    this.stop = new AbortController();
    const listen = (kind, action) => canvas.addEventListener(kind, action, { signal: this.stop.signal });
    listen("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.before.push(this.mask.slice());
      this.last = this.place(canvas, event);
      this.dab(this.last);
      event.preventDefault();
    });
    listen("pointermove", (event) => {
      if (!this.last) return;
      const here = this.place(canvas, event);
      const steps = Math.ceil(Math.hypot(here.x - this.last.x, here.y - this.last.y)) || 1;
      for (let i = 1; i <= steps; i++) {
        const share = i / steps;
        this.dab({ x: this.last.x + share * (here.x - this.last.x), y: this.last.y + share * (here.y - this.last.y) }, i < steps);
      }
      this.last = here;
    });
    for (const kind of ["pointerup", "pointercancel"]) listen(kind, () => { this.last = null; });
  }

  place(canvas, event) {
    const box = canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.pair.width;
    return { x, y: ((event.clientY - box.top) / box.height) * this.pair.height };
  }

  dab({ x, y }, quiet) {
    const { radius, id } = this.options();
    const { width, height } = this.pair;
    for (let row = Math.max(0, Math.floor(y - radius)); row <= Math.min(height - 1, Math.ceil(y + radius)); row++) {
      for (let column = Math.max(0, Math.floor(x - radius)); column <= Math.min(width - 1, Math.ceil(x + radius)); column++) {
        if ((column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2 <= radius ** 2) this.mask[row * width + column] = id;
      }
    }
    if (!quiet) this.changed();
  }

  undo() {
    if (!this.before.length) return false;
    this.mask = this.before.pop();
    this.changed();
    return true;
  }

  end() {
    this.stop.abort();
  }
}
