// The live page: pictures and camera frames go to the model, its answers are drawn over them.
import { areasOf, draw, maskFile, maskOf, pictureFile } from "./drawing.js";
import { describe, segmentFile, segmentFrame } from "./model.js";

const FRAME_SIDE = 256; // longest side of what a camera frame is shrunk to
const $ = (id) => document.getElementById(id);
const view = $("view");
let about = null;
let shown = null; // { source, answer, name, moving }: the picture on the screen and what the model says of it
let pictures = []; // files to choose from
let stream = null; // of the camera
let starts = 0; // a number for every start and stop of it: a camera that comes late is turned off
let turn = 0; // a number for everything asked for: late answers to old questions are dropped

function say(text) {
  $("message").textContent = text;
}

function redraw() {
  $("opacity-shown").textContent = Number($("opacity").value).toFixed(2);
  $("threshold-shown").textContent = Number($("threshold").value).toFixed(2);
  $("snapshot").disabled = !shown?.answer;
  if (!shown?.answer) for (const id of ["area", "size", "latency"]) $(id).textContent = "–";
  if (!shown) return;
  const { source, answer, moving } = shown;
  const threshold = Number($("threshold").value);
  draw(view, source, answer, threshold, {
    outline: $("outline").checked, map: $("map").checked, opacity: Number($("opacity").value), moving,
  });
  $("hint").hidden = true;
  view.setAttribute("aria-label", `${shown.name}, no answer yet`);
  if (!answer) return;
  const areas = areasOf(maskOf(answer, threshold), about.class_names.length);
  $("area").textContent = about.class_names.map((name, i) => `${name}: ${areaText(areas[i], moving)}`).join("; ");
  $("size").textContent = `${answer.width} × ${answer.height}`;
  view.setAttribute("aria-label", `${shown.name}, ${$("area").textContent}`);
}

function areaText(pixels, moving) {
  const spacing = Number($("spacing").value);
  const text = `${pixels.toLocaleString("en")} px`;
  // The spacing is that of the picture's own pixels, which a camera's shrunken frame has no more.
  return spacing > 0 && !moving ? `${text} = ${(pixels * spacing ** 2).toFixed(1)} mm²` : text;
}

function show(source, answer, name, milliseconds, moving = false) {
  shown = { source, answer, name, moving };
  redraw();
  if (answer) $("latency").textContent = `${Math.round(milliseconds)} ms (model ${answer.milliseconds.toFixed(0)})`;
}

function showNothing() {
  shown = null;
  view.getContext("2d").clearRect(0, 0, view.width, view.height);
  view.setAttribute("aria-label", "No picture");
  redraw();
}

// --- Pictures ------------------------------------------------------------------------------------

async function predict(file, name) {
  stopCamera();
  const mine = ++turn;
  say("");
  $("rate").textContent = "–";
  try {
    const source = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => {
      if (mine === turn) showNothing();
      throw new Error(`${name} is no image that this browser can show: save it as PNG or JPEG.`);
    });
    const started = performance.now();
    if (mine === turn) show(source, null, name);
    const answer = await segmentFile(file);
    if (mine === turn) show(source, answer, name, performance.now() - started);
  } catch (error) {
    if (mine === turn) say(error.message);
  }
}

function offer(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/"));
  if (!images.length) return say("There is no image among these files.");
  pictures = images.sort((a, b) => pathOf(a).localeCompare(pathOf(b), undefined, { numeric: true }));
  $("names").replaceChildren(...pictures.map((file) => new Option(pathOf(file))));
  $("list").hidden = pictures.length < 2;
  choose(0);
}

function pathOf(file) {
  return file.webkitRelativePath || file.name;
}

function choose(index) {
  if (!pictures[index]) return;
  $("names").selectedIndex = index;
  $("position").textContent = `${index + 1} of ${pictures.length}`;
  $("previous").disabled = index === 0;
  $("next").disabled = index === pictures.length - 1;
  predict(pictures[index], pathOf(pictures[index]));
}

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) { // a reader gives at most a hundred entries at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return (await Promise.all(found.map(filesOf))).flat();
    found.push(...some);
  }
}

// --- Camera --------------------------------------------------------------------------------------

async function startCamera() {
  if (!navigator.mediaDevices) return say("The camera needs this machine's own address, or https.");
  const mine = ++starts;
  const video = document.createElement("video");
  try {
    const found = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
    if (mine !== starts) return end(found); // pressed again, or a picture was chosen meanwhile
    stream = found;
    say("");
    $("camera").textContent = "Stop camera";
    $("camera").setAttribute("aria-pressed", "true");
    Object.assign(video, { srcObject: stream, muted: true, playsInline: true });
    await video.play();
  } catch (error) {
    if (mine !== starts) return;
    stopCamera();
    return say(`No camera: ${error.message}.`);
  }
  if (mine === starts) await follow(video, ++turn);
}

function end(camera) {
  camera.getTracks().forEach((track) => track.stop());
}

// One frame at a time: while the model works, newer ones pass by, and the last answer is drawn.
async function follow(video, mine) {
  const times = [];
  let last = null;
  try {
    while (stream && mine === turn) {
      const scale = FRAME_SIDE / Math.max(video.videoWidth, video.videoHeight, 1);
      const width = Math.max(1, Math.round(video.videoWidth * scale));
      const height = Math.max(1, Math.round(video.videoHeight * scale));
      const source = new OffscreenCanvas(width, height);
      const context = source.getContext("2d", { willReadFrequently: true });
      context.drawImage(video, 0, 0, width, height);
      const started = performance.now();
      const asked = segmentFrame(context.getImageData(0, 0, width, height));
      if (last) show(last.source, last.answer, "camera", last.milliseconds, true);
      const answer = await asked;
      if (mine !== turn || !stream) return;
      last = { source, answer, milliseconds: performance.now() - started };
      times.push(performance.now());
      while (times.at(-1) - times[0] > 2000) times.shift();
      if (times.length > 1) {
        const rate = (1000 * (times.length - 1)) / (times.at(-1) - times[0]);
        $("rate").textContent = rate.toFixed(1);
      }
      await new Promise((resolve) => requestAnimationFrame(resolve));
    }
  } catch (error) {
    stopCamera();
    say(error.message);
  }
}

function stopCamera() {
  starts++;
  if (!stream) return;
  end(stream);
  stream = null;
  turn++;
  $("camera").textContent = "Start camera";
  $("camera").setAttribute("aria-pressed", "false");
}

// --- Saving --------------------------------------------------------------------------------------

async function save() {
  if (!shown || !shown.answer) return;
  const { source, answer, name } = shown;
  const mask = maskOf(answer, Number($("threshold").value));
  const stem = name.split("/").at(-1).replace(/\.\w+$/, "") || "image";
  const stamp = name === "camera" ? `camera_${new Date().toISOString().replace(/[:.]/g, "-")}` : stem;
  download(await pictureFile(source), `${stamp}.png`);
  download(await maskFile(answer, mask, about.mask_values), `${stamp}_mask.png`);
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// --- Events --------------------------------------------------------------------------------------

const actions = {
  open: () => $("files").click(),
  "open-folder": () => $("folder").click(),
  camera: () => (stream ? stopCamera() : startCamera()),
  snapshot: save,
  previous: () => choose($("names").selectedIndex - 1),
  next: () => choose($("names").selectedIndex + 1),
};
const keys = { o: "open", f: "open-folder", c: "camera", s: "snapshot", ArrowLeft: "previous", ArrowRight: "next" };

for (const [id, action] of Object.entries(actions)) $(id).addEventListener("click", action);
for (const id of ["outline", "map", "opacity", "threshold", "spacing"]) $(id).addEventListener("input", redraw);
for (const id of ["files", "folder"]) {
  $(id).addEventListener("change", (event) => {
    offer(event.target.files);
    event.target.value = ""; // the same file may be chosen again
  });
}
$("names").addEventListener("change", () => choose($("names").selectedIndex));
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=checkbox]), select");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
  if (!$(keys[event.key]).disabled) actions[keys[event.key]]();
  event.preventDefault();
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) offer(event.clipboardData.files);
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("stage").classList.toggle("over", kind === "dragenter" || kind === "dragover");
  });
}
document.addEventListener("drop", async (event) => {
  const items = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = items.length ? (await Promise.all(items.map(filesOf))).flat() : event.dataTransfer.files;
  offer(files);
});
addEventListener("resize", redraw);

try {
  about = await describe();
  $("threshold").value = about.threshold;
  $("threshold-label").hidden = about.class_names.length > 1;
  $("model").textContent = `Model: ${about.name}`;
  document.body.dataset.ready = "yes";
} catch (error) {
  say(error.message);
}
redraw();
