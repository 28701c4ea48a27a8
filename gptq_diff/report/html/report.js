"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const COLOURS = {
    light: { ink: "#16191d", dim: "#565e68", line: "#d5d9df", ground: "#ffffff", own: "#0072b2", inherited: "#e69f00", limit: "#16191d", bad: "#d55e00", floor: "rgba(86,94,104,0.18)" },
    dark: { ink: "#e8ebef", dim: "#a3acb8", line: "#39414b", ground: "#14171b", own: "#56b4e9", inherited: "#e69f00", limit: "#e8ebef", bad: "#ff7f2a", floor: "rgba(163,172,184,0.22)" },
  };
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  let data = null;
  let capture = null;
  let printing = false;

  async function inflated(id) {
    const bytes = Uint8Array.from(atob($(id).textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  /* Theme: as the system says, until somebody chooses. */
  function remembered() {
    try { return window.localStorage.getItem("gptq-diff-theme"); } catch { return null; }
  }
  function theme() {
    if (printing) return "light";
    return document.documentElement.dataset.theme || (system.matches ? "dark" : "light");
  }
  function nameTheme() {
    const other = theme() === "dark" ? "light" : "dark";
    $("theme").textContent = other === "dark" ? "☾ Dark" : "☀ Light";
    $("theme").setAttribute("aria-label", `Switch to the ${other} theme`);
  }
  function chooseTheme() {
    const chosen = theme() === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = chosen;
    try { window.localStorage.setItem("gptq-diff-theme", chosen); } catch { /* a private window: it holds until it is closed */ }
    nameTheme();
    draw();
  }

  /* Numbers as people read them. */
  function short(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size >= 1000) return Math.round(value).toLocaleString("en-US");
    return size < 0.01 ? value.toExponential(1) : String(Number(value.toPrecision(4)));
  }
  const small = (value) => (value === null || value === undefined ? "–" : value === 0 ? "0" : value.toExponential(1));

  /* The filter keeps linears whose name holds what was typed. */
  function wanted(name) {
    const typed = $("filter").value.trim().toLowerCase();
    return typed === "" || name.toLowerCase().includes(typed);
  }
  const places = (names) => names.map((_, i) => i).filter((i) => wanted(names[i]));
  const picked = (values, at) => at.map((i) => values[i]);
  const brief = (name) => name.replace("model.layers.", "");

  function layout(c, height, more) {
    const axis = { gridcolor: c.line, zerolinecolor: c.line, linecolor: c.line, tickcolor: c.line, automargin: true };
    const { xaxis = {}, yaxis = {}, ...rest } = more;
    return {
      height, autosize: true, margin: { l: 52, r: 12, t: 28, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: c.ink }, hoverlabel: { align: "left", bgcolor: c.ground, bordercolor: c.dim, font: { color: c.ink } },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, dragmode: false, showlegend: false,
      xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
    };
  }
  const depthAxis = (names, at) => ({
    title: { text: "linears in order of execution" }, range: [-0.5, Math.max(at.length, 1) - 0.5], showgrid: false, ...blockTicks(names, at),
  });
  /* One tick a block, as many as fit. */
  function blockTicks(names, at) {
    const starts = [];
    at.forEach((i, x) => {
      const block = (names[i].match(/layers\.(\d+)\./) || names[i].match(/\.h\.(\d+)\./) || [])[1];
      if (block !== undefined && (starts.length === 0 || starts[starts.length - 1].block !== block)) starts.push({ x, block });
    });
    const most = Math.max(4, Math.floor($("pictures").clientWidth / 55));
    const every = Math.ceil(starts.length / most);
    const shown = starts.filter((_, i) => i % every === 0);
    return { tickmode: "array", tickvals: shown.map((s) => s.x), ticktext: shown.map((s) => `block ${s.block}`.replace("block ", every || shown.length > 6 ? "" : "block ")) };
  }
  const logAxis = (title) => ({ type: "log", title: { text: title }, exponentformat: "power", dtick: null, nticks: 7 });

  function put(id, traces, shape, said) {
    const place = $(id);
    place.classList.remove("empty");
    place.setAttribute("aria-label", said);
    if (printing) shape.width = 680;
    Plotly.react(place, traces, shape, { displayModeBar: false, responsive: true, showTips: false });
  }
  function say(id, why) {
    const place = $(id);
    if (place.data) Plotly.purge(place);
    place.replaceChildren(why);
    place.classList.add("empty");
    place.setAttribute("aria-label", why);
  }

  function marker(c, at, y, text) {
    const place = at.indexOf(capture.bad);
    if (capture.bad === null || place < 0) return { shapes: [], annotations: [] };
    const right = place > at.length / 2;
    return {
      shapes: [{ type: "line", x0: place, x1: place, yref: "paper", y0: 0, y1: 1, line: { color: c.bad, width: 2 } }],
      annotations: text ? [{ x: place, yref: "paper", y, text, showarrow: false, xanchor: right ? "right" : "left", xshift: right ? -6 : 6, yanchor: "top", font: { color: c.bad, size: 12 }, bgcolor: c.ground, opacity: 0.92 }] : [],
    };
  }
  const badText = () => (capture.bad === null ? "" : `<b>first bad: ${brief(capture.linears.layer[capture.bad])}</b><br>${capture.linears.note[capture.bad]}`.replace(/[^\x20-\x7e\u00a0-\uffff]/g, ""));

  function drawDepth(c) {
    const l = capture.linears;
    if (l.layer.length === 0) return say("depth", capture.why || "There is no picture: the judgements of this capture are not stored.");
    const at = places(l.layer);
    const x = at.map((_, i) => i);
    const names = picked(l.layer, at);
    const positive = (values) => picked(values, at).map((v) => (v > 0 ? v : null));
    const limit = positive(l.floor).map((v) => (v === null ? null : v * data.factor));
    const line = (name, y, colour, dash, more) => ({ type: "scatter", mode: "lines", name, x, y, text: names, line: { color: colour, width: 1.8, dash }, hovertemplate: "%{text}<br>%{y:.2e}<extra>" + name + "</extra>", ...more });
    const traces = [
      line("explained by rounding", positive(l.floor), "rgba(0,0,0,0)", "solid", { fill: "tozeroy", fillcolor: c.floor, line: { width: 0 } }),
      line(`limit: ${data.factor} times that`, limit, c.limit, "dash", { line: { color: c.limit, width: 1.2, dash: "dash" } }),
      line("inherited", positive(l.inherited), c.inherited, "dot"),
      line("its own", positive(l.local), c.own, "solid", { mode: at.length < 60 ? "lines+markers" : "lines" }),
    ];
    const beyond = at.filter((i) => ["overflow", "nan", "diverged"].includes(l.kind[i]));
    const height = (i) => l.local[i] > 0 ? l.local[i] : l.floor[i] > 0 ? l.floor[i] : 1e-3;
    traces.push({ type: "scatter", mode: "markers", name: "broken", x: beyond.map((i) => at.indexOf(i)), y: beyond.map(height), text: beyond.map((i) => `${l.layer[i]}<br>${l.note[i]}`), marker: { color: c.bad, symbol: "x", size: 11 }, hovertemplate: "%{text}<extra></extra>" });
    const lowest = Math.min(...[...positive(l.local), ...positive(l.floor), ...positive(l.inherited)].filter((v) => v !== null), 1e-3);
    const highest = Math.max(...[...positive(l.local), ...limit, ...positive(l.inherited)].filter((v) => v !== null), 1e-2);
    put("depth", traces, layout(c, 380, {
      showlegend: true, ...marker(c, at, 0.99, badText()), xaxis: depthAxis(l.layer, at),
      yaxis: { ...logAxis("relative error (l2)"), range: [Math.log10(lowest) - 0.4, Math.log10(highest) + 0.8] },
    }), `Error of ${at.length} linears of ${capture.backend}, prompt ${capture.prompt}. ${capture.bad === null ? "None passes the limit." : `The first beyond the limit is ${l.layer[capture.bad]}.`} The table below has the numbers.`);
  }

  function drawHeadroom(c) {
    const names = Object.keys(capture.headroom);
    if (names.length === 0) {
      $("headroom-said").textContent = "";
      return say("headroom", "There is no picture: nobody measured the headroom of this capture.");
    }
    const order = new Map(capture.linears.layer.map((name, i) => [name, i]));
    names.sort((a, b) => (order.get(a) ?? 1e9) - (order.get(b) ?? 1e9));
    const at = places(names);
    const values = at.map((i) => data.largest / 2 ** capture.headroom[names[i]]);
    const least = at.reduce((best, i) => (best === null || capture.headroom[names[i]] < capture.headroom[names[best]] ? i : best), null);
    const colour = values.map((v) => (v >= data.largest ? c.bad : v >= data.largest / 4 ? c.inherited : c.own));
    const over = values.filter((v) => v >= data.largest).length;
    $("headroom-said").textContent = capture.reference
      ? "The largest result of each linear, as float16 would have to hold it. The line is the end of float16."
      : `The largest sum that this backend's kernel holds in float16, for each linear. The line is the end of float16; ${over === 0 ? "no bar passes it" : over === 1 ? "one bar passes it" : `${over} bars pass it`}. Each halving of a bar is one bit of headroom.`;
    put("headroom", [{
      type: "bar", x: at.map((_, x) => x), y: values, marker: { color: colour, line: { width: 0 } }, text: at.map((i) => names[i]), textposition: "none",
      customdata: at.map((i) => capture.headroom[names[i]]), hovertemplate: "%{text}<br>largest sum %{y:,.5~g}<br>headroom %{customdata:.1f} bits<extra></extra>",
    }], layout(c, 300, {
      bargap: at.length > 120 ? 0 : 0.15, xaxis: depthAxis(names, at), yaxis: { ...logAxis("largest sum"), range: [Math.min(0, Math.log10(Math.min(...values, 1))), Math.log10(Math.max(...values, data.largest)) + 0.6] },
      shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: data.largest, y1: data.largest, line: { color: c.limit, width: 1.5, dash: "dash" } }],
      annotations: [
        { xref: "paper", x: 0.005, y: Math.log10(data.largest), text: "65,504", showarrow: false, xanchor: "left", yanchor: "bottom", font: { size: 11 } },
        ...(least === null ? [] : [{ x: at.indexOf(least), y: Math.log10(data.largest / 2 ** capture.headroom[names[least]]), text: `${brief(names[least])}: ${capture.headroom[names[least]].toFixed(1)} bits`, showarrow: false, yanchor: "bottom", yshift: 3, xanchor: at.indexOf(least) > at.length / 2 ? "right" : "left", font: { size: 11, color: c.ink } }]),
      ],
    }), `Headroom of ${at.length} linears; the least is ${least === null ? "not known" : `${capture.headroom[names[least]]} bits at ${names[least]}`}.`);
  }

  function fillTable() {
    const l = capture.linears;
    const rows = places(l.layer).map((i) => {
      const row = document.createElement("tr");
      if (i === capture.bad) row.className = "bad";
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = l.layer[i];
      row.append(head);
      const bits = capture.headroom[l.layer[i]];
      const cells = [short(l.input[i]), short(l.exact[i]), small(l.local[i]), small(l.floor[i]), l.excess[i] === null ? "–" : String(Number(l.excess[i].toPrecision(2))), small(l.inherited[i]), bits === undefined ? "–" : bits.toFixed(1), l.note[i]];
      cells.forEach((text, n) => {
        const cell = document.createElement("td");
        cell.textContent = text;
        if ((n === 4 && l.excess[i] > 1) || (n === 6 && bits < 0) || (n === 7 && ["overflow", "nan", "diverged"].includes(l.kind[i]))) cell.className = "beyond";
        row.append(cell);
      });
      return row;
    });
    $("linear-rows").replaceChildren(...rows);
    $("count").textContent = rows.length === l.layer.length ? `${rows.length} linears` : `${rows.length} of ${l.layer.length} linears`;
  }

  function filterLists() {
    for (const item of document.querySelectorAll("li[data-layer]")) item.hidden = !wanted(item.dataset.layer);
  }

  function draw() {
    if (capture === null || typeof Plotly === "undefined") return;
    const c = COLOURS[theme()];
    drawDepth(c);
    drawHeadroom(c);
  }
  function show() {
    fillTable();
    filterLists();
    draw();
  }

  function select(key) {
    capture = data.captures.find((one) => one.key === key) || null;
    if (capture === null) return;
    $("capture").value = key;
    for (const button of document.querySelectorAll("button[data-capture]")) button.setAttribute("aria-pressed", String(button.dataset.capture === key));
    show();
  }

  function fillSelect() {
    for (const one of data.captures) {
      const option = document.createElement("option");
      option.value = one.key;
      option.textContent = `${one.backend}, ${one.prompt}: ${one.status}`;
      $("capture").append(option);
    }
    $("capture").addEventListener("change", () => select($("capture").value));
    $("filter").addEventListener("input", show);
    for (const button of document.querySelectorAll("button[data-capture]")) {
      button.addEventListener("click", () => {
        select(button.dataset.capture);
        $("pictures").scrollIntoView({ behavior: window.matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
      });
    }
  }

  async function start() {
    const chosen = remembered();
    if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
    nameTheme();
    $("theme").addEventListener("click", chooseTheme);
    system.addEventListener("change", () => { nameTheme(); draw(); });
    for (const [event, value] of [["beforeprint", true], ["afterprint", false]]) {
      window.addEventListener(event, () => { printing = value; draw(); });
    }
    if (!$("capture")) return;
    if (typeof DecompressionStream === "undefined") {
      $("drawing").textContent = "This browser is too old to draw the pictures: it knows no DecompressionStream. Everything else can be read.";
      return;
    }
    $("drawing").textContent = "Drawing…";
    data = JSON.parse(await inflated("data"));
    fillSelect();
    select(data.selected);
    const script = document.createElement("script");
    script.textContent = await inflated("library");
    document.head.append(script);
    draw();
    $("drawing").textContent = "";
    document.documentElement.dataset.drawn = "true";
  }
  start();
})();
