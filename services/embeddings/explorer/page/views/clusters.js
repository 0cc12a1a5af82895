// All clusters as contact sheets, or one cluster.

import { get, send } from "../api.js";
import { decimals, empty, h, notice, number, pages, show } from "../dom.js";
import { mosaic, tiles } from "../tiles.js";

const PAGE = 48;
const ORDERS = { size: "size", tightness: "tightness", entropy: "mixed labels or shards" };
const titleOf = (cluster) => cluster.name ?? `Cluster ${cluster.cluster}`;

export async function view(context) {
  if (!context.about.clusters) return empty("This model has no clusters, because its method trains no prototypes. ", h("a", { href: "#/map" }, "Open the map."));
  return context.rest.length ? one(context) : all(context);
}

function all({ about, query }) {
  const place = h("div");
  const state = { order: query.get("order") ?? "size", search: query.get("search") ?? "", offset: 0 };
  const order = h("select", { onchange: (event) => { state.order = event.target.value; state.offset = 0; load(); } },
    Object.entries(ORDERS).map(([value, label]) => h("option", { value, selected: value === state.order }, label)));
  const search = h("input", { type: "search", value: state.search, placeholder: "number or name" });
  let typing;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => { state.search = search.value.trim(); state.offset = 0; load(); }, 250);
  });

  function load() {
    show(place, "clusters", async () => {
      const found = await get("explorer/clusters", { ...state, limit: PAGE });
      if (!found.total) return empty(state.search ? "No cluster has this number or name." : "There are no clusters.");
      return [h("ul", { class: "sheets" }, found.clusters.map(sheet)), pages(found, PAGE, (to) => { state.offset = to; load(); })];
    });
  }

  load();
  const missing = about.samples === null && h("p", { class: "soft" }, "The service has no embedding set, so clusters have no images. Run ", h("code", {}, "swav embed RUN"), " and serve with the result.");
  return [h("h1", {}, "Clusters"), missing, h("div", { class: "bar" }, h("label", {}, "Order by", order), h("label", {}, "Find", search)), place].filter(Boolean);
}

function sheet(cluster) {
  const facts = cluster.size === null ? "" : `${number(cluster.size)} images · tightness ${decimals(cluster.tightness)} · entropy ${decimals(cluster.entropy)}`;
  return h("li", { class: "sheet" }, h("a", { href: `#/clusters/${cluster.cluster}` }, mosaic(cluster.exemplars), h("b", {}, titleOf(cluster)), h("br"), h("span", { class: "soft" }, facts)));
}

async function one({ about, rest }) {
  const found = await get(`explorer/clusters/${encodeURIComponent(rest[0])}`, { limit: 120 });
  const heading = h("h1", {}, titleOf(found));
  const members = found.members.length ? tiles(found.members, { choose: about.writable }) : empty("No stored image belongs to this cluster.");
  const name = h("input", { value: found.name ?? "", maxlength: 100, placeholder: `Cluster ${found.cluster}` });
  const rename = h("form", { class: "bar" }, h("label", {}, "Name", name), h("button", {}, "Save name"));
  rename.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const saved = await send("PUT", `explorer/clusters/${found.cluster}/name`, { name: name.value.trim() || null });
      heading.textContent = titleOf(saved);
      notice("The name is saved.");
    } catch (error) {
      notice(error.message);
    }
  });
  return [h("p", {}, h("a", { href: "#/clusters" }, "All clusters")), heading,
    h("p", { class: "soft" }, `${found.size === null ? "" : `${number(found.size)} images · `}tightness ${decimals(found.tightness)} · spread ${decimals(found.spread)} · entropy ${decimals(found.entropy)}`),
    about.writable && rename,
    h("div", { class: "split" },
      h("section", {}, h("h2", {}, "Images nearest to the prototype"), members),
      h("section", {}, h("h2", {}, "Nearest clusters"), h("ul", { class: "sheets" }, found.nearest.map((near) =>
        h("li", { class: "sheet" }, h("a", { href: `#/clusters/${near.cluster}` }, mosaic(near.exemplars, 4), h("b", {}, titleOf(near)), h("span", { class: "soft" }, ` cosine ${decimals(near.score)}`)))))))].filter(Boolean);
}
