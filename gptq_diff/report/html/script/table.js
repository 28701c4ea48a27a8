/* The same in numbers, for those who read or filter. */
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
