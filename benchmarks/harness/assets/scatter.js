// Speed against quality against size, with the frontier.

const QUALITIES = ["psnr_db", "latent_sqnr_db", "ssim", "checker", "clip", "fid"];
const ACROSS = ["picture_s", "step_s", "cold_start_s", "first_preview_s", "energy_j"];
const COSTS = ["peak_mib", "artifact_mb"];
const EQUALS = { psnr_db: "equal", latent_sqnr_db: "latents_equal" }; // infinite then, so that no number says it

// Infinity where the pictures are equal: it has a place of its own at the axis's top.
function height(row, id) {
  if (COSTS.includes(id)) return median(row, id);
  const found = row.quality[id] ?? null;
  return found === null && row.quality[EQUALS[id]] ? Infinity : found;
}

function has(id) {
  if (ACROSS.includes(id) || COSTS.includes(id)) return data.rows.some((row) => row.figures[id]);
  // what only the reference has compares nobody
  return data.rows.some((row) => height(row, id) !== null && !data.contestants[row.contestant].reference);
}

const available = (ids) => ids.filter(has);
const acrossId = () => (available(ACROSS).includes(state.across) ? state.across : available(ACROSS)[0]);
function upId() {
  const ids = available([...QUALITIES, ...COSTS]);
  return ids.includes(state.up) ? state.up : ids[0];
}

// From the fastest on: who is better than everyone before.
function frontier(points, less) {
  let best = null;
  return [...points].sort((a, b) => a.x - b.x || (less ? a.true - b.true : b.true - a.true)).filter((point) => {
    const further = best === null || (less ? point.true < best : point.true > best);
    if (further) best = point.true;
    return further;
  });
}

function niceTicks(least, most, count) {
  const step = roundStep((most - least) / count);
  const ticks = [];
  for (let tick = Math.ceil(least / step) * step; tick <= most + step * 1e-9; tick += step) ticks.push(Number(tick.toPrecision(12)));
  return ticks;
}

function roundStep(raw) {
  const power = 10 ** Math.floor(Math.log10(raw || 1)), share = raw / power;
  return power * (share > 5 ? 10 : share > 2 ? 5 : share > 1 ? 2 : 1);
}

// The axis of the quality: finite figures as they are, "equal" in a band over the largest.
function upAxis(values, id) {
  const finite = values.filter((value) => value !== Infinity), equal = finite.length < values.length;
  let [least, most] = finite.length ? [Math.min(...finite), Math.max(...finite)] : [0, 1];
  if (COSTS.includes(id)) least = 0;
  const room = (most - least) * 0.12 || Math.abs(most) * 0.1 || 1;
  const ticks = finite.length ? niceTicks(least - room, most + room, 5).filter((tick) => !equal || tick < most + room) : [];
  const bounded = ["ssim", "checker"].includes(id) ? Math.min(1.005, most + room) : most + room;
  const top = equal ? most + room * 2 : bounded;
  const low = COSTS.includes(id) || ["ssim", "checker"].includes(id) ? Math.max(0, least - room) : least - room;
  const shownTicks = ticks.filter((tick) => tick >= low && tick <= bounded);
  return {
    place: (value) => (value === Infinity ? top : value), domain: [low, equal ? top + room * 0.35 : top],
    values: equal ? [...shownTicks, top] : shownTicks, labelExpr: equal ? `datum.value >= ${top - room * 0.01} ? 'equal' : datum.label` : "datum.label",
  };
}

function scatterChart(width) {
  const across = acrossId(), up = upId();
  if (!across || !up) return { empty: "No contestant has both a time and a quality, memory or size to place it by." };
  const rows = measured(across).filter((row) => height(row, up) !== null), missing = measured(across).length - rows.length;
  if (!rows.length) return { empty: "No contestant that is shown has both figures." };
  const axis = upAxis(rows.map((row) => height(row, up)), up), less = data.measures[up].better === "less";
  const points = rows.map((row) => point(row, across, up, axis));
  const front = frontier(points, less);
  const few = width >= NARROW && points.length <= 16;
  for (const one of points) if (few || front.includes(one)) one.label = shorten(one.name, 36);
  for (const one of front) one.weight = 700;
  points.sort((a, b) => b.weight - a.weight); // labels are placed in this order while there is room
  const xs = points.map((one) => one.x), log = Math.max(...xs) / Math.min(...xs) > 15;
  return {
    spec: scatterSpec({ width, points, front, axis, across, up, log, less }),
    place: (view) => scatterLabels(view, points, front),
    told: [upTitle(up, less), log ? "Across: logarithmic." : "", sizesTold(points), missing ? `${missing} without this figure ${missing > 1 ? "are" : "is"} not drawn.` : ""].filter(Boolean).join(" "),
    alt: `Scatter of ${points.length} contestants, ${data.measures[across].title} against ${data.measures[up].title}. On the frontier, fastest first: ${front.map((one) => one.name).join(", ")}. The data stand in the table below.`,
    head: ["Contestant", `${data.measures[across].title}, ${data.measures[across].unit}`, [data.measures[up].title, data.measures[up].unit].filter(Boolean).join(", "), "files, MB", "on the frontier"],
    rows: [...points].sort((a, b) => a.x - b.x).map((one) => [one.name, one.x, one.true, one.mb, front.includes(one) ? "yes" : ""]),
  };
}

function sizesTold(points) {
  const sizes = points.map((one) => one.mb).filter((one) => one !== null);
  return sizes.length ? `Files: ${[...new Set([Math.min(...sizes), Math.max(...sizes)].map(number))].join(" to ")} MB.` : "";
}

const upTitle = (up, less) => `${data.measures[up].title}: ${less ? "lower" : "higher"} is better; further left is faster.`;

function point(row, across, up, axis) {
  const value = height(row, up), mb = median(row, "artifact_mb");
  const lines = [row.who.name, `${data.measures[across].title}: ${spreadText(row, across)}`, `${data.measures[up].title}: ${value === Infinity ? "equal" : withUnit(value, data.measures[up].unit)}`];
  if (mb !== null) lines.push(`files: ${withUnit(mb, "MB")}`);
  return { id: row.id, name: row.who.name, group: row.who.group, x: median(row, across), y: axis.place(value), true: value, mb, size: mb ?? 0, label: "", weight: 400, tip: lines.join("\n") };
}

// The frontier's steps: along to the next mark, then up to it.
function scatterLabels(view, points, front) {
  const x = view.scale("x"), y = view.scale("y"), width = view.signal("width"), height = view.signal("height");
  const size = points.some((one) => one.mb) ? view.scale("size") : () => 140;
  const marks = points.map((one) => ({ px: x(one.x), py: y(one.y), r: Math.sqrt(size(one.size)) / 2 + 1, label: one.label, weight: one.weight }));
  const lines = front.slice(1).flatMap((next, index) => {
    const from = { px: x(front[index].x), py: y(front[index].y) }, to = { px: x(next.x), py: y(next.y) };
    return [box(from.px, from.py, to.px - from.px, 2), { left: to.px - 1, right: to.px + 1, top: Math.min(from.py, to.py), bottom: Math.max(from.py, to.py) }];
  });
  return placeBeside(marks, lines, width, height);
}

function scatterSpec({ width, points, front, axis, across, up, log, less }) {
  const groups = groupScale(points), unit = data.measures[up].unit, most = Math.max(...points.map((one) => one.x)), least = Math.min(...points.map((one) => one.x));
  const x = { field: "x", type: "quantitative", axis: { title: `${data.measures[across].title}, ${data.measures[across].unit}`, format: PLAIN, tickCount: Math.max(3, Math.floor(width / 120)), labelOverlap: true, labelFlush: false },
    scale: log ? { type: "log", domain: [least / 1.3, most * 1.3], nice: false } : { domain: [0, most * 1.08], nice: false } };
  const y = { field: "y", type: "quantitative", scale: { domain: axis.domain, zero: false, nice: false }, axis: { title: unit ? `${data.measures[up].title}, ${unit}` : data.measures[up].title, values: axis.values, labelExpr: axis.labelExpr, format: PLAIN } };
  const scale = { domain: groups.domain, range: groups.colours }, columns = width < NARROW ? 2 : Math.min(5, Math.floor(width / 190));
  const legend = { title: null, orient: "bottom", columns, symbolOpacity: 1, symbolSize: 90 };
  const most_mb = Math.max(...points.map((one) => one.size)), sized = most_mb > 0;
  return {
    $schema: SCHEMA, width, height: Math.round(Math.min(460, Math.max(300, width * 0.5))), autosize: { type: "fit-x", contains: "padding" },
    layer: [
      { data: { values: front }, mark: { type: "line", interpolate: "step-after", color: colour("soft"), strokeDash: [5, 4], strokeWidth: 1.25, opacity: 0.8 }, encoding: { x, y, order: { field: "x", type: "quantitative" } } },
      {
        data: { values: points }, mark: { type: "point", filled: true, opacity: 0.88, stroke: colour("card"), strokeWidth: 1.5 },
        encoding: {
          x, y, tooltip: { field: "tip" },
          color: { field: "group", type: "nominal", scale, legend }, shape: { field: "group", type: "nominal", scale: { domain: groups.domain, range: groups.shapes }, legend },
          size: sized ? { field: "size", type: "quantitative", scale: { range: [70, 1100], domain: [0, most_mb] }, legend: width < NARROW ? null : { title: "files, MB", orient: "bottom", symbolFillColor: colour("soft"), values: niceTicks(0, most_mb, 4).slice(1), direction: "horizontal", format: PLAIN } } : { value: 140 },
        },
      },
      labelLayer(),
    ],
  };
}
