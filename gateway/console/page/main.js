// Puts the console together: what is asked for once a second goes to every part of the page.

import { forgetKey, key, useKey } from "./access.js";
import { byId, setText } from "./dom.js";
import { clock } from "./format.js";
import { showOverview } from "./overview.js";
import { setUpPlayground, updatePlayground } from "./playground.js";
import { Poll } from "./poll.js";
import { showQueue } from "./queue.js";
import { setUpRequests, showRequests } from "./requests.js";
import { showWorkers } from "./workers.js";

const STALE = 4000; // ms since the gateway last saw its scheduler

let lostSince = null;

const poll = new Poll({ state, unauthorized, lost });

function state(told) {
  lostSince = null;
  document.body.classList.remove("stale");
  byId("key-form").hidden = true;
  byId("main").hidden = false;
  document.body.classList.toggle("own", told.key !== null);
  setText(byId("model"), told.model);
  byId("whose").hidden = told.key === null;
  setText(byId("whose"), `Key ${told.key}`);
  byId("forget-key").hidden = !key();
  health(...condition(told));
  for (const show of [showOverview, showWorkers, showQueue, showRequests, updatePlayground]) show(told);
  setText(byId("footer"), `Batchyard ${told.version}${gateways(told.gateways)}`);
}

function condition(told) {
  if (told.age > STALE) return ["bad", "Not ready", "The gateway has not heard of the scheduler for a while."];
  return told.ready ? ["good", "Ready", ""] : ["bad", "Not ready", told.reason];
}

function gateways({ heard, of }) {
  if (of === 1) return "";
  return heard === of ? ` · requests of all ${of} gateways` : ` · requests of ${heard} of ${of} gateways; the others keep theirs`;
}

function unauthorized(message) {
  if (!byId("main").hidden) {
    location.reload(); // nothing of what one key saw stays for the next
    return;
  }
  byId("key-problem").hidden = !key();
  setText(byId("key-problem"), message);
  health("bad", "Key needed", "");
  if (byId("key-form").hidden) {
    byId("key-form").hidden = false;
    byId("key").focus();
  }
}

function lost(reason) {
  lostSince ??= Date.now();
  document.body.classList.add("stale");
  health("bad", "Connection lost", `${reason} Trying again; what is shown is of ${clock(lostSince)}.`);
}

function health(kind, word, explanation) {
  byId("health").dataset.state = kind;
  setText(byId("health"), word);
  byId("banner").hidden = !explanation;
  setText(byId("banner"), explanation);
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  byId("key").value = "";
  poll.now();
});
byId("forget-key").addEventListener("click", () => {
  forgetKey();
  location.reload();
});

setUpRequests();
setUpPlayground();
poll.now();
