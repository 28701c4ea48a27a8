/* The sum of one lost output while it grows, as the kernel has it and without rounding. */
function drawSums() {
  for (const box of document.querySelectorAll("[data-sums]")) {
    const sums = data.sums[Number(box.dataset.sums)];
    const few = sums.channels.length <= 16;
    const narrowed = sums.half.length === 0;
    const sign = Math.abs(Math.min(...sums.exact)) > Math.max(...sums.exact) ? -1 : 1;
    const steps = sums.channels.map((channel, i) => ({ x: few ? i : channel, channel, exact: sums.exact[i], half: narrowed ? NaN : sums.half[i] ?? NaN }));
    const gone = narrowed ? steps.slice(-1) : steps.filter((step) => Number.isNaN(step.half));
    const far = Math.max(sums.limit, ...sums.exact.map(Math.abs));
    const both = sums.exact.some((v) => v < -sums.limit / 10) && sums.exact.some((v) => v > sums.limit / 10);
    const domain = both ? [-far * 1.15, far * 1.15] : sign > 0 ? [-far * 0.06, far * 1.15] : [-far * 1.15, far * 0.06];
    const ends = [sums.limit, -sums.limit].filter((v) => v > domain[0] && v < domain[1]);
    const most = Math.max(1, Math.floor(across(box) / 60));
    const every = Math.ceil(steps.length / most);
    const at = new Map(steps.map((step, i) => [i, String(step.channel)]));
    put(box, [{
      height: 290, marginTop: 12, marginLeft: 62, marginRight: 16, marginBottom: 40,
      x: { type: "linear", label: "channels of the input, in the kernel's order", labelAnchor: "center", labelArrow: "none", ...(few ? { domain: [-0.4, steps.length - 0.6], ticks: [...at.keys()].filter((i) => i % every === 0), tickFormat: (i) => at.get(i) ?? "" } : { ticks: Math.min(8, most) }) },
      y: { type: "linear", domain, grid: true, label: null, ticks: 6 },
      marks: [
        Plot.ruleY(ends, { stroke: INK.limit, strokeWidth: 1.5, strokeDasharray: "6 4" }),
        ...ends.map((v) => words(v > 0 ? "65,504" : "-65,504", { y: v, frameAnchor: "left", textAnchor: "start", dx: 4, dy: v > 0 ? -9 : 9, fontSize: 11 })),
        Plot.lineY(steps, { x: "x", y: "exact", stroke: INK.own, strokeWidth: 2 }),
        Plot.lineY(steps, { x: "x", y: "half", stroke: INK.inherited, strokeWidth: 2, strokeDasharray: "2 3" }),
        ...(few ? [Plot.dot(steps, { x: "x", y: "exact", fill: INK.own, r: 4 }), Plot.dot(steps, { x: "x", y: "half", fill: INK.inherited, symbol: "square", r: 4 })] : []),
        Plot.dot(gone, { x: "x", y: sign * sums.limit, symbol: "times", stroke: INK.bad, strokeWidth: few || narrowed ? 3 : 1.5, r: few || narrowed ? 6 : 3 }),
        tip(steps, { x: "x", y: "exact", title: (step) => `after channel ${step.channel}\nwithout rounding ${short(step.exact)}\nin float16 ${narrowed ? "summed in float32" : Number.isNaN(step.half) ? "infinite or NaN" : short(step.half)}` }),
      ],
    }], `A sum over ${sums.channels.length} channels that passes ${sums.limit}.`,
    [["without rounding", { line: INK.own }], ...(narrowed ? [] : [["in float16", { line: INK.inherited, dash: "2 3" }]]), ["float16: infinite", { sign: INK.bad }]]);
  }
}
