// Clusters and nearest images of an image that is dropped, pasted or picked, or of a stored one.

import { get, image } from "../api.js";
import { decimals, empty, h, show } from "../dom.js";
import { picture, tiles } from "../tiles.js";

export async function view({ about, query }) {
  if (query.has("sample")) return stored(about, query.get("sample"));
  const result = h("div", { "aria-live": "polite" });
  const chosen = h("img", { alt: "The chosen image", hidden: true });
  const file = h("input", { type: "file", accept: "image/*", id: "file" });
  const area = h("div", { class: "drop" }, h("label", { for: "file" }, "Drop an image here, paste one, or choose a file: "), file, chosen);

  function take(given) {
    if (!given) return;
    if (chosen.src) URL.revokeObjectURL(chosen.src);
    chosen.src = URL.createObjectURL(given);
    chosen.hidden = false;
    show(result, "the nearest images", () => answers(about, given));
  }
  const paste = (event) => take([...event.clipboardData.files][0]);
  file.addEventListener("change", () => take(file.files[0]));
  area.addEventListener("dragover", (event) => { event.preventDefault(); area.classList.add("over"); });
  area.addEventListener("dragleave", () => area.classList.remove("over"));
  area.addEventListener("drop", (event) => { event.preventDefault(); area.classList.remove("over"); take([...event.dataTransfer.files][0]); });
  chosen.addEventListener("error", () => { chosen.hidden = true; });  // a format that this browser does not show
  document.addEventListener("paste", paste);
  return { nodes: [h("h1", {}, "Search by image"), area, result], leave: () => document.removeEventListener("paste", paste) };
}

async function answers(about, given) {
  const [clusters, neighbours] = await Promise.all([
    about.clusters ? image("clusters", given, { top: 5 }) : null,
    about.samples ? image("neighbors", given, { k: 48 }) : null,
  ]);
  for (const answer of [clusters, neighbours]) if (answer?.items[0].error) throw new Error(answer.items[0].error.message);
  return [clusters && assigned(about, clusters.items[0].clusters),
    h("h2", {}, "Nearest images"),
    neighbours ? tiles(neighbours.items[0].neighbors) : empty("The service has no embedding set to search in.")].filter(Boolean);
}

function assigned(about, clusters) {
  return h("section", {}, h("h2", {}, "Clusters"), h("table", {}, h("thead", {}, h("tr", {}, ["Cluster", "Probability", "Cosine"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, clusters.map((c) => h("tr", {}, h("td", {}, h("a", { href: `#/clusters/${c.cluster}` }, about.names[c.cluster] ?? `Cluster ${c.cluster}`)), h("td", {}, `${(100 * c.probability).toFixed(1)} %`), h("td", {}, decimals(c.score, 3)))))));
}

async function stored(about, sample) {
  const found = await get("explorer/neighbors", { sample, k: 48 });
  const own = h("figure", { class: "tile" }, picture(found.item, found.item.key), h("figcaption", {}, found.item.key, h("br"), found.item.shard, h("br"), found.item.label ?? ""));
  return [h("h1", {}, "Nearest images"),
    h("div", { class: "split" },
      h("section", {}, tiles(found.neighbors, { choose: about.writable })),
      h("section", {}, h("h2", {}, "Of this image"), own, found.item.cluster >= 0 && h("p", {}, h("a", { href: `#/clusters/${found.item.cluster}` }, `Cluster ${found.item.cluster}`)), h("p", {}, h("a", { href: "#/search" }, "Search with another image"))))];
}
