// What a run's net confuses: asked of the server as a job, and again when a training has a better net.

import { ask, byId, make, percent, post } from "/common.js";

const MOMENT = 300; // ms between two looks at a job
let runs = [], followed = null, shown = null, job = null;

export function begin() {
  document.addEventListener("runs", (event) => { runs = event.detail; offer(); follow(); });
  byId("confused-run").addEventListener("change", () => end("Choose Show."));
  byId("confused-ask").addEventListener("click", () => { end(); followed = byId("confused-run").value; follow(); });
  byId("confused-stop").addEventListener("click", () => end("Stopped."));
}

const note = (words) => { byId("confused-note").textContent = words; };
const version = () => runs.find((run) => run.name === followed)?.net_version ?? null;

function offer() {
  const names = runs.filter((run) => run.has_net).map((run) => run.name);
  const former = byId("confused-run").value;
  byId("confused-run").replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  const latest = runs.find((run) => run.has_net && run.state === "running")?.name ?? names.at(-1);
  byId("confused-run").value = names.includes(former) ? former : latest;
  byId("confused-ask").disabled = !names.length;
}

function progress(part, running) {
  byId("confused-progress").value = part;
  byId("confused-stop").disabled = !running;
}

function end(words) {
  if (job) ask(`/api/jobs/${job.id}`, { method: "DELETE" }).catch(() => {});
  followed = shown = job = null;
  progress(0, false);
  byId("pairs").replaceChildren();
  if (words) note(words);
}

async function follow() {
  if (followed === null || job || version() === shown) return;
  const [name, asked] = [followed, version()];
  const mine = (job = { id: "" });
  try {
    let told = await post(`/api/runs/${encodeURIComponent(name)}/confused`);
    if (job !== mine) return;
    mine.id = told.id;
    while (["waiting", "running"].includes(told.state)) {
      progress(told.total ? told.done / told.total : 0, true);
      if (shown === null) note(told.state === "waiting" ? "Waiting for its turn …" : `${Math.min(told.done, told.total)} of ${told.total} validation pictures`);
      await new Promise((resolve) => setTimeout(resolve, MOMENT));
      told = await ask(`/api/jobs/${mine.id}`);
      if (job !== mine) return;
    }
    if (told.error) throw new Error(told.error);
    draw(name, told.result);
  } catch (error) {
    if (job !== mine) return;
    byId("pairs").replaceChildren();
    note(error.message);
  }
  job = null;
  shown = asked;
  progress(1, false);
  follow(); // of a net that came meanwhile
}

function draw(name, { epoch, n, total, n_wrong: wrong, pairs, trained_on: known }) {
  const of = n < total ? `${n.toLocaleString("en")} of its ${total.toLocaleString("en")}` : `its ${n.toLocaleString("en")}`;
  const trained = known ? " It was trained on these pictures in its last epochs." : "";
  const rest = pairs.length ? " Under a picture: how probable the net held the wrong class." : "";
  note(`${name}, the net after ${epoch} ${epoch === 1 ? "epoch" : "epochs"}: ${wrong.toLocaleString("en")} of ${of} validation pictures are wrong, ${percent(wrong / n)}.${trained}${rest}`);
  byId("pairs").replaceChildren(...pairs.map((pair) => make("figure", {},
    make("figcaption", {}, make("b", {}, pair.label), " taken for ", make("b", {}, pair.predicted), `: ${pair.count} of ${pair.n}`),
    make("div", { class: "row" }, ...pair.pictures.map((shot) => make("div", {},
      make("img", { src: shot.src, alt: `${shot.key}: ${pair.label}`, title: shot.key, class: shot.coarse ? "coarse" : null }), make("span", {}, shot.text)))))));
}
