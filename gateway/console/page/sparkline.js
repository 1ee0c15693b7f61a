// The last two minutes of a number, as a line.

import { drawing } from "./dom.js";
import { count } from "./format.js";

const SECONDS = 120;
const WIDTH = 240;
const HEIGHT = 36;

/** `values`: one a second, the last one now; null where it is not known. */
export function sparkline(parent, name, values) {
  const known = values.filter((value) => value !== null);
  const highest = Math.max(1, ...known);
  const x = (index) => WIDTH - ((values.length - 1 - index) * WIDTH) / (SECONDS - 1);
  const y = (value) => HEIGHT - 2 - (value / highest) * (HEIGHT - 5);
  const label = known.length ? `${name}, last two minutes: at most ${count(Math.max(...known))}` : `${name}: not known yet`;
  const options = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label };
  const svg = drawing("svg", options);
  for (const run of runs(values)) {
    const line = run.map(({ index, value }) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`);
    const [first, last] = [x(run[0].index).toFixed(1), x(run.at(-1).index).toFixed(1)];
    svg.append(
      drawing("polygon", { class: "area", points: `${first},${HEIGHT} ${line.join(" ")} ${last},${HEIGHT}` }),
      drawing("polyline", { class: "line", points: line.join(" ") }),
    );
  }
  parent.replaceChildren(svg);
}

/** Stretches without a gap. */
function runs(values) {
  const all = [];
  values.forEach((value, index) => {
    if (value === null) return;
    if (index === 0 || values[index - 1] === null) all.push([]);
    all.at(-1).push({ index, value });
  });
  return all;
}
