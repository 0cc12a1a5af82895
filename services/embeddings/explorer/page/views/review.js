// Near-duplicates and outliers, with a choice for each image. The choices are the exclusion list of the set.

import { get, send, text } from "../api.js";
import { decimals, empty, h, notice, number, pages, save, show } from "../dom.js";
import { tiles } from "../tiles.js";

const KINDS = { duplicates: "Near-duplicates", outliers: "Outliers" };
const PAGE = 24;

export async function view({ about, query }) {
  if (about.samples === null) return empty("The service has no embedding set to review.");
  const state = { kind: KINDS[query.get("kind")] ? query.get("kind") : "duplicates", offset: 0 };
  const place = h("div");
  const count = h("span", { class: "soft" });
  const buttons = Object.entries(KINDS).map(([kind, label]) => h("button", { type: "button", "aria-pressed": String(kind === state.kind), onclick: (event) => {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button === event.currentTarget));
    Object.assign(state, { kind, offset: 0 });
    load();
  } }, label));
  const download = h("button", { type: "button", onclick: async () => {
    try { save("exclude.txt", await text("explorer/exclusions")); } catch (error) { notice(error.message); }
  } }, "Download the exclusion list");
  const tally = async () => { count.textContent = `${number((await get("explorer")).excluded)} images are excluded.`; };
  place.addEventListener("chosen", () => tally().catch(() => {}));

  function load() {
    show(place, KINDS[state.kind].toLowerCase(), async () => {
      const found = await get(`explorer/${state.kind}`, { offset: state.offset, limit: PAGE });
      if (!found.total) return empty(found.computed ? "None were found." : h("span", {}, "Not computed yet. Run ", h("code", {}, state.kind === "duplicates" ? "swav neighbours duplicates SET" : "swav neighbours curate SET"), " and reload the page."));
      const shown = state.kind === "duplicates" ? found.groups.map((each, i) => group(each, about, found.offset + i + 1)) : [tiles(found.items, { choose: about.writable })];
      return [...shown, pages(found, PAGE, (to) => { state.offset = to; load(); })];
    });
  }

  load();
  tally().catch(() => {});
  return [h("h1", {}, "Review"), h("div", { class: "bar" }, ...buttons, download, count), place];
}

function group(found, about, place) {
  const drop = h("button", { type: "button", onclick: async (event) => {
    event.currentTarget.disabled = true;
    try {
      await send("POST", "explorer/exclusions", { samples: found.items.slice(1).map((item) => item.sample), excluded: true });
      found.items.slice(1).forEach((item) => { item.excluded = true; });
      made.replaceWith(group(found, about, place));
      notice("All but the first of the images shown are excluded.");
    } catch (error) { notice(error.message); event.target.disabled = false; }
  } }, "Keep the first only");
  const made = h("section", { class: "group", "aria-label": `Group ${place}: ${number(found.size)} similar images` },
    h("p", { class: "bar" }, h("span", { class: "soft" }, `${number(found.size)} images${found.size > found.items.length ? `, ${found.items.length} shown` : ""}, least cosine ${decimals(found.similarity, 3)}`), about.writable && drop),
    tiles(found.items, { choose: about.writable }));
  return made;
}
