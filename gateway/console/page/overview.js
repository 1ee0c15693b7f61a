// The numbers at the top.

import { setText } from "./dom.js";
import { count, duration } from "./format.js";
import { sparkline } from "./sparkline.js";

const NAMES = { tokens_per_second: "Tokens per second", running: "Running", waiting: "Waiting" };

export function showOverview(state) {
  for (const node of document.querySelectorAll("[data-value]")) {
    const value = state.totals[node.dataset.value];
    node.closest(".stat").hidden = value === undefined;
    if (value !== undefined) setText(node, count(value));
  }
  for (const node of document.querySelectorAll("[data-latency]")) {
    const [kind, percentile] = node.dataset.latency.split(".");
    setText(node, duration(state.latency[kind][percentile]));
  }
  for (const node of document.querySelectorAll("[data-spark]")) {
    const name = node.dataset.spark;
    node.hidden = !state.history;
    if (state.history) sparkline(node, NAMES[name], state.history[name]);
  }
}
