// Chooses the view by the part of the address after #: #/clusters, #/clusters/12, #/search, #/map, #/review, #/run.

import { get, key } from "./api.js";
import { h, number, show } from "./dom.js";

const VIEWS = ["clusters", "search", "map", "review", "run"];
const content = document.getElementById("content");
let leave = () => {};

async function route() {
  const [path, query] = (location.hash.slice(2) || "clusters").split("?");
  const [name, ...rest] = path.split("/");
  const wanted = VIEWS.includes(name) ? name : "clusters";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#/${wanted}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  leave();
  leave = () => {};
  const place = h("div");
  content.replaceChildren(place);
  document.title = `${wanted[0].toUpperCase()}${wanted.slice(1)} · Explorer`;
  await show(place, wanted, async () => {
    const [view, about] = await Promise.all([import(`./views/${wanted}.js`), facts()]);
    const made = await view.view({ about, rest, query: new URLSearchParams(query) });
    if (made.leave) leave = made.leave;
    return made.nodes ?? made;
  });
}

let known = null;
async function facts() {
  if (!known) {
    known = get("explorer");
    known.catch(() => { known = null; });
  }
  const about = await known;
  document.getElementById("name").textContent = about.model.name;
  const parts = [about.clusters && `${number(about.clusters)} clusters`, about.samples !== null && `${number(about.samples)} images`];
  document.getElementById("about").textContent = parts.filter(Boolean).join(", ");
  return about;
}

document.getElementById("key").addEventListener("click", () => {
  const given = prompt("API key (kept until this tab is closed; empty removes it)", key.get() ?? "");
  if (given === null) return;
  key.set(given.trim());
  known = null;
  route();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  content.focus();
});
addEventListener("hashchange", () => { route(); scrollTo(0, 0); });
route();
