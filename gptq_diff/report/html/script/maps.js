/* Linear by token: maps travel as 16 bit codes, 0 for none, else 32768 + 256 * log2(value). */
const NOTHING = -30; // log10 of what stands for zero
function decoded(text, width) {
  const raw = atob(text);
  const rows = [];
  for (let i = 0; i < raw.length; i += 2 * width) {
    rows.push(Array.from({ length: width }, (_, n) => {
      const code = raw.charCodeAt(i + 2 * n) + 256 * raw.charCodeAt(i + 2 * n + 1);
      return code === 0 ? null : ((code - 32768) / 256) * Math.log10(2);
    }));
  }
  return rows;
}
function tokenName([step, first, last]) {
  if (step > 0) return `written token ${step} (id ${capture.written[step - 1]})`;
  if (first !== last) return `tokens ${first} to ${last}, the largest`;
  return `token ${first}${first in capture.tokens ? ` (id ${capture.tokens[first]})` : ""}`;
}
function errorRange(known) {
  const sorted = Float64Array.from(known).sort();
  const low = sorted.length ? sorted[Math.floor(sorted.length * 0.02)] : -4;
  return [low, Math.max(low + 1, sorted.length ? sorted[Math.ceil(sorted.length * 0.995) - 1] : 0)];
}
const MAPS = {
  x: { id: "x-map", scheme: "viridis", range: () => [-2, Math.log10(data.largest)], what: "largest input", name: "Largest input", size: short, says: "The largest input of each linear for each token, from dark (small) to bright (near the 65,504 that float16 holds)." },
  error: { id: "error-map", scheme: "cividis", range: errorRange, what: "own error", name: "Own error", size: small, says: "The relative error of each linear for each token, from dark (small) to bright (large)." },
};

function drawMap(which) {
  const { id, scheme, range, what, name, size, says } = MAPS[which];
  const { maps } = capture;
  const box = $(id);
  const said = $(`${id}-said`);
  said.textContent = "";
  if (maps.why) return say(box, maps.why);
  const at = places(maps.layers);
  const tokens = maps.bins.length;
  const logs = picked(decoded(maps[which], tokens), at);
  const known = logs.flat().filter((v) => v !== null && v > NOTHING);
  const [low, high] = range(known);
  const cells = maps.bins.flatMap((_, b) => at.map((i, x) => ({ x, b, i, v: logs[x][b] })));
  const value = (v) => (v === null ? "–" : v < NOTHING ? "0" : size(10 ** v));
  const prefill = maps.bins.filter((bin) => bin[0] === 0).length;
  const lost = maps.lost.filter(([layer]) => at.includes(layer)).map(([layer, b, count]) => ({ x: at.indexOf(layer), b, count }));
  const lostAt = new Map(lost.map((one) => [`${one.x} ${one.b}`, one.count]));
  const bad = capture.bad === null ? -1 : at.findIndex((i) => maps.layers[i] === capture.linears.layer[capture.bad]);
  said.textContent = says
    + (lost.length ? " A cross marks outputs that became infinite or NaN." : "")
    + (known.length < cells.length ? " Grey: nothing to judge, since the input was already infinite or NaN, or the answer zero." : "")
    + (maps.bins.some((bin) => bin[1] !== bin[2]) ? " The prompt is long: neighbouring tokens share a row, which shows the largest." : "")
    + (capture.shared ? ` ${capture.shared} linears whose rows of W the ranks share are not in it.` : "");
  if (at.length === 0) return say(box, "No linear has what was typed in its name.");
  const every = Math.max(1, Math.ceil(prefill / 6));
  const ticks = maps.bins.map((_, b) => b).filter((b) => (b < prefill && b % every === 0) || b === prefill);
  const colour = { type: "linear", domain: [low, high], scheme, clamp: true };
  const width = across(box);
  const marks = [
    Plot.rect([0], { x1: -0.5, x2: at.length - 0.5, y1: -0.5, y2: tokens - 0.5, fill: INK.empty }),
    Plot.raster(cells, { x1: -0.5, x2: at.length - 0.5, y1: -0.5, y2: tokens - 0.5, width: at.length, height: tokens, fill: (cell) => cell.v ?? low, fillOpacity: (cell) => (cell.v === null ? 0 : 1), imageRendering: "pixelated" }),
    ...(bad < 0 ? [] : [Plot.ruleX([bad], { stroke: INK.bad, strokeDasharray: "2 3" })]),
    ...(prefill < tokens ? [Plot.ruleY([prefill - 0.5], { stroke: "#ffffff", strokeWidth: 1.5 })] : []),
    Plot.dot(lost, { x: "x", y: "b", symbol: "times", stroke: "#ffffff", strokeWidth: 5, r: 5 }),
    Plot.dot(lost, { x: "x", y: "b", symbol: "times", stroke: "#d55e00", strokeWidth: 2.5, r: 5 }),
    Plot.tip(cells, Plot.pointer({
      x: "x", y: "b", maxRadius: 20, fontSize: 12, lineHeight: 1.3,
      title: (cell) => [maps.layers[cell.i], tokenName(maps.bins[cell.b]), `${what} ${value(cell.v)}`, lostAt.has(`${cell.x} ${cell.b}`) ? `${counted(lostAt.get(`${cell.x} ${cell.b}`), "output")} infinite or NaN` : ""].filter(Boolean).join("\n"),
    })),
  ];
  const ramp = Plot.legend({ color: colour, width: Math.min(320, width), height: 34, marginTop: 4, marginBottom: 18, marginLeft: 18, marginRight: 18, ticks: powers(low, high), tickFormat: (e) => (Number.isInteger(e) ? power(10 ** e) : small(10 ** e)), style: { fontSize: "12px", fontFamily: "inherit" } });
  put(box, [ramp, {
    height: 340, marginTop: 22, ...sides(), color: colour, x: depthAxis(maps.layers, at, width),
    y: { type: "linear", domain: [tokens - 0.5, -0.5], ticks, tickFormat: (b) => (b === prefill ? "written" : String(maps.bins[b][1])), label: "token", labelArrow: "none" }, marks,
  }], `${name} of ${at.length} linears for ${tokens} tokens of ${capture.backend}, prompt ${capture.prompt}.${lost.length ? ` Outputs are lost at ${maps.layers[at[lost[0].x]]}, ${tokenName(maps.bins[lost[0].b])}.` : ""}`);
}
/* Whole exponents between two, six at most; of a short way its ends. */
function powers(low, high) {
  if (high - low < 2.5) return [low, high];
  const all = Array.from({ length: Math.max(0, Math.floor(high) - Math.ceil(low) + 1) }, (_, n) => Math.ceil(low) + n);
  return all.filter((_, n) => n % Math.ceil(all.length / 6) === 0);
}
