// A chat with one answer, and the time of each part of it.

import { credentials } from "./access.js";
import { byId, setText } from "./dom.js";
import { events } from "./events.js";
import { count, duration } from "./format.js";
import { Strip } from "./strip.js";

let model = null;
let running = null; // what stops it

export function setUpPlayground() {
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running && model !== null) ask();
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("message").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
  });
}

/** `state` says which model there is. */
export function updatePlayground(state) {
  model = state.model;
}

async function ask() {
  running = new AbortController();
  byId("send").disabled = true;
  byId("stop").disabled = false;
  byId("answer").textContent = "";
  const strip = new Strip(performance.now());
  show(strip, null);
  strip.show();
  say("Waiting for the first token");
  try {
    say(await stream(strip, running.signal));
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped." : error.message || "The connection broke.");
  } finally {
    running = null;
    byId("send").disabled = false;
    byId("stop").disabled = true;
  }
}

/** Shows the answer as it comes; returns what is to be said at its end. */
async function stream(strip, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...credentials() },
    body: JSON.stringify(question()),
    signal,
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  let reason = null;
  for await (const data of events(response)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    reason = take(chunk, strip) ?? reason;
    show(strip, chunk.usage);
    strip.show();
  }
  if (!reason) throw new Error("The connection broke before the end of the answer.");
  return reason === "length" ? "It has as many tokens as it may have." : "Done.";
}

function question() {
  return {
    model,
    messages: [{ role: "user", content: byId("message").value }],
    temperature: byId("temperature").valueAsNumber,
    max_tokens: byId("max-tokens").valueAsNumber,
    stream: true,
    stream_options: { include_usage: true },
  };
}

/** Why the answer ends, in its last part. */
function take(chunk, strip) {
  const choice = chunk.choices[0];
  const text = choice?.delta.content;
  if (text) {
    strip.came(performance.now());
    say("Answering");
    const answer = byId("answer");
    const atEnd = answer.scrollHeight - answer.scrollTop - answer.clientHeight < 8;
    answer.append(text);
    if (atEnd) answer.scrollTop = answer.scrollHeight;
  }
  return choice?.finish_reason;
}

function show(strip, usage) {
  const { between, gaps } = strip;
  const total = between.reduce((sum, gap) => sum + gap, 0);
  const tokens = usage?.completion_tokens ?? gaps.length;
  const values = {
    ttft: duration(gaps[0]),
    mean: between.length ? duration(total / between.length) : "–",
    max: between.length ? duration(Math.max(...between)) : "–",
    tokens: gaps.length ? count(tokens) : "–",
    rate: between.length ? count((1000 * (tokens - 1)) / total) : "–",
  };
  for (const node of document.querySelectorAll("[data-timing]")) setText(node, values[node.dataset.timing]);
}

const say = (text) => setText(byId("ask-status"), text);
