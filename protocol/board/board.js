"use strict";
// Sorts and filters the tables and draws the charts. Text from run folders becomes text nodes only.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const hidden = new Set();

  function el(tag, attributes, ...children) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }
  const text = (x, y, content, attributes = {}) => el("text", { x, y, ...attributes }, content);
  const tip = (content) => el("title", {}, content);

  function short(x, key = "") {
    const size = Math.abs(x);
    if (size >= 1e15 || (size >= 1e5 && key.includes("flops")))
      return x.toExponential(2).replace(/\.?0*e\+/, "e");
    for (const [unit, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (size >= unit) return +(x / unit).toPrecision(3) + name;
    return String(+x.toPrecision(4));
  }

  // Maps values to pixels. A scale is logarithmic on request, or if the values span a factor of 4.
  function scale(values, from, to, { pad = 0.06, log = "auto" } = {}) {
    let low = Math.min(...values), high = Math.max(...values);
    const isLog = low > 0 && (log === true || (log === "auto" && high / low > 4));
    const f = isLog ? Math.log10 : (x) => x, g = isLog ? (x) => 10 ** x : (x) => x;
    low = f(low); high = f(high);
    const margin = (high - low) * pad || Math.abs(low) * 0.02 || 0.5;
    low -= margin; high += margin;
    const at = (x) => from + ((f(x) - low) / (high - low)) * (to - from);
    const count = Math.max(2, Math.min(6, Math.floor(Math.abs(to - from) / 62)));
    at.ticks = isLog ? logTicks(low, high, count).map(g) : [];
    if (at.ticks.length < 2) at.ticks = ticks(g(low), g(high), count);
    at.inside = (x) => Math.min(Math.max(at(x), Math.min(from, to)), Math.max(from, to));
    return at;
  }
  function logTicks(low, high, count) {
    for (const steps of [[1, 2, 5], [1, 3], [1]]) {
      const marks = [];
      for (let power = Math.floor(low); power <= high; power++)
        for (const m of steps) marks.push(power + Math.log10(m));
      const inside = marks.filter((x) => x >= low && x <= high);
      if (inside.length <= count + 1) return inside;
    }
    return Array.from({ length: Math.floor(high) - Math.ceil(low) + 1 }, (_, i) => Math.ceil(low) + i)
      .filter((_, i, list) => i % Math.ceil(list.length / count) === 0);
  }
  function ticks(low, high, count) {
    const marks = [], rough = (high - low) / count, unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((m) => m * unit >= rough) * unit;
    for (let x = Math.ceil(low / step) * step; x <= high; x += step) marks.push(x);
    return marks;
  }

  const MARGIN = { left: 62, right: 14, top: 10, bottom: 42 };
  // A chart as wide as its place on the page, so that its text is as large as the text around it.
  function frame(parent, xs, ys, xlabel, ylabel, { key = "", logX = "auto", logY = "auto" } = {}) {
    const W = widthOf(parent), H = Math.round(Math.min(330, 150 + W * 0.33));
    const svg = el("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${ylabel} over ${xlabel}` });
    const right = W - MARGIN.right, bottom = H - MARGIN.bottom;
    const x = scale(xs, MARGIN.left, right, { log: logX }), y = scale(ys, bottom, MARGIN.top, { log: logY });
    for (const t of y.ticks) {
      svg.append(el("path", { class: "axis", d: `M${MARGIN.left} ${y(t)}H${right}` }));
      svg.append(text(MARGIN.left - 8, y(t) + 4, short(t), { "text-anchor": "end" }));
    }
    for (const t of x.ticks)
      svg.append(text(x(t), bottom + 18, short(t, key), { "text-anchor": "middle" }));
    svg.append(text((W + MARGIN.left) / 2, H - 6, xlabel, { "text-anchor": "middle" }));
    svg.append(text(0, 0, ylabel, {
      "text-anchor": "middle", transform: `translate(12 ${bottom / 2}) rotate(-90)`,
    }));
    return { svg, x, y, W, right };
  }
  const widthOf = (parent) => Math.round(Math.min(Math.max(parent?.clientWidth || 560, 260), 1000));
  const path = (points, x, y) => "M" + points.map(([a, b]) => `${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("L");

  // The shape of a mark goes with its color, so that rows differ without colors too.
  const SHAPES = [
    (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
    (x, y, r) => `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    (x, y, r) => `M${x} ${y - 1.3 * r}L${x + 1.2 * r} ${y + r}H${x - 1.2 * r}z`,
    (x, y, r) => `M${x} ${y - 1.4 * r}L${x + 1.4 * r} ${y}L${x} ${y + 1.4 * r}L${x - 1.4 * r} ${y}z`,
  ];
  const dot = (row, x, y, r, kind, ...children) =>
    el("path", { class: kind, d: SHAPES[row.color % SHAPES.length](x, y, r) }, ...children);
  // An interval as a line; an end outside of the plot is cut there and drawn as an arrow.
  function whisker(low, high, at, from, to, across, vertical = false) {
    const ends = [at(low), at(high)].sort((a, b) => a - b), cut = ends.map((v) => Math.min(Math.max(v, from), to));
    const point = (along, off = 0) => (vertical ? `${across + off} ${along}` : `${along} ${across + off}`);
    const arrow = (i, turn) => (ends[i] === cut[i] ? "" : `M${point(cut[i] + turn, -4)}L${point(cut[i])}L${point(cut[i] + turn, 4)}`);
    return el("path", { class: "bar", d: `M${point(cut[0])}L${point(cut[1])}${arrow(0, 5)}${arrow(1, -5)}` });
  }
  // Baselines that lie near the values; the others would leave the values no room.
  function near(lines, values) {
    const low = Math.min(...values), high = Math.max(...values), room = Math.max(high - low, 0.05 * Math.abs(low));
    return lines.filter((line) => line.value > low - room && line.value < high + room);
  }
  function levels(chart, lines) {
    lines.forEach((line, index) => {
      const y = chart.y(line.value);
      chart.svg.append(el("path", { class: "level", d: `M${MARGIN.left} ${y}H${chart.right}` }, tip(`${line.label}: ${line.value}`)));
      const end = index % 2 ? { x: MARGIN.left + 4, anchor: "start" } : { x: chart.right - 4, anchor: "end" };
      chart.svg.append(text(end.x, y - 4, line.label, { "text-anchor": end.anchor }));
    });
  }

  function show(parent, node) {
    if (!parent) return;
    const nothing = document.createElement("p");
    nothing.className = "note";
    nothing.textContent = "Nothing to draw.";
    parent.replaceChildren(...(node ? [].concat(node) : [nothing]));
  }
  function legend(rows) {
    const list = document.createElement("ul"), names = new Set();
    list.className = "legend";
    for (const row of rows) {
      if (names.has(row.name)) continue;
      names.add(row.name);
      const item = document.createElement("li"), mark = el("svg", { viewBox: "0 0 12 12", class: `key k${row.color}` });
      mark.append(dot(row, 6, 6, 4, "mark"));
      item.append(mark, row.name);
      if (names.size <= 16) list.append(item);
    }
    return list;
  }
  const find = (name, id) => document.querySelector(`[data-${name}="${id}"]`);
  const visible = (rows) => rows.filter((row) => !hidden.has(row.id));
  const rowsOf = (set) => set.groups.flatMap((group) => visible(group.rows));
  const linesOf = (set) => set.groups.length === 1 ? set.groups[0].baselines : [];

  function dots(group, set) {
    const rows = visible(group.rows).filter((row) => row.values.length), figure = find("dots", group.id);
    if (rows.length < 2 || rows.length > 40) return figure.replaceChildren();
    const W = widthOf(figure), narrow = W < 560, high = narrow ? 42 : 26, shift = narrow ? 16 : 0;
    const places = Math.max(0, ...rows.map((row) => (row.rank ? row.rank[1] : 0)));
    const ranks = places > 1 && places <= 12 && !narrow ? 18 * places + 34 : 0;
    const left = narrow ? 10 : Math.min(210, W * 0.26), right = W - 14 - ranks;
    const values = rows.flatMap((row) => [...row.values, ...wide(row)]), lines = near(group.baselines, values);
    const top = 6 + 14 * lines.length, bottom = top + high * rows.length + 4;
    const svg = el("svg", { viewBox: `0 0 ${W} ${bottom + 38}`, role: "img", "aria-label": `${set.metric} of each run` });
    const x = scale([...values, ...lines.map((line) => line.value)], left, right, { pad: 0.04 });
    for (const t of x.ticks) {
      svg.append(el("path", { class: "axis", d: `M${x(t)} ${top}V${bottom}` }));
      svg.append(text(x(t), bottom + 16, short(t), { "text-anchor": "middle" }));
    }
    lines.forEach((line, index) => {
      const at = x(line.value), y = 12 + 14 * index, end = at > (left + right) / 2;
      svg.append(el("path", { class: "level", d: `M${at} ${y - 8}V${bottom}` }, tip(`${line.label}: ${line.value}`)));
      svg.append(text(at + (end ? -5 : 5), y, `${line.label} ${short(line.value)}`, { "text-anchor": end ? "end" : "start" }));
    });
    const arrow = set.better === "lower" ? "← better" : "better →";
    svg.append(text((left + right) / 2, bottom + 34, `${set.metric}   ${arrow}`, { "text-anchor": "middle" }));
    rows.forEach((row, index) => {
      const y = top + high * index + 14 + shift, mark = el("g", { class: `k${row.color}` });
      const room = Math.floor((narrow ? W : left - 16) / 7), name = row.name.length > room ? row.name.slice(0, room - 1) + "…" : row.name;
      const label = narrow ? text(left, y - 13, name, { class: "ink" }) : text(left - 16, y + 4, name, { class: "ink", "text-anchor": "end" });
      mark.append(label);
      if (row.interval && row.mean !== null) mark.append(whisker(...row.interval, x, left, right, y));
      for (const value of row.values) mark.append(dot(row, x(value), y, 3.5, "run", tip(`run: ${value}`)));
      if (row.mean !== null) mark.append(dot(row, x(row.mean), y, 5, "mark", tip(`${row.name}: mean ${row.mean}`)));
      if (ranks) rankCells(mark, row, right + 24, y, places);
      svg.append(mark);
    });
    if (ranks) svg.append(text(right + 24 + 9 * places, bottom + 34, "places", { "text-anchor": "middle" }));
    for (let place = 1; ranks && place <= places; place++)
      svg.append(text(right + 15 + 18 * place, bottom + 16, place, { "text-anchor": "middle" }));
    figure.replaceChildren(svg);
  }
  // The places that a row may have, as filled cells of a line.
  function rankCells(mark, row, left, y, places) {
    for (let place = 1; place <= places; place++) {
      const filled = row.rank && row.rank[0] <= place && place <= row.rank[1];
      const box = { x: left + 18 * (place - 1), y: y - 6, width: 18, height: 12 };
      mark.append(el("rect", { class: filled ? "place" : "places", ...box }, tip(`${row.name}: ${row.place || "not ranked"}`)));
    }
  }
  // The interval of a row, if it has over two runs: that of two is so wide that it hides the others.
  const wide = (row) => (row.interval && row.values.length > 2 ? row.interval : []);

  function pareto(set) {
    const cost = find("pareto-costs", set.id).value, parent = find("pareto", set.id);
    const rows = rowsOf(set).filter((row) => row.mean !== null && row.costs[cost] > 0);
    if (!rows.length) return show(parent, null);
    const values = rows.flatMap((row) => [row.mean, ...wide(row)]), lines = near(linesOf(set), values);
    const chart = frame(parent, rows.map((r) => r.costs[cost]), [...values, ...lines.map((line) => line.value)],
      set.pareto_costs[cost], set.metric, { key: cost, logX: true });
    const { svg, x, y, W } = chart, sign = set.better === "lower" ? 1 : -1;
    levels(chart, lines);
    const order = [...rows].sort((a, b) => a.costs[cost] - b.costs[cost] || sign * (a.mean - b.mean)), front = [];
    for (const row of order)
      if (!front.length || sign * row.mean < sign * front.at(-1)[1]) front.push([row.costs[cost], row.mean]);
    const steps = front.flatMap((point, i) => (i ? [[point[0], front[i - 1][1]], point] : [point]));
    if (front.length > 1) svg.append(el("path", { class: "front", d: path(steps, x, y) }));
    const labeled = [], edges = [MARGIN.top, y(Math.min(...values)) + 12];
    for (const row of rows) {
      const a = x(row.costs[cost]), b = y(row.mean), mark = el("g", { class: `k${row.color}` });
      if (wide(row).length) mark.append(whisker(...row.interval, y, ...edges, a, true));
      mark.append(dot(row, a, b, 5, "mark", tip(`${row.name}: ${row.mean.toPrecision(5)} at ${short(row.costs[cost], cost)}`)));
      const end = a > W * 0.72, close = ([c, d]) => Math.abs(c - a) < 90 && Math.abs(d - b) < 13;
      if (rows.length <= 24 && row.name.length <= 24 && !labeled.some(close)) {
        mark.append(text(a + (end ? -9 : 9), b + 4, row.name, { "text-anchor": end ? "end" : "start" }));
        labeled.push([a, b]);
      }
      svg.append(mark);
    }
    show(parent, [svg, legend(rows)]);
  }

  // The mean over the runs of a row, and the lowest and the highest run, at the points of the first.
  function band(row) {
    const at = (curve, x) => {
      const i = curve.findIndex((point) => point[0] >= x);
      if (i < 0) return null;
      if (i === 0 || curve[i][0] === x) return curve[i][0] === x ? curve[i][1] : null;
      const [[a, b], [c, d]] = [curve[i - 1], curve[i]];
      return b + ((d - b) * (x - a)) / (c - a);
    };
    return row.curves[0].map(([x]) => [x, row.curves.map((curve) => at(curve, x)).filter((v) => v !== null)])
      .filter(([, values]) => values.length === row.curves.length)
      .map(([x, values]) => [x, values.reduce((a, b) => a + b, 0) / values.length, Math.min(...values), Math.max(...values)]);
  }
  function curves(parent, allRows, lines) {
    const rows = allRows.filter((row) => row.curves.length).slice(0, 200);
    const bands = rows.map(band), points = bands.flat();
    if (!points.length) return show(parent, null);
    const metric = rows[0].curve_metric, levelsShown = metric === "bits_per_byte" ? near(lines, points.map((p) => p[1])) : [];
    const chart = frame(parent, points.map((p) => p[0]), [...points.flatMap((p) => [p[2], p[3]]), ...levelsShown.map((line) => line.value)], "tokens",
      metric.replaceAll("_", " "), { logX: true });
    levels(chart, levelsShown);
    rows.forEach((row, index) => {
      const mean = bands[index];
      if (!mean.length) return;
      const edge = [...mean.map((p) => [p[0], p[3]]), ...mean.map((p) => [p[0], p[2]]).reverse()];
      if (row.curves.length > 1) chart.svg.append(el("path", { class: `band k${row.color}`, d: path(edge, chart.x, chart.y) + "z" }));
      chart.svg.append(el("path", { class: `line k${row.color}`, d: path(mean, chart.x, chart.y) }, tip(row.name)));
    });
    show(parent, [chart.svg, legend(rows)]);
  }

  function isoflop(set) {
    const parent = find("isoflop", set.id);
    const rowsByGroup = set.groups.map((group) => visible(group.rows).filter((r) => r.mean !== null && r.costs.params > 0));
    const rows = rowsByGroup.flat();
    if (!parent || !rows.length) return show(parent, null);
    const { svg, x, y } = frame(parent, rows.map((r) => r.costs.params), rows.map((r) => r.mean), "parameters", set.metric, { logX: true });
    const names = [...new Set(rows.map((row) => row.architecture))], entries = [];
    rowsByGroup.forEach((members, index) => {
      for (const name of names) {
        const selected = members.filter((r) => r.architecture === name);
        if (!selected.length) continue;
        const color = names.indexOf(name) % 8, mark = el("g", { class: `k${color}` });
        if (!entries.some((entry) => entry.name === name)) entries.push({ name, color });
        const points = selected.map((r) => [r.costs.params, r.mean]).sort((a, b) => a[0] - b[0]);
        const fit = points.length > 2 ? parabola(points) : points;
        mark.append(el("path", { class: "line", d: path(fit, x, y) }, tip(`${name}, ${set.groups[index].title}`)));
        for (const [a, b] of points) mark.append(dot({ color }, x(a), y(b), 4, "mark"));
        if (name === names[0]) {
          const [a, b] = points.at(-1);
          svg.append(text(x(a) - 4, y(b) - 9, short(set.groups[index].value || 0, "flops"), { "text-anchor": "end" }));
        }
        svg.append(mark);
      }
    });
    show(parent, [svg, legend(entries)]);
  }
  // Fits a parabola in the logarithm of the size by least squares; returns points along it.
  function parabola(points) {
    const u = points.map((p) => Math.log(p[0])), v = points.map((p) => p[1]);
    const c = u.reduce((a, b) => a + b, 0) / u.length;
    const m = [0, 1, 2, 3, 4].map((k) => u.reduce((s, a) => s + (a - c) ** k, 0));
    const r = [0, 1, 2].map((k) => u.reduce((s, a, i) => s + (a - c) ** k * v[i], 0));
    const det = (a) => a[0][0] * (a[1][1] * a[2][2] - a[1][2] * a[2][1]) - a[0][1] * (a[1][0] * a[2][2] - a[1][2] * a[2][0]) + a[0][2] * (a[1][0] * a[2][1] - a[1][1] * a[2][0]);
    const base = [[m[0], m[1], m[2]], [m[1], m[2], m[3]], [m[2], m[3], m[4]]], determinant = det(base);
    if (!Number.isFinite(1 / determinant)) return points;
    const k = [0, 1, 2].map((j) => det(base.map((row, i) => row.map((a, l) => (l === j ? r[i] : a)))) / determinant);
    return Array.from({ length: 41 }, (_, i) => {
      const t = u[0] + ((u.at(-1) - u[0]) * i) / 40 - c;
      return [Math.exp(t + c), k[0] + k[1] * t + k[2] * t * t];
    });
  }

  function probes(set) {
    if (!set.probes.length) return;
    const parent = find("probes", set.id), W = widthOf(parent), left = Math.min(170, W * 0.35);
    const rows = rowsOf(set).filter((row) => Object.keys(row.probes).length).slice(0, 60);
    const wide = Math.min(110, (W - left - 10) / set.probes.length), high = 26, top = 24;
    const svg = el("svg", { viewBox: `0 0 ${W} ${top + high * rows.length + 6}`, role: "img", "aria-label": "probes" });
    set.probes.forEach((name, j) => {
      const label = name.replace("probe/", "");
      svg.append(text(left + wide * (j + 0.5), 14, label.slice(0, Math.max(3, wide / 7)), { "text-anchor": "middle" }));
      const values = rows.map((row) => row.probes[name]).filter((v) => v !== undefined);
      const low = Math.min(...values), high_ = Math.max(...values);
      rows.forEach((row, i) => {
        const value = row.probes[name];
        if (value === undefined) return;
        const share = high_ > low ? (value - low) / (high_ - low) : 0.5;
        const corner = { x: left + wide * j + 1, y: top + high * i + 1 };
        svg.append(el("rect", { class: "cell", ...corner, width: wide - 2, height: high - 2, rx: 3, opacity: 0.08 + 0.42 * share }, tip(`${row.name}, ${name}: ${value}`)));
        svg.append(text(corner.x + wide / 2 - 1, corner.y + 17, value.toFixed(3), { class: "ink", "text-anchor": "middle" }));
      });
    });
    rows.forEach((row, i) => svg.append(text(left - 10, top + high * i + 18, row.name.slice(0, Math.floor(left / 7)), { class: "ink", "text-anchor": "end" })));
    show(parent, rows.length ? svg : null);
  }

  function draw() {
    for (const set of data.comparable_sets) {
      for (const group of set.groups) dots(group, set);
      pareto(set); isoflop(set); probes(set);
      curves(find("curves", set.id), rowsOf(set), linesOf(set));
    }
    const everything = document.querySelector("[data-all-curves]"), rows = data.comparable_sets.flatMap(rowsOf);
    const metric = rows.find((row) => row.curves.length)?.curve_metric;
    if (everything) curves(everything, rows.filter((row) => row.curve_metric === metric).map((row, color) => ({ ...row, color: color % 8 })), []);
  }

  function sort(header) {
    const table = header.closest("table"), index = [...header.parentNode.children].indexOf(header);
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const sibling of header.parentNode.children) sibling.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (body) => body.rows[0].cells[index].dataset.value ?? "";
    const bodies = all("tbody.row", table).map((body, i) => ({ body, i, key: key(body) }));
    bodies.sort((a, b) => {
      if (a.key === "" || b.key === "") return (a.key === "") - (b.key === "") || a.i - b.i;
      const x = Number(a.key), y = Number(b.key);
      const order = Number.isNaN(x) || Number.isNaN(y) ? a.key.localeCompare(b.key, "en", { numeric: true }) : x - y;
      return (down ? -order : order) || a.i - b.i;
    });
    table.tHead.after(...bodies.map((item) => item.body));
  }

  function filter(query) {
    const parts = query.toLowerCase().split(/\s+/).filter(Boolean), rows = all("tbody.row");
    hidden.clear();
    for (const row of rows) {
      row.hidden = !parts.every((part) => row.dataset.text.includes(part));
      if (row.hidden) hidden.add(row.id);
    }
    for (const group of all(".group")) group.hidden = all("tbody.row", group).every((row) => row.hidden);
    for (const set of all(".set")) set.hidden = all(".group", set).every((group) => group.hidden);
    document.getElementById("shown").textContent = parts.length ? `${rows.length - hidden.size} of ${rows.length} rows` : "";
    draw();
  }

  for (const row of all(".more")) row.hidden = true;
  for (const button of all(".open")) {
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      const details = document.getElementById(button.getAttribute("aria-controls"));
      details.hidden = !details.hidden;
      button.setAttribute("aria-expanded", String(!details.hidden));
    });
  }
  for (const header of all("thead th")) header.firstElementChild.addEventListener("click", () => sort(header));
  for (const set of data.comparable_sets) {
    const select = document.querySelector(`[data-pareto-costs="${set.id}"]`);
    for (const [key, label] of Object.entries(set.pareto_costs)) select.append(new Option(label, key));
    const spread = (key) => {
      const values = rowsOf(set).map((row) => row.costs[key]).filter((v) => v > 0);
      return values.length > 1 && Math.max(...values) > 1.02 * Math.min(...values);
    };
    select.value = Object.keys(set.pareto_costs).find(spread) || select.value;
    select.addEventListener("change", () => pareto(set));
  }
  document.getElementById("filter").addEventListener("input", (event) => filter(event.target.value));
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  for (const button of all("[data-wide]")) button.addEventListener("click", () => {
    const table = document.getElementById(button.dataset.wide), isWide = table.classList.toggle("wide");
    button.textContent = isWide ? "Fewer columns" : "All columns";
  });
  let last = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== last) { last = innerWidth; draw(); } });
  draw();
})();
