// Asks for the state once a second, while somebody looks.

import { credentials } from "./access.js";

const EVERY = 1000;
const PATIENCE = 5000;

/** Calls one of `told` after each answer: `state(json)`, `unauthorized(message)` or `lost(reason)`. */
export class Poll {
  #told;
  #timer = 0;
  #asking = false;

  constructor(told) {
    this.#told = told;
    document.addEventListener("visibilitychange", () => this.now());
  }

  /** Asks now, and from then on. */
  async now() {
    clearTimeout(this.#timer);
    if (this.#asking || document.hidden) return;
    this.#asking = true;
    const again = await this.#ask();
    this.#asking = false;
    if (again) this.#timer = setTimeout(() => this.now(), EVERY);
  }

  /** Whether to ask again: without a key there is no use in that. */

  async #ask() {
    let response, body;
    try {
      response = await fetch("console/state", { headers: credentials(), signal: AbortSignal.timeout(PATIENCE) });
      body = await response.json();
    } catch (error) {
      this.#told.lost(error.name === "TimeoutError" ? "The server does not answer." : "The server cannot be reached.");
      return true;
    }
    if (response.ok) this.#told.state(body);
    else if (response.status === 401) this.#told.unauthorized(body.error.message);
    else this.#told.lost(body.error?.message ?? `The server answers ${response.status}.`);
    return response.status !== 401;
  }
}
