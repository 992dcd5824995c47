"use strict";
// Pictures: drawn when they come into view, redrawn when the theme changes, with the chosen run marked in each.

const plots = (() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colours = JSON.parse(document.getElementById("theme").textContent);
  const drawn = new Map(); // element -> number of traces of the figure itself
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
    Plotly.react(element, [...figure.data, ...marks(element.dataset.figure, figure.data)], figure.layout, config);
    if (!drawn.has(element)) element.on("plotly_click", (event) => choose(event.points[0]));
    drawn.set(element, figure.data.length);
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
        if (!trace.customdata) continue;
        const rows = trace.customdata.flatMap((each, i) => (each && each[0] === name ? [i] : []));
        if (rows.length) return [mark(rows.map((i) => trace.x[i]), rows.map((i) => trace.y[i]))];
      }
    }
    return [];
  }

  function mark(x, y) {
    const ring = { symbol: "circle-open", size: 17, color: MARK, line: { width: 3 } };
    return { x, y, type: "scatter", mode: x.length > 1 ? "lines" : "markers", line: { color: MARK, width: 9 }, marker: ring,
      hoverinfo: "skip", showlegend: false };
  }

  function show(names) {
    chosen = names;
    for (const [element, count] of drawn) {
      const own = element.data.slice(0, count);
      Plotly.react(element, [...own, ...marks(element.dataset.figure, own)], element.layout, config);
    }
  }

  const elements = [...document.querySelectorAll(".plot")];
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !drawn.has(entry.target)) {
        watcher.unobserve(entry.target);
        draw(entry.target);
      }
    }
  }, { rootMargin: "400px" });
  elements.forEach((element) => watcher.observe(element));
  dark.addEventListener("change", () => [...drawn.keys()].forEach(draw));
  addEventListener("beforeprint", () => elements.filter((element) => !drawn.has(element)).forEach(draw));
  return { show, onChoose: (call) => { listener = call; } };
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
