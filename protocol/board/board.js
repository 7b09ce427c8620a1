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

  // Maps values to pixels; the scale is logarithmic if they span more than a factor of 4.
  function scale(values, from, to, pad = 0.06) {
    let low = Math.min(...values), high = Math.max(...values);
    const log = low > 0 && high / low > 4;
    const f = log ? Math.log10 : (x) => x, g = log ? (x) => 10 ** x : (x) => x;
    low = f(low); high = f(high);
    const margin = (high - low) * pad || Math.abs(low) * 0.02 || 0.5;
    low -= margin; high += margin;
    const at = (x) => from + ((f(x) - low) / (high - low)) * (to - from);
    at.ticks = ticks(low, high, log).map(g);
    return at;
  }
  function ticks(low, high, log) {
    const marks = [];
    if (log) {
      const steps = high - low > 3 ? [1] : high - low > 1.2 ? [1, 3] : [1, 2, 5];
      for (let power = Math.floor(low); power <= high; power++)
        for (const m of steps) marks.push(power + Math.log10(m));
    } else {
      const rough = (high - low) / 6, unit = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].find((m) => m * unit >= rough) * unit;
      for (let x = Math.ceil(low / step) * step; x <= high; x += step) marks.push(x);
    }
    return marks.filter((x) => x >= low && x <= high);
  }

  const W = 560, H = 330, BOX = { left: 62, right: 14, top: 10, bottom: 42 };
  function frame(xs, ys, xlabel, ylabel, key = "") {
    const svg = el("svg", { viewBox: `0 0 ${W} ${H}`, role: "img" });
    const x = scale(xs, BOX.left, W - BOX.right), y = scale(ys, H - BOX.bottom, BOX.top);
    for (const t of y.ticks) {
      svg.append(el("path", { class: "axis", d: `M${BOX.left} ${y(t)}H${W - BOX.right}` }));
      svg.append(text(BOX.left - 8, y(t) + 4, short(t), { "text-anchor": "end" }));
    }
    for (const t of x.ticks)
      svg.append(text(x(t), H - BOX.bottom + 18, short(t, key), { "text-anchor": "middle" }));
    svg.append(text((W + BOX.left) / 2, H - 6, xlabel, { "text-anchor": "middle" }));
    const middle = (H - BOX.bottom) / 2;
    svg.append(text(0, 0, ylabel, {
      "text-anchor": "middle", transform: `translate(12 ${middle}) rotate(-90)`,
    }));
    return { svg, x, y };
  }
  const path = (points, x, y) => "M" + points.map(([a, b]) => `${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("L");

  function show(selector, node) {
    const parent = document.querySelector(selector);
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
      const item = document.createElement("li"), dot = document.createElement("i");
      dot.className = `swatch k${row.color}`;
      item.append(dot, row.name);
      if (names.size <= 16) list.append(item);
    }
    return list;
  }
  const visible = (rows) => rows.filter((row) => !hidden.has(row.id));
  const rowsOf = (set) => set.groups.flatMap((group) => visible(group.rows));

  function dots(group, set) {
    const rows = visible(group.rows).filter((row) => row.values.length);
    const figure = document.querySelector(`[data-dots="${group.id}"]`);
    if (rows.length < 2 || rows.length > 40) return figure.replaceChildren();
    const height = 26 * rows.length + 40, left = 210;
    const svg = el("svg", { viewBox: `0 0 860 ${height}`, role: "img" });
    const x = scale(rows.flatMap((row) => [...row.values, ...wide(row)]), left, 846, 0.04);
    for (const t of x.ticks) {
      svg.append(el("path", { class: "axis", d: `M${x(t)} 4V${height - 36}` }));
      svg.append(text(x(t), height - 20, short(t), { "text-anchor": "middle" }));
    }
    const arrow = set.better === "lower" ? "← better" : "better →";
    svg.append(text((left + 846) / 2, height - 2, `${set.metric}   ${arrow}`, { "text-anchor": "middle" }));
    rows.forEach((row, index) => {
      const y = 18 + 26 * index, mark = el("g", { class: `k${row.color}` });
      const name = row.name.length > 28 ? row.name.slice(0, 27) + "…" : row.name;
      mark.append(text(left - 16, y + 4, name, { class: "ink", "text-anchor": "end" }));
      if (row.interval && row.mean !== null)
        mark.append(el("path", { class: "bar", d: `M${x(row.interval[0])} ${y}H${x(row.interval[1])}` }));
      for (const value of row.values)
        mark.append(el("circle", { class: "run", cx: x(value), cy: y, r: 4 }, tip(`run: ${value}`)));
      if (row.mean !== null)
        mark.append(el("circle", { class: "mark", cx: x(row.mean), cy: y, r: 5 }, tip(`${row.name}: mean ${row.mean}`)));
      svg.append(mark);
    });
    figure.replaceChildren(svg);
  }
  // The interval of a row, if it has over two runs: that of two is so wide that it hides the others.
  const wide = (row) => (row.interval && row.values.length > 2 ? row.interval : []);

  function pareto(set) {
    const select = document.querySelector(`[data-pareto-costs="${set.id}"]`), cost = select.value;
    const rows = rowsOf(set).filter((row) => row.mean !== null && row.costs[cost] > 0);
    if (!rows.length) return show(`[data-pareto="${set.id}"]`, null);
    const { svg, x, y } = frame(rows.map((r) => r.costs[cost]), rows.map((r) => r.mean),
      set.pareto_costs[cost], set.metric, cost);
    const sign = set.better === "lower" ? 1 : -1;
    const order = [...rows].sort((a, b) => a.costs[cost] - b.costs[cost] || sign * (a.mean - b.mean));
    const front = [];
    for (const row of order)
      if (!front.length || sign * row.mean < sign * front.at(-1)[1]) front.push([row.costs[cost], row.mean]);
    if (front.length > 1) svg.append(el("path", { class: "front", d: path(front, x, y) }));
    const labeled = [];
    for (const row of rows) {
      const a = x(row.costs[cost]), b = y(row.mean), mark = el("g", { class: `k${row.color}` });
      mark.append(el("circle", { class: "mark", cx: a, cy: b, r: 5 },
        tip(`${row.name}: ${row.mean.toPrecision(5)} at ${short(row.costs[cost], cost)}`)));
      const end = a > W * 0.72, near = ([c, d]) => Math.abs(c - a) < 90 && Math.abs(d - b) < 13;
      if (rows.length <= 24 && row.name.length <= 24 && !labeled.some(near)) {
        mark.append(text(a + (end ? -9 : 9), b + 4, row.name, { "text-anchor": end ? "end" : "start" }));
        labeled.push([a, b]);
      }
      svg.append(mark);
    }
    show(`[data-pareto="${set.id}"]`, [svg, legend(rows)]);
  }

  function curves(set) {
    const rows = rowsOf(set).filter((row) => row.curves.length).slice(0, 200);
    const points = rows.flatMap((row) => row.curves.flat());
    if (!points.length) return show(`[data-curves="${set.id}"]`, null);
    const { svg, x, y } = frame(points.map((p) => p[0]), points.map((p) => p[1]), "tokens",
      rows[0].curve_metric.replaceAll("_", " "));
    for (const row of rows)
      for (const curve of row.curves)
        svg.append(el("path", { class: `line k${row.color}`, d: path(curve, x, y) }, tip(row.name)));
    show(`[data-curves="${set.id}"]`, [svg, legend(rows)]);
  }

  function isoflop(set) {
    const rowsByGroup = set.groups.map((group) => visible(group.rows).filter((r) => r.mean !== null && r.costs.params > 0));
    const rows = rowsByGroup.flat();
    if (!rows.length) return show(`[data-isoflop="${set.id}"]`, null);
    const { svg, x, y } = frame(rows.map((r) => r.costs.params), rows.map((r) => r.mean), "parameters", set.metric);
    const names = [...new Set(rows.map((row) => row.architecture))];
    const entries = [];
    rowsByGroup.forEach((members, index) => {
      for (const name of names) {
        const selected = members.filter((r) => r.architecture === name);
        if (!selected.length) continue;
        const color = names.indexOf(name) % 8, mark = el("g", { class: `k${color}` });
        if (!entries.some((entry) => entry.name === name)) entries.push({ name, color });
        const points = selected.map((r) => [r.costs.params, r.mean]).sort((a, b) => a[0] - b[0]);
        const fit = points.length > 2 ? parabola(points) : points;
        mark.append(el("path", { class: "line", d: path(fit, x, y) }, tip(`${name}, ${set.groups[index].title}`)));
        for (const [a, b] of points) mark.append(el("circle", { class: "mark", cx: x(a), cy: y(b), r: 4 }));
        if (name === names[0]) {
          const [a, b] = points.at(-1);
          svg.append(text(x(a) - 4, y(b) - 9, short(set.groups[index].value || 0, "flops"), { "text-anchor": "end" }));
        }
        svg.append(mark);
      }
    });
    show(`[data-isoflop="${set.id}"]`, [svg, legend(entries)]);
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
    const rows = rowsOf(set).filter((row) => Object.keys(row.probes).length).slice(0, 60);
    const wide = Math.min(110, 380 / set.probes.length), high = 26, left = 170, top = 24;
    const svg = el("svg", { viewBox: `0 0 ${W} ${top + high * rows.length + 6}`, role: "img" });
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
    rows.forEach((row, i) => svg.append(text(left - 10, top + high * i + 18, row.name.slice(0, 24), { class: "ink", "text-anchor": "end" })));
    show(`[data-probes="${set.id}"]`, rows.length ? svg : null);
  }

  function draw() {
    for (const set of data.comparable_sets) {
      for (const group of set.groups) dots(group, set);
      pareto(set); curves(set); isoflop(set); probes(set);
    }
  }

  function sort(header) {
    const table = header.closest("table"), index = [...header.parentNode.children].indexOf(header);
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const sibling of header.parentNode.children) sibling.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (body) => body.rows[0].cells[index].dataset.value;
    const bodies = all("tbody.row", table).map((body, i) => ({ body, i, key: key(body) }));
    bodies.sort((a, b) => {
      if (a.key === "" || b.key === "") return (a.key === "") - (b.key === "") || a.i - b.i;
      const x = Number(a.key), y = Number(b.key);
      const order = Number.isNaN(x) || Number.isNaN(y) ? a.key.localeCompare(b.key, "en", { numeric: true }) : x - y;
      return (down ? -order : order) || a.i - b.i;
    });
    table.append(...bodies.map((item) => item.body));
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
  draw();
})();
