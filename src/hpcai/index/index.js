// The table that sorts and filters, and which runs' curves are drawn.
(() => {
  const MOST = 12; // runs in a chart: more cannot be told apart
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = id => document.getElementById(id);
  const body = byId("table").tBodies[0], rows = [...body.rows].filter(row => row.dataset.i !== undefined);
  const texts = new Map(rows.map(row => [row, row.textContent.toLowerCase()]));
  const sweepsOf = new Map(rows.map(row => [row, JSON.parse(row.dataset.sweeps)]));
  const picked = []; // numbers of runs, in the order in which they were chosen

  // ---- filters
  const filters = ["find", "experiment", "sweep", "state"].map(byId);
  function filter() {
    const [words, experiment, sweep, state] = filters.map(f => f.value);
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const fits = (!experiment || row.dataset.experiment === experiment) && (!state || row.dataset.state === state)
        && (!sweep || sweepsOf.get(row).includes(sweep)) && wanted.every(word => texts.get(row).includes(word));
      row.hidden = !fits;
      shown += fits;
    }
    byId("count").textContent = `${shown} of ${rows.length} shown`;
  }
  filters.forEach(f => f.addEventListener("input", filter));
  byId("filters").addEventListener("submit", event => event.preventDefault());
  byId("clear").addEventListener("click", () => { filters.forEach(f => { f.value = ""; }); filter(); });
  for (const button of document.querySelectorAll("button.only")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      filters.forEach(f => { f.value = f.id === "sweep" ? button.dataset.sweep : ""; });
      filter();
      byId("runs").scrollIntoView();
      byId("sweep").focus({ preventScroll: true });
    });
  }

  // ---- sorting: numbers by size, then texts; what is not known comes last either way
  const inOrder = new Intl.Collator(undefined, { numeric: true }).compare;
  function value(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    const text = cell.textContent.trim();
    return text === "–" || text === "" ? null : text;
  }
  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number" || typeof b === "number") return typeof a === "number" ? -1 : 1;
    return inOrder(a, b);
  }
  function sort(head) {
    const descending = head.dataset.sort === "n" ? head.ariaSort !== "descending" : head.ariaSort === "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const keyed = rows.map((row, k) => [value(row, head.cellIndex), k, row]);
    keyed.sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      return (descending ? compare(b, a) : compare(a, b)) || i - j;
    });
    body.append(...keyed.map(([, , row]) => row));
  }
  for (const head of byId("table").tHead.rows[0].cells) {
    if (head.dataset.sort === undefined) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(head));
  }

  // ---- curves
  function pick(box, number) {
    if (box.checked && picked.length >= MOST) {
      box.checked = false;
      byId("told").textContent = `${MOST} runs at most: take one away first.`;
      return;
    }
    if (box.checked) picked.push(number); else picked.splice(picked.indexOf(number), 1);
    byId("told").textContent = picked.length ? "" : "Choose runs in the table's first column.";
    drawCurves(picked.map(k => data.runs[k]));
  }
  for (const row of rows) {
    const number = Number(row.dataset.i), run = data.runs[number];
    if (!Object.keys(run.curves).length) continue;
    const box = document.createElement("input");
    box.type = "checkbox";
    box.setAttribute("aria-label", `curves of ${run.name}`);
    if (data.first.includes(number)) box.checked = true;
    box.addEventListener("change", () => pick(box, number));
    row.cells[0].append(box);
  }
  picked.push(...data.first);
  byId("filters").hidden = false;
  byId("plain").remove();
  byId("curves").hidden = !picked.length;
  if (picked.length) drawCurves(picked.map(k => data.runs[k]));
  filter();
})();
