// Classify: a picture in, five bars out; where the net looks, what units see, what is alike.

import { aboutPicture, ask, byId, loaded, make, net, percent, picture, sendPicture, text } from "/common.js";

const MOST = 20 * 2 ** 20; // bytes that the server takes
let chosen = null; // the class that is asked about
let job = null;
let turn = 0; // a newer question makes an older one's answer worthless

export function begin() {
  for (const id of ["file", "camera"]) {
    byId(id).addEventListener("change", (event) => {
      take(event.target.files[0]);
      event.target.value = "";
    });
  }
  const drop = byId("drop");
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop") take([...event.dataTransfer.files][0]);
    });
  }
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (file) take(file);
  });
  byId("cam").addEventListener("click", () => question("looking", look));
  byId("occlusion").addEventListener("click", () => question("covering part after part", occlude));
  byId("units").addEventListener("click", () => question("asking units", units));
  byId("neighbours").addEventListener("click", () => question("searching", neighbours));
  byId("stop").addEventListener("click", () => { turn += 1; endJob(); doing("Stopped."); });
  document.addEventListener("net", () => {
    const stages = net.about.stages.filter((each) => each.name !== net.about.stages.at(-1).name);
    byId("units-stage").replaceChildren(...stages.map((each) => make("option", { value: each.name }, each.name)));
    const maps = stages.filter((each) => each.shape.length === 3 && each.shape[1] > 1);
    byId("units-stage").value = (maps.at(-1) ?? stages.at(-1))?.name ?? "";
    if (picture.blob) take(picture.blob);
    enable();
  });
}

async function take(file) {
  if (!file) return;
  turn += 1;
  endJob();
  byId("problem").textContent = "";
  try {
    if (file.size > MOST) throw new Error(`The picture has ${(file.size / 2 ** 20).toFixed(0)} MB; at most 20 MB are taken.`);
    await sendPicture(file);
    await plain();
    byId("found").replaceChildren();
    doing("Ask what you want to know.");
    bars();
    enable();
  } catch (error) {
    byId("problem").textContent = error.message;
  }
}

function enable() {
  for (const id of ["cam", "occlusion", "units", "neighbours"]) byId(id).disabled = !picture.said;
  byId("neighbours").hidden = !net.about || net.about.index === null;
}

function bars() {
  const { classes, notes, width, height } = picture.said;
  byId("bars").replaceChildren(
    ...classes.map((each, i) =>
      make("li", { title: each.class },
        make("i", { style: { width: percent(each.probability).replace(" ", "") } }),
        make("b", {}, each.class),
        make("span", {}, percent(each.probability)),
        make("button", {
          type: "button", "aria-pressed": "false", "aria-label": `${each.class}, ${percent(each.probability)}: ask about this class`,
          onclick: () => choose(i),
        }),
      ),
    ),
  );
  const said = [`${width} x ${height} pixels`, ...notes].join("; ");
  byId("said").textContent = `${said}. Choose a class to ask about it below.`;
  choose(0);
}

function choose(i) {
  chosen = picture.said.classes[i];
  byId("bars").querySelectorAll("button").forEach((each, k) => each.setAttribute("aria-pressed", k === i));
}

// The picture, with an overlay (a map of numbers) where there is one.

async function plain() {
  const image = await loaded(`/api/pictures/${picture.said.id}/picture.png`);
  const canvas = byId("seen");
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = image.width > 64;
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("aria-label", `What the net sees: the picture's centre, ${image.width} x ${image.height} pixels`);
  byId("legend").textContent = `What the net sees: ${image.width} x ${image.height} pixels.`;
  return { image, canvas, pen };
}

function cover(pen, side, map, strength, paint, smooth) {
  const small = new OffscreenCanvas(map[0].length, map.length);
  const dots = small.getContext("2d");
  const pixels = dots.createImageData(small.width, small.height);
  map.flat().forEach((value, i) => pixels.data.set([...paint, Math.round(255 * Math.max(0, Math.min(1, strength(value))))], 4 * i));
  dots.putImageData(pixels, 0, 0);
  pen.imageSmoothingEnabled = smooth;
  pen.drawImage(small, 0, 0, side, side);
}

async function question(what, answer) {
  const mine = (turn += 1);
  endJob();
  doing(`${what[0].toUpperCase()}${what.slice(1)} …`);
  try {
    await answer(() => mine === turn);
  } catch (error) {
    if (mine === turn) doing(error.message);
  }
}

const doing = (words) => { byId("doing").textContent = words; };

function progress(part, running) {
  byId("progress").value = part;
  byId("stop").disabled = !running;
}

async function look(wanted) {
  const shown = await aboutPicture(`cam?label=${chosen.label}`);
  if (!wanted()) return;
  const { pen, canvas } = await plain();
  const most = Math.max(...shown.map.flat(), 1e-12);
  cover(pen, canvas.width, shown.map, (value) => 0.75 * (1 - Math.max(0, value) / most), [16, 18, 20], true);
  byId("legend").textContent = `Bright: what speaks for ${shown.class} (${shown.kind}, of ${shown.stage}).`;
  progress(1, false);
  doing("Done: see the picture above.");
}

async function occlude(wanted) {
  job = await aboutPicture(`occlusion?label=${chosen.label}`, "POST");
  while (wanted() && ["waiting", "running"].includes(job.state)) {
    progress(job.total ? job.done / job.total : 0, true);
    doing(job.state === "waiting" ? "Waiting for its turn …" : `${Math.min(job.done, job.total)} of ${job.total} places`);
    await new Promise((resolve) => setTimeout(resolve, 200));
    const mine = job && (await ask(`/api/jobs/${job.id}`));
    if (!wanted()) return;
    job = mine;
  }
  if (!wanted()) return;
  const ended = job;
  job = null;
  progress(1, false);
  if (ended.state === "failed") throw new Error(ended.error);
  const shown = ended.result;
  const { pen, canvas } = await plain();
  const [low, high] = [Math.min(...shown.map.flat()), Math.max(...shown.map.flat())];
  cover(pen, canvas.width, shown.map, (value) => (0.8 * (value - low)) / Math.max(high - low, 0.02), [16, 18, 20], true);
  byId("legend").textContent = `Bright: where a grey square of ${shown.box} x ${shown.box} pixels costs ${shown.class} most. It has ${percent(low)} to ${percent(high)}; uncovered ${percent(shown.whole)}.`;
  doing("Done: see the picture above.");
}

function endJob() {
  progress(0, false);
  if (job) ask(`/api/jobs/${job.id}`, { method: "DELETE" }).catch(() => {});
  job = null;
}

async function units(wanted) {
  const shown = await aboutPicture(`units?stage=${encodeURIComponent(byId("units-stage").value)}`);
  if (!wanted()) return;
  byId("found").replaceChildren(
    make("p", { class: "measure" }, `The strongest units of ${shown.stage}: what each sees of the picture, and which pixels made it fire (deconvnet).`),
    make("div", { class: "row" }, ...shown.units.map((each) =>
      make("div", {},
        make("img", { src: each.sees, alt: `What the unit of map ${each.place[0]} sees` }),
        make("img", { src: each.deconv, alt: `Which pixels made the unit of map ${each.place[0]} fire` }),
        make("span", {}, `map ${each.place[0]}`),
        make("span", { class: "quiet" }, text(each.value)),
      ))),
  );
  progress(1, false);
  doing("Done.");
}

async function neighbours(wanted) {
  const shown = await aboutPicture("neighbours");
  if (!wanted()) return;
  byId("found").replaceChildren(
    make("p", { class: "measure" }, `The nearest of ${shown.n.toLocaleString("en")} pictures, by ${shown.stage}.`),
    make("div", { class: "row" }, ...shown.nearest.map((each) =>
      make("div", { title: each.name },
        each.src ? make("img", { src: each.src, alt: each.label || each.name }) : make("div", { class: "gone", title: each.why }, "not shown"),
        make("span", {}, each.label || each.name.split("/").at(-1)),
        make("span", { class: "quiet" }, text(each.distance)),
      ))),
  );
  progress(1, false);
  doing("Done.");
}
