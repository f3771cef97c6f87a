"use strict";
// The page's only script: values under the cursor of the curves, the confusion matrix, and the table of classes.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Curves: the epoch under the cursor and each line's value there.

  for (const figure of document.querySelectorAll(".chart")) {
    const chart = data.charts[figure.dataset.chart];
    const svg = figure.querySelector("svg");
    const cursor = figure.querySelector(".cursor");
    let at = chart.epochs.length - 1;
    const show = (k) => {
      at = Math.max(0, Math.min(chart.epochs.length - 1, k));
      cursor.setAttribute("x1", chart.x[at]);
      cursor.setAttribute("x2", chart.x[at]);
      cursor.setAttribute("visibility", "visible");
      figure.querySelector("[data-epoch]").textContent = `epoch ${chart.epochs[at]}`;
      chart.lines.forEach((line, i) => {
        const value = line.values[at];
        const text = value === null ? "–" : chart.share ? `${(100 * value).toFixed(1)} %` : value.toFixed(3);
        figure.querySelector(`[data-line="${i}"]`).textContent = text;
      });
    };
    const move = (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * 420;
      const distances = chart.x.map((each) => Math.abs(each - x));
      show(distances.indexOf(Math.min(...distances)));
    };
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerdown", move);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) {
        show(at + step);
        event.preventDefault();
      }
    });
    show(at);
    cursor.setAttribute("visibility", "hidden");
  }

  // The table: a column's button sorts by it, once more turns the order around; a filter by name.

  const table = document.getElementById("table");
  if (table) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const rows = [...body.rows];
        const numbers = rows.every((row) => row.cells[column].dataset.number !== undefined);
        const former = head.getAttribute("aria-sort");
        const falling = former === "none" ? numbers : former === "ascending";
        const key = (row) => (numbers ? Number(row.cells[column].dataset.number) : row.cells[column].dataset.value);
        const order = (a, b) => (numbers ? key(a) - key(b) : key(a).localeCompare(key(b)));
        rows.sort((a, b) => (falling ? -order(a, b) : order(a, b)));
        heads.forEach((each) => each.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        body.append(...rows);
      });
    });
    const filter = document.getElementById("filter");
    filter?.addEventListener("input", () => {
      const text = filter.value.toLowerCase();
      for (const row of body.rows) row.hidden = !row.cells[0].dataset.value.toLowerCase().includes(text);
    });
  }

  // The matrix: a part of it is seen, from (left, top), `seen` classes in each direction.

  const canvas = document.getElementById("matrix");
  if (!canvas) return;
  const { names, entries, sizes: sums } = data.matrix;
  const size = names.length;
  const rows = names.map(() => new Map());
  for (const [i, j, count] of entries) rows[i].set(j, count);
  const told = document.getElementById("cell");
  const onlyMistakes = document.getElementById("only-mistakes");
  const FEWEST = Math.min(5, size);
  let seen = size, left = 0, top = 0, chosen = null, frame = 0;

  const mix = (a, b, part) => a.map((each, k) => Math.round(each + (b[k] - each) * part));
  const parse = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
  const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

  const measure = document.createElement("canvas").getContext("2d");
  measure.font = "13px system-ui, sans-serif";
  const longest = Math.max(...names.map((name) => measure.measureText(name).width));

  const layout = () => {
    const width = canvas.clientWidth;
    const margin = Math.round(clamp(longest + 14, 24, clamp(width * 0.22, 60, 150)));
    return { width, margin, side: width - margin, cell: (width - margin) / seen };
  };

  const short = (pen, text, room) => {
    if (pen.measureText(text).width <= room) return text;
    let low = 0, high = text.length;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (pen.measureText(text.slice(0, middle) + "…").width <= room) low = middle;
      else high = middle - 1;
    }
    return low ? text.slice(0, low) + "…" : "";
  };

  const draw = () => {
    frame = 0;
    const { width, margin, side, cell } = layout();
    Object.assign(canvas.dataset, { seen, left, top });
    const dots = window.devicePixelRatio || 1;
    canvas.style.height = `${width}px`;
    canvas.width = Math.round(width * dots);
    canvas.height = Math.round(width * dots);
    const pen = canvas.getContext("2d");
    pen.scale(dots, dots);
    const paper = parse(colour("--card")), ink = colour("--ink"), full = parse(colour("--blue"));
    const mistakes = onlyMistakes.checked;
    let most = 0;
    for (const [i, j, count] of entries) if (!(mistakes && i === j)) most = Math.max(most, count / sums[i]);
    document.getElementById("most").textContent = `${(100 * most).toFixed(0)} %`;
    pen.save();
    pen.beginPath();
    pen.rect(margin, margin, side, side);
    pen.clip();
    pen.fillStyle = colour("--ground");
    pen.fillRect(margin, margin, side, side);
    const gap = cell > 12 ? 1 : 0;
    const tile = Math.max(cell - gap, 1.2);
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.font = `${Math.round(clamp(cell * 0.3, 9, 15))}px system-ui, sans-serif`;
    for (const [i, j, count] of entries) {
      if (mistakes && i === j) continue;
      const x = margin + (j - left) * cell, y = margin + (i - top) * cell;
      if (x < margin - cell || y < margin - cell || x > width || y > width) continue;
      const part = Math.sqrt(count / sums[i] / most);
      pen.fillStyle = `rgb(${mix(paper, full, 0.12 + 0.88 * part)})`;
      pen.fillRect(x, y, tile, tile);
      if (cell >= 26) {
        pen.fillStyle = part > 0.62 ? colour("--card") : ink;
        pen.fillText(count.toLocaleString("en"), x + cell / 2, y + cell / 2);
      }
    }
    if (chosen) {
      pen.strokeStyle = colour("--red");
      pen.lineWidth = 2;
      const edge = Math.max(cell, 4);
      const [y, x] = [chosen[0] - top, chosen[1] - left].map((each) => margin + (each + 0.5) * cell - edge / 2);
      pen.strokeRect(x, y, edge, edge);
    }
    pen.restore();
    pen.strokeStyle = colour("--line");
    pen.strokeRect(margin, margin, side, side);
    labels(pen, margin, cell, width);
  };

  const labels = (pen, margin, cell, width) => {
    const letters = clamp(Math.round(cell * 0.8), 9, 13);
    pen.font = `${letters}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    const every = Math.max(1, Math.ceil((letters + 2) / cell));
    const one = (k, from, along) => {
      const at = margin + (k - from + 0.5) * cell;
      if (at < margin || at > width) return;
      pen.save();
      const isChosen = chosen && chosen[along] === k;
      pen.fillStyle = colour(isChosen ? "--red" : "--ink");
      pen.translate(along ? at : margin - 6, along ? margin - 6 : at);
      if (along) pen.rotate(-Math.PI / 2);
      pen.textAlign = along ? "left" : "right";
      pen.fillText(short(pen, names[k], margin - 8), 0, 0);
      pen.restore();
    };
    for (let k = 0; k < size; k += 1) {
      if (k % every === 0) {
        one(k, top, 0);
        one(k, left, 1);
      }
    }
  };

  const redraw = () => {
    if (!frame) frame = requestAnimationFrame(draw);
  };

  const choose = (i, j) => {
    if (i < 0 || j < 0 || i >= size || j >= size) return;
    chosen = [i, j];
    const count = rows[i].get(j) ?? 0;
    const share = sums[i] ? ` (${((100 * count) / sums[i]).toFixed(1)} %)` : "";
    const what = i === j ? " is right" : ` taken for ${names[j]}`;
    told.textContent = `${names[i]}${what}: ${count.toLocaleString("en")} of ${sums[i].toLocaleString("en")}${share}`;
    redraw();
  };

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    const { margin, cell } = layout();
    return [(event.clientY - box.top - margin) / cell + top, (event.clientX - box.left - margin) / cell + left];
  };

  const zoom = (factor, y = top + seen / 2, x = left + seen / 2) => {
    const former = seen;
    seen = clamp(seen / factor, FEWEST, size);
    left = clamp(x - ((x - left) * seen) / former, 0, size - seen);
    top = clamp(y - ((y - top) * seen) / former, 0, size - seen);
    canvas.style.touchAction = seen < size ? "none" : "pan-y";
    redraw();
  };

  let held = null;
  canvas.addEventListener("pointerdown", (event) => {
    held = { x: event.clientX, y: event.clientY, left, top };
    canvas.setPointerCapture(event.pointerId);
    const [y, x] = place(event);
    choose(Math.floor(y), Math.floor(x));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (held && seen < size) {
      const { cell } = layout();
      left = clamp(held.left - (event.clientX - held.x) / cell, 0, size - seen);
      top = clamp(held.top - (event.clientY - held.y) / cell, 0, size - seen);
      redraw();
      return;
    }
    const [y, x] = place(event);
    if (y >= top && x >= left) choose(Math.floor(y), Math.floor(x));
  });
  canvas.addEventListener("pointerup", () => { held = null; });
  canvas.addEventListener("pointercancel", () => { held = null; });
  canvas.addEventListener("dblclick", (event) => zoom(2, ...place(event)));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== canvas) return; // a page that scrolls goes on scrolling
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.25 : 0.8, ...place(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (moves[event.key]) {
      const [i, j] = chosen ?? [Math.floor(top), Math.floor(left)];
      const [di, dj] = moves[event.key];
      choose(clamp(i + di, 0, size - 1), clamp(j + dj, 0, size - 1));
      top = clamp(top, Math.max(0, chosen[0] + 1 - seen), Math.min(size - seen, chosen[0]));
      left = clamp(left, Math.max(0, chosen[1] + 1 - seen), Math.min(size - seen, chosen[1]));
    } else if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "0") zoom(1 / size);
    else return;
    event.preventDefault();
  });
  document.getElementById("closer").addEventListener("click", () => zoom(1.5));
  document.getElementById("farther").addEventListener("click", () => zoom(1 / 1.5));
  document.getElementById("whole").addEventListener("click", () => zoom(1 / size));
  onlyMistakes.addEventListener("change", redraw);
  new ResizeObserver(redraw).observe(canvas.parentElement);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", draw);
  window.addEventListener("beforeprint", draw);
  draw();
})();
