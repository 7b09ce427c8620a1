"use strict";
// Sorts, filters and draws. Text from run folders only ever becomes text nodes.
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
  const text = (x, y, content, more = {}) => el("text", { x, y, ...more }, content);
  const tip = (content) => el("title", {}, content);

  function short(x, key = "") {
    const size = Math.abs(x);
    if (size >= 1e15 || (size >= 1e5 && key.includes("flops")))
      return x.toExponential(2).replace(/\.?0*e\+/, "e");
    for (const [unit, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (size >= unit) return +(x / unit).toPrecision(3) + name;
    return String(+x.toPrecision(4));
  }

  // Values -> pixels; logarithmic where they span more than a factor 4.
  function scale(values, from, to, pad = 0.06) {
    let low = Math.min(...values), high = Math.max(...values);
    const log = low > 0 && high / low > 4;
    const f = log ? Math.log10 : (x) => x, g = log ? (x) => 10 ** x : (x) => x;
    low = f(low); high = f(high);
    const room = (high - low) * pad || Math.abs(low) * 0.02 || 0.5;
    low -= room; high += room;
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

  function place(selector, node) {
    const home = document.querySelector(selector);
    if (!home) return;
    const nothing = document.createElement("p");
    nothing.className = "note";
    nothing.textContent = "Nothing to draw.";
    home.replaceChildren(...(node ? [].concat(node) : [nothing]));
  }
  function legend(rows) {
    const list = document.createElement("ul"), seen = new Set();
    list.className = "legend";
    for (const row of rows) {
      if (seen.has(row.name)) continue;
      seen.add(row.name);
      const item = document.createElement("li"), dot = document.createElement("i");
      dot.className = `swatch k${row.colour}`;
      item.append(dot, row.name);
      if (seen.size <= 16) list.append(item);
    }
    return list;
  }
  const visible = (rows) => rows.filter((row) => !hidden.has(row.id));
  const rowsOf = (family) => family.groups.flatMap((group) => visible(group.rows));

  function dots(group, family) {
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
    const arrow = family.better === "lower" ? "← better" : "better →";
    svg.append(text((left + 846) / 2, height - 2, `${family.metric}   ${arrow}`, { "text-anchor": "middle" }));
    rows.forEach((row, index) => {
      const y = 18 + 26 * index, mark = el("g", { class: `k${row.colour}` });
      const name = row.name.length > 28 ? row.name.slice(0, 27) + "…" : row.name;
      mark.append(text(left - 16, y + 4, name, { class: "ink", "text-anchor": "end" }));
      if (row.interval && row.mean !== null)
        mark.append(el("path", { class: "bar", d: `M${x(row.interval[0])} ${y}H${x(row.interval[1])}` }));
      for (const value of row.values)
        mark.append(el("circle", { class: "run", cx: x(value), cy: y, r: 4 }, tip(`a run: ${value}`)));
      if (row.mean !== null)
        mark.append(el("circle", { class: "mark", cx: x(row.mean), cy: y, r: 5 }, tip(`${row.name}: mean ${row.mean}`)));
      svg.append(mark);
    });
    figure.replaceChildren(svg);
  }
  // An interval, unless it is so wide that it would hide the others (two runs).
  const wide = (row) => (row.interval && row.values.length > 2 ? row.interval : []);

  function pareto(family) {
    const select = document.querySelector(`[data-costs="${family.id}"]`), cost = select.value;
    const rows = rowsOf(family).filter((row) => row.mean !== null && row.amounts[cost] > 0);
    if (!rows.length) return place(`[data-pareto="${family.id}"]`, null);
    const { svg, x, y } = frame(rows.map((r) => r.amounts[cost]), rows.map((r) => r.mean),
      family.costs[cost].split(":")[0], family.metric, cost);
    const sign = family.better === "lower" ? 1 : -1;
    const order = [...rows].sort((a, b) => a.amounts[cost] - b.amounts[cost] || sign * (a.mean - b.mean));
    const front = [];
    for (const row of order)
      if (!front.length || sign * row.mean < sign * front.at(-1)[1]) front.push([row.amounts[cost], row.mean]);
    if (front.length > 1) svg.append(el("path", { class: "front", d: path(front, x, y) }));
    const taken = [];
    for (const row of rows) {
      const a = x(row.amounts[cost]), b = y(row.mean), mark = el("g", { class: `k${row.colour}` });
      mark.append(el("circle", { class: "mark", cx: a, cy: b, r: 5 },
        tip(`${row.name}: ${row.mean.toPrecision(5)} at ${short(row.amounts[cost], cost)}`)));
      const end = a > W * 0.72, near = ([c, d]) => Math.abs(c - a) < 90 && Math.abs(d - b) < 13;
      if (rows.length <= 24 && row.name.length <= 24 && !taken.some(near)) {
        mark.append(text(a + (end ? -9 : 9), b + 4, row.name, { "text-anchor": end ? "end" : "start" }));
        taken.push([a, b]);
      }
      svg.append(mark);
    }
    place(`[data-pareto="${family.id}"]`, [svg, legend(rows)]);
  }

  function curves(family) {
    const rows = rowsOf(family).filter((row) => row.curves.length).slice(0, 200);
    const points = rows.flatMap((row) => row.curves.flat());
    if (!points.length) return place(`[data-curves="${family.id}"]`, null);
    const { svg, x, y } = frame(points.map((p) => p[0]), points.map((p) => p[1]), "tokens",
      rows[0].curve.replaceAll("_", " "));
    for (const row of rows)
      for (const curve of row.curves)
        svg.append(el("path", { class: `line k${row.colour}`, d: path(curve, x, y) }, tip(row.name)));
    place(`[data-curves="${family.id}"]`, [svg, legend(rows)]);
  }

  function isoflop(family) {
    const known = family.groups.map((group) => visible(group.rows).filter((r) => r.mean !== null && r.amounts.params > 0));
    const rows = known.flat();
    if (!rows.length) return place(`[data-isoflop="${family.id}"]`, null);
    const { svg, x, y } = frame(rows.map((r) => r.amounts.params), rows.map((r) => r.mean), "parameters", family.metric);
    const names = [...new Set(rows.map((row) => row.architecture))];
    const shown = [];
    known.forEach((members, index) => {
      for (const name of names) {
        const own = members.filter((r) => r.architecture === name);
        if (!own.length) continue;
        const colour = names.indexOf(name) % 8, mark = el("g", { class: `k${colour}` });
        if (!shown.some((row) => row.name === name)) shown.push({ name, colour });
        const points = own.map((r) => [r.amounts.params, r.mean]).sort((a, b) => a[0] - b[0]);
        const fit = points.length > 2 ? parabola(points) : points;
        mark.append(el("path", { class: "line", d: path(fit, x, y) }, tip(`${name}, ${family.groups[index].title}`)));
        for (const [a, b] of points) mark.append(el("circle", { class: "mark", cx: x(a), cy: y(b), r: 4 }));
        if (name === names[0]) {
          const [a, b] = points.at(-1);
          svg.append(text(x(a) - 4, y(b) - 9, short(family.groups[index].value || 0, "flops"), { "text-anchor": "end" }));
        }
        svg.append(mark);
      }
    });
    place(`[data-isoflop="${family.id}"]`, [svg, legend(shown)]);
  }
  // Least squares of a parabola in the logarithm of the size, as points along it.
  function parabola(points) {
    const u = points.map((p) => Math.log(p[0])), v = points.map((p) => p[1]);
    const c = u.reduce((a, b) => a + b, 0) / u.length;
    const m = [0, 1, 2, 3, 4].map((k) => u.reduce((s, a) => s + (a - c) ** k, 0));
    const r = [0, 1, 2].map((k) => u.reduce((s, a, i) => s + (a - c) ** k * v[i], 0));
    const det = (a) => a[0][0] * (a[1][1] * a[2][2] - a[1][2] * a[2][1]) - a[0][1] * (a[1][0] * a[2][2] - a[1][2] * a[2][0]) + a[0][2] * (a[1][0] * a[2][1] - a[1][1] * a[2][0]);
    const base = [[m[0], m[1], m[2]], [m[1], m[2], m[3]], [m[2], m[3], m[4]]], whole = det(base);
    if (!Number.isFinite(1 / whole)) return points;
    const k = [0, 1, 2].map((j) => det(base.map((row, i) => row.map((a, l) => (l === j ? r[i] : a)))) / whole);
    return Array.from({ length: 41 }, (_, i) => {
      const t = u[0] + ((u.at(-1) - u[0]) * i) / 40 - c;
      return [Math.exp(t + c), k[0] + k[1] * t + k[2] * t * t];
    });
  }

  function probes(family) {
    if (!family.probes.length) return;
    const rows = rowsOf(family).filter((row) => Object.keys(row.probes).length).slice(0, 60);
    const wide = Math.min(110, 380 / family.probes.length), high = 26, left = 170, top = 24;
    const svg = el("svg", { viewBox: `0 0 ${W} ${top + high * rows.length + 6}`, role: "img" });
    family.probes.forEach((name, j) => {
      const label = name.replace("probe/", "");
      svg.append(text(left + wide * (j + 0.5), 14, label.slice(0, Math.max(3, wide / 7)), { "text-anchor": "middle" }));
      const values = rows.map((row) => row.probes[name]).filter((v) => v !== undefined);
      const low = Math.min(...values), high_ = Math.max(...values);
      rows.forEach((row, i) => {
        const value = row.probes[name];
        if (value === undefined) return;
        const share = high_ > low ? (value - low) / (high_ - low) : 0.5;
        const at = { x: left + wide * j + 1, y: top + high * i + 1 };
        svg.append(el("rect", { class: "cell", ...at, width: wide - 2, height: high - 2, rx: 3, opacity: 0.08 + 0.42 * share }, tip(`${row.name}, ${name}: ${value}`)));
        svg.append(text(at.x + wide / 2 - 1, at.y + 17, value.toFixed(3), { class: "ink", "text-anchor": "middle" }));
      });
    });
    rows.forEach((row, i) => svg.append(text(left - 10, top + high * i + 18, row.name.slice(0, 24), { class: "ink", "text-anchor": "end" })));
    place(`[data-probes="${family.id}"]`, rows.length ? svg : null);
  }

  function draw() {
    for (const family of data.families) {
      for (const group of family.groups) dots(group, family);
      pareto(family); curves(family); isoflop(family); probes(family);
    }
  }

  function sort(header) {
    const table = header.closest("table"), index = [...header.parentNode.children].indexOf(header);
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of header.parentNode.children) other.setAttribute("aria-sort", "none");
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

  function filter(wanted) {
    const parts = wanted.toLowerCase().split(/\s+/).filter(Boolean), rows = all("tbody.row");
    hidden.clear();
    for (const row of rows) {
      row.hidden = !parts.every((part) => row.dataset.text.includes(part));
      if (row.hidden) hidden.add(row.id);
    }
    for (const group of all(".group")) group.hidden = all("tbody.row", group).every((row) => row.hidden);
    for (const family of all(".family")) family.hidden = all(".group", family).every((group) => group.hidden);
    document.getElementById("shown").textContent = parts.length ? `${rows.length - hidden.size} of ${rows.length} rows` : "";
    draw();
  }

  for (const row of all(".more")) row.hidden = true;
  for (const button of all(".open")) {
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      const more = document.getElementById(button.getAttribute("aria-controls"));
      more.hidden = !more.hidden;
      button.setAttribute("aria-expanded", String(!more.hidden));
    });
  }
  for (const header of all("thead th")) header.firstElementChild.addEventListener("click", () => sort(header));
  for (const family of data.families) {
    const select = document.querySelector(`[data-costs="${family.id}"]`);
    for (const [key, label] of Object.entries(family.costs)) select.append(new Option(label.split(":")[0], key));
    const spread = (key) => {
      const values = rowsOf(family).map((row) => row.amounts[key]).filter((v) => v > 0);
      return values.length > 1 && Math.max(...values) > 1.02 * Math.min(...values);
    };
    select.value = Object.keys(family.costs).find(spread) || select.value;
    select.addEventListener("change", () => pareto(family));
  }
  document.getElementById("filter").addEventListener("input", (event) => filter(event.target.value));
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  draw();
})();
