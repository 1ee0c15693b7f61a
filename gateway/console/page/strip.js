// When the parts of an answer came: a bar for each.

import { byId, drawing } from "./dom.js";
import { duration } from "./format.js";

const SHOWN = 160; // the last ones
const HEIGHT = 44;

/** Takes down when tokens came, in milliseconds. */
export class Strip {
  #last;
  gaps = [];

  constructor(sent) {
    this.#last = sent;
  }

  came(now) {
    this.gaps.push(now - this.#last);
    this.#last = now;
  }

  get between() {
    return this.gaps.slice(1);
  }

  show() {
    const shown = this.gaps.slice(-SHOWN);
    const highest = Math.max(1, ...this.between.slice(-SHOWN));
    const width = Math.max(shown.length, 40);
    const bars = shown.map((gap, index) => {
      const first = index === 0 && this.gaps.length <= SHOWN;
      const height = Math.max(2, Math.min(1, gap / highest) * HEIGHT);
      const bar = { x: index + 0.1, y: HEIGHT - height, width: 0.8, height, class: first ? "first" : "gap" };
      return drawing("rect", bar, drawing("title", {}, duration(gap)));
    });
    const svg = drawing("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, preserveAspectRatio: "none" }, ...bars);
    const label = `${this.gaps.length} parts; the slowest ${duration(Math.max(0, ...this.between))} after the one before`;
    byId("strip").replaceChildren(svg);
    byId("strip").setAttribute("aria-label", label);
  }
}
