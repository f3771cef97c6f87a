// The page's parts, and which of them is seen.

import * as classify from "/classify.js";
import { ask, byId, make, net, post } from "/common.js";
import * as confused from "/confused.js";
import * as runs from "/runs.js";
import * as walk from "/walk.js";

const VIEWS = ["classify", "net", "runs"];
const seen = () => VIEWS.find((each) => location.hash === `#${each}`) ?? "classify";

function turn() {
  const view = seen();
  for (const each of VIEWS) byId(each).hidden = each !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  scrollTo(0, 0);
  if (view === "net") walk.show();
  runs.show(() => seen() === "runs");
}

function tell(about) {
  net.about = about;
  byId("name").textContent = about.name;
  byId("facts").textContent = `${about.net} (${about.paper}): ${about.parameters.toLocaleString("en")} parameters, ${about.classes.length.toLocaleString("en")} classes, pictures of ${about.side} x ${about.side} pixels.`;
  document.title = `${about.name} · convnet`;
  document.dispatchEvent(new Event("net"));
}

async function chooser() {
  const { runs: all } = await ask("/api/runs");
  offer(all);
}

function offer(all) {
  const names = all.filter((run) => run.has_net).map((run) => run.name);
  byId("chooser").closest("label").hidden = !names.length || (names.length === 1 && net.about !== null);
  const options = names.map((name) => make("option", { value: name }, name));
  if (!net.about) options.unshift(make("option", { value: "" }, "choose"));
  byId("chooser").replaceChildren(...options);
  byId("chooser").value = net.about?.name ?? "";
}

async function choose(name) {
  try {
    tell(await post("/api/net", JSON.stringify({ run: name })));
  } catch (error) {
    byId("facts").textContent = error.message;
  }
}

classify.begin();
walk.begin();
runs.begin();
confused.begin();
document.addEventListener("runs", (event) => offer(event.detail));
byId("chooser").addEventListener("change", (event) => event.target.value && choose(event.target.value));
addEventListener("hashchange", turn);
turn();
try {
  const about = await ask("/api/net");
  if (about.name) tell(about);
  else {
    byId("name").textContent = "Runs";
    byId("facts").textContent = "No run here has saved a net yet; as soon as one has, it can be chosen above.";
    if (!location.hash) location.hash = "#runs";
  }
} catch (error) {
  byId("facts").textContent = error.message;
}
await chooser();
