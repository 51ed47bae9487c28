// The page on which people rate pairs: sheets come from the server, and every answer goes there at once.
import { Brush, paintPair } from "./brush.js";

const $ = (id) => document.getElementById(id);
const TAG_KEYS = { texture: "t", border: "b", anatomy: "a", artefact: "f", "mask mismatch": "m" };
const NAMES = { reject: "rejected", unsure: "unsure", accept: "accepted", corrected: "corrected" };
const KEPT_ALIVE = 60000; // bytes: of larger bodies browsers refuse it
const tab = (sessionStorage.tab ??= crypto.randomUUID().slice(0, 13));
const pictures = new Map(); // item -> { bitmap, mask, width, height }
let about = null;
let sheet = { number: 0, items: [], progress: {} };
let selected = 0;
let since = performance.now(); // when the selected pair was
let queue = Promise.resolve(); // what is being sent, in order
let pending = 0; // how many
let loading = 0; // sheets that are asked for: until they are on the screen, nothing is answered
let brush = null;
let painted = null; // the item that the brush is for

function say(text) {
  $("message").textContent = text;
  $("large-message").textContent = text;
}

// --- Talking to the server -----------------------------------------------------------------------

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, { keepalive: !(options?.body?.length > KEPT_ALIVE), ...options }); // a reload does not stop it
  } catch {
    throw new Error("The server does not answer: is it still running? The last answer may be lost.");
  }
  if (!response.ok) throw new Error((await response.json()).error);
  return response;
}

const post = (path, value) => ask(path, { method: "POST", body: JSON.stringify(value) });

// One after the other: what was answered first is written first.
function enqueue(action) {
  document.body.dataset.pending = ++pending;
  queue = queue.then(action).catch(async (error) => {
    say(error.message);
    await whileLoading(load(sheet.number)).catch(() => {}); // what the server really has
    say(error.message);
  }).finally(() => { document.body.dataset.pending = --pending; });
  return queue;
}

// Of something that ends with a load.
function whileLoading(promise) {
  loading++;
  $("grid").classList.add("waiting");
  return promise.finally(() => $("grid").classList.toggle("waiting", --loading > 0));
}

const rater = () => $("rater").value.trim() || "rater";

async function load(number, chosen) {
  const query = new URLSearchParams({ rater: rater(), number: number ?? "" });
  const next = await (await ask(`sheet?${query}`)).json();
  const missing = next.items.filter((item) => !pictures.has(item.id));
  await Promise.all(missing.map(fetchPair));
  const place = next.items.findIndex((item) => item.id === (painted?.id ?? chosen));
  if (place < 0) stopPainting();
  sheet = next;
  sessionStorage.sheet = sheet.number;
  forgetOthers();
  const open = sheet.items.findIndex((item) => !item.answer);
  fill();
  choose(place >= 0 ? place : Math.max(open, 0));
}

async function fetchPair({ id }) {
  const [image, mask] = await Promise.all([ask(`image/${id}`), ask(`mask/${id}`)]);
  const bitmap = await createImageBitmap(await image.blob());
  const size = { width: about.width, height: about.height };
  pictures.set(id, { bitmap, mask: new Uint8Array(await mask.arrayBuffer()), ...size });
}

function forgetOthers() {
  const kept = new Set(sheet.items.map((item) => item.id));
  for (const [id, { bitmap }] of pictures) {
    if (kept.has(id)) continue;
    bitmap.close();
    pictures.delete(id);
  }
}

// --- The sheet -----------------------------------------------------------------------------------

function fill() {
  $("grid").replaceChildren(...sheet.items.map((item, i) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "pair" });
    button.setAttribute("role", "option");
    button.append(document.createElement("canvas"), document.createElement("span"));
    button.addEventListener("click", () => (i === selected ? openLarge() : choose(i)));
    return button;
  }));
  sheet.items.forEach((_, i) => drawTile(i));
  showProgress();
}

function drawTile(i) {
  const factor = Math.max(1, Math.ceil(320 / about.width));
  paintPair($("grid").children[i].firstChild, pictures.get(sheet.items[i].id), factor, $("outline").checked);
  label(i);
}

function label(i) {
  const [item, button] = [sheet.items[i], $("grid").children[i]];
  button.dataset.answer = item.answer;
  button.lastChild.textContent = [NAMES[item.answer], ...(item.answer ? item.tags : [])].filter(Boolean).join(", ");
  button.setAttribute("aria-label", `Pair ${i + 1}: ${NAMES[item.answer] || "not rated"}`);
}

function showProgress() {
  const { answers = 0, repeats = 0, same = 0, real = 0, real_accepted: accepted = 0 } = sheet.progress;
  const parts = [`Sheet ${sheet.number + 1}`, `${answers} rated by ${rater()}`];
  if (repeats) parts.push(`same answer again: ${same} of ${repeats}`);
  if (real) parts.push(`hidden real images accepted: ${accepted} of ${real}`);
  $("progress").textContent = parts.join(" · ");
  $("previous").disabled = sheet.number === 0;
}

function choose(i) {
  if (!sheet.items[i]) return;
  selected = i;
  since = performance.now();
  [...$("grid").children].forEach((button, j) => button.setAttribute("aria-selected", j === i));
  $("grid").children[i].focus({ preventScroll: true });
  $("grid").children[i].scrollIntoView({ block: "nearest" });
  showTags();
  if ($("large").open) drawLarge();
}

function showTags() {
  for (const button of $("tags").children) {
    button.setAttribute("aria-pressed", sheet.items[selected].tags.includes(button.dataset.tag));
  }
}

// --- Answers -------------------------------------------------------------------------------------

function rate(answer) {
  if (loading) return;
  const item = sheet.items[selected];
  Object.assign(item, { answer, ms: Math.round(performance.now() - since) });
  label(selected);
  say("");
  send(item);
  advance();
}

// To the next pair without an answer; behind the last one, to the next sheet.
function advance() {
  const order = sheet.items.map((_, j) => (selected + 1 + j) % sheet.items.length);
  const open = order.find((j) => !sheet.items[j].answer);
  if (open !== undefined) return choose(open);
  closeLarge();
  enter(sheet.number + 1);
}

function enter(number) {
  if (number >= 0) whileLoading(enqueue(() => load(number)));
}

function turn(step) {
  if (!loading && !brush) enter(sheet.number + step);
}

function toggleTag(tag) {
  if (loading) return;
  const item = sheet.items[selected];
  if (item.answer === "corrected") return say("This pair has a corrected label: undo that (u) to change its tags.");
  item.tags = item.tags.includes(tag) ? item.tags.filter((other) => other !== tag) : [...item.tags, tag];
  showTags();
  label(selected);
  if (item.answer) send(item);
}

function send({ id, answer, tags, ms }) {
  const given = { item: id, answer, tags, rater: rater(), tab, ms };
  enqueue(async () => {
    sheet.progress = await (await post("rate", given)).json();
    showProgress();
  });
}

function undo() {
  if (brush) return brush.undo();
  say("");
  return whileLoading(enqueue(async () => {
    const back = await (await post("undo", { rater: rater(), tab })).json();
    if (!back.item) return say("There is nothing to undo in this tab.");
    await load(back.sheet ?? sheet.number, back.item);
  }));
}

// --- One pair, large -----------------------------------------------------------------------------

function openLarge() {
  if (!$("large").open) $("large").showModal();
  drawLarge();
}

function closeLarge() {
  stopPainting();
  hideNearest();
  if ($("large").open) $("large").close();
}

function drawLarge() {
  const pair = pictures.get(sheet.items[selected].id);
  const factor = Math.max(1, Math.ceil(640 / about.width));
  paintPair($("big"), { ...pair, mask: brush ? brush.mask : pair.mask }, factor, $("outline").checked || !!brush);
  $("redraw").disabled = !about.redraws;
}

function hideNearest() {
  $("nearest").hidden = true;
  $("show-nearest").setAttribute("aria-pressed", "false");
}

async function toggleNearest() {
  openLarge();
  if (!$("nearest").hidden) return hideNearest();
  const { id } = sheet.items[selected];
  try {
    const response = await ask(`nearest/${id}`);
    const correlation = response.headers.get("X-Correlation");
    const bitmap = await createImageBitmap(await response.blob());
    const canvas = $("nearest-image");
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    $("nearest-text").textContent = `The real training image that looks most like it, mirrored or not: correlation ${correlation}`;
    $("nearest").hidden = false;
    $("show-nearest").setAttribute("aria-pressed", "true");
  } catch (error) {
    say(error.message);
  }
}

function togglePaint() {
  if (brush) return stopPainting();
  openLarge();
  painted = sheet.items[selected];
  const pair = pictures.get(painted.id);
  const options = () => ({ radius: Number($("width").value), id: $("erase").checked ? 0 : Number($("class").value) });
  brush = new Brush($("big"), pair, options, drawLarge);
  $("brush").hidden = false;
  $("paint").setAttribute("aria-pressed", "true");
  drawLarge();
}

function stopPainting() {
  if (!brush) return;
  brush.end();
  brush = painted = null;
  $("brush").hidden = true;
  $("paint").setAttribute("aria-pressed", "false");
  if ($("large").open) drawLarge();
}

function sendMask(path, done) {
  if (!brush || loading) return;
  const [item, mask] = [painted, brush.mask.slice()];
  const ms = Math.round(performance.now() - since);
  const query = new URLSearchParams({ rater: rater(), tab, ms });
  say("");
  whileLoading(enqueue(async () => {
    const response = await ask(`${path}/${item.id}?${query}`, { method: "POST", body: mask });
    await done(item, await response.json());
  }));
}

function correct() {
  sendMask("correct", async (item) => {
    closeLarge();
    await load(sheet.number, item.id);
    advance();
  });
}

function redraw() {
  sendMask("redraw", async (item, answer) => {
    stopPainting();
    await load(answer.sheet, item.id);
    choose(selected + 1); // the new pair lies behind the old one
    say("Drawn anew: this pair is to be rated, too.");
  });
}

// --- Events --------------------------------------------------------------------------------------

function columns() {
  const tops = [...$("grid").children].map((button) => button.offsetTop);
  return tops.filter((top) => top === tops[0]).length;
}

const actions = {
  reject: () => rate("reject"),
  unsure: () => rate("unsure"),
  accept: () => rate("accept"),
  undo,
  zoom: () => ($("large").open ? closeLarge() : openLarge()),
  previous: () => turn(-1),
  next: () => turn(1),
  close: closeLarge,
  paint: togglePaint,
  correct,
  redraw,
  "show-nearest": toggleNearest,
  "stroke-back": undo,
};
const keys = {
  1: "reject", 2: "unsure", 3: "accept", u: "undo", z: "zoom", n: "show-nearest", p: "paint", s: "correct", d: "redraw",
  PageUp: "previous", PageDown: "next",
};
for (const [id, action] of Object.entries(actions)) $(id).addEventListener("click", action);
$("outline").addEventListener("input", () => {
  sheet.items.forEach((_, i) => drawTile(i));
  if ($("large").open) drawLarge();
});
$("large").addEventListener("close", () => { stopPainting(); hideNearest(); });
$("rater").addEventListener("change", () => {
  localStorage.rater = rater();
  whileLoading(enqueue(() => load(sheet.number)));
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=text], select");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !sheet.items.length) return;
  const tag = Object.keys(TAG_KEYS).find((name) => TAG_KEYS[name] === event.key);
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
  const sliding = event.target.matches("input[type=range]");
  if (keys[event.key]) {
    if (!brush || !["1", "2", "3", "z"].includes(event.key)) actions[keys[event.key]]();
  } else if (event.key === "o") $("outline").click();
  else if (event.key === "e" && brush) $("erase").click();
  else if ((event.key === "[" || event.key === "]") && brush) $("width").value = Number($("width").value) + (event.key === "[" ? -1 : 1);
  else if (tag) toggleTag(tag);
  else if (steps[event.key] && !sliding && !brush) choose(Math.min(Math.max(selected + steps[event.key], 0), sheet.items.length - 1));
  else return;
  event.preventDefault();
});
// Another tab may have answered meanwhile.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && about) whileLoading(enqueue(() => load(sheet.number, sheet.items[selected]?.id)));
});

try {
  about = await (await ask("about.json")).json();
  $("rater").value = localStorage.rater || "rater";
  $("model").textContent = `${about.method} of ${about.name}`;
  $("tags").replaceChildren(...about.tags.map((name) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: name, title: `Key: ${TAG_KEYS[name] || ""}` });
    button.dataset.tag = name;
    button.addEventListener("click", () => toggleTag(name));
    return button;
  }));
  $("class").replaceChildren(...about.classes.map((name, i) => new Option(name, i + 1)));
  $("class-label").hidden = about.classes.length < 2;
  await load(sessionStorage.sheet).catch(() => load()); // a sheet of an earlier server
  document.body.dataset.ready = "yes";
} catch (error) {
  say(error.message);
}
