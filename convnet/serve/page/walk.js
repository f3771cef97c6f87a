// The net, stage by stage: all maps of a stage, the unit at hand, what it sees, and how it gets its value.

import { aboutPicture, byId, loaded, make, net, picture, shade, text } from "/common.js";

const PICTURE = "picture";
const GAP = 2, HIGHEST = 560, LARGEST = 176; // pixels, of the sheet of maps and of a map on it
const NUMBERS = 7; // cells a side: windows up to this show their numbers
let known = null; // the picture whose stages these are
let stages = [];
let columns = 1;
let at = null; // {stage, place: [map, row, column]}
let sheet = null; // {stage, image, across, layout}
let pixels = null; // the picture as the net sees it
let trail = [];
let pointed = null; // the unit under the mouse
let turn = 0;

export function begin() {
  document.addEventListener("picture", () => { known = null; });
  document.addEventListener("net", () => { known = null; at = null; trail = []; });
  const canvas = byId("maps");
  canvas.addEventListener("pointermove", (event) => { const unit = under(event); if (unit) point(unit); });
  canvas.addEventListener("pointerleave", () => { pointed = null; if (sheet) draw(); });
  canvas.addEventListener("click", (event) => { const unit = under(event); if (unit) go(at.stage, unit, "new"); });
  canvas.addEventListener("keydown", keys);
  byId("strip").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !at) return;
    event.preventDefault();
    const next = stages[stages.findIndex((each) => each.name === at.stage) + step];
    if (next) open(next.name).then(() => byId("strip").querySelector("[aria-pressed=true]").focus());
  });
  new ResizeObserver(() => !byId("net").hidden && sheet && draw()).observe(canvas.parentElement);
}

// Everything anew for the picture at hand.
export async function show() {
  if (!picture.said || known === picture.said.id) return;
  known = picture.said.id;
  try {
    ({ stages, columns } = await aboutPicture("stages"));
    pixels = await loaded(`/api/pictures/${picture.said.id}/picture.png`);
    byId("net-hint").textContent = `For ${picture.said.classes[0].class}: from the class down to the pixels. Click a unit, then a number that it reads, and so on.`;
    byId("strip").replaceChildren(...stages.map((each) =>
      make("button", { type: "button", "aria-pressed": "false", "data-stage": each.name, onclick: () => open(each.name) }, each.name, make("span", {}, each.shape.join(" x ")))));
    const last = stages.at(-1).name;
    const stage = at && stages.some((each) => each.name === at.stage) ? at.stage : last;
    const place = at && stage === at.stage ? at.place : [picture.said.classes[0].label, 0, 0];
    await go(stage, place, "new");
  } catch (error) {
    known = null;
    byId("net-hint").textContent = error.message;
  }
}

const about = (stage) => stages.find((each) => each.name === stage);
const sizes = (stage) => { const [n, h = 1, w = 1] = about(stage).shape; return [n, h, w]; };

// A stage: at the unit with the largest value, which its sheet tells.
async function open(stage) {
  try {
    await load(stage);
    await go(stage, strongest(), "new");
  } catch (error) {
    byId("readout").textContent = error.message;
  }
}

async function load(stage) {
  if (sheet?.stage === stage && sheet.id === picture.said.id) return;
  const src = `/api/pictures/${picture.said.id}/stages/${encodeURIComponent(stage)}.png`;
  const image = await loaded(src);
  const [n] = sizes(stage);
  sheet = { stage, id: picture.said.id, image, across: Math.ceil(Math.sqrt(n)) };
}

function strongest() {
  const [n, h, w] = sizes(sheet.stage);
  const small = new OffscreenCanvas(sheet.image.width, sheet.image.height);
  const pen = small.getContext("2d");
  pen.drawImage(sheet.image, 0, 0);
  const dots = pen.getImageData(0, 0, small.width, small.height).data;
  const low = about(sheet.stage).low < 0;
  let best = [-1, 0];
  for (let i = 0; i < dots.length / 4; i += 1) {
    const warm = low ? dots[4 * i] - dots[4 * i + 2] : dots[4 * i] + dots[4 * i + 1] - dots[4 * i + 2];
    if (warm > best[0]) best = [warm, i];
  }
  const [y, x] = [Math.floor(best[1] / small.width), best[1] % small.width];
  const map = Math.floor(y / h) * sheet.across + Math.floor(x / w);
  return map < n ? [map, y % h, x % w] : [0, 0, 0];
}

// A unit. way: "down" from one that reads it, "back" along the trail, or "new".
async function go(stage, place, way) {
  const mine = (turn += 1);
  try {
    if (stage !== PICTURE) await load(stage);
    const query = new URLSearchParams({ stage, map: place[0], row: place[1], column: place[2] });
    const told = await aboutPicture(`unit?${query}`);
    if (mine !== turn) return;
    if (way === "new") trail = [];
    if (way !== "back") trail.push({ stage, place });
    at = { stage: stage === PICTURE ? sheet.stage : stage, place: stage === PICTURE ? at.place : place };
    for (const button of byId("strip").children) button.setAttribute("aria-pressed", button.dataset.stage === at.stage);
    byId("strip").querySelector("[aria-pressed=true]")?.scrollIntoView({ block: "nearest", inline: "center" });
    describe();
    pointed = null;
    draw();
    field(told.field);
    say(told);
    explain(told);
    crumbs();
  } catch (error) {
    if (mine === turn) byId("readout").textContent = error.message;
  }
}

function describe() {
  const { name, shape, layer, low, high, zeros, source } = about(at.stage);
  const [n, h, w] = sizes(name);
  const size = shape.length === 3 ? `${n} maps of ${h} x ${w}` : `${n.toLocaleString("en")} units`;
  const parts = columns > 1 && name !== stages.at(-1).name ? ` in ${columns} columns, one below the other` : "";
  byId("stage-text").textContent = `${name}: ${size}${parts}, from ${source ?? "what came before"} by ${layer || "what the net computes"}. Values from ${text(low)} to ${text(high)}; ${(100 * zeros).toFixed(0)} % are 0.`;
}

// The sheet: tiles in rows, a net's columns one below the other.

function layout() {
  const [n, h, w] = sizes(sheet.stage);
  const width = byId("maps").parentElement.clientWidth;
  const parts = columns > 1 && sheet.stage !== stages.at(-1).name && n % columns === 0 ? columns : 1;
  const each = n / parts;
  const fits = (side) => {
    const across = Math.max(1, Math.floor((width + GAP) / (side + GAP)));
    return Math.ceil(each / across) * (side * h / w + GAP) * parts <= HIGHEST;
  };
  let side = h * w === 1 ? 28 : LARGEST;
  while (side > 6 && !fits(side)) side -= side > 60 ? 8 : 2;
  const across = Math.min(each, Math.max(1, Math.floor((width + GAP) / (side + GAP))));
  const rows = Math.ceil(each / across);
  const high = (side * h) / w;
  return { n, h, w, width, side, high, across, rows, parts, each, height: parts * (rows * (high + GAP) + 12) - 12 };
}

function tile(map, { across, side, high, rows, each }) {
  const part = Math.floor(map / each), k = map % each;
  return [(k % across) * (side + GAP), part * (rows * (high + GAP) + 12) + Math.floor(k / across) * (high + GAP)];
}

function draw() {
  const canvas = byId("maps");
  const shape = (sheet.layout = layout());
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(shape.width * ratio);
  canvas.height = Math.round(shape.height * ratio);
  canvas.style.height = `${shape.height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.imageSmoothingEnabled = false;
  for (let map = 0; map < shape.n; map += 1) {
    const [x, y] = tile(map, shape);
    pen.drawImage(sheet.image, (map % sheet.across) * shape.w, Math.floor(map / sheet.across) * shape.h, shape.w, shape.h, x, y, shape.side, shape.high);
  }
  outline(pen, pointed ?? at.place);
}

function under(event) {
  if (!sheet?.layout) return null;
  const { n, h, w, side, high } = sheet.layout;
  const box = byId("maps").getBoundingClientRect();
  const [px, py] = [event.clientX - box.left, event.clientY - box.top];
  for (let map = 0; map < n; map += 1) {
    const [x, y] = tile(map, sheet.layout);
    if (px >= x && px < x + side && py >= y && py < y + high) return [map, Math.floor(((py - y) / high) * h), Math.floor(((px - x) / side) * w)];
  }
  return null;
}

function outline(pen, [map, row, column]) {
  const { h, w, side, high } = sheet.layout;
  const [x, y] = tile(map, sheet.layout);
  const cell = [x + (column * side) / w, y + (row * high) / h, Math.max(4, side / w), Math.max(4, high / h)];
  for (const [stroke, width] of [["#000000", 4], ["#ffffff", 2]]) {
    pen.strokeStyle = stroke;
    pen.lineWidth = width;
    pen.strokeRect(x + 1, y + 1, side - 2, high - 2);
    if (h * w > 1) pen.strokeRect(...cell);
  }
}

function point(unit) {
  if (pointed?.join() === unit.join()) return;
  pointed = unit;
  draw();
  byId("readout").textContent = `${named(at.stage, unit)}: click to see how it gets its value.`;
}

function keys(event) {
  if (!at || !sheet?.layout) return;
  const [n, h, w] = sizes(at.stage);
  const flat = h * w === 1;
  const { across } = sheet.layout;
  const steps = flat
    ? { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [-across, 0, 0], ArrowDown: [across, 0, 0] }
    : { ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], PageUp: [-1, 0, 0], PageDown: [1, 0, 0] };
  if (event.key === "Enter") byId("arithmetic").querySelector("button")?.focus();
  else if (steps[event.key]) {
    const limits = [n, h, w];
    go(at.stage, at.place.map((each, i) => Math.max(0, Math.min(limits[i] - 1, each + steps[event.key][i]))), "new");
  } else return;
  event.preventDefault();
}

// What the unit sees.

function field(box) {
  const canvas = byId("field");
  const scale = Math.max(1, Math.ceil(448 / pixels.width));
  canvas.width = pixels.width * scale;
  canvas.height = pixels.height * scale;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(pixels, 0, 0, canvas.width, canvas.height);
  if (!box) return;
  const [top, left, height, width] = box.map((each) => each * scale);
  pen.fillStyle = "rgb(16 18 20 / 55%)";
  pen.beginPath();
  pen.rect(0, 0, canvas.width, canvas.height);
  pen.rect(left, top, width, height);
  pen.fill("evenodd");
  for (const [stroke, thick] of [["#000000", 6], ["#ffffff", 3]]) {
    pen.strokeStyle = stroke;
    pen.lineWidth = thick;
    pen.strokeRect(left, top, width, height);
  }
}

function say({ stage, place, value, field: box }) {
  const sees = box ? ` It sees ${box[2]} x ${box[3]} pixels.` : "";
  byId("readout").textContent = `${named(stage, place)} = ${text(value)}.${sees}`;
}

function named(stage, [map, row, column]) {
  if (stage === PICTURE) return `pixel, row ${row}, column ${column}`;
  const [n, h, w] = sizes(stage);
  if (stage === stages.at(-1).name && n === net.about.classes.length) return `${stage}, ${net.about.classes[map]}`;
  return h * w === 1 ? `${stage}, unit ${map}` : `${stage}, map ${map}, row ${row}, column ${column}`;
}

function crumbs() {
  trail = trail.slice(-12);
  byId("trail").replaceChildren(...trail.flatMap(({ stage, place }, i) => {
    const button = make("button", { type: "button", onclick: () => { trail = trail.slice(0, i + 1); go(stage, place, "back"); } }, named(stage, place));
    return i ? [make("span", { class: "quiet" }, "reads"), button] : [button];
  }));
}

// The arithmetic.

function explain(told) {
  byId("arithmetic").replaceChildren(...{ sum, max, norm, function: plain, distance, pixel, other }[told.kind](told));
}

const formula = (words) => make("p", { class: "formula" }, words);
const note = (words) => make("p", { class: "note" }, words);

// A grid of numbers, each of which leads to the unit that has it.
function cells(told, term, values, what, most, leads) {
  const [top, left] = told.window;
  const fine = values.length > NUMBERS || values[0].length > NUMBERS;
  const shown = (value, i, j) => {
    const words = `${what} ${text(value)}`;
    const label = fine ? "" : text(value);
    const style = { background: shade(value, most) };
    if (!leads || !told.source) return make("span", { style, title: words }, label);
    const place = [term.map, top + i, left + j];
    return make("button", { type: "button", style, title: words, "aria-label": `${words}: ${named(told.source, place)}`, onclick: () => go(told.source, place, "down") }, label);
  };
  const body = make("tbody", {}, ...values.map((row, i) => make("tr", {}, ...row.map((value, j) => make("td", {}, shown(value, i, j))))));
  return make("figure", {}, make("table", { class: fine ? "cells fine" : "cells" }, body), make("figcaption", {}, what));
}

const largest = (terms, key) => Math.max(...terms.flatMap((term) => (term[key] ?? []).flat().map(Math.abs)), 1e-12);

function sum(told) {
  const { maps, rest, constant, before, then, value, is_bent: isBent } = told;
  if (!maps.length) return [formula(`${text(value)}: it reads nothing of this picture that counts; the constant alone.`)];
  const single = maps[0].inputs.length * maps[0].inputs[0].length === 1;
  const sums = [[maps.reduce((all, each) => all + each.sum, 0), `the ${maps.length} ${single ? "numbers" : "maps"} below`]];
  if (rest.n) sums.push([rest.sum, `${rest.n.toLocaleString("en")} others`]);
  sums.push([constant, "bias"]);
  const parts = sums.map(([part, name], i) => `${i ? (part < 0 ? "− " : "+ ") : ""}${text(i ? Math.abs(part) : part)} (${name})`);
  const end = then ? `, and ${then} of it is ${text(value)}` : "";
  const head = [formula(`${parts.join(" ")} = ${text(before)}${end}`)];
  if (isBent) head.push(note("This stage is several layers: the weights are those from its input to this unit, with the ReLUs and maxima inside as this picture sets them."));
  const most = { inputs: largest(maps, "inputs"), weights: largest(maps, "weights") };
  const terms = maps.slice(0, single ? 0 : 3).map((term) => make("div", {},
    make("p", { class: "measure" }, `${mapName(told, term)}: each number times its weight, added up, is ${text(term.sum)}`),
    make("div", { class: "grids" }, cells(told, term, term.inputs, "reads", most.inputs, true), make("span", {}, "×"), cells(told, term, term.weights, "weight", most.weights, false))));
  return [...head, make("div", { class: "terms" }, ...terms), list(told, single)];
}

const mapName = (told, { map }) => (told.source !== PICTURE ? `map ${map}` : told.maps.length === 1 ? "grey" : ["red", "green", "blue"][map]);

// The terms of a sum one below the other, with a button down.
function list(told, single) {
  const rows = told.maps.map((term) => {
    const place = [term.map, told.window[0], told.window[1]];
    const best = peak(term);
    const target = single ? place : [term.map, place[1] + best[0], place[2] + best[1]];
    const name = told.source ? make("button", { type: "button", onclick: () => go(told.source, target, "down") }, single ? named(told.source, place) : `${told.source}, ${mapName(told, term)}`) : mapName(told, term);
    const numbers = single ? [text(term.inputs[0][0]), text(term.weights[0][0])] : ["", ""];
    return make("tr", {}, make("td", {}, name), ...numbers.map((each) => make("td", { class: "number" }, each)), make("td", { class: "number" }, text(term.sum)));
  });
  const weight = told.kind === "distance" ? "code" : "weight";
  const heads = [told.source ?? "reads", single ? "value" : "", single ? weight : "", "adds"];
  return make("div", { class: "scroll" }, make("table", { class: "sums" },
    make("thead", {}, make("tr", {}, ...heads.map((each, i) => make("th", i ? { class: "number" } : {}, each)))), make("tbody", {}, ...rows)));
}

// The place in a window that adds most.
function peak({ inputs, weights }) {
  let best = [0, 0], most = -1;
  inputs.forEach((row, i) => row.forEach((value, j) => {
    const part = Math.abs(value * (weights?.[i][j] ?? 1));
    if (part > most) [most, best] = [part, [i, j]];
  }));
  return best;
}

function max(told) {
  const [term] = told.maps;
  return [formula(`The largest of ${term.inputs.length} x ${term.inputs[0].length} numbers: ${text(told.value)}`),
    make("div", { class: "grids" }, cells(told, term, term.inputs, "reads", largest(told.maps, "inputs"), true))];
}

function norm(told) {
  const { k, alpha, beta } = told.constants;
  const few = told.maps.length === 1;
  const head = formula(`${text(told.x)} / (${text(k)} + ${alpha.toPrecision(2)} × ${text(told.squares)})^${beta} = ${text(told.x)} / ${told.divisor.toPrecision(5)} = ${text(told.value)}`);
  const rule = note(few ? "Divided by the squares of its neighbours in its own map, added up." : "Divided by the squares at the same place of the neighbouring maps, added up.");
  const grids = told.maps.map((term) => cells(told, term, term.inputs, few ? "reads" : `map ${term.map}`, largest(told.maps, "inputs"), true));
  return [head, rule, make("div", { class: "grids" }, ...grids)];
}

function plain(told) {
  const button = told.source ? make("button", { type: "button", onclick: () => go(told.source, told.place, "down") }, `${named(told.source, told.place)} = ${text(told.x)}`) : null;
  return [formula(`${told.form} with x = ${text(told.x)} is ${text(told.value)}`), make("p", {}, "It reads ", button)];
}

function distance(told) {
  return [formula(`Minus the squared distance of ${told.source} to this class's code: ${text(told.value)}`),
    note("A class's code is fixed: the drawing of its digit, +1 and −1. The numbers that are farthest from it:"), list(told, true)];
}

function pixel(told) {
  const { colours, level, mean, scale, offset, value, is_grey: grey } = told;
  const what = grey ? `grey of red, green, blue ${colours.join(", ")}` : ["red", "green", "blue"][told.place[0]];
  const shift = offset ? ` + ${text(offset)}` : "";
  return [formula(`(${level} − ${text(mean)}) × ${text(scale)}${shift} = ${text(value)}`), note(`The pixel's ${what} is ${level} of 255; what is subtracted is the mean of the training pictures there. Here the net begins.`)];
}

function other(told) {
  return [formula(text(told.value)), note("This stage is not taken apart.")];
}
