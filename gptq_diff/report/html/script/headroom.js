/* How near sums come to the end of float16, a bar for each linear. */
function drawHeadroom() {
  const box = $("headroom");
  const said = $("headroom-said");
  const measured = Object.keys(capture.headroom);
  if (measured.length === 0) {
    said.textContent = "";
    return say(box, "There is no picture: nobody measured the headroom of this capture.");
  }
  const whole = capture.linears.layer.filter((name) => !name.includes(" before ") && !name.includes("@"));
  const names = measured.every((name) => whole.includes(name)) ? whole : measured;
  const at = places(names);
  const bars = at.map((i, x) => ({ x, name: names[i], bits: capture.headroom[names[i]] })).filter((bar) => bar.bits !== undefined);
  for (const bar of bars) bar.sum = data.largest / 2 ** bar.bits;
  const least = bars.reduce((best, bar) => (best === null || bar.bits < best.bits ? bar : best), null);
  const over = bars.filter((bar) => bar.bits < 0).length;
  said.textContent = capture.reference
    ? "The largest result of each linear, as float16 would have to hold it. The line is the end of float16."
    : `The largest sum that this backend's kernel holds in float16, for each linear. The line is the end of float16; ${over === 0 ? "no bar passes it" : over === 1 ? "one bar passes it" : `${over} bars pass it`}. Each halving of a bar is one bit of headroom.`;
  const bottom = Math.min(0, Math.floor(Math.log10(Math.min(...bars.map((bar) => bar.sum), 1))));
  const gap = at.length > 120 ? 0.5 : 0.42;
  put(box, [{
    height: 300, marginTop: 28, ...sides(), x: depthAxis(names, at, across(box)),
    y: logAxis("largest sum", bottom, Math.log10(Math.max(...bars.map((bar) => bar.sum), data.largest)) + 0.7),
    marks: [
      Plot.rect(bars, { x1: (bar) => bar.x - gap, x2: (bar) => bar.x + gap, y1: 10 ** bottom, y2: "sum", fill: (bar) => (bar.bits < 0 ? INK.bad : bar.bits <= 2 ? INK.inherited : INK.own) }),
      Plot.ruleY([data.largest], { stroke: INK.limit, strokeWidth: 1.5, strokeDasharray: "6 4" }),
      words("65,504", { y: data.largest, frameAnchor: "left", textAnchor: "start", dx: 4, dy: 10, fontSize: 11 }),
      ...(least === null ? [] : [words(`${brief(least.name)}: ${least.bits.toFixed(1)} bits`, { x: least.x, y: least.sum, dy: -10, textAnchor: least.x > at.length / 2 ? "end" : "start", fontSize: 11 })]),
      tip(bars, { x: "x", y: "sum", title: (bar) => `${bar.name}\nlargest sum ${short(bar.sum)}\nheadroom ${bar.bits.toFixed(1)} bits` }),
    ],
  }], `Headroom of ${at.length} linears; the least is ${least === null ? "not known" : `${least.bits} bits at ${least.name}`}.`,
  [["more than 2 bits left", { area: INK.own }], ["2 bits or less", { area: INK.inherited }], ["none: beyond float16", { area: INK.bad }]]);
}
