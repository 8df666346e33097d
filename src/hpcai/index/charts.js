"use strict";
// Curves of the chosen runs, one chart a measure. Text enters as text nodes alone: no name is ever markup.
const KINDS = [["auc", "Validation AUC"], ["val_loss", "Validation loss"], ["train_loss", "Training loss"]];
const SVG = "http://www.w3.org/2000/svg", WIDTH = 440, HEIGHT = 250, LEFT = 50, RIGHT = 20, TOP = 10, BOTTOM = 34;

function shape(name, facts, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(facts)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function strokeOf(place) { return "k" + (place % 6) + (place % 12 >= 6 ? " dashed" : ""); }

// Round numbers that cover low..high: their steps are 1, 2 or 5 times a power of ten.
function ticks(low, high) {
  if (!(high > low)) { const pad = Math.abs(low) * 0.05 || 1; low -= pad; high += pad; }
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(k => k * power >= rough * 0.999);
  const found = [];
  for (let k = Math.floor(low / step); k * step < high + step * 0.999; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

function drawChart(kind, title, chosen) {
  const lines = chosen.map(run => run.curves[kind]).filter(Boolean);
  const figure = document.createElement("figure"), head = document.createElement("h3");
  head.textContent = title;
  figure.append(head);
  const points = lines.flat();
  const ys = ticks(Math.min(...points.map(p => p[1])), Math.max(...points.map(p => p[1])));
  const xs = ticks(0, Math.max(1, ...points.map(p => p[0])));
  const [x0, x1, y0, y1] = [xs[0], xs[xs.length - 1], ys[0], ys[ys.length - 1]];
  const x = v => (LEFT + (v - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)).toFixed(1);
  const y = v => (HEIGHT - BOTTOM - (v - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)).toFixed(1);
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title} against the step, ${lines.length} runs` });
  for (const v of ys) {
    svg.append(shape("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(v), y2: y(v) }));
    svg.append(shape("text", { x: LEFT - 8, y: y(v), "text-anchor": "end", "dominant-baseline": "middle" }, String(v)));
  }
  for (const v of xs) svg.append(shape("text", { x: x(v), y: HEIGHT - BOTTOM + 17, "text-anchor": "middle" }, v >= 1e4 ? v / 1e3 + "k" : String(v)));
  svg.append(shape("text", { x: WIDTH - RIGHT, y: HEIGHT - 3, "text-anchor": "end" }, "step"));
  chosen.forEach((run, place) => {
    const line = run.curves[kind];
    if (!line) return;
    svg.append(shape("path", { class: strokeOf(place), style: "fill: none", d: "M" + line.map(p => x(p[0]) + " " + y(p[1])).join("L") }));
    if (line.length === 1) svg.append(shape("circle", { class: strokeOf(place), cx: x(line[0][0]), cy: y(line[0][1]), r: 3 }));
  });
  figure.append(svg);
  return figure;
}

function drawCurves(chosen) {
  const made = KINDS.filter(([kind]) => chosen.some(run => run.curves[kind])).map(([kind, title]) => drawChart(kind, title, chosen));
  document.getElementById("charts").replaceChildren(...made);
  document.getElementById("picked").replaceChildren(...chosen.map((run, place) => {
    const item = document.createElement("li"), mark = shape("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" });
    mark.append(shape("path", { class: strokeOf(place), d: "M0 5L26 5" }));
    item.append(mark, document.createTextNode(run.name));
    return item;
  }));
}
