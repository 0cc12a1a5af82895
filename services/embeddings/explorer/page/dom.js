// Elements without a framework. Text is set as text, never as HTML: keys and labels come from strangers' files.

export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && typeof value !== "string") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export const loading = (what) => h("p", { class: "state", role: "status" }, `Loading ${what} …`);
export const empty = (...text) => h("p", { class: "state" }, ...text);

export function failed(error, again) {
  return h("div", { class: "state bad", role: "alert" }, h("p", {}, error.message),
    again && h("button", { type: "button", onclick: again }, "Try again"));
}

let timer;
export function notice(text) {
  const place = document.getElementById("notice");
  place.textContent = text;
  clearTimeout(timer);
  timer = setTimeout(() => { place.textContent = ""; }, 6000);
}

// Shows "loading", then what `make` returns, or the error with a button that tries again. A later call for the same
// place wins over an earlier one that is still waiting.
export async function show(place, what, make) {
  const turn = Symbol(what);
  place.turn = turn;
  place.setAttribute("aria-busy", "true");
  const waiting = setTimeout(() => { if (place.turn === turn) place.replaceChildren(loading(what)); }, 150);
  try {
    const made = await make();
    if (place.turn === turn) place.replaceChildren(...[made].flat());
  } catch (error) {
    if (place.turn === turn && error.name !== "AbortError") place.replaceChildren(failed(error, () => show(place, what, make)));
  } finally {
    clearTimeout(waiting);
    if (place.turn === turn) place.removeAttribute("aria-busy");
  }
}

export const number = (value) => value.toLocaleString("en");
export const decimals = (value, places = 2) => (value === null || value === undefined ? "–" : value.toFixed(places));

// Buttons that turn the pages of a list. `turn` gets the offset of the wanted page.
export function pages({ offset, total }, size, turn) {
  const last = Math.min(offset + size, total);
  const go = (to) => { turn(to); scrollTo(0, 0); };
  return h("p", { class: "bar" },
    h("button", { type: "button", disabled: offset === 0, onclick: () => go(offset - size) }, "Previous"),
    h("span", { class: "soft" }, `${number(offset + 1)}–${number(last)} of ${number(total)}`),
    h("button", { type: "button", disabled: last >= total, onclick: () => go(offset + size) }, "Next"));
}

export function save(name, text) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "text/plain" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
