// What all parts of the page share: questions to the server, the picture at hand, numbers as text.

export const byId = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else if (value !== undefined && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((each) => each !== null && each !== undefined));
  return node;
}

export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Refused(0, "The server doesn't answer; is convnet serve still running?");
  }
  const content = await answer.json().catch(() => ({ error: `status ${answer.status}` }));
  if (!answer.ok) throw new Refused(answer.status, content.error);
  return content;
}

export const post = (path, body) => ask(path, { method: "POST", body });

// The picture at hand: its bytes, and what was said of it.
export const picture = { blob: null, said: null };
export const net = { about: null };

export async function sendPicture(blob) {
  picture.said = await post("/api/pictures", blob);
  picture.blob = blob;
  document.dispatchEvent(new Event("picture"));
}

// A question about the picture at hand; one that the server has forgotten is sent again.
export async function aboutPicture(rest, method = "GET") {
  try {
    return await ask(`/api/pictures/${picture.said.id}/${rest}`, { method });
  } catch (error) {
    if (error.status !== 404) throw error;
    picture.said = await post("/api/pictures", picture.blob);
    return ask(`/api/pictures/${picture.said.id}/${rest}`, { method });
  }
}

export function loaded(src) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Refused(0, "The picture could not be shown."));
    image.src = src;
  });
}

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function text(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const shown = size >= 1e4 ? Math.round(value).toLocaleString("en") : size < 1e-3 ? value.toExponential(1) : size >= 100 ? value.toFixed(0) : value.toPrecision(3);
  return shown.replace("-", "−");
}

export const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`);

// White to orange above 0, white to blue below: as the maps have it.
export function shade(value, most) {
  const part = Math.min(1, Math.abs(value) / (most || 1));
  const end = value < 0 ? [0, 114, 178] : [213, 94, 0];
  return `rgb(${end.map((each) => Math.round(255 + (each - 255) * part * 0.75)).join(" ")})`;
}
