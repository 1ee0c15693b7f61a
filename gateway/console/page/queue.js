// Who waits, and who runs.

import { byId, element, setText, sync } from "./dom.js";
import { count } from "./format.js";

export function showQueue(state) {
  const tenants = state.tenants;
  byId("queue-section").hidden = !tenants;
  if (!tenants) return;
  byId("queue").hidden = !tenants.length;
  setText(byId("queue-summary"), summary(state));
  const most = Math.max(1, ...tenants.map((tenant) => tenant.waiting + tenant.running));
  sync(byId("tenants"), tenants, (tenant) => tenant.name, make, (row, tenant) => update(row, tenant, most));
}

function summary({ tenants, num_tenants: all, totals }) {
  if (!all) return "Nobody waits, nobody runs.";
  const waiting = totals.queue_tokens ? `${count(totals.queue_tokens)} prompt tokens wait to begin. ` : "";
  return all > tenants.length ? `${waiting}The ${tenants.length} with the most requests, of ${count(all)}.` : waiting;
}

function make() {
  const bar = element("div", { class: "bar share" }, element("span", { class: "running" }), element("span", { class: "waiting" }));
  return element("tr", {}, element("th", { scope: "row" }), element("td", {}, bar),
    ...["", "", ""].map(() => element("td", { class: "number" })));
}

function update(row, tenant, most) {
  const [name, , waiting, running, weight] = row.children;
  setText(name, tenant.name || "everybody");
  setText(waiting, count(tenant.waiting));
  setText(running, count(tenant.running));
  setText(weight, String(tenant.weight));
  for (const part of ["running", "waiting"]) {
    row.querySelector(`.bar .${part}`).style.width = `${(100 * tenant[part]) / most}%`;
  }
}
