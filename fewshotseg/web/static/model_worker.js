// Runs model.onnx; answers as web/live.py does.
import * as ort from "./ort.wasm.bundle.min.mjs";

ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href };
// Threads need two headers that simple file servers do not send.
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
let session = null;

self.onmessage = async ({ data: message }) => {
  const { number } = message;
  try {
    session ??= ort.InferenceSession.create(new URL("model.onnx", import.meta.url).href);
    const model = await session.catch((error) => {
      session = null; // to be tried again
      throw error;
    });
    const answer = message.load ? null : await segment(model, message);
    const planes = answer ? [answer.probability.buffer, ...(answer.classes ? [answer.classes.buffer] : [])] : [];
    self.postMessage({ number, answer }, planes);
  } catch (error) {
    self.postMessage({ number, error: error.message || String(error) });
  }
};

async function segment(model, { width, height, data }) {
  const started = performance.now();
  const size = width * height;
  const rgb = new Uint8Array(3 * size);
  for (let i = 0, j = 0; i < 4 * size; i += 4) {
    rgb[j++] = data[i];
    rgb[j++] = data[i + 1];
    rgb[j++] = data[i + 2];
  }
  const found = await model.run({ image: new ort.Tensor("uint8", rgb, [height, width, 3]) });
  const values = found.probabilities.data;
  const outputs = values.length / size;
  const probability = new Uint8Array(size);
  const classes = outputs > 1 ? new Uint8Array(size) : null;
  for (let i = 0; i < size; i++) {
    let best = 0;
    for (let k = 1; k < outputs; k++) if (values[i * outputs + k] > values[i * outputs + best]) best = k;
    probability[i] = Math.round(255 * values[i * outputs + best]);
    if (classes) classes[i] = best;
  }
  found.probabilities.dispose();
  return { width, height, milliseconds: performance.now() - started, probability, classes };
}
