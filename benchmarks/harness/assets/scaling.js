// How the figures grow with the size, batch, threads and steps: a line for each contestant.

const AXES = {
  pixels: { title: "Size, height×width", label: (one) => one.size, others: ["batch", "threads", "steps"] },
  batch: { title: "Batch, pictures a call", label: (one) => String(one.batch), others: ["pixels", "threads", "steps"] },
  threads: { title: "Threads", label: (one) => String(one.threads), others: ["pixels", "batch", "steps"] },
  steps: { title: "Steps", label: (one) => String(one.steps), others: ["pixels", "batch", "threads"] },
};
const TOLD = { pixels: (one) => one.size, batch: (one) => `batch ${one.batch}`, threads: (one) => `${one.threads} thread${one.threads > 1 ? "s" : ""}`, steps: (one) => `${one.steps} steps` };

// The jobs that differ in this alone: those that agree with the chosen job, else the largest such family.
function family(axis) {
  const key = (one) => AXES[axis].others.map((other) => one[other]).join();
  const families = groupBy(data.jobs.map((one, index) => ({ ...one, index })), key);
  const wide = (jobs) => new Set(jobs.map((one) => one[axis])).size;
  const own = families.get(key(data.jobs[job()])) || [];
  if (wide(own) > 1) return own;
  const largest = [...families.values()].sort((a, b) => wide(b) - wide(a))[0] || [];
  return wide(largest) > 1 ? largest : [];
}

function scalePoints(axis, id, jobs) {
  const places = new Map(jobs.map((one) => [one.index, one]));
  return data.rows.filter((row) => places.has(row.job) && row.figures[id] && passes(data.contestants[row.contestant])).map((row) => {
    const one = places.get(row.job), who = data.contestants[row.contestant], [middle, least, most] = row.figures[id];
    return { name: who.name, group: who.group, scheme: who.scheme, x: one[axis], at: AXES[axis].label(one), y: middle, least, most, tip: `${who.name}\n${TOLD[axis](one)}: ${spreadText(row, id)}` };
  }).sort((a, b) => a.x - b.x);
}

function scaleChart(axis, id) {
  return (width) => {
    const jobs = family(axis);
    if (!jobs.length) return { hide: true };
    const points = scalePoints(axis, id, jobs), { title, unit } = data.measures[id];
    if (!points.length) return { empty: "No contestant that is shown has these figures." };
    const lines = [...groupBy(points, (one) => one.name).values()].sort((a, b) => a.at(-1).y - b.at(-1).y);
    const ticks = [...new Map(jobs.map((one) => [one[axis], AXES[axis].label(one)])).entries()].sort((a, b) => a[0] - b[0]);
    const ys = points.map((one) => one.y), log = Math.max(...ys) / Math.min(...ys) > 25;
    return {
      spec: scaleSpec({ width, points, lines, ticks, axis, id, log }),
      place: (view) => placeEnds(lines.map((line) => ({ px: view.scale("x")(line.at(-1).x) + 10, py: view.scale("y")(line.at(-1).y), label: short(line[0].name, width), weight: 400 })), 280),
      told: `${AXES[axis].others.map((other) => TOLD[other](jobs[0])).join(", ")}.${log ? " Up: logarithmic." : ""}${dashesTold()}`,
      alt: `Lines of ${lines.length} contestants: ${title} over ${AXES[axis].title}, ${ticks.map((tick) => tick[1]).join(", ")}. Lowest at the end: ${lines[0][0].name}. The data stand in the table below.`,
      head: ["Contestant", ...ticks.map(([, label]) => `${label}, ${unit}`)],
      rows: lines.map((line) => [line[0].name, ...ticks.map(([at]) => line.find((one) => one.x === at)?.y ?? null)]),
    };
  };
}

const schemes = [...new Set(data.contestants.map((one) => one.scheme))];
const STROKES = ["solid", "dashed", "dotted", "dash and dot"];
const dashesTold = () => (schemes.length > 1 && schemes.length <= 4 ? ` ${schemes.map((scheme, index) => `${STROKES[index]}: ${scheme}`).join(", ")}.`.replace("s", "S") : "");

function scaleSpec({ width, points, lines, ticks, axis, id, log }) {
  const groups = groupScale(points);
  // to the right there is room for the names of the lines
  const reserve = Math.max(...lines.map((line) => textWidth(short(line[0].name, width), 400))) + 14, inner = width - 56;
  const named = JSON.stringify(Object.fromEntries(ticks)), most = ticks.at(-1)[0], least = ticks[0][0], room = (most - least) * 0.06;
  // ticks that would run into each other give way; the marks tell what they are
  const shownTicks = ticks.filter(([at], index) => !index || (at - ticks[index - 1][0]) * (inner - reserve) / (most - least) > 62 || index === ticks.length - 1);
  const x = { field: "x", type: "quantitative", scale: { domain: [least - room, most + (most - least + room) * reserve / (inner - reserve)], nice: false, zero: false }, axis: { title: AXES[axis].title, values: shownTicks.map(([at]) => at), labelExpr: `${named}[datum.value]`, grid: false, labelOverlap: "greedy" } };
  const { title, unit } = data.measures[id];
  const y = { field: "y", type: "quantitative", scale: log ? { type: "log", nice: false, domain: [Math.min(...points.map((one) => one.y)) / 1.2, Math.max(...points.map((one) => one.y)) * 1.2] } : { zero: true }, axis: { title: `${title}, ${unit}`, format: PLAIN, tickCount: 5 } };
  const color = { field: "group", type: "nominal", scale: { domain: groups.domain, range: groups.colours }, legend: { title: null, orient: "bottom", columns: width < NARROW ? 2 : 3 } };
  const detail = { field: "name" };
  return {
    $schema: SCHEMA, width, height: 280, autosize: { type: "fit-x", contains: "padding" },
    layer: [
      { data: { values: points }, mark: { type: "line", strokeWidth: 2 }, encoding: { x, y, color, detail, strokeDash: { field: "scheme", type: "nominal", scale: { domain: schemes, range: schemes.map((_, index) => DASHES[index % DASHES.length]) }, legend: null } } },
      { data: { values: points }, mark: { type: "point", filled: true, size: 60, opacity: 1 }, encoding: { x, y, color, shape: { field: "group", type: "nominal", scale: { domain: groups.domain, range: groups.shapes } }, tooltip: { field: "tip" } } },
      labelLayer(),
    ],
  };
}

const short = (name, width) => shorten(name, width < 420 ? 16 : 26);
