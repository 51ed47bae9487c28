// Answers of the model as masks, areas and pictures. Colours are Okabe and Ito's, as in the reports.
export const COLOURS = [
  [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167],
];
// Longest side of what is drawn, of a picture and of a moving one; areas and snapshots have every pixel.
const [LARGEST_SIDE, LARGEST_MOVING] = [1400, 640];

// Class ids [height * width]: 1 where the foreground's probability reaches the threshold, or those found.
export function maskOf(answer, threshold) {
  if (answer.classes) return answer.classes;
  const smallest = Math.ceil(255 * threshold - 1e-6);
  return answer.probability.map((p) => (p >= smallest ? 1 : 0));
}

// Pixels of the classes 1, 2, ...
export function areasOf(mask, numClasses) {
  const areas = new Array(numClasses).fill(0);
  for (const id of mask) if (id) areas[id - 1]++;
  return areas;
}

// Draws the picture on the canvas at the size of the screen and, if there is one, the answer over it.
export function draw(canvas, source, answer, threshold, { outline, map, opacity, moving }) {
  const room = Math.min(canvas.clientWidth / source.width, canvas.clientHeight / source.height) || 1;
  const longest = Math.max(source.width, source.height);
  const largest = (moving ? LARGEST_MOVING : LARGEST_SIDE) / longest;
  const scale = Math.min(room * (globalThis.devicePixelRatio || 1), largest);
  const width = Math.max(1, Math.round(source.width * scale));
  const height = Math.max(1, Math.round(source.height * scale));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.drawImage(source, 0, 0, width, height);
  if (!answer) return;
  const { level, ids } = sample(answer, threshold, width, height);
  const pixels = new ImageData(width, height);
  const colours = new Uint32Array(pixels.data.buffer);
  const reach = Math.max(1, Math.round((2 * scale) / room)); // two pixels of the screen
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const id = ids[i];
      let alpha = map && (id || !answer.classes) ? (opacity * level[i]) & 255 : 0;
      if (outline && id) {
        const edge = x < reach || y < reach || x + reach >= width || y + reach >= height
          || ids[i - reach] !== id || ids[i + reach] !== id
          || ids[i - reach * width] !== id || ids[i + reach * width] !== id;
        if (edge) alpha = 255;
      }
      const [red, green, blue] = COLOURS[id ? (id - 1) % COLOURS.length : 0];
      colours[i] = (alpha << 24) | (blue << 16) | (green << 8) | red; // little-endian, as all browsers are
    }
  }
  const layer = new OffscreenCanvas(width, height);
  layer.getContext("2d").putImageData(pixels, 0, 0);
  context.drawImage(layer, 0, 0);
}

// The answer at another size: probabilities interpolated, class ids from the nearest pixel.
function sample(answer, threshold, width, height) {
  const [level, ids] = [new Uint8Array(width * height), new Uint8Array(width * height)];
  const [across, down] = [places(answer.width, width), places(answer.height, height)];
  const { probability, classes } = answer;
  const smallest = 255 * threshold - 1e-6;
  for (let y = 0, i = 0; y < height; y++) {
    const { low: y0, high: y1, share: v } = down[y];
    const [above, below] = [y0 * answer.width, y1 * answer.width];
    for (let x = 0; x < width; x++, i++) {
      const { low: x0, high: x1, share: u } = across[x];
      const upper = probability[above + x0] * (1 - u) + probability[above + x1] * u;
      const value = upper * (1 - v) + (probability[below + x0] * (1 - u) + probability[below + x1] * u) * v;
      level[i] = value;
      ids[i] = classes ? classes[(v < 0.5 ? above : below) + (u < 0.5 ? x0 : x1)] : value >= smallest;
    }
  }
  return { level, ids };
}

// Of every new pixel the two old ones around its centre, and how near it is to the second.
function places(old, size) {
  return Array.from({ length: size }, (_, i) => {
    const centre = Math.min(Math.max(((i + 0.5) * old) / size - 0.5, 0), old - 1);
    const low = Math.floor(centre);
    return { low, high: Math.min(low + 1, old - 1), share: centre - low };
  });
}

// The picture as PNG, at its size.
export function pictureFile(source) {
  const canvas = new OffscreenCanvas(source.width, source.height);
  canvas.getContext("2d").drawImage(source, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

// The mask as PNG, with the values that the model's training masks have for the background and the classes.
export function maskFile(answer, mask, values) {
  const pixels = new ImageData(answer.width, answer.height);
  mask.forEach((id, i) => pixels.data.set([values[id], values[id], values[id], 255], 4 * i));
  const canvas = new OffscreenCanvas(answer.width, answer.height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}
