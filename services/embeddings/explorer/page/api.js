// Requests to the service that this page came from. Paths are relative, so that the page works behind a prefix.

const STORED = "swav-api-key";

export const key = {
  get: () => sessionStorage.getItem(STORED),
  set: (value) => (value ? sessionStorage.setItem(STORED, value) : sessionStorage.removeItem(STORED)),
};

class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key.get()) headers.set("authorization", `Bearer ${key.get()}`);
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "unreachable", "The service does not answer. Check that it runs, then try again.");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  const text = told?.error?.message ?? `The service answered with status ${answer.status}.`;
  const help = answer.status === 401 ? " Enter a key with the button “API key” at the bottom of the page." : "";
  throw new Refused(answer.status, told?.error?.code ?? "unknown", text + help);
}

function query(values) {
  const given = Object.entries(values ?? {}).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

export const get = async (path, values, options) => (await request(`v1/${path}${query(values)}`, options)).json();
export async function bytes(path, values, options) {
  const answer = await request(`v1/${path}${query(values)}`, options);
  return answer.status === 202 ? null : answer.arrayBuffer();  // null: not computed yet
}
export const text = async (path, values, options) => (await request(`v1/${path}${query(values)}`, options)).text();

export async function send(method, path, body, values) {
  const options = { method, headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  return (await request(`v1/${path}${query(values)}`, options)).json();
}

export async function image(path, file, values) {
  const options = { method: "POST", headers: { "content-type": file.type || "application/octet-stream" }, body: file };
  return (await request(`v1/${path}${query(values)}`, options)).json();
}
