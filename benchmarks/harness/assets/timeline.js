// Where a generation's time goes: each contestant's last call, component by component.

const ROLES = {
  text_encoder: "text encoder", vae_encoder: "VAE encoder", unet: "UNet", unet_shallow: "shallow UNet",
  transformer: "transformer", scheduler: "scheduler", vae_decoder: "VAE decoder",
};
const REST = "host and the rest";
const roleName = (role) => ROLES[role] || role.replaceAll("_", " ");

function timelineChart(width) {
  const rows = shown().filter((row) => row.timeline.length).sort((a, b) => a.call_s - b.call_s);
  if (!rows.length) return { empty: "No contestant that is shown told when its components ran." };
  const share = state.share === "1", layout = lineLayout(rows, width);
  const unit = (row) => (share ? 100 / row.call_s : 1);
  const roles = [...new Set(rows.flatMap((row) => row.timeline.map((span) => span[0])))];
  const known = [...Object.keys(ROLES).filter((role) => roles.includes(role)), ...roles.filter((role) => !(role in ROLES))];
  const names = [...known.map(roleName), REST];
  const colours = [...known.map((role) => colour(role in ROLES ? `role-${role.replaceAll("_", "-")}` : "role-other")), colour("role-rest")];
  const most = share ? 100 : Math.max(...rows.map((row) => row.call_s)) * 1.02;
  const x = { field: "from" }, x2 = { field: "to" };
  const color = { field: "what", type: "nominal", scale: { domain: names, range: colours }, legend: { title: null, orient: "top", symbolType: "square", columns: width < NARROW ? 2 : 6 } };
  const tooltip = { field: "tip" };
  const wholes = rows.map((row) => ({ id: row.id, what: REST, from: 0, to: row.call_s * unit(row), tip: restTip(row) }));
  const spans = rows.flatMap((row) => timelineSpans(row, unit(row)));
  // a hairline between the steps, where a step is wide enough to spare one
  const hair = spans.filter((span) => (span.to - span.from) * width / most > 3).length > spans.length / 2 ? 0.6 : 0;
  return {
    spec: lineSpec(layout, rows, share ? "% of the call" : "s", most, [
      { data: { values: wholes }, mark: { type: "bar", height: BAR + 2 }, encoding: { x, x2, color, tooltip } },
      { data: { values: spans }, mark: { type: "bar", height: BAR + 2, stroke: colour("card"), strokeWidth: hair }, encoding: { x, x2, color, tooltip } },
    ]),
    alt: `Timelines of ${rows.length} contestants' last calls. ${rows.slice(0, 3).map((row) => `${row.who.name}: ${sharesText(row)}`).join(". ")}. The data stand in the table below.`,
    head: ["Contestant", "whole call, s", ...names.map((name) => `${name}, s`)],
    rows: rows.map((row) => {
      const spent = spentBy(row);
      return [row.who.name, row.call_s, ...known.map((role) => spent.get(role) ?? 0), restOf(row)];
    }),
  };
}

function timelineSpans(row, unit) {
  const counts = new Map();
  return row.timeline.map(([role, from, to]) => {
    const count = (counts.get(role) || 0) + 1;
    counts.set(role, count);
    const tip = `${row.who.name}\n${roleName(role)}, call ${count}: ${withUnit((to - from), "s")}\nfrom ${number(from)} to ${number(to)} s`;
    return { id: row.id, what: roleName(role), from: from * unit, to: to * unit, tip };
  });
}

function spentBy(row) {
  const spent = new Map();
  for (const [role, from, to] of row.timeline) spent.set(role, (spent.get(role) || 0) + to - from);
  return spent;
}

// Spans may lie in each other; what is covered by any of them is counted once.
function restOf(row) {
  let covered = 0, end = 0;
  for (const [, from, to] of [...row.timeline].sort((a, b) => a[1] - b[1])) {
    covered += Math.max(0, to - Math.max(from, end));
    end = Math.max(end, to);
  }
  return Math.max(0, row.call_s - covered);
}

const restTip = (row) => `${row.who.name}\n${REST}: ${withUnit(restOf(row), "s")} of ${withUnit(row.call_s, "s")}`;
const percent = (part, whole) => `${(100 * part / whole).toFixed(part / whole < 0.1 ? 1 : 0)} %`;
const sharesText = (row) => [...spentBy(row)].map(([role, seconds]) => `${roleName(role)} ${percent(seconds, row.call_s)}`).join(", ");
