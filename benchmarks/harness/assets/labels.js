// Names beside marks, out of each other's way. Vega tells where the marks lie; the names go where there is room.

const LABEL_HEIGHT = 15; // pixels, of a line of 12

const ruler = element("canvas").getContext("2d");
function textWidth(text, weight) {
  ruler.font = `${weight} 12px ${getComputedStyle(document.body).fontFamily}`;
  return ruler.measureText(text).width;
}

const labelLayer = () => ({
  data: { name: "labels", values: [] },
  mark: { type: "text", align: "left", baseline: "middle", fontSize: 12, fontWeight: { expr: "datum.weight" }, stroke: colour("card"), strokeWidth: 4, strokeJoin: "round", tooltip: null },
  encoding: { x: { field: "px", type: "quantitative", scale: null }, y: { field: "py", type: "quantitative", scale: null }, text: { field: "label", type: "nominal" } },
});

const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
const box = (left, middle, width, height) => ({ left, right: left + width, top: middle - height / 2, bottom: middle + height / 2 });

// Around a mark of radius r: right, left, above, below, and between.
function spots({ px, py, r }, width) {
  const gap = r + 5, up = r + LABEL_HEIGHT / 2 + 1;
  return [[px + gap, py], [px - gap - width, py], [px + r * 0.7, py - up], [px + r * 0.7, py + up], [px - width / 2, py - up], [px - width / 2, py + up], [px - r * 0.7 - width, py - up], [px - r * 0.7 - width, py + up]]
    .map(([left, middle]) => box(left, middle, width, LABEL_HEIGHT));
}

// Marks are { px, py, r, label, weight }; the first have the first choice. `lines` are boxes that a name keeps off if it can.
function placeBeside(marks, lines, width, height) {
  const around = marks.map((mark) => box(mark.px - mark.r, mark.py, 2 * mark.r, 2 * mark.r)), taken = [...around], placed = [];
  for (const mark of marks.filter((one) => one.label)) {
    const fits = spots(mark, textWidth(mark.label, mark.weight)).filter((spot) => spot.left >= 0 && spot.right <= width && spot.top >= -8 && spot.bottom <= height && taken.every((other) => apart(spot, other)));
    const spot = fits.find((one) => lines.every((line) => apart(one, line))) || fits[0];
    if (!spot) continue;
    taken.push(spot);
    placed.push({ px: spot.left, py: (spot.top + spot.bottom) / 2, label: mark.label, weight: mark.weight });
  }
  return placed;
}

// One under the other where they would touch; none where there are more than the height holds.
function placeEnds(ends, height) {
  if (ends.length * LABEL_HEIGHT > height + LABEL_HEIGHT) return [];
  const placed = [...ends].sort((a, b) => a.py - b.py);
  for (let index = 1; index < placed.length; index++) placed[index].py = Math.max(placed[index].py, placed[index - 1].py + LABEL_HEIGHT);
  let floor = height;
  for (const label of placed.reverse()) { label.py = Math.min(label.py, floor); floor = label.py - LABEL_HEIGHT; }
  return placed;
}
