/* Elements by id, numbers as people read them, names of linears. */
const $ = (id) => document.getElementById(id);
const BROKEN = ["overflow", "nan", "diverged"];
const SIGNS = { agree: "✓", incomplete: "?", nondeterministic: "≈" };

function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return size < 0.01 ? value.toExponential(1) : String(Number(value.toPrecision(4)));
}
const small = (value) => (value === null || value === undefined ? "–" : value === 0 ? "0" : value.toExponential(1));
const counted = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const brief = (name) => name.replace("model.layers.", "");
const superscript = (n) => String(n).replace(/./g, (sign) => (sign === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign]));
const power = (value) => (Math.abs(value - 1) < 1e-9 ? "1" : `10${superscript(Math.round(Math.log10(value)))}`);

/* The filter keeps linears whose name holds what was typed. */
function wanted(name) {
  const typed = $("filter").value.trim().toLowerCase();
  return typed === "" || name.toLowerCase().includes(typed);
}
const places = (names) => names.map((_, i) => i).filter((i) => wanted(names[i]));
const picked = (values, at) => at.map((i) => values[i]);
