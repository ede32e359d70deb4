// Bars with their spread, one contestant a line, best first.

const SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json";
const NARROW = 560;
const BAR = 14; // pixels
const PLAIN = ",.6~g"; // numbers as people write them: the default turns 20 into 2e+1

// Where there is room and the names are short they stand at the axis, else each stands over its bar, whole.
function lineLayout(rows, width) {
  const longest = Math.max(...rows.map((row) => row.who.name.length));
  const beside = width >= NARROW && longest <= 30 && longest * 7 < width * 0.45;
  return { width, beside, step: beside ? 26 : 44, shift: beside ? 0 : 9 };
}

function nameAxis(layout, rows) {
  if (!layout.beside) return null;
  const named = JSON.stringify(Object.fromEntries(rows.map((row) => [row.id, row.who.name])));
  return { title: null, labelExpr: `${named}[datum.value]`, labelLimit: 300, labelColor: colour("ink"), grid: false };
}

// The layers of one chart, over each other, with a line for each row; a layer brings data, mark and its encoding of x.
function lineSpec(layout, rows, unit, most, layers) {
  const y = { field: "id", type: "nominal", scale: { domain: rows.map((row) => row.id), paddingInner: 0, paddingOuter: 0.05 }, axis: nameAxis(layout, rows) };
  const x = { type: "quantitative", scale: { domain: [0, most], nice: false }, axis: { title: unit, tickCount: Math.max(3, Math.floor(layout.width / 110)), labelFlush: true, format: PLAIN } };
  const named = layout.beside ? [] : [{
    data: { values: rows.map((row) => ({ id: row.id, name: row.who.name })) },
    mark: { type: "text", align: "left", baseline: "middle", yOffset: -7, x: 0, limit: layout.width - 8, fontWeight: 500 },
    encoding: { text: { field: "name" } },
  }];
  return {
    $schema: SCHEMA, width: layout.width, height: rows.length * layout.step + 6, autosize: { type: "fit-x", contains: "padding" },
    layer: [...layers, ...named].map((layer) => ({
      ...layer,
      mark: { yOffset: layout.shift, ...layer.mark },
      encoding: { y, ...layer.encoding, ...(layer.encoding.x ? { x: { ...x, ...layer.encoding.x } } : {}) },
    })),
  };
}

function whiskers(values, layout) {
  const cap = { type: "tick", thickness: 1.5, size: 8, color: colour("ink"), yOffset: layout.shift };
  const reach = { x: { field: "least" }, x2: { field: "most" } };
  return [
    // a halo, for those parts that lie on a bar
    { data: { values }, mark: { type: "rule", color: colour("card"), strokeWidth: 4.5 }, encoding: reach },
    { data: { values }, mark: { type: "rule", color: colour("ink"), strokeWidth: 1.5 }, encoding: reach },
    { data: { values }, mark: cap, encoding: { x: { field: "least" } } },
    { data: { values }, mark: cap, encoding: { x: { field: "most" } } },
  ];
}

function valueLabels(values) {
  return {
    data: { values }, mark: { type: "text", align: "left", baseline: "middle", dx: 7, fontWeight: 600 },
    encoding: { x: { field: "most" }, text: { field: "label" } },
  };
}

const spreadOf = (rows, id) => rows.map((row) => {
  const [middle, least, most, values] = row.figures[id];
  return { id: row.id, name: row.who.name, group: row.who.group, middle, least, most, values, label: number(middle), tip: `${row.who.name}\n${spreadText(row, id)}` };
});

const sortedBy = (rows, id) => [...rows].sort((a, b) => (median(a, id) - median(b, id)) * (data.measures[id].better === "more" ? -1 : 1));

function barChart(id) {
  return (width) => {
    const rows = sortedBy(measured(id), id), { title, unit } = data.measures[id];
    if (!rows.length) return nothing(id);
    const values = spreadOf(rows, id), layout = lineLayout(rows, width), groups = groupScale(rows.map((row) => row.who));
    const most = Math.max(...values.map((value) => value.most)) * 1.16 || 1;
    const dots = values.flatMap((value) => value.least === value.most ? [] : value.values.map((one) => ({ id: value.id, one })));
    const bars = {
      data: { values }, mark: { type: "bar", height: BAR, cornerRadiusEnd: 2 },
      encoding: { x: { field: "middle" }, color: { field: "group", type: "nominal", scale: { domain: groups.domain, range: groups.colours }, legend: null }, tooltip: { field: "tip" } },
    };
    const measurements = { data: { values: dots }, mark: { type: "circle", size: 16, opacity: 0.55, color: colour("ink"), tooltip: null }, encoding: { x: { field: "one" } } };
    const layers = [bars, ...(dots.length ? [measurements] : []), ...whiskers(values.filter((value) => value.least !== value.most), layout), valueLabels(values)];
    return {
      spec: lineSpec(layout, rows, unit, most, layers),
      alt: `Bar chart, ${title} in ${unit}. Best: ${rows[0].who.name}, ${spreadText(rows[0], id)}. Last of ${rows.length}: ${rows.at(-1).who.name}, ${spreadText(rows.at(-1), id)}. The data stand in the table below.`,
      head: ["Contestant", `median, ${unit}`, "least", "most", "measurements"],
      rows: values.map((value) => [value.name, value.middle, value.least, value.most, value.values.length]),
    };
  };
}

// Nothing anywhere in the report: the plot goes. Nothing here: it says so.
function nothing(id) {
  const somewhere = data.rows.some((row) => row.figures[id]);
  return somewhere ? { empty: "No contestant that is shown has this figure." } : { hide: true };
}

const PARTS = [
  ["import_s", "import"], ["open_s", "open"], ["first_step_s", "first step"], ["rest_s", "rest of the first picture"],
];

function coldChart(width) {
  const rows = sortedBy(measured("cold_start_s"), "cold_start_s");
  if (!rows.length) return data.rows.some((row) => row.figures.cold_start_s) ? nothing("cold_start_s") : { empty: "No contestant came to its first picture." };
  const values = spreadOf(rows, "cold_start_s"), layout = lineLayout(rows, width);
  const most = Math.max(...values.map((value) => value.most)) * 1.16;
  const stacked = rows.flatMap((row) => {
    let from = 0;
    return PARTS.map(([id, part], order) => {
      const seconds = row.parts[order], to = from + seconds;
      const piece = { id: row.id, part, from, to, tip: `${row.who.name}\n${part}: ${withUnit(seconds, "s")}` };
      from = to;
      return piece;
    });
  });
  const color = { field: "part", type: "nominal", scale: { domain: PARTS.map((part) => part[1]), range: PARTS.map((_, index) => colour(`part-${index}`)) }, legend: { title: null, orient: "top", columns: width < NARROW ? 2 : 4, symbolType: "square" } };
  const bars = {
    data: { values: stacked }, mark: { type: "bar", height: BAR, stroke: colour("card"), strokeWidth: 1 },
    encoding: { x: { field: "from" }, x2: { field: "to" }, color, tooltip: { field: "tip" } },
  };
  return {
    spec: lineSpec(layout, rows, "s", most, [bars, ...whiskers(values.filter((value) => value.least !== value.most), layout), valueLabels(values)]),
    alt: `Stacked bars, seconds from the process's start to its first picture. Soonest: ${rows[0].who.name}, ${spreadText(rows[0], "cold_start_s")}. Last of ${rows.length}: ${rows.at(-1).who.name}, ${spreadText(rows.at(-1), "cold_start_s")}. The data stand in the table below.`,
    head: ["Contestant", "whole, median, s", "least", "most", ...PARTS.map((part) => part[1])],
    rows: rows.map((row, index) => [row.who.name, values[index].middle, values[index].least, values[index].most, ...row.parts]),
  };
}
