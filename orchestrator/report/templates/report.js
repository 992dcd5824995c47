"use strict";
// The table of all points: filtered, sorted, drawn only where it is seen; and the details of the chosen one.

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = Object.fromEntries(data.columns.map((name, i) => [name, i]));
  const rows = data.rows;
  const byName = new Map(rows.map((row) => [row[at.name], row]));
  const scroll = document.getElementById("scroll");
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const query = document.getElementById("query");
  const ROW = 30; // px, as the style sheet has it
  const SPARE = 8; // rows drawn above and below what is seen

  const percent = (value) => (value === null ? "" : (100 * value).toFixed(2));
  const plain = (value) => (value === null || value === undefined ? "" : String(value));
  const setting = (row, key) => (row[at.changed] && key in row[at.changed] ? row[at.changed][key] : data.runs[row[at.owner]].settings[key]) ?? null;
  const columns = [
    { key: "run", value: (row) => row[at.name], text: plain },
    { key: "kind", value: (row) => row[at.kind], text: plain },
    { key: "front", value: (row) => row[at.front], text: (value) => (value ? "●" : "") },
    { key: "accuracy", label: "accuracy %", number: true, value: (row) => row[at.accuracy], text: percent, scale: 100 },
    { key: "test", label: "test %", number: true, value: (row) => row[at.test_accuracy], text: percent, scale: 100 },
    { key: "macs", label: "MACs %", number: true, value: (row) => row[at.macs_ratio], text: percent, scale: 100 },
    { key: "params", label: "params %", number: true, value: (row) => row[at.params_ratio], text: percent, scale: 100 },
    { key: "latency", label: "latency ms", number: true, value: (row) => row[at.latency_ms], text: plain },
    ...data.settings.map((key) => {
      const number = rows.some((row) => typeof setting(row, key) === "number");
      return { key, number, value: (row) => setting(row, key), text: (value) => (typeof value === "number" ? String(+value.toPrecision(4)) : plain(value)) };
    }),
  ].filter((column) => column.key !== "latency" || rows.some((row) => row[at.latency_ms] !== null));
  const columnOf = new Map(columns.map((column) => [column.key.toLowerCase(), column]));

  const kinds = [...new Set(rows.map((row) => row[at.kind]))];
  const state = { sort: "accuracy", down: true, hidden: new Set(), frontOnly: false, shown: rows, chosen: null };

  // one word of the query as a test of a row: `key>number`, `key<number`, `key=value`, or text that name or settings hold
  function condition(word) {
    const found = /^([^<>=]+)(<=|>=|<|>|=)(.+)$/.exec(word);
    const column = found && columnOf.get(found[1]);
    if (!column) {
      const searched = columns.filter((each) => !each.number);
      return (row) => searched.some((each) => plain(each.value(row)).toLowerCase().includes(word));
    }
    const [, , operator, wanted] = found;
    const limit = Number(wanted);
    return (row) => {
      const value = column.value(row);
      if (value === null) return false;
      if (typeof value !== "number" || Number.isNaN(limit)) return operator === "=" && plain(value).toLowerCase() === wanted;
      const scaled = value * (column.scale || 1);
      if (operator === "<") return scaled < limit;
      if (operator === ">") return scaled > limit;
      if (operator === "<=") return scaled <= limit;
      return operator === ">=" ? scaled >= limit : Math.abs(scaled - limit) <= 1e-4 * Math.abs(limit);
    };
  }

  function refresh() {
    const conditions = query.value.toLowerCase().split(/\s+/).filter(Boolean).map(condition);
    state.shown = rows.filter((row) => !state.hidden.has(row[at.kind]) && (!state.frontOnly || row[at.front]) && conditions.every((test) => test(row)));
    const column = columnOf.get(state.sort);
    const keyed = state.shown.map((row) => [column.value(row), row]);
    const sign = state.down ? -1 : 1;
    keyed.sort(([a], [b]) => {
      if (a === b) return 0;
      if (a === null || b === null) return a === null ? 1 : -1; // what is not known comes last, either way
      return sign * (typeof a === typeof b ? (a < b ? -1 : 1) : typeof a === "number" ? -1 : 1);
    });
    state.shown = keyed.map(([, row]) => row);
    document.getElementById("shown").textContent = `${state.shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} points`;
    table.setAttribute("aria-rowcount", state.shown.length + 1);
    for (const cell of table.tHead.querySelectorAll("th")) {
      const own = cell.dataset.key === state.sort;
      cell.setAttribute("aria-sort", own ? (state.down ? "descending" : "ascending") : "none");
      cell.querySelector("span").textContent = own ? (state.down ? " ▼" : " ▲") : "";
    }
    drawRows();
  }

  function drawRows() {
    const first = Math.max(0, Math.floor(scroll.scrollTop / ROW) - SPARE);
    const last = Math.min(state.shown.length, Math.ceil((scroll.scrollTop + scroll.clientHeight) / ROW) + SPARE);
    const drawn = state.shown.slice(first, last).map((row, i) => drawRow(row, first + i));
    body.replaceChildren(spacer(first), ...drawn, spacer(state.shown.length - last));
  }

  function spacer(count) {
    const row = element("tr", { className: "spacer" });
    const cell = row.appendChild(element("td", { colSpan: columns.length }));
    cell.style.height = `${count * ROW}px`;
    return row;
  }

  function drawRow(row, place) {
    const drawn = element("tr", {});
    drawn.dataset.name = row[at.name];
    drawn.setAttribute("aria-rowindex", place + 2);
    drawn.setAttribute("aria-selected", row[at.name] === state.chosen);
    for (const column of columns) drawn.append(element("td", { textContent: column.text(column.value(row)), className: column.number ? "number" : "" }));
    return drawn;
  }

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function choose(name) {
    const row = byName.get(name);
    if (!row) return;
    state.chosen = name;
    if (!state.shown.includes(row)) { // what was clicked in a picture is shown, whatever the filters
      state.hidden.clear();
      state.frontOnly = false;
      query.value = "";
      document.querySelectorAll("#kinds input").forEach((box) => { box.checked = box.value !== "front"; });
      refresh();
    }
    const top = state.shown.indexOf(row) * ROW;
    if (top < scroll.scrollTop || top + 2 * ROW > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = top - scroll.clientHeight / 2;
    drawRows();
    showDetails(row);
    plots.show([name, row[at.owner], data.runs[row[at.owner]].source].filter(Boolean));
    try {
      history.replaceState(null, "", `#${encodeURIComponent(name)}`);
    } catch { /* a page inside another, as MLflow shows artifacts, may have no address of its own */ }
  }

  function showDetails(row) {
    const run = data.runs[row[at.owner]];
    const facts = [["kind", row[at.kind]]];
    if (row[at.owner] !== row[at.name]) facts.push(["cut of", row[at.owner]]);
    if (row[at.front]) facts.push(["on the front", "yes"]);
    const figures = [["accuracy", row[at.accuracy]], ["test accuracy", row[at.test_accuracy]], ["MACs", row[at.macs_ratio], row[at.macs]], ["parameters", row[at.params_ratio], row[at.params]]];
    for (const [label, part, whole] of figures) {
      if (part !== null) facts.push([label, `${percent(part)} %${whole === undefined ? "" : ` (${whole.toLocaleString("en")})`}`]);
    }
    if (row[at.latency_ms] !== null) facts.push(["latency", `${row[at.latency_ms]} ms`]);
    const hidden = new Set(["settings", "ranks", "error"]);
    if (row[at.owner] !== row[at.name]) ["val_accuracy", "val_loss", "rank_ratio", "score"].forEach((key) => hidden.add(key)); // the trial's own cut's
    for (const [key, value] of Object.entries(run)) if (!hidden.has(key) && value !== "") facts.push([key.replaceAll("_", " "), value]);
    const parts = [element("h2", { textContent: row[at.name] }), list(facts)];
    const settings = data.settings.map((key) => [key, setting(row, key)]).filter(([, value]) => value !== null);
    if (settings.length) parts.push(element("h3", { textContent: "Settings" }), list(settings));
    if (run.ranks && row[at.owner] === row[at.name]) parts.push(element("h3", { textContent: "Ranks" }), list(Object.entries(run.ranks)));
    if (run.error) parts.push(element("h3", { textContent: "Error" }), element("pre", { textContent: run.error }));
    document.getElementById("details").replaceChildren(...parts);
  }

  function list(pairs) {
    return element("dl", { className: "facts" }, ...pairs.flatMap(([key, value]) => [element("dt", { textContent: key }), element("dd", { textContent: plain(value) })]));
  }

  function step(by) {
    const place = state.shown.findIndex((row) => row[at.name] === state.chosen);
    const next = state.shown[Math.min(state.shown.length - 1, Math.max(0, place + by))];
    if (next) choose(next[at.name]);
  }

  const head = table.tHead.appendChild(element("tr", {}));
  for (const column of columns) {
    const button = element("button", { type: "button" }, column.label || column.key, element("span", {}));
    const cell = head.appendChild(element("th", { className: column.number ? "number" : "", scope: "col" }, button));
    cell.dataset.key = column.key.toLowerCase();
    button.addEventListener("click", () => {
      const own = cell.dataset.key === state.sort;
      Object.assign(state, { sort: cell.dataset.key, down: own ? !state.down : Boolean(column.number || column.key === "front") });
      scroll.scrollTop = 0;
      refresh();
    });
  }
  const chips = document.getElementById("kinds");
  for (const kind of [...kinds, "front"]) {
    const only = kind === "front";
    const number = rows.filter((row) => (only ? row[at.front] : row[at.kind] === kind)).length;
    const box = element("input", { type: "checkbox", value: kind, checked: !only });
    box.addEventListener("change", () => {
      if (only) state.frontOnly = box.checked;
      else state.hidden[box.checked ? "delete" : "add"](kind);
      scroll.scrollTop = 0;
      refresh();
    });
    chips.append(element("label", { className: "chip" }, box, `${only ? "on the front only" : kind} (${number})`));
  }
  query.addEventListener("input", () => { scroll.scrollTop = 0; refresh(); });
  scroll.addEventListener("scroll", () => requestAnimationFrame(drawRows), { passive: true });
  scroll.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by) { event.preventDefault(); step(by); }
  });
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-name]");
    if (row) choose(row.dataset.name);
  });
  const chooseFromAddress = () => choose(decodeURIComponent(location.hash.slice(1)));
  addEventListener("hashchange", chooseFromAddress);
  plots.onChoose(choose);
  refresh();
  chooseFromAddress();
})();
