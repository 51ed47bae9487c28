// The model in this browser: ONNX Runtime Web in a worker, so that the page stays responsive.
const LARGEST = 20e6; // pixels
const worker = new Worker(new URL("model_worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
let number = 0;
let broken = null; // why the worker can do nothing

worker.onmessage = ({ data }) => {
  const { resolve, reject } = waiting.get(data.number);
  waiting.delete(data.number);
  if (data.error) reject(new Error(data.error));
  else resolve(data.answer);
};

worker.onerror = () => {
  broken = new Error("The model does not start: look whether the server sends .js and .mjs files as text/javascript.");
  for (const { reject } of waiting.values()) reject(broken);
  waiting.clear();
};

function ask(message, transfer = []) {
  return new Promise((resolve, reject) => {
    if (broken) return reject(broken);
    waiting.set(++number, { resolve, reject });
    worker.postMessage({ number, ...message }, transfer);
  });
}

export async function describe() {
  const about = await (await fetch("model.json")).json();
  await ask({ load: true });
  return { ...about, name: about.model };
}

// Browsers read 16 bits as 8: what is in the lower ones, such as radiographs, would be near black.
async function refuseDeep(file) {
  const head = new Uint8Array(await file.slice(0, 25).arrayBuffer());
  const isPng = head[0] === 0x89 && head[1] === 0x50;
  if (isPng && head[24] === 16) {
    throw new Error(`${file.name} has 16 bits per channel: use --mode=predict, or save it with 8 bits.`);
  }
}

export async function segmentFile(file) {
  await refuseDeep(file);
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
