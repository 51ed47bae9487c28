// The model in this browser: ONNX Runtime Web in a worker, so that the page stays responsive.
const LARGEST = 20e6; // pixels
const worker = new Worker(new URL("model_worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
let number = 0;

worker.onmessage = ({ data }) => {
  const { resolve, reject } = waiting.get(data.number);
  waiting.delete(data.number);
  if (data.error) reject(new Error(data.error));
  else resolve(data.answer);
};

function ask(message, transfer = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++number, { resolve, reject });
    worker.postMessage({ number, ...message }, transfer);
  });
}

export async function describe() {
  const about = await (await fetch("model.json")).json();
  await ask({ load: true });
  return { ...about, name: about.model };
}

export async function segmentFile(file) {
  const options = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const picture = await createImageBitmap(file, options);
  if (picture.width * picture.height > LARGEST) throw new Error(`The image has more than ${LARGEST / 1e6} megapixels.`);
  const context = new OffscreenCanvas(picture.width, picture.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  return segmentFrame(context.getImageData(0, 0, picture.width, picture.height));
}

export function segmentFrame({ width, height, data }) {
  return ask({ width, height, data }, [data.buffer]);
}
