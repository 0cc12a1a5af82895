// Pictures of stored samples.

import { send } from "./api.js";
import { h, notice } from "./dom.js";

// `alt` is empty where a caption beside the picture names it already.
export function picture(sample, alt = "") {
  if (!sample.thumbnail) return h("span", alt ? { class: "blank", role: "img", "aria-label": alt } : { class: "blank" });
  const made = h("img", { src: sample.thumbnail, loading: "lazy", decoding: "async" });
  made.alt = alt;
  return made;
}

export const address = (sample) => `#/search?sample=${sample.sample}`;

function caption(sample) {
  const score = sample.score === undefined || sample.score === null ? "" : ` · ${sample.score.toFixed(3)}`;
  return [h("span", { class: "caption", title: `${sample.shard}: ${sample.key}` }, sample.key),
    h("span", { class: "caption" }, `${sample.label ?? `cluster ${sample.cluster}`}${score}`)];
}

// A tile links to the sample's nearest images. With `choose`, it has a button that excludes the sample or takes it back.
export function tile(sample, { choose = false } = {}) {
  const made = h("li", { class: sample.excluded ? "tile out" : "tile" },
    h("a", { href: address(sample) }, picture(sample), ...caption(sample)));
  if (choose) made.append(choice(made, sample));
  return made;
}

function choice(made, sample) {
  const label = () => (sample.excluded ? "Keep" : "Exclude");
  const button = h("button", { type: "button", "aria-label": `${label()} ${sample.key}` }, label());
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await send("POST", "explorer/exclusions", { samples: [sample.sample], excluded: !sample.excluded });
      sample.excluded = !sample.excluded;
      made.classList.toggle("out", sample.excluded);
      button.textContent = label();
      button.setAttribute("aria-label", `${label()} ${sample.key}`);
      made.dispatchEvent(new CustomEvent("chosen", { bubbles: true }));
    } catch (error) {
      notice(error.message);
    } finally {
      button.disabled = false;
    }
  });
  return button;
}

export const tiles = (samples, options) => h("ul", { class: "tiles" }, samples.map((sample) => tile(sample, options)));

export function mosaic(samples, places = 8) {
  const blanks = Array.from({ length: Math.max(0, places - samples.length) }, () => h("span", { class: "blank" }));
  return h("span", { class: "mosaic" }, samples.slice(0, places).map((sample) => picture(sample)), blanks);
}
