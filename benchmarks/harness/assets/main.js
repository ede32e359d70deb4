// Start: controls from the state, the charts, and what tells that all is drawn.

function options(id, values, all) {
  byId(id).replaceChildren(...(all ? [element("option", { value: "" }, all)] : []), ...values.map(([value, text]) => element("option", { value }, text)));
}

const same = (values) => [...new Set(values)].sort((a, b) => a.localeCompare(b, "en", { numeric: true })).map((value) => [value, value]);

function startFilters() {
  options("engine", same(data.contestants.map((one) => one.engine)), "all");
  options("scheme", same(data.contestants.map((one) => one.scheme)), "all");
  options("job", data.jobs.map((one, index) => [String(index), one.label]));
  byId("job-label").hidden = data.jobs.length < 2;
  byId("all-label").hidden = data.jobs.length < 2;
  options("across", available(ACROSS).map((id) => [id, data.measures[id].title]));
  options("up", available([...QUALITIES, ...COSTS]).map((id) => [id, data.measures[id].title]));
  byId("places").hidden = !available(ACROSS).length;
  byId("find").addEventListener("input", (event) => change({ find: event.target.value }));
  for (const id of ["engine", "scheme", "job", "across", "up"]) byId(id).addEventListener("change", (event) => change({ [id]: event.target.value }));
  for (const id of ["share", "all"]) byId(id).addEventListener("change", (event) => change({ [id]: event.target.checked ? "1" : "" }));
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", (event) => {
    event.preventDefault();
    change({ find: "", engine: "", scheme: "", job: "0" });
    showControls();
  });
}

function showControls() {
  for (const id of ["find", "engine", "scheme", "job"]) byId(id).value = state[id];
  byId("across").value = acrossId() || "";
  byId("up").value = upId() || "";
  byId("share").checked = state.share === "1";
  byId("all").checked = state.all === "1";
}

function showFindings() {
  for (const part of document.querySelectorAll("[data-job]")) part.hidden = part.dataset.job !== state.job;
}

const isDark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

function setTheme(theme) {
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  byId("theme").setAttribute("aria-pressed", String(isDark()));
}

function startTheme(asked) {
  let kept = null;
  try { kept = localStorage.getItem("ingot-theme"); } catch { /* a browser may forbid storage; the page does without */ }
  setTheme(asked || kept);
  byId("theme").addEventListener("click", () => {
    setTheme(isDark() ? "light" : "dark");
    try { localStorage.setItem("ingot-theme", document.documentElement.dataset.theme); } catch { /* as above */ }
    drawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { setTheme(""); drawAll(); });
}

// The hash holds what is shown, so links to a part of the page scroll without touching it.
function startLinks() {
  for (const link of document.querySelectorAll('a[href^="#"]')) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const part = byId(link.getAttribute("href").slice(1));
      part.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
      part.focus({ preventScroll: true });
    });
  }
}

function startCharts() {
  chart("chart-speed", [...FILTERS, "across", "up"], scatterChart);
  chart("chart-cold", FILTERS, coldChart);
  const bars = { picture: "picture_s", step: "step_s", host: "host_ms_per_step", memory: "peak_mib", gpu: "gpu_peak_mib", size: "artifact_mb", installed: "installed_mb", energy: "energy_j" };
  for (const [name, id] of Object.entries(bars)) chart(`chart-${name}`, FILTERS, barChart(id));
  chart("chart-timeline", [...FILTERS, "share"], timelineChart);
  const scales = { size: ["pixels", "picture_s"], memory: ["pixels", "peak_mib"], batch: ["batch", "picture_s"], threads: ["threads", "picture_s"], steps: ["steps", "picture_s"] };
  for (const [name, [axis, id]] of Object.entries(scales)) chart(`chart-scale-${name}`, FILTERS, scaleChart(axis, id));
  const scaled = Object.keys(AXES).some((axis) => family(axis).length);
  byId("scaling").hidden = !scaled;
  for (const link of document.querySelectorAll('[data-part="scaling"]')) link.hidden = !scaled;
}

function startSaving() {
  const { csv, json } = JSON.parse(byId("report").textContent);
  byId("save-csv").addEventListener("click", () => save("report.csv", "text/csv", csv));
  byId("save-json").addEventListener("click", () => save("report.json", "application/json", `${JSON.stringify(json, null, 1)}\n`));
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(byId(button.dataset.of).textContent); button.textContent = "Copied"; } catch { getSelection().selectAllChildren(byId(button.dataset.of)); }
    });
  }
}

async function start() {
  const found = readHash();
  document.documentElement.classList.add("scripted");
  startTheme(found.get("theme"));
  startFilters();
  startTable();
  startLinks();
  startSaving();
  startCharts();
  onChange(FILTERS, showFindings);
  onChange([...FILTERS, "all"], filterTable);
  onChange(["sort"], sortTable);
  onChange([...FILTERS, "picture", "chosen", "against", "view", "gain"], drawPictures);
  addEventListener("hashchange", () => { const before = { ...state }; readHash(); const after = { ...state }; Object.assign(state, before); change(after); showControls(); });
  let width = innerWidth, timer = 0;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; clearTimeout(timer); timer = setTimeout(drawAll, 150); } });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  showControls();
  showFindings();
  sortTable();
  filterTable();
  drawPictures();
  await drawAll();
  document.documentElement.dataset.charts = document.querySelectorAll('.chart[data-state="drawn"]').length;
  document.documentElement.dataset.ready = "yes";
}

addEventListener("error", (event) => report("script", event.message));
addEventListener("unhandledrejection", (event) => report("script", event.reason));
start().catch((error) => report("start", error));
