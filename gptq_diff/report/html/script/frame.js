/* What all pictures have in common. Colours are the page's own variables, so that themes and paper need no drawing. */
const INK = { own: "var(--own)", inherited: "var(--inherited)", bad: "var(--bad-mark)", limit: "var(--ink)", dim: "var(--dim)", floor: "var(--floor)", empty: "var(--void)" };
const PAPER = 680;
const across = (box) => (printing ? Math.min(PAPER, box.clientWidth || PAPER) : box.clientWidth);
const narrow = () => !printing && $("content").clientWidth < 600;
/* The same for all that stands along the depth, so that a linear is at the same place in each. */
const sides = () => ({ marginLeft: narrow() ? 54 : 58, marginRight: narrow() ? 10 : 16, marginBottom: 40 });

/* One below the other in `box`; said: a sentence for those who cannot see them. */
function put(box, plots, said, keys = []) {
  box.classList.remove("empty");
  box.setAttribute("aria-label", said);
  const width = across(box);
  const legend = keys.length === 0 ? [] : [keyed(keys)];
  box.replaceChildren(...legend, ...plots.map((plot) => (plot instanceof Element ? plot : Plot.plot({ width, style: { fontSize: "12px", fontFamily: "inherit" }, ...plot }))));
}
function say(box, why) {
  box.replaceChildren(why);
  box.classList.add("empty");
  box.setAttribute("aria-label", why);
}

/* What lines, areas, bars and signs stand for: [words, {line | area | sign, dash}]. */
function keyed(keys) {
  const list = document.createElement("div");
  list.className = "keys";
  for (const [words, { line, area, sign, dash }] of keys) {
    const drawn = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
    drawn.setAttribute("viewBox", "0 0 24 12");
    shape.setAttribute("d", line ? "M0 6H24" : area ? "M0 1H24V11H0Z" : "M7 1L17 11M17 1L7 11");
    shape.setAttribute("fill", area || "none");
    shape.setAttribute("stroke", line || sign || "none");
    shape.setAttribute("stroke-width", sign ? "2.5" : "2");
    if (dash) shape.setAttribute("stroke-dasharray", dash);
    drawn.append(shape);
    const key = document.createElement("span");
    key.append(drawn, words);
    list.append(key);
  }
  return list;
}

/* Linears from left to right in order of execution; one tick a block, as many as fit. */
function depthAxis(names, at, width) {
  const starts = [];
  at.forEach((i, x) => {
    const block = (names[i].match(/layers\.(\d+)\./) || names[i].match(/\.h\.(\d+)\./) || [])[1];
    if (block !== undefined && (starts.length === 0 || starts[starts.length - 1].block !== block)) starts.push({ x, block });
  });
  const every = Math.ceil(starts.length / Math.max(4, Math.floor(width / 45)));
  const shown = starts.filter((_, i) => i % every === 0);
  const blocks = new Map(shown.map((s) => [s.x, s.block]));
  return { type: "linear", domain: [-0.5, Math.max(at.length, 1) - 0.5], ticks: [...blocks.keys()], tickFormat: (x) => blocks.get(x) ?? "", tickPadding: 4, label: "block (linears in order of execution)", labelAnchor: "center", labelArrow: "none" };
}
/* Powers of ten from one exponent to another. */
function logAxis(label, low, high) {
  const every = high - low > 12 ? 4 : high - low > 6 ? 2 : 1;
  const exponents = Array.from({ length: Math.floor(high) - Math.ceil(low) + 1 }, (_, n) => Math.ceil(low) + n);
  return { type: "log", domain: [10 ** low, 10 ** high], ticks: exponents.filter((e) => e % every === 0).map((e) => 10 ** e), tickFormat: power, grid: true, label, labelArrow: "none" };
}
/* Words on a picture, with the ground around them so that lines beneath do not disturb. */
const words = (text, more) => Plot.text([text], { text: (t) => t, fill: "currentColor", stroke: "var(--ground)", strokeWidth: 4, lineHeight: 1.4, ...more });
/* What the pointer is told of the nearest point along x. */
const tip = (rows, { x, y, title }) => Plot.tip(rows, Plot.pointerX({ x, y, title, lineHeight: 1.3, maxRadius: 60, fontSize: 12 }));
