// Numbers as people read them.

export const count = (number) => Math.round(number).toLocaleString("en");

/** Milliseconds: "0.42 ms", "12 ms", "1.30 s", "2 min 5 s". */
export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 9.95) return `${ms.toFixed(ms < 0.995 ? 2 : 1)} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 99.95) return `${seconds.toFixed(seconds < 9.995 ? 2 : 1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** A time of day. */
export const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");
