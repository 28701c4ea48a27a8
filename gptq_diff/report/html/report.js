"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const COLOURS = {
    light: { ink: "#16191d", dim: "#565e68", line: "#d5d9df", ground: "#ffffff", own: "#0072b2", inherited: "#e69f00", limit: "#16191d", bad: "#d55e00", floor: "rgba(86,94,104,0.18)", void: "#c9ced6" },
    dark: { ink: "#e8ebef", dim: "#a3acb8", line: "#39414b", ground: "#14171b", own: "#56b4e9", inherited: "#e69f00", limit: "#e8ebef", bad: "#ff7f2a", floor: "rgba(163,172,184,0.22)", void: "#3b434d" },
  };
  const BROKEN = ["overflow", "nan", "diverged"];
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

  /* The same on all pictures, so that a linear stands at the same place in each. */
  const narrow = () => !printing && $("pictures").clientWidth < 600;
  const margins = () => (narrow() ? { l: 54, r: 50, t: 26, b: 44 } : { l: 66, r: 66, t: 26, b: 44 });
  function layout(c, height, more) {
    const axis = { gridcolor: c.line, zerolinecolor: c.line, linecolor: c.line, tickcolor: c.line };
    const { xaxis = {}, yaxis = {}, ...rest } = more;
    return {
      height, autosize: true, margin: margins(), paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: c.ink }, hoverlabel: { align: "left", bgcolor: c.ground, bordercolor: c.dim, font: { color: c.ink } },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, dragmode: false, showlegend: false,
      xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
    };
  }
  const depthAxis = (names, at) => ({
    title: { text: "block (linears in order of execution)" }, range: [-0.5, Math.max(at.length, 1) - 0.5], showgrid: false, ...blockTicks(names, at),
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
  const logAxis = (title, low, high) => ({ type: "log", title: { text: title, standoff: 4 }, exponentformat: "power", dtick: high - low > 12 ? 4 : high - low > 6 ? 2 : 1, range: [low, high] });

  function put(id, traces, shape, said) {
    const place = typeof id === "string" ? $(id) : id;
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
  const badText = () => (capture.bad === null ? "" : `<b>first bad:${narrow() ? "<br>" : " "}${brief(capture.linears.layer[capture.bad])}</b><br>${narrow() ? capture.linears.kind[capture.bad] : capture.linears.note[capture.bad]}`.replace(/[^\x20-\x7e\u00a0-\uffff]/g, ""));

  function drawDepth(c) {
    const l = capture.linears;
    if (l.layer.length === 0) return say("depth", capture.why || "There is no picture: the judgements of this capture are not stored.");
    const at = places(l.layer);
    const x = at.map((_, i) => i);
    const names = picked(l.layer, at);
    const positive = (values) => picked(values, at).map((v) => (v > 0 ? v : null));
    const limit = positive(l.floor).map((v) => (v === null ? null : v * data.factor));
    const own = l.local.map((v, i) => (l.kind[i] === "overflow" || l.kind[i] === "nan" ? null : v)); // of what is left finite: no measure
    const line = (name, y, colour, dash, more) => ({ type: "scatter", mode: "lines", name, x, y, text: names, line: { color: colour, width: 1.8, dash }, hovertemplate: "%{text}<br>%{y:.2e}<extra>" + name + "</extra>", ...more });
    const traces = [
      line("explained by rounding", positive(l.floor), "rgba(0,0,0,0)", "solid", { fill: "tozeroy", fillcolor: c.floor, line: { width: 0 } }),
      line(`limit: ${data.factor} times that`, limit, c.limit, "dash", { line: { color: c.limit, width: 1.2, dash: "dash" } }),
      line("inherited", positive(l.inherited), c.inherited, "dot"),
      line("its own", positive(own), c.own, "solid", { mode: at.length < 60 ? "lines+markers" : "lines" }),
    ];
    const numbers = [...positive(own), ...limit, ...positive(l.inherited)].filter((v) => v !== null);
    const bottom = Math.log10(Math.min(...numbers, 1e-3)) - 0.4;
    const top = Math.log10(Math.max(...numbers, 1e-2)) + 1;
    const beyond = at.map((i, n) => [i, n]).filter(([i]) => BROKEN.includes(l.kind[i]));
    traces.push({ type: "scatter", mode: "markers", name: "broken (at the top: infinite)", x: beyond.map(([, n]) => n), y: beyond.map(([i]) => (own[i] > 0 ? own[i] : 10 ** (top - 0.12))), text: beyond.map(([i]) => `${l.layer[i]}<br>${l.note[i]}`), marker: { color: c.bad, symbol: "x", size: 11 }, hovertemplate: "%{text}<extra></extra>" });
    const mark = marker(c, at, 0.9, badText());
    const after = at.map((i, n) => [i, n]).filter(([i]) => l.kind[i] === "inherited").map(([, n]) => n);
    if (after.length > at.length / 20) {
      mark.shapes.push({ type: "rect", layer: "below", x0: after[0] - 0.5, x1: after[after.length - 1] + 0.5, yref: "paper", y0: 0, y1: 1, line: { width: 0 }, fillcolor: c.floor });
      mark.annotations.push({ x: (after[0] + after[after.length - 1]) / 2, yref: "paper", y: 0.3, text: narrow() ? "input lost" : "input already infinite or NaN:<br>nothing to judge", showarrow: false, font: { color: c.dim } });
    }
    put("depth", traces, layout(c, 380, {
      showlegend: true, ...mark, margin: { ...margins(), t: narrow() ? 110 : 40 }, xaxis: depthAxis(l.layer, at),
      yaxis: logAxis("relative error (l2)", bottom, top),
    }), `Error of ${at.length} linears of ${capture.backend}, prompt ${capture.prompt}. ${capture.bad === null ? "None passes the limit." : `The first beyond the limit is ${l.layer[capture.bad]}.`} The table below has the numbers.`);
  }

  /* Maps of linear by token travel as 16 bit codes: 0 for none, else 32768 + 256 * log2(value). */
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
  function drawMap(id, c, what, colours, range) {
    const maps = capture.maps;
    const said = $(`${id}-said`);
    said.textContent = "";
    if (maps.why) return say(id, maps.why);
    const at = places(maps.layers);
    const logs = picked(decoded(maps[what], maps.bins.length), at);
    const known = logs.flat().filter((v) => v !== null && v > -30);
    const [low, high] = range(known);
    const z = maps.bins.map((_, b) => logs.map((row) => (row[b] === null ? null : Math.max(row[b], low))));
    const names = maps.bins.map(tokenName);
    const text = maps.bins.map((_, b) => at.map((i, n) => `${maps.layers[i]}<br>${names[b]}<br>${what === "x" ? "largest input" : "own error"} ${logs[n][b] === null ? "–" : logs[n][b] < -30 ? "0" : what === "x" ? short(10 ** logs[n][b]) : small(10 ** logs[n][b])}`));
    const prefill = maps.bins.filter((bin) => bin[0] === 0).length;
    const ticks = Array.from({ length: Math.floor(high) - Math.ceil(low) + 1 }, (_, n) => Math.ceil(low) + n).filter((_, n, all) => n % Math.ceil(all.length / 6) === 0);
    const lost = maps.lost.filter(([layer]) => at.includes(layer));
    const every = Math.max(1, Math.ceil(prefill / 6));
    const rowTicks = maps.bins.map((_, b) => b).filter((b) => b < prefill && b % every === 0);
    const writtenAt = prefill < maps.bins.length ? [prefill] : [];
    const bad = capture.bad === null ? -1 : at.findIndex((i) => maps.layers[i] === capture.linears.layer[capture.bad]);
    const binned = maps.bins.some((bin) => bin[1] !== bin[2]);
    said.textContent = (what === "x"
      ? "The largest input of each linear for each token, from dark (small) to bright (near the 65,504 that float16 holds)."
      : "The relative error of each linear for each token, from dark (small) to bright (large).")
      + (lost.length ? " A cross marks outputs that became infinite or NaN." : "")
      + (known.length < at.length * maps.bins.length ? " Grey: nothing to judge, since the input was already infinite or NaN, or the answer zero." : "")
      + (binned ? " The prompt is long: neighbouring tokens share a row, which shows the largest." : "")
      + (capture.shared ? ` ${capture.shared} linears whose rows of W the ranks share are not in it.` : "");
    put(id, [
      { type: "heatmap", z, text, hovertemplate: "%{text}<extra></extra>", zmin: low, zmax: high, colorscale: colours, hoverongaps: false, colorbar: { thickness: 10, len: 1, x: 1.01, xpad: 4, outlinewidth: 0, tickvals: ticks, ticktext: ticks.map((t) => (t === 0 ? "1" : `10<sup>${t}</sup>`)), tickfont: { size: 11 } } },
      { type: "scatter", mode: "markers", x: lost.map(([layer]) => at.indexOf(layer)), y: lost.map((l) => l[1]), text: lost.map(([layer, bin, count]) => `${maps.layers[layer]}<br>${names[bin]}<br>${count} outputs infinite or NaN`), marker: { symbol: "x", size: 10, color: "#d55e00", line: { color: "#ffffff", width: 1.5 } }, hovertemplate: "%{text}<extra></extra>" },
    ], layout(c, 340, {
      plot_bgcolor: c.void, margin: { ...margins(), t: 10 },
      shapes: [
        ...(bad < 0 ? [] : [{ type: "line", x0: bad, x1: bad, yref: "paper", y0: 0, y1: 1, line: { color: "#d55e00", width: 1, dash: "dot" } }]),
        ...writtenAt.map((b) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: b - 0.5, y1: b - 0.5, line: { color: "#ffffff", width: 1.5 } })),
      ],
      xaxis: { ...depthAxis(maps.layers, at), range: [-0.5, Math.max(at.length, 1) - 0.5] },
      yaxis: { title: { text: "token" }, range: [maps.bins.length - 0.5, -0.5], showgrid: false, tickmode: "array", tickvals: [...rowTicks, ...writtenAt], ticktext: [...rowTicks.map((b) => String(maps.bins[b][1])), ...writtenAt.map(() => "written")] },
    }), `${what === "x" ? "Largest input" : "Own error"} of ${at.length} linears for ${maps.bins.length} tokens of ${capture.backend}, prompt ${capture.prompt}.${lost.length ? ` Outputs are lost at ${maps.layers[lost[0][0]]}, ${names[lost[0][1]]}.` : ""}`);
  }
  const inputRange = () => [-2, Math.log10(data.largest)];
  function errorRange(known) {
    const sorted = Float64Array.from(known).sort();
    const low = sorted.length ? sorted[Math.floor(sorted.length * 0.02)] : -4;
    return [low, Math.max(low + 1, sorted.length ? sorted[Math.ceil(sorted.length * 0.995) - 1] : 0)];
  }

  function drawHeadroom(c) {
    const measured = Object.keys(capture.headroom);
    if (measured.length === 0) {
      $("headroom-said").textContent = "";
      return say("headroom", "There is no picture: nobody measured the headroom of this capture.");
    }
    const whole = capture.linears.layer.filter((name) => !name.includes(" before ") && !name.includes("@"));
    const names = measured.every((name) => whole.includes(name)) ? whole : measured;
    const at = places(names);
    const bitsOf = (i) => capture.headroom[names[i]];
    const values = at.map((i) => (bitsOf(i) === undefined ? null : data.largest / 2 ** bitsOf(i)));
    const known = values.filter((v) => v !== null);
    const least = at.filter((i) => bitsOf(i) !== undefined).reduce((best, i) => (best === null || bitsOf(i) < bitsOf(best) ? i : best), null);
    const colour = values.map((v) => (v > data.largest ? c.bad : v >= data.largest / 4 ? c.inherited : c.own));
    const over = known.filter((v) => v > data.largest).length;
    $("headroom-said").textContent = capture.reference
      ? "The largest result of each linear, as float16 would have to hold it. The line is the end of float16."
      : `The largest sum that this backend's kernel holds in float16, for each linear. The line is the end of float16; ${over === 0 ? "no bar passes it" : over === 1 ? "one bar passes it" : `${over} bars pass it`}. Each halving of a bar is one bit of headroom.`;
    put("headroom", [{
      type: "bar", x: at.map((_, x) => x), y: values, marker: { color: colour, line: { width: 0 } }, text: at.map((i) => names[i]), textposition: "none",
      customdata: at.map((i) => bitsOf(i) ?? null), hovertemplate: "%{text}<br>largest sum %{y:,.5~g}<br>headroom %{customdata:.1f} bits<extra></extra>",
    }], layout(c, 300, {
      bargap: at.length > 120 ? 0 : 0.15, xaxis: depthAxis(names, at), yaxis: logAxis("largest sum", Math.min(0, Math.log10(Math.min(...known, 1))), Math.log10(Math.max(...known, data.largest)) + 0.7),
      shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: data.largest, y1: data.largest, line: { color: c.limit, width: 1.5, dash: "dash" } }],
      annotations: [
        { xref: "paper", x: 0.005, y: Math.log10(data.largest), text: "65,504", showarrow: false, xanchor: "left", yanchor: "bottom", font: { size: 11 } },
        ...(least === null ? [] : [{ x: at.indexOf(least), y: Math.log10(data.largest / 2 ** bitsOf(least)), text: `${brief(names[least])}: ${bitsOf(least).toFixed(1)} bits`, showarrow: false, yanchor: "bottom", yshift: 3, xanchor: at.indexOf(least) > at.length / 2 ? "right" : "left", font: { size: 11, color: c.ink } }]),
      ],
    }), `Headroom of ${at.length} linears; the least is ${least === null ? "not known" : `${bitsOf(least)} bits at ${names[least]}`}.`);
  }

  /* The sum of one lost output while it grows, as the kernel has it and without rounding. */
  function drawSums(c) {
    for (const place of document.querySelectorAll("[data-sums]")) {
      const sums = data.sums[Number(place.dataset.sums)];
      const few = sums.channels.length <= 16;
      const x = few ? sums.channels.map((_, i) => i) : sums.channels;
      const text = sums.channels.map((channel) => `after channel ${channel}`);
      const sign = Math.abs(Math.min(...sums.exact)) > Math.max(...sums.exact) ? -1 : 1;
      const gone = sums.half.map((v, i) => (v === null ? i : -1)).filter((i) => i >= 0);
      const far = Math.max(sums.limit, ...sums.exact.map(Math.abs));
      const both = sums.exact.some((v) => v < -sums.limit / 10) && sums.exact.some((v) => v > sums.limit / 10);
      const range = both ? [-far * 1.15, far * 1.15] : sign > 0 ? [-far * 0.06, far * 1.15] : [-far * 1.15, far * 0.06];
      const ends = [sums.limit, -sums.limit].filter((v) => v > range[0] && v < range[1]);
      const mode = few ? "lines+markers" : "lines";
      const narrowed = sums.half.length === 0;
      put(place, [
        { type: "scatter", mode, name: "without rounding", x, y: sums.exact, text, line: { color: c.own, width: 2 }, marker: { size: 8 }, hovertemplate: "%{text}<br>%{y:,.6~g}<extra>without rounding</extra>" },
        { type: "scatter", mode, name: "in float16", x: narrowed ? [] : x, y: sums.half, text, line: { color: c.inherited, width: 2, dash: "dot" }, marker: { size: 8, symbol: "square" }, hovertemplate: "%{text}<br>%{y:,.6~g}<extra>in float16</extra>" },
        { type: "scatter", mode: "markers", name: "float16: infinite", x: narrowed ? [x[x.length - 1]] : gone.map((i) => x[i]), y: (narrowed ? [0] : gone).map(() => sign * sums.limit), text: narrowed ? [text[text.length - 1]] : gone.map((i) => text[i]), marker: { color: c.bad, symbol: "x", size: few || narrowed ? 12 : 5 }, hovertemplate: "%{text}<br>infinite or NaN<extra>in float16</extra>" },
      ], layout(c, 300, {
        showlegend: true, margin: { ...margins(), t: 40, r: 20 },
        xaxis: { title: { text: "channels of the input, in the kernel's order" }, ...(few ? { tickmode: "array", tickvals: x, ticktext: sums.channels.map(String), range: [-0.4, x.length - 0.6] } : {}) },
        yaxis: { range, tickformat: ",.0f" },
        shapes: ends.map((v) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: v, y1: v, line: { color: c.limit, width: 1.5, dash: "dash" } })),
        annotations: ends.map((v) => ({ xref: "paper", x: 0.01, y: v, text: v > 0 ? "65,504" : "-65,504", showarrow: false, xanchor: "left", yanchor: v > 0 ? "bottom" : "top", font: { size: 11 } })),
      }), `A sum over ${sums.channels.length} channels that passes ${sums.limit}.`);
    }
  }

  function fillTable() {
    const l = capture.linears;
    const filtered = $("filter").value.trim() !== "";
    const rows = places(l.layer).map((i) => {
      const row = document.createElement("tr");
      if (i === capture.bad) row.className = "bad";
      if (filtered || Math.abs(i - (capture.bad ?? 0)) <= 8) row.classList.add("near"); // what is printed
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = l.layer[i];
      row.append(head);
      const bits = capture.headroom[l.layer[i]];
      const cells = [short(l.input[i]), short(l.exact[i]), small(l.local[i]), small(l.floor[i]), l.excess[i] === null ? "–" : String(Number(l.excess[i].toPrecision(2))), small(l.inherited[i]), bits === undefined ? "–" : bits.toFixed(1), l.note[i]];
      cells.forEach((text, n) => {
        const cell = document.createElement("td");
        cell.textContent = text;
        if ((n === 4 && l.excess[i] > 1) || (n === 6 && bits < 0) || (n === 7 && BROKEN.includes(l.kind[i]))) cell.className = "beyond";
        row.append(cell);
      });
      return row;
    });
    $("linear-rows").replaceChildren(...rows);
    const bad = $("linear-rows").querySelector("tr.bad");
    $("linear-rows").closest(".scroll").scrollTop = bad === null ? 0 : Math.max(0, bad.offsetTop - 160);
    $("count").textContent = rows.length === l.layer.length ? `${rows.length} linears` : `${rows.length} of ${l.layer.length} linears`;
  }

  function filterLists() {
    for (const item of document.querySelectorAll("li[data-layer]")) item.hidden = !wanted(item.dataset.layer);
  }

  function draw() {
    if (capture === null || typeof Plotly === "undefined") return;
    const c = COLOURS[theme()];
    drawDepth(c);
    drawMap("x-map", c, "x", "Viridis", inputRange);
    drawMap("error-map", c, "error", "Cividis", errorRange);
    drawHeadroom(c);
    drawSums(c);
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
    if ($("library").textContent.trim() === "") {
      $("drawing").textContent = "There are no pictures: the package plotly was not installed where this report was made. The table has their numbers.";
      return;
    }
    const script = document.createElement("script");
    script.textContent = await inflated("library");
    document.head.append(script);
    draw();
    $("drawing").textContent = "";
    document.documentElement.dataset.drawn = "true";
  }
  start();
})();
