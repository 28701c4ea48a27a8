/* Theme: as the system says, until somebody chooses. */
const system = window.matchMedia("(prefers-color-scheme: dark)");
const theme = () => document.documentElement.dataset.theme || (system.matches ? "dark" : "light");
function remembered() {
  try { return window.localStorage.getItem("gptq-diff-theme"); } catch { return null; }
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
}
function startTheme() {
  const chosen = remembered();
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  nameTheme();
  $("theme").addEventListener("click", chooseTheme);
  system.addEventListener("change", nameTheme);
}
