// The 2-D map of the set. Points are pixels of a canvas; thumbnails appear when few points are in view.

import { bytes, get, send } from "../api.js";
import { empty, failed, h, notice, number, save, show } from "../dom.js";
import { tiles } from "../tiles.js";
import { colours, nearest, paint, within } from "../points.js";

const PICTURES = 60;
const HELP = "Drag to move, scroll or pinch to zoom. Keys: arrows move, + and − zoom, 0 shows all, Enter opens the image in the middle.";

export async function view({ about }) {
  if (!about.map) return empty("The set has no map. Run ", h("code", {}, "swav neighbours map SET"), " and reload the page.");
  const found = await bytes("explorer/map");
  return found ? drawn(about, decode(found)) : awaited(about);
}

// Asks again each second until the service has computed the map.
function awaited(about) {
  const title = h("h1", {}, "Map");
  const place = h("div", {}, title, h("p", { class: "state", role: "status" }, "The map is being computed. It appears here when it is ready."));
  let [gone, leave] = [false, () => {}];
  async function again() {
    try {
      const found = await bytes("explorer/map");
      if (gone) return;
      if (!found) { setTimeout(again, 1000); return; }
      const made = drawn(about, decode(found));
      leave = made.leave;
      place.replaceChildren(...made.nodes);
    } catch (error) { place.replaceChildren(title, failed(error, again)); }
  }
  setTimeout(again, 1000);
  return { nodes: [place], leave: () => { gone = true; leave(); } };
}

function drawn(about, data) {
  const side = h("div", { "aria-live": "polite" });
  const plot = h("div", { class: "plot", tabIndex: 0, role: "application", "aria-label": `Map of ${number(data.n)} images` });
  const [points, overlay] = [h("canvas", { "aria-hidden": "true" }), h("canvas", { "aria-hidden": "true" })];
  plot.append(points, overlay);
  const state = { data, plot, points, overlay, side, about, palette: colours(data.clusters), scale: 1, x: 0, y: 0, lasso: null, pictures: new Map() };
  const lasso = h("button", { type: "button", "aria-pressed": "false", onclick: () => {
    state.selecting = !state.selecting;
    lasso.setAttribute("aria-pressed", String(state.selecting));
  } }, "Lasso");
  const visible = h("button", { type: "button", onclick: () => select(state, inView(state)) }, "Select what is in view");
  const all = h("button", { type: "button", onclick: () => { fit(state); draw(state); } }, "Show all");
  const resized = new ResizeObserver(() => { size(state); draw(state); });
  listen(state);
  requestAnimationFrame(() => { size(state); fit(state); draw(state); resized.observe(plot); });
  return {
    nodes: [h("h1", {}, "Map"), h("div", { class: "bar" }, lasso, visible, all), h("div", { class: "split" }, h("div", {}, plot, h("p", { class: "soft" }, HELP)), side)],
    leave: () => resized.disconnect(),
  };
}

// Header: uint32 n. Then n times float32 x, y (in -1 … 1), n times int32 cluster, n times uint32 sample.
function decode(buffer) {
  const n = new DataView(buffer).getUint32(0, true);
  return { n, xy: new Float32Array(buffer, 4, 2 * n), clusters: new Int32Array(buffer, 4 + 8 * n, n), samples: new Uint32Array(buffer, 4 + 12 * n, n) };
}

function size(state) {
  const ratio = Math.min(2, devicePixelRatio || 1);
  state.ratio = ratio;
  for (const canvas of [state.points, state.overlay]) {
    canvas.width = Math.max(1, Math.round(state.plot.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(state.plot.clientHeight * ratio));
  }
}

function fit(state) {
  Object.assign(state, { x: 0, y: 0, scale: 0.46 * Math.min(state.points.width, state.points.height) });
}

const screen = (state) => ({ width: state.points.width, height: state.points.height, x: state.x, y: state.y, scale: state.scale });

function draw(state) {
  if (state.waiting) return;
  state.waiting = requestAnimationFrame(() => {
    state.waiting = 0;
    paint(state.points.getContext("2d"), state.data, state.palette, screen(state));
    state.points.dataset.points = state.data.n;
    decorate(state);
    clearTimeout(state.resting);
    state.resting = setTimeout(() => thumbnails(state), 250);
  });
}

function decorate(state) {
  const context = state.overlay.getContext("2d");
  context.clearRect(0, 0, state.overlay.width, state.overlay.height);
  const edge = 44 * state.ratio;
  const view = screen(state);
  for (const [i, picture] of state.shown ?? []) {
    const [px, py] = place(state.data.xy[2 * i], state.data.xy[2 * i + 1], view);
    if (picture?.complete && picture.naturalWidth) context.drawImage(picture, px - edge / 2, py - edge / 2, edge, edge);
  }
  if (state.lasso?.length > 1) {
    context.beginPath();
    state.lasso.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.closePath();
    context.strokeStyle = getComputedStyle(state.plot).color;
    context.lineWidth = 2 * state.ratio;
    context.stroke();
  }
}

const place = (x, y, view) => [view.width / 2 + (x - view.x) * view.scale, view.height / 2 - (y - view.y) * view.scale];

function inView(state) {
  const { width, height } = state.points;
  return within(state.data, [[0, 0], [width, 0], [width, height], [0, height]], screen(state));
}

async function thumbnails(state) {
  const indices = state.about.thumbnails ? inView(state) : [];
  if (!indices.length || indices.length > PICTURES) {
    if (state.shown?.size) { state.shown = new Map(); decorate(state); }
    return;
  }
  const missing = indices.filter((i) => !state.pictures.has(i));
  if (missing.length) {
    const found = await get("explorer/items", { samples: missing.map((i) => state.data.samples[i]).join(",") }).catch(() => null);
    found?.items.forEach((item, place) => {
      const picture = item.thumbnail ? new Image() : null;
      if (picture) { picture.onload = () => decorate(state); picture.src = item.thumbnail; }
      state.pictures.set(missing[place], picture);
    });
  }
  state.shown = new Map(indices.map((i) => [i, state.pictures.get(i)]));
  decorate(state);
}

function select(state, indices) {
  const samples = indices.map((i) => state.data.samples[i]);
  show(state.side, "the selection", async () => {
    if (!samples.length) return empty("No image is inside.");
    const found = await get("explorer/items", { samples: samples.slice(0, 60).join(",") });
    const keys = h("button", { type: "button", onclick: async () => {
      try { save("keys.txt", (await send("POST", "explorer/list", { samples })).lines.join("\n") + "\n"); } catch (error) { notice(error.message); }
    } }, "Download the list of keys");
    return [h("h2", {}, `${number(samples.length)} images`), h("div", { class: "bar" }, keys), tiles(found.items, { choose: state.about.writable })];
  });
}

function zoom(state, by, px, py) {
  const before = [(px - state.points.width / 2) / state.scale, (py - state.points.height / 2) / state.scale];
  state.scale = Math.min(1e7, Math.max(20, state.scale * by));
  const after = [(px - state.points.width / 2) / state.scale, (py - state.points.height / 2) / state.scale];
  state.x += before[0] - after[0];
  state.y -= before[1] - after[1];
  draw(state);
}

function listen(state) {
  const { plot } = state;
  const fingers = new Map();
  let moved = 0;
  const at = (event) => {
    const box = plot.getBoundingClientRect();
    return [(event.clientX - box.left) * state.ratio, (event.clientY - box.top) * state.ratio];
  };
  const gap = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]); };
  plot.addEventListener("wheel", (event) => { event.preventDefault(); zoom(state, Math.exp(-event.deltaY / 300), ...at(event)); }, { passive: false });
  plot.addEventListener("pointerdown", (event) => {
    plot.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, at(event));
    moved = 0;
    if (state.selecting) state.lasso = [at(event)];
  });
  plot.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = at(event);
    const apart = fingers.size === 2 ? gap() : 0;
    fingers.set(event.pointerId, now);
    moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (state.lasso) { state.lasso.push(now); decorate(state); return; }
    if (fingers.size === 2) {
      const [a, b] = [...fingers.values()];
      zoom(state, gap() / Math.max(1, apart), (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
    } else {
      state.x -= (now[0] - before[0]) / state.scale;
      state.y += (now[1] - before[1]) / state.scale;
      draw(state);
    }
  });
  const lift = (event) => {
    if (!fingers.delete(event.pointerId)) return;
    if (state.lasso) {
      const [line, chosen] = [state.lasso, event.type === "pointerup"];
      state.lasso = null;
      decorate(state);
      if (chosen && line.length > 2) select(state, within(state.data, line, screen(state)));
    } else if (event.type === "pointerup" && moved < 5 * state.ratio) open(state, ...at(event));
  };
  plot.addEventListener("pointerup", lift);
  plot.addEventListener("pointercancel", lift);
  plot.addEventListener("keydown", (event) => key(state, event));
}

function open(state, px, py) {
  const i = nearest(state.data, px, py, screen(state), 12 * state.ratio);
  if (i >= 0) select(state, [i]);
}

function key(state, event) {
  const step = 60 / state.scale;
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
  const { width, height } = state.points;
  if (moves[event.key]) { state.x += moves[event.key][0]; state.y += moves[event.key][1]; draw(state); }
  else if (event.key === "+" || event.key === "=") zoom(state, 1.4, width / 2, height / 2);
  else if (event.key === "-") zoom(state, 1 / 1.4, width / 2, height / 2);
  else if (event.key === "0") { fit(state); draw(state); }
  else if (event.key === "Enter") { const i = nearest(state.data, width / 2, height / 2, screen(state), Infinity); if (i >= 0) select(state, [i]); }
  else return;
  event.preventDefault();
}
