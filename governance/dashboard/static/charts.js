// Draws charts with uPlot where a page has data for them; without scripts the page keeps what the server drew.

const HEIGHT = 190;
const drawn = new Map();

function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { ink: of("--soft"), line: of("--line"), accent: of("--accent"), held: of("--held"), spent: of("--spent") };
}

function draw(element) {
  const data = JSON.parse(element.dataset.plot);
  const c = colours();
  const value = (plot, found) => (found == null ? "" : String(Math.round(found * 1e4) / 1e4));
  const flat = (value) => data.x.map(() => value);
  const series = [{ label: "round", value }, { label: data.what, value, spanGaps: true, stroke: c.accent, width: 2, points: { size: 5, fill: c.accent } }];
  const columns = [data.x, data.y];
  const more = (label, values, stroke, dash) => {
    series.push({ label, value, stroke, dash, width: 1.5, points: { show: false } });
    columns.push(values);
  };
  if (data.alone != null) more("alone", flat(data.alone), c.held, [6, 4]);
  if (data.central != null) more("in one place", flat(data.central), c.spent, [2, 3]);
  if (data.ahead) more("if it goes on", data.ahead, c.held, [6, 4]);
  const axis = { stroke: c.ink, grid: { stroke: c.line, width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  element.replaceChildren();
  const plot = new uPlot(
    {
      width: element.clientWidth,
      height: HEIGHT,
      scales: { x: { time: false }, y: data.zero ? { range: (u, low, high) => [0, high * 1.05 || 1] } : {} },
      axes: [{ ...axis, size: 28, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] }, { ...axis, size: 52 }],
      legend: { live: true },
      cursor: { drag: { x: false, y: false } },
      series,
    },
    columns,
    element,
  );
  drawn.set(element, plot);
}

function drawAll() {
  for (const element of drawn.keys()) if (!element.isConnected) drawn.delete(element);
  for (const element of document.querySelectorAll("[data-plot]")) draw(element);
}

const resized = new ResizeObserver(() => {
  for (const [element, plot] of drawn) if (element.isConnected) plot.setSize({ width: element.clientWidth, height: HEIGHT });
});
resized.observe(document.querySelector("main"));
document.addEventListener("part", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
drawAll();
