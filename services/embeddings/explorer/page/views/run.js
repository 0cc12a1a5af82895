// Health and loss of the run that the model came from.

import { get } from "../api.js";
import { decimals, empty, h, number, svg } from "../dom.js";

export async function view() {
  const run = await get("explorer/run");
  if (!run.name) return [h("h1", {}, "Run"), empty("The model was not loaded from a run's folder, so there is no record of its training.")];
  const health = run.health;
  return [h("h1", {}, run.name),
    health && h("div", { class: "verdict" }, h("p", {}, h("b", {}, health.state), ` at step ${number(health.step ?? 0)}`), health.because && h("p", {}, health.because), health.do && h("p", {}, health.do)),
    h("h2", {}, "Loss"),
    run.loss.length > 1 ? chart(run.loss, run.chance) : empty("No metrics were recorded."),
    run.loss.length > 1 && h("p", { class: "soft" }, `${number(run.loss.at(-1)[0] + 1)} steps. First ${decimals(run.loss[0][1], 3)}, last ${decimals(run.loss.at(-1)[1], 3)}${run.chance ? `, chance ${decimals(run.chance, 3)} (dashed)` : ""}.`)].filter(Boolean);
}

function chart(points, chance) {
  const [width, height, left, bottom] = [900, 320, 56, 28];
  const steps = points.map(([step]) => step);
  const values = [...points.map(([, value]) => value), ...(chance ? [chance] : [])];
  const [first, last] = [steps[0], steps.at(-1)];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const x = (step) => left + ((width - left - 8) * (step - first)) / Math.max(1, last - first);
  const y = (value) => 8 + ((height - bottom - 8) * (high - value)) / Math.max(1e-9, high - low);
  const path = points.map(([step, value], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const made = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Loss from ${decimals(points[0][1])} to ${decimals(points.at(-1)[1])}` },
    svg("line", { class: "axis", x1: left, x2: width, y1: height - bottom, y2: height - bottom }));
  if (chance) made.append(svg("line", { class: "limit", x1: left, x2: width, y1: y(chance), y2: y(chance) }));
  for (const value of [low, (low + high) / 2, high]) made.append(svg("text", { x: 4, y: y(value) + 4 }, value.toFixed(2)));
  for (const step of [first, Math.round((first + last) / 2), last]) made.append(svg("text", { x: Math.min(x(step), width - 40), y: height - 8 }, String(step)));
  made.append(svg("path", { class: "line", d: path }));
  return made;
}
