// What a hostile page tries. Each attempt ends by itself: with what it read, or with the reason why it read nothing.
const within = (promise, seconds = 20) => Promise.race([
  promise, new Promise((_, no) => setTimeout(() => no(new Error("too late")), seconds * 1000)),
]);
const told = async (attempt) => {
  try { return String(await within(attempt())).slice(0, 100000); } catch (error) { return `refused: ${error.message || error}`; }
};
const read = (url, options) => fetch(url, { credentials: "include", ...options }).then(async (one) => `${one.status} ${await one.text()}`);
const xhr = (method, url) => new Promise((yes) => {
  const one = new XMLHttpRequest();
  one.open(method, url);
  one.withCredentials = true;
  one.onloadend = () => yes(`${one.status} ${one.responseText}`);
  one.send();
});
const source = (url) => new Promise((yes, no) => {
  const one = new EventSource(url, { withCredentials: true });
  one.onmessage = (event) => { one.close(); yes(`200 ${event.data}`); };
  one.onopen = () => yes("200 opened");
  one.onerror = () => { one.close(); no(new Error("event source")); };
});
const socket = (url) => new Promise((yes, no) => {
  const one = new WebSocket(url.replace(/^http/, "ws"));
  one.onmessage = (event) => yes(`101 ${event.data}`);
  one.onerror = () => no(new Error("websocket"));
});
const framed = (kind, url) => new Promise((yes, no) => {
  const one = document.createElement(kind);
  one[kind === "object" ? "data" : "src"] = url;
  one.onload = () => { try { yes(one.contentDocument.documentElement.outerHTML); } catch (error) { no(error); } };
  one.onerror = () => no(new Error(kind));
  document.body.append(one);
});
// A window that is cut off reports that it is closed.
const opened = (url, name) => new Promise((yes, no) => {
  const one = window.open(url, name);
  if (!one) { no(new Error("blocked")); return; }
  const look = () => {
    if (one.closed) { no(new Error("cut off")); return; }
    try {
      const { document: seen, location: place } = one;
      if (place.href !== "about:blank" && seen.readyState === "complete") { yes(seen.documentElement.outerHTML); one.close(); return; }
    } catch (error) { no(error); return; }
    setTimeout(look, 100);
  };
  look();
});
const worker = (url) => new Promise((yes, no) => {
  const text = `fetch(${JSON.stringify(url)}, {credentials: "include"}).then(async (one) => postMessage(one.status + " " + await one.text()), (error) => postMessage("refused " + error))`;
  const one = new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
  one.onmessage = (event) => { one.terminate(); yes(event.data); };
  one.onerror = () => no(new Error("worker"));
});
const prefetched = async (kind, url) => {
  const one = document.createElement("link");
  Object.assign(one, { rel: kind, href: url, as: "document" });
  await within(new Promise((yes) => { one.onload = one.onerror = yes; document.head.append(one); setTimeout(yes, 500); }));
  return read(url, { cache: "force-cache" });
};
const speculated = async (url) => {
  const one = document.createElement("script");
  one.type = "speculationrules";
  one.textContent = JSON.stringify({ prerender: [{ source: "list", urls: [url], eagerness: "immediate" }] });
  document.head.append(one);
  await new Promise((yes) => setTimeout(yes, 300));
  return read(url, { cache: "only-if-cached", mode: "same-origin" });
};
const disguised = async (url) => {
  const before = location.href;
  history.pushState(null, "", new URL("/", url).href);
  try { return await read(url, { referrer: new URL("/", url).href }); } finally { history.replaceState(null, "", before); }
};
const posted = (url) => new Promise((yes) => {
  const frame = document.createElement("iframe");
  frame.name = `f${Math.random()}`;
  const form = Object.assign(document.createElement("form"), { method: "post", action: url, target: frame.name });
  form.append(Object.assign(document.createElement("input"), { name: "x", value: "1" }));
  document.body.append(frame, form);
  form.submit();
  frame.onload = () => { try { yes(frame.contentDocument.body.innerText); } catch (error) { yes("refused: unreadable"); } };
});
const scripted = (url) => new Promise((yes, no) => {
  window.stolen = undefined;
  const one = document.createElement("script");
  one.src = url;
  one.onload = () => yes(`loaded ${window.stolen}`);
  one.onerror = () => no(new Error("script"));
  document.head.append(one);
});

// All ways to read a URL, by name.
async function readings(url) {
  const ways = {
    fetch: () => read(url),
    forced: () => read(url, { cache: "force-cache" }),
    same: () => read(url, { mode: "same-origin" }),
    navigating: () => read(url, { headers: { "Sec-Fetch-Mode": "navigate", "X-PRouter-Proof": "x" } }),
    html: () => read(url, { headers: { Accept: "text/html" } }),
    disguised: () => disguised(url),
    xhr: () => xhr("GET", url),
    source: () => source(url),
    frame: () => framed("iframe", url),
    object: () => framed("object", url),
    window: () => opened(url, "_blank"),
    named: () => opened(url, `name${Math.random()}`),
    worker: () => worker(url),
    prefetch: () => prefetched("prefetch", url),
    prerender: () => prefetched("prerender", url),
    speculated: () => speculated(url),
    socket: () => socket(url),
    script: () => scripted(url),
  };
  const found = {};
  await Promise.all(Object.entries(ways).map(async ([name, way]) => { found[name] = await told(way); }));
  return found;
}

// All ways to change something at a URL, by name.
async function changes(url, body) {
  const ways = {
    fetch: () => read(url, { method: "POST", body }),
    opaque: () => read(url, { method: "POST", body, mode: "no-cors" }),
    json: () => read(url, { method: "POST", body, headers: { "Content-Type": "application/json" } }),
    xhr: () => xhr("POST", url),
    form: () => posted(url),
    beacon: async () => navigator.sendBeacon(url, body),
    worker: () => worker(url),
  };
  const found = {};
  await Promise.all(Object.entries(ways).map(async ([name, way]) => { found[name] = await told(way); }));
  return found;
}

// Cookies that a script may try to plant.
function plant(session) {
  const host = location.hostname;
  for (const text of [
    `prouter_session=${session}; path=/`, `prouter_session=${session}; path=/; domain=${host}`,
    `__Host-prouter_session=${session}; path=/; secure`, `__Host-Http-prouter_session=${session}; path=/; secure`,
    `prouter_pass=${session}; path=/`, `prouter_pass=${session}; path=/jobs`,
    `prouter_session=${session}; path=/; domain=${host.split(".").slice(-2).join(".")}`,
    `prouter_session=${session}; path=/; domain=${host.split(".").slice(-1)[0]}`,
  ]) { try { document.cookie = text; } catch { /* no cookies in a sandbox */ } }
  try { return document.cookie; } catch (error) { return `refused: ${error.message}`; }
}

const take = (scope) => told(async () => (await navigator.serviceWorker.register("sw.js", scope ? { scope } : {})).scope);

// What the page may do with its own job.
const own = async () => ({
  styled: getComputedStyle(document.getElementById("styled")).color,
  image: document.getElementById("image").naturalWidth,
  module: window.seven,
  data: await told(() => read("data.json")),
  plain: await told(() => fetch("data.json").then((one) => one.text())),
  socket: await told(() => socket(new URL("ws", location.href).href)),
  post: await told(() => read("change", { method: "POST", body: "x" })),
  echo: await told(() => read("echo")),
  origin: self.origin,
});
