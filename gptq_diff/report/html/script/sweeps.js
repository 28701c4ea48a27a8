/* Stretches of numbers (prompt lengths, rows of a call) that gave one verdict, a strip for each backend. */
const looks = (status) => (["agree", "ok"].includes(status) ? "good" : ["incomplete", "nondeterministic", "inherited"].includes(status) ? "unsure" : "bad");
const HIGH = 54;

/* rows: [{name, ranges: [{first, last, status, texts, title}]}], of texts the first that fits; step: between two numbers. */
function strips(rows, { first, last, step, label, width, bare = false }) {
  const half = step / 2;
  const all = rows.flatMap((row, y) => row.ranges.map((range) => ({ ...range, y, sign: SIGNS[range.status === "ok" ? "agree" : range.status] || "✗" })));
  const pixels = (range) => ((range.last - range.first + step) / (last - first + step)) * (width - 30);
  const changes = rows.flatMap((row, y) => row.ranges.slice(1).map((range, i) => ({ y, x: (row.ranges[i].last + range.first) / 2, text: `${row.ranges[i].last} | ${range.first}` })));
  const box = (more) => ({ x1: (r) => r.first - half, x2: (r) => r.last + half, y1: (r) => r.y + 0.36, y2: (r) => r.y + 0.86, ...more });
  return {
    height: rows.length * HIGH + (bare ? 8 : 44), marginTop: 4, marginLeft: 14, marginRight: 16, marginBottom: bare ? 4 : 38,
    x: { ...(bare ? { axis: null } : {}), type: "linear", domain: [first - half, last + half], ticks: Math.min(12, Math.floor(width / 60)), tickFormat: (v) => (Number.isInteger(v) ? String(v) : ""), label, labelAnchor: "center", labelArrow: "none" },
    y: { type: "linear", domain: [rows.length, 0], axis: null },
    marks: [
      ...["good", "bad", "unsure"].map((look) => Plot.rect(all.filter((r) => looks(r.status) === look), box({ fill: `var(--${look}-ground)`, stroke: `var(--${look})`, insetLeft: 0.5, insetRight: 0.5 }))),
      ...["good", "bad", "unsure"].map((look) => Plot.text(all.filter((r) => looks(r.status) === look), { x: (r) => (r.first + r.last) / 2, y: (r) => r.y + 0.61, fill: `var(--${look})`, fontWeight: 650, text: (r) => [...r.texts.map((text) => `${r.sign} ${text}`), r.sign, ""].find((text) => text.length * 7.2 < pixels(r)) ?? "" })),
      Plot.text(rows, { x: first - half, y: (_, y) => y + 0.2, text: "name", textAnchor: "start", fontWeight: 650 }),
      ...(changes.length > 12 ? [] : [
        Plot.ruleX(changes, { x: "x", y1: (c) => c.y + 0.28, y2: (c) => c.y + 0.94, stroke: INK.limit, strokeWidth: 2 }),
        Plot.text(changes, { x: "x", y: (c) => c.y + 0.16, text: "text", fontWeight: 650, stroke: "var(--ground)", strokeWidth: 5, fill: "currentColor", className: "change" }),
      ]),
      Plot.tip(all, Plot.pointerX({ x: (r) => (r.first + r.last) / 2, y: (r) => r.y + 0.61, title: "title", lineHeight: 1.3, fontSize: 12, maxRadius: Infinity })),
    ],
  };
}
const span = (r) => (r.first === r.last ? `${r.first}` : `${r.first} to ${r.last}`);

/* Verdict by length of the prompt (--sweep-tokens). */
function drawLengths() {
  for (const box of document.querySelectorAll("[data-lengths]")) {
    const swept = data.lengths[Number(box.dataset.lengths)];
    const rows = swept.backends.map(({ backend, ranges }) => ({
      name: backend,
      ranges: ranges.map((r) => ({ ...r, texts: [...(r.layer ? [`${r.status} at ${brief(r.layer)}`] : []), r.status], title: `${backend}\n${span(r)} tokens: ${r.status}${r.layer ? `\nat ${r.layer}` : ""}` })),
    }));
    const said = rows.map((row) => `${row.name}: ${row.ranges.map((r) => `${span(r)} tokens ${r.status}`).join(", ")}`).join("; ");
    put(box, [strips(rows, { ...swept, label: "tokens of the prompt", width: across(box) })], said);
  }
}

/* One row, M times in one call: the path that ran, and the error or the outputs that were lost. */
function drawAsked() {
  for (const box of document.querySelectorAll("[data-asked]")) {
    const asked = data.asked[Number(box.dataset.asked)];
    if (box.dataset.picture === "repeats") drawRepeats(box, asked.repeats);
    else drawRows(box, asked.rows);
  }
}
function drawRows(box, ranges) {
  const first = ranges[0].first;
  const last = ranges[ranges.length - 1].last;
  const width = across(box);
  const size = (r) => (r.nonfinite ? `${counted(r.nonfinite, "output")} lost` : `error ${small(r.error)}`);
  const rows = [{ name: "what ran, and what came of it", ranges: ranges.map((r) => ({ first: r.first, last: r.last, status: r.kind, texts: [`${r.path}: ${size(r)}`, size(r), r.kind], title: `${span(r)} rows: ${r.path}\n${size(r)}` })) }];
  const sized = ranges.filter((r) => r.error > 0 && !r.nonfinite);
  const lost = ranges.filter((r) => r.nonfinite).flatMap((r) => Array.from({ length: r.last - r.first + 1 }, (_, n) => ({ x: r.first + n, count: r.nonfinite })));
  const exponents = sized.map((r) => Math.log10(r.error));
  const low = Math.floor(Math.min(...exponents, -3) - 0.5);
  const high = Math.ceil(Math.max(...exponents, -2) + 0.5) + (lost.length ? 1 : 0);
  const flips = ranges.slice(1).map((r, i) => ({ x: (ranges[i].last + r.first) / 2, text: ranges[i].path === r.path ? "" : "path" })).filter((flip) => flip.text);
  const strip = { ...strips(rows, { first, last, step: 1, label: null, width, bare: true }), marginLeft: 44 };
  put(box, [strip, {
    height: 170, marginTop: 24, marginLeft: 44, marginRight: 16, marginBottom: 38,
    x: { type: "linear", domain: [first - 0.5, last + 0.5], ticks: Math.min(12, Math.floor(width / 60)), label: "rows of the call (M)", labelAnchor: "center", labelArrow: "none" },
    y: logAxis("relative error (l2)", low, high),
    marks: [
      ...(flips.length > 12 ? [] : [Plot.ruleX(flips, { x: "x", stroke: INK.limit, strokeWidth: 2 })]),
      Plot.ruleY(sized, { x1: (r) => r.first - 0.5, x2: (r) => r.last + 0.5, y: "error", stroke: (r) => (looks(r.kind) === "good" ? INK.own : INK.bad), strokeWidth: 3 }),
      Plot.dot(lost, { x: "x", y: 10 ** (high - 0.4), symbol: "times", stroke: INK.bad, strokeWidth: 2, r: narrow() ? 2 : 3.5 }),
    ],
  }], ranges.map((r) => `${span(r)} rows: ${r.path}, ${size(r)}`).join("; "),
  [["error", { line: INK.own }], ["outputs lost: infinite or NaN", { sign: INK.bad }], ...(flips.length ? [["the path changes", { line: INK.limit }]] : [])]);
}

/* The same call again and again: how many answers are wrong, how many have other bits, and how far they are apart. */
function drawRepeats(box, r) {
  const bars = [
    { name: `wrong answers: ${r.bad} of ${r.repeats}`, share: r.bad / r.repeats, look: "var(--bad-mark)" },
    { name: `other bits than the first: ${r.other} of ${r.repeats - 1}`, share: r.other / Math.max(1, r.repeats - 1), look: INK.inherited },
  ];
  if (r.spread !== null) bars.push({ name: `largest difference: ${r.spread.toPrecision(2)} of what two roundings may make`, share: r.spread, look: r.spread > 1 ? INK.bad : INK.own });
  const end = Math.max(1, ...bars.map((bar) => bar.share));
  put(box, [{
    height: bars.length * 44 + 28, marginTop: 4, marginLeft: 14, marginRight: 24, marginBottom: 24,
    x: { type: "linear", domain: [0, end], ticks: 5, tickFormat: (v) => `${Math.round(v * 100)} %`, label: null },
    y: { type: "linear", domain: [bars.length, 0], axis: null },
    marks: [
      Plot.rect(bars, { x1: 0, x2: end, y1: (_, y) => y + 0.5, y2: (_, y) => y + 0.84, fill: INK.floor }),
      Plot.rect(bars, { x1: 0, x2: "share", y1: (_, y) => y + 0.5, y2: (_, y) => y + 0.84, fill: "look" }),
      Plot.text(bars, { x: 0, y: (_, y) => y + 0.28, text: "name", textAnchor: "start" }),
      ...(end > 1 ? [Plot.ruleX([1], { stroke: INK.limit, strokeDasharray: "6 4" })] : []),
    ],
  }], bars.map((bar) => bar.name).join("; "));
}
