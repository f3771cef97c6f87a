// Runs: what each says of itself, asked again every two seconds while it is looked at.

import { ask, byId, make, percent, text } from "/common.js";

const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#a08c00", "#777777"];
const CHARTS = [
  { title: "Training loss", key: "train_loss" }, { title: "Validation loss", key: "val_loss" },
  { title: "Training error", key: "train_error", share: true }, { title: "Validation error", key: "val_top1_error", share: true },
];
const SECONDS = 2;
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [420, 230, 46, 10, 10, 26];
let former = "", timer = 0, told = "";

export function begin() {
  byId("charts").replaceChildren(...CHARTS.map((chart) =>
    make("figure", { class: "chart" }, make("figcaption", {}, chart.title), svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${chart.title} by epoch` }))));
}

export async function show(isSeen) {
  clearTimeout(timer);
  if (!isSeen()) return;
  try {
    const { runs } = await ask("/api/runs");
    draw(runs);
  } catch (error) {
    note(error.message);
  }
  timer = setTimeout(() => show(isSeen), 1000 * SECONDS);
}

function note(words) {
  if (words !== told) byId("runs-note").textContent = told = words; // so that it isn't read aloud again and again
}

function draw(runs) {
  const now = JSON.stringify(runs);
  if (now === former) return;
  former = now;
  const running = runs.filter((run) => run.state === "running").length;
  note(runs.length ? `${runs.length} ${runs.length === 1 ? "run" : "runs"}, ${running} running; this page follows.` : "No runs here yet: convnet train writes its own into runs/; serve that folder.");
  byId("run-rows").replaceChildren(...runs.map(row));
  const charts = byId("charts").querySelectorAll("svg");
  CHARTS.forEach((chart, i) => plot(charts[i], chart, runs));
  document.dispatchEvent(new CustomEvent("runs", { detail: runs }));
}

function row(run, i) {
  const swatch = make("i", { class: "swatch", style: { background: COLOURS[i % COLOURS.length] } });
  const name = make("td", { class: "key" }, swatch, run.name);
  if (run.error) return make("tr", {}, name, make("td", {}, make("span", { class: "state unread" }, "unread")), make("td", { colspan: 6, class: "key" }, run.error));
  const errors = run.curves.val_top1_error?.filter((each) => each !== null) ?? [];
  const report = run.has_report ? make("a", { href: `/runs/${encodeURIComponent(run.name)}/report.html`, target: "_blank", rel: "noopener" }, "report") : "–";
  const cells = [`${run.epoch}${run.epochs ? ` / ${run.epochs}` : ""}`, text(run.loss), `${run.lr ?? "–"}`, percent(errors.at(-1))];
  return make("tr", {}, name, make("td", {}, make("span", { class: `state ${run.state}` }, run.state)),
    ...cells.map((each, k) => make("td", { class: k === 2 ? "number wide" : "number" }, each)),
    make("td", { class: "number wide" }, run.state === "running" ? clock(run.seconds_left) : "–"), make("td", {}, report));
}

function clock(seconds) {
  if (seconds === null) return "–";
  const minutes = Math.round(seconds / 60);
  return minutes < 1 ? "under a minute" : minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function svg(tag, attributes, words = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = words;
  return node;
}

function plot(place, { key, share }, runs) {
  const lines = runs.map((run) => ({ name: run.name, at: run.curves.epoch ?? [], values: run.curves[key] ?? [] }));
  const values = lines.flatMap((line) => line.values.filter((each) => each !== null));
  const high = Math.max(...values, 0) || 1;
  const last = Math.max(...lines.flatMap((line) => line.at), 2);
  const x = (epoch) => LEFT + ((epoch - 1) / (last - 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (value / high) * (HEIGHT - TOP - BOTTOM);
  const parts = [];
  for (const mark of marks(high)) {
    parts.push(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(mark), y2: y(mark) }));
    parts.push(svg("text", { class: "tick", x: LEFT - 6, y: y(mark), dy: ".35em", "text-anchor": "end" }, share ? `${Math.round(100 * mark)}%` : text(mark)));
  }
  for (const mark of new Set(marks(last).map(Math.round).filter((each) => each >= 1))) parts.push(svg("text", { class: "tick", x: x(mark), y: HEIGHT - 8, "text-anchor": "middle" }, `${mark}`));
  lines.forEach((line, i) => {
    const stroke = COLOURS[i % COLOURS.length];
    for (const piece of pieces(line)) {
      const points = piece.map(([epoch, value]) => `${x(epoch).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
      const node = piece.length === 1 ? svg("circle", { cx: x(piece[0][0]), cy: y(piece[0][1]), r: 2.5, fill: stroke })
        : svg("polyline", { points, fill: "none", stroke, "stroke-width": 2, "stroke-linejoin": "round", "stroke-dasharray": i >= COLOURS.length ? "5 3" : "none" });
      node.append(svg("title", {}, line.name));
      parts.push(node);
    }
  });
  if (!values.length) parts.push(svg("text", { class: "tick", x: WIDTH / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "nothing yet"));
  place.replaceChildren(...parts);
}

function pieces({ at, values }) {
  const found = [[]];
  at.forEach((epoch, i) => (values[i] === null || values[i] === undefined ? found.push([]) : found.at(-1).push([epoch, values[i]])));
  return found.filter((piece) => piece.length);
}

function marks(high) {
  const unit = 10 ** Math.floor(Math.log10(high / 4));
  const step = [1, 2, 5, 10].map((each) => each * unit).find((each) => each * 5 >= high);
  return Array.from({ length: Math.floor(high / step + 1e-9) + 1 }, (_, i) => i * step);
}
