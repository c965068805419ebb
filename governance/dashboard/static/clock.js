// The server's time, whatever this machine's clock says: it was told with the page, and has gone on evenly since.

const [loading] = performance.getEntriesByType("navigation");
const told = Number(document.querySelector('meta[name="now"]').content);

/** Unix ms. */
export const serverNow = () => told + performance.now() - (loading?.responseStart ?? 0);

/** By how much this machine's clock is ahead of the server's, in ms. */
export const skew = () => Date.now() - serverNow();

/** 93600 -> "1 d 2 h". */
export function span(seconds) {
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = units.findIndex(([size]) => seconds >= size);
  if (at < 0) return "0 s";
  const [size, name] = units[at];
  const first = `${Math.floor(seconds / size)} ${name}`;
  const next = units[at + 1];
  const rest = next ? Math.floor((seconds % size) / next[0]) : 0;
  return rest ? `${first} ${rest} ${next[1]}` : first;
}
