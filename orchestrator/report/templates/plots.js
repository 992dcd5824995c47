"use strict";
// Pictures: drawn when they come into view, redrawn when the theme changes, with the chosen run marked in each.

const plots = (() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colours = JSON.parse(document.getElementById("theme").textContent);
  const drawn = new Map(); // element -> the shapes of the figure itself
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  const MARK = "rgba(230, 159, 0, 0.55)";
  let chosen = [];
  let listener = () => {};

  function figureOf(element) {
    let text = document.getElementById(`figure-${element.dataset.figure}`).textContent;
    if (dark.matches) for (const [light, other] of Object.entries(colours)) text = text.replaceAll(light, other);
    const figure = JSON.parse(text);
    if (matchMedia("(pointer: coarse)").matches) figure.layout.dragmode = false; // a finger scrolls the page
    return figure;
  }

  function draw(element) {
    const figure = figureOf(element);
    const shapes = figure.layout.shapes || [];
    figure.layout.shapes = [...shapes, ...marks(element.dataset.figure, figure.data)];
    Plotly.react(element, figure.data, figure.layout, config);
    if (!drawn.has(element)) element.on("plotly_click", (event) => choose(event.points[0]));
    drawn.set(element, shapes);
  }

  function choose(point) {
    const name = point.customdata && point.customdata[0];
    if (name) listener(name);
  }

  // the chosen run in a figure: its point, or the line that belongs to it; `chosen` goes from the point to its trial
  function marks(key, traces) {
    if (!["front", "latency", "settings", "training", "orthogonality"].includes(key)) return [];
    for (const name of chosen) {
      for (const trace of [...traces].reverse()) {
        const rows = (trace.customdata || []).flatMap((each, i) => (each && each[0] === name ? [i] : []));
        if (rows.length) return [mark(rows.map((i) => [trace.x[i], trace.y[i]]))];
      }
    }
    return [];
  }

  // a shape, not a trace: plotly then leaves tens of thousands of points as they are
  function mark(points) {
    if (points.length > 1) return { type: "path", path: `M${points.map(([x, y]) => `${x},${y}`).join("L")}`, line: { color: MARK, width: 9 } };
    const [[x, y]] = points;
    const ring = { xsizemode: "pixel", ysizemode: "pixel", xanchor: x, yanchor: y, x0: -9, x1: 9, y0: -9, y1: 9 };
    return { type: "circle", ...ring, line: { color: MARK, width: 5 } };
  }

  function show(names) {
    chosen = names;
    for (const [element, shapes] of drawn) Plotly.relayout(element, { shapes: [...shapes, ...marks(element.dataset.figure, element.data)] });
  }

  const elements = [...document.querySelectorAll(".plot")];
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !drawn.has(entry.target)) {
        watcher.unobserve(entry.target);
        draw(entry.target);
      }
    }
  }, { rootMargin: "200px" });
  dark.addEventListener("change", () => [...drawn.keys()].forEach(draw));
  addEventListener("beforeprint", () => elements.filter((element) => !drawn.has(element)).forEach(draw));
  // plotly's code runs after the first paint: the text and the table do not wait for it
  const start = () => requestAnimationFrame(() => setTimeout(() => {
    document.head.append(Object.assign(document.createElement("script"), { textContent: document.getElementById("plotly").textContent }));
    elements.forEach((element) => watcher.observe(element));
  }));
  return { start, show, onChoose: (call) => { listener = call; } };
})();

for (const block of document.querySelectorAll("pre.copy")) {
  const button = document.createElement("button");
  button.textContent = "copy";
  const text = block.textContent;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch { // no clipboard without permission: the text is selected instead
      getSelection().selectAllChildren(block);
      button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  block.append(button);
}
