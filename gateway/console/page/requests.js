// The requests that were answered last, and where their time went.

import { byId, element, setText, sync } from "./dom.js";
import { clock, count, duration } from "./format.js";

const SEGMENTS = {
  tokenize: "text to tokens",
  limits: "asking for the key's limits",
  queue: "until it had a row on a worker",
  wait: "queue and prefill, not told apart",
  prefill: "computing the prompt",
  decode: "until the last token",
  paused: "without its row for a while",
};

export function setUpRequests() {
  byId("all-requests").addEventListener("click", () => {
    all = !all;
    showRequests(last);
  });
  byId("legend").append(
    ...Object.entries(SEGMENTS).map(([name, meaning]) => element("li", { class: `key segment-${name}`, title: meaning }, name)),
  );
}

const FEW = 15;

let all = false;
let last = null;

export function showRequests(state) {
  last = state;
  const requests = state.requests;
  const button = byId("all-requests");
  button.hidden = requests.length <= FEW;
  setText(button, all ? "Show fewer" : `Show all ${requests.length}`);
  byId("no-requests").hidden = requests.length > 0;
  byId("requests").hidden = !requests.length;
  const used = new Set(requests.flatMap((request) => request.segments.map(([name]) => name)));
  for (const item of byId("legend").children) item.hidden = !used.has(item.textContent);
  sync(byId("request-rows"), all ? requests : requests.slice(0, FEW), (request) => `${request.id} ${request.arrived}`, make);
}

function make(request) {
  const ended = request.arrived + request.duration;
  const good = request.status === 200 || request.status === "OK";
  return element("tr", { role: "row" },
    cell("Ended", {}, clock(ended)),
    cell("Request", { class: "request" }, ...naming(request)),
    cell("Status", {}, element("span", { class: good ? "status good" : "status bad" }, status(request))),
    cell("Tokens in, out", { class: "number" }, ...tokens(request)),
    cell("First token", { class: "number" }, duration(request.ttft)),
    cell("Total", { class: "number" }, duration(request.duration)),
    cell("Where the time went", { class: "waterfall-cell" }, ...waterfall(request)),
  );
}

function cell(label, attributes, ...children) {
  return element("td", { role: "cell", "data-label": label, ...attributes }, ...children);
}

function naming(request) {
  const what = [request.tenant, request.route].filter(Boolean).join(" · ");
  const id = element("span", { class: "id", title: request.id }, request.id);
  const link = request.trace_url
    ? element("a", { href: request.trace_url, target: "_blank", rel: "noopener noreferrer" }, "trace")
    : null;
  return [id, element("span", { class: "what muted" }, what, link ? " · " : null, link)];
}

function status(request) {
  return request.error && request.status !== 200 ? `${request.status} ${request.error}` : String(request.error ?? request.status);
}

function tokens(request) {
  const counts = `${count(request.prompt_tokens)} → ${count(request.completion_tokens)}`;
  const cached = request.cached_tokens ? element("span", { class: "what muted" }, `${count(request.cached_tokens)} cached`) : null;
  return [counts, cached];
}

function waterfall(request) {
  const lengths = request.segments.map(([name, , length]) => `${name} ${duration(length)}`);
  const told = [...lengths, ...notes(request.timing)].flatMap((part, index) => [
    ...(index ? [" · "] : []),
    element("span", { class: "part" }, part),
  ]);
  const bars = request.segments.map(([name, start, length]) => {
    const bar = element("span", { class: `segment-${name}`, title: `${name}: ${duration(length)}, ${SEGMENTS[name] ?? ""}` });
    bar.style.left = `${(100 * start) / request.duration}%`;
    bar.style.width = `${(100 * length) / request.duration}%`;
    return bar;
  });
  return [element("div", { class: "waterfall", "aria-hidden": "true" }, ...bars), element("span", { class: "what muted" }, ...told)];
}

/** What else the scheduler tells, where there is something to tell. */
function notes({ worker, chunks, preemptions, retries, migrations }) {
  const times = (number, what) => (number ? [`${what} ${number === 1 ? "once" : `${number} times`}`] : []);
  return [
    ...(chunks > 1 ? [`${chunks} chunks`] : []),
    ...times(preemptions, "preempted"),
    ...times(retries, "lost its worker"),
    ...times(migrations, "moved"),
    ...(worker ? [`on ${worker}`] : []),
  ];
}
