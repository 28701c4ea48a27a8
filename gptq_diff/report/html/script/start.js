/* What is shown, and when it is drawn. */
let data = null;
let capture = null;
let printing = false;
let drawnWidth = 0;

async function inflated(id) {
  const bytes = Uint8Array.from(atob($(id).textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}
function drawCapture() {
  if (capture === null || typeof Plot === "undefined") return;
  drawDepth();
  drawMap("x");
  drawMap("error");
  drawHeadroom();
}
function draw() {
  if (typeof Plot === "undefined") return;
  drawnWidth = $("content").clientWidth;
  drawLengths();
  drawCapture();
  drawSums();
  drawAsked();
}
function show() {
  fillTable();
  filterLists();
  drawCapture();
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
function drawWhenItChanges() {
  for (const [event, value] of [["beforeprint", true], ["afterprint", false]]) {
    window.addEventListener(event, () => { printing = value; draw(); });
  }
  let waiting = 0;
  new ResizeObserver(() => {
    window.cancelAnimationFrame(waiting);
    waiting = window.requestAnimationFrame(() => { if (!printing && $("content").clientWidth !== drawnWidth) draw(); });
  }).observe($("content"));
}

async function start() {
  startTheme();
  const told = $("drawing");
  if (document.querySelector(".plot") === null) return;
  if (typeof DecompressionStream === "undefined") {
    told.textContent = "This browser is too old to draw the pictures: it knows no DecompressionStream. Everything else can be read.";
    return;
  }
  told.textContent = "Drawing…";
  data = JSON.parse(await inflated("data"));
  if ($("capture")) { // the table of numbers, before there is a library
    fillSelect();
    select(data.selected);
  }
  const script = document.createElement("script");
  script.textContent = await inflated("library");
  document.head.append(script);
  draw();
  drawWhenItChanges();
  told.textContent = "";
  document.documentElement.dataset.drawn = "true";
}
start();
