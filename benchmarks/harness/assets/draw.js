// Draw a chart with Vega-Lite: its plot, its text alternative and the table of its data.
// A chart is a function of the plot's width that gives { spec, alt, head, rows } or { empty: "why there is nothing" };
// a rule of the page's security policy forbids eval, so Vega's expressions are interpreted.

const charts = new Map(); // id → { build, keys, view }
const problems = [];

function report(what, error) {
  problems.push(`${what}: ${error && error.message ? error.message : error}`);
  byId("broken").hidden = false;
  byId("broken").textContent = `This page could not show everything. ${problems.join(" ")}`;
  document.documentElement.dataset.problems = problems.length;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const groupColour = (index) => colour(`series-${index % 8}`);
const SHAPES = [
  "circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left",
];
const DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]]; // as STROKES names them
const groupShape = (index) => SHAPES[index % SHAPES.length];

function groupScale(rows) {
  const used = data.groups.map((name, index) => ({ name, index })).filter(({ name }) => rows.some((row) => row.group === name));
  return {
    domain: used.map(({ name }) => name),
    colours: used.map(({ index }) => groupColour(index)),
    shapes: used.map(({ index }) => groupShape(index)),
  };
}

function config() {
  const ink = colour("ink"), soft = colour("soft"), line = colour("line");
  const font = getComputedStyle(document.body).fontFamily;
  return {
    background: null, font, aria: false, padding: 2,
    view: { stroke: null },
    axis: {
      labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 12,
      titleFontSize: 12, titleFontWeight: 400, titlePadding: 8, labelPadding: 5, tickSize: 4, titleAnchor: "end",
    },
    axisY: { titleAngle: 0, titleAlign: "left", titleAnchor: "start", titleY: -12, titleX: 0, domain: false, ticks: false },
    legend: { labelColor: ink, titleColor: soft, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 400, labelLimit: 220, layout: { bottom: { margin: 28, direction: "horizontal" } }, columnPadding: 18, rowPadding: 5, symbolStrokeWidth: 0 },
    text: { color: ink, fontSize: 12 },
  };
}

const tip = byId("tip");

// Vega gives what an encoding named `tooltip` holds; it is shown as text, never as HTML.
function showTip(handler, event, item, value) {
  if (value === null || value === undefined || value === "") { tip.hidden = true; return; }
  tip.textContent = typeof value === "object" ? Object.values(value).join("\n") : String(value);
  tip.hidden = false;
  const room = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - room.width - 4))}px`;
  tip.style.top = `${Math.max(4, event.clientY + room.height + 22 > innerHeight ? event.clientY - room.height - 10 : event.clientY + 18)}px`;
}

function dataTable(head, rows, caption) {
  const heads = head.map((text) => element("th", { scope: "col" }, text));
  const lines = rows.map((row) => element("tr", {}, ...row.map((cell, index) =>
    index ? element("td", {}, typeof cell === "number" ? number(cell) : String(cell ?? "–")) : element("th", { scope: "row" }, String(cell)))));
  return element("table", {}, element("caption", { class: "hidden" }, caption), element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...lines));
}

async function draw(id) {
  const figure = byId(id), chart = charts.get(id);
  const plot = figure.querySelector(".plot"), details = figure.querySelector("details");
  if (chart.view) chart.view.finalize();
  chart.view = null;
  const built = chart.build(Math.max(220, figure.clientWidth - parseFloat(getComputedStyle(figure).paddingLeft) * 2));
  figure.hidden = Boolean(built.hide);
  details.hidden = Boolean(built.empty || built.hide);
  figure.dataset.state = built.empty || built.hide ? "empty" : "drawing";
  figure.querySelector(".told").textContent = built.told || "";
  if (built.empty || built.hide) {
    plot.replaceChildren(element("p", { class: "empty" }, built.empty || ""));
    plot.removeAttribute("role");
    plot.removeAttribute("aria-label");
    return;
  }
  const compiled = vegaLite.compile(built.spec, { config: config(), logger: quiet }).spec;
  const view = new vega.View(vega.parse(compiled, null, { ast: true }), { expr: expressionInterpreter, renderer: "svg", container: plot, hover: false, logger: quiet });
  view.tooltip(showTip);
  chart.view = view;
  await view.runAsync();
  if (built.place) await view.data("labels", built.place(view)).runAsync(); // only now it is known where the marks lie
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", built.alt);
  details.querySelector(".scroll").replaceChildren(dataTable(built.head, built.rows, figure.querySelector("figcaption").firstChild.textContent));
  figure.dataset.state = "drawn";
}

// Vega's warnings are problems of ours: told, never lost in a console that nobody opens.
const quiet = {
  level: () => quiet, debug: () => quiet, info: () => quiet,
  warn: (...words) => { report("plot", words.join(" ")); return quiet; },
  error: (...words) => { report("plot", words.join(" ")); return quiet; },
};

async function drawSafely(id) {
  try { await draw(id); } catch (error) { byId(id).dataset.state = "failed"; report(id, error); }
}

function chart(id, keys, build) {
  if (!byId(id)) return;
  charts.set(id, { build, view: null });
  onChange(keys, () => drawSafely(id));
}

const drawAll = () => Promise.all([...charts.keys()].map(drawSafely));
