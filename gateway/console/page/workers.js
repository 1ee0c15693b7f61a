// A card for each worker.

import { byId, element, setText, sync } from "./dom.js";
import { count, duration } from "./format.js";

const PARTS = ["held", "cached", "free"];

export function showWorkers(state) {
  const workers = state.workers;
  byId("workers-section").hidden = !workers;
  if (!workers) return;
  byId("no-workers").hidden = workers.length > 0;
  sync(byId("workers"), workers, (worker) => `${worker.id} ${worker.address}`, make, update);
}

function make(worker) {
  const bar = element("div", { class: "bar", role: "img" }, ...PARTS.slice(0, 2).map((part) => element("span", { class: part })));
  const facts = ["Batch", "Step", "Tokens/s", "Rows"].map((name) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, "–")),
  );
  return element(
    "li",
    { class: "panel card" },
    element("div", { class: "card-head" },
      element("h3", { title: worker.address }, worker.id), element("span", { class: "pill" })),
    element("p", { class: "device muted" }),
    element("p", { class: "bar-label" }, element("span", {}, "KV cache"), element("span", {})),
    bar,
    element("p", { class: "bar-legend" }, ...PARTS.map((part) => element("span", { class: `key ${part}` }))),
    element("dl", { class: "facts" }, ...facts),
  );
}

function update(card, worker) {
  const pill = card.querySelector(".pill");
  setText(pill, worker.state);
  pill.dataset.state = worker.state;
  setText(card.querySelector(".device"), worker.device || worker.address);
  updateBlocks(card, worker.blocks);
  const step = worker.step;
  const facts = [
    step ? `${count(step.rows)} ${step.rows === 1 ? "row" : "rows"}, ${count(step.tokens)} ${step.tokens === 1 ? "token" : "tokens"}` : "–",
    step ? duration(step.duration) : "–",
    count(worker.tokens_per_second),
    `${count(worker.rows)} of ${count(worker.max_rows)}`,
  ];
  card.querySelectorAll("dd").forEach((node, index) => setText(node, facts[index]));
  // What is shown of the last step is long ago where nothing runs.
  card.classList.toggle("resting", worker.state !== "busy");
}

function updateBlocks(card, blocks) {
  const used = blocks.total ? Math.round((100 * blocks.held) / blocks.total) : 0;
  setText(card.querySelector(".bar-label :last-child"), `${used}% held`);
  const bar = card.querySelector(".bar");
  bar.setAttribute("aria-label", `Of ${blocks.total} blocks ${blocks.held} are held, ${blocks.cached} cached, ${blocks.free} free`);
  for (const part of PARTS.slice(0, 2)) {
    bar.querySelector(`.${part}`).style.width = blocks.total ? `${(100 * blocks[part]) / blocks.total}%` : "0";
  }
  for (const part of PARTS) setText(card.querySelector(`.key.${part}`), `${part} ${count(blocks[part])}`);
}
