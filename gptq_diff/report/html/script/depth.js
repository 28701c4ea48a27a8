/* Errors along the depth, on a log scale. */
function drawDepth() {
  const l = capture.linears;
  const box = $("depth");
  if (l.layer.length === 0) return say(box, "There is no picture: the judgements of this capture are not stored.");
  const at = places(l.layer);
  const positive = (v) => (v > 0 ? v : NaN);
  const rows = at.map((i, x) => ({
    x, i,
    own: l.kind[i] === "overflow" || l.kind[i] === "nan" ? NaN : positive(l.local[i]), // of what is left finite: no measure
    floor: positive(l.floor[i]), limit: positive(l.floor[i]) * data.factor, inherited: positive(l.inherited[i]),
  }));
  const numbers = rows.flatMap((r) => [r.own, r.limit, r.inherited]).filter((v) => v > 0);
  const bottom = Math.log10(Math.min(...numbers, 1e-3)) - 0.4;
  const top = Math.log10(Math.max(...numbers, 1e-2)) + 1;
  const ceiling = 10 ** (top - 0.12);
  const broken = rows.filter((r) => BROKEN.includes(l.kind[r.i]));
  const lost = rows.filter((r) => l.kind[r.i] === "inherited");
  const told = (r) => [l.layer[r.i], `its own error ${small(l.local[r.i])}`, `explained by rounding ${small(l.floor[r.i])}`, `inherited ${small(l.inherited[r.i])}`, l.note[r.i]].filter(Boolean).join("\n");
  const line = (y, stroke, more) => Plot.lineY(rows, { x: "x", y, stroke, strokeWidth: 1.8, ...more });
  const marks = [
    ...(lost.length > at.length / 20 ? [
      Plot.rect([0], { x1: lost[0].x - 0.5, x2: lost[lost.length - 1].x + 0.5, fill: INK.floor }),
      words(narrow() ? "input lost" : "input already infinite or NaN:\nnothing to judge", { x: (lost[0].x + lost[lost.length - 1].x) / 2, frameAnchor: "middle", fill: INK.dim, stroke: "none" }),
    ] : []),
    Plot.areaY(rows, { x: "x", y1: 10 ** bottom, y2: "floor", fill: INK.floor }),
    line("limit", INK.limit, { strokeWidth: 1.2, strokeDasharray: "6 4" }),
    line("inherited", INK.inherited, { strokeDasharray: "2 3" }),
    line("own", INK.own),
    ...(at.length < 60 ? [Plot.dot(rows, { x: "x", y: "own", fill: INK.own, r: 3 })] : []),
    ...badMark(at),
    Plot.dot(broken, { x: "x", y: (r) => (r.own > 0 ? r.own : ceiling), symbol: "times", stroke: INK.bad, strokeWidth: 3, r: 6 }),
    tip(rows, { x: "x", y: (r) => r.own || r.inherited || r.floor || ceiling, title: told }),
  ];
  put(box, [{ height: 380, marginTop: 28, ...sides(), x: depthAxis(l.layer, at, across(box)), y: logAxis("relative error (l2)", bottom, top), marks }],
    `Error of ${at.length} linears of ${capture.backend}, prompt ${capture.prompt}. ${capture.bad === null ? "None passes the limit." : `The first beyond the limit is ${l.layer[capture.bad]}.`} The table below has the numbers.`,
    [
      ["its own error", { line: INK.own }], ["inherited", { line: INK.inherited, dash: "2 3" }], ["explained by rounding", { area: INK.floor }],
      [`limit: ${data.factor} times that`, { line: INK.limit, dash: "6 4" }], ["broken (at the top: infinite)", { sign: INK.bad }],
    ]);
}

/* A line through the first bad linear, with its name. */
function badMark(at, named = true) {
  const x = capture.bad === null ? -1 : at.indexOf(capture.bad);
  if (x < 0) return [];
  const left = x > at.length / 2;
  const text = [`first bad:${narrow() ? "\n" : " "}${brief(capture.linears.layer[capture.bad])}`, narrow() ? capture.linears.kind[capture.bad] : capture.linears.note[capture.bad]].join("\n");
  return [
    Plot.ruleX([x], { stroke: INK.bad, strokeWidth: 2 }),
    ...(named ? [words(text, { x, frameAnchor: "top", lineAnchor: "top", dy: 22, dx: left ? -8 : 8, textAnchor: left ? "end" : "start", fill: "var(--bad)", fontWeight: 650, className: "first-bad" })] : []),
  ];
}
