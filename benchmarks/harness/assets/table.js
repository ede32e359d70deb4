// The table of every figure: the filters choose its rows, its headings sort them.

const rowsOfTable = () => [...byId("figures").tBodies[0].rows];

function filterTable() {
  const all = state.all === "1";
  let count = 0, errors = 0;
  for (const line of rowsOfTable()) {
    const row = data.rows[Number(line.dataset.row)], fits = (all || row.job === job()) && passes(data.contestants[row.contestant]);
    line.hidden = !fits;
    count += fits;
    errors += fits && row.error ? 1 : 0;
  }
  const people = shown().length, whole = new Set(data.rows.filter((row) => row.job === job()).map((row) => row.contestant)).size;
  byId("count").textContent = `${people} of ${whole} contestants${errors ? `, ${errors} with errors` : ""}`;
  byId("nothing").hidden = count > 0;
  for (const head of byId("figures").tHead.rows[0].cells) if (head.dataset.key === "job") toggleColumn(head.cellIndex, all && data.jobs.length > 1);
}

function toggleColumn(index, visible) {
  for (const line of byId("figures").rows) line.cells[index].hidden = !visible;
}

// Numbers before words, what is missing last, whichever way it is sorted.
function sortTable() {
  const down = state.sort.startsWith("-"), key = state.sort.replace(/^-/, "");
  const heads = [...byId("figures").tHead.rows[0].cells], index = heads.findIndex((head) => head.dataset.key === key);
  for (const head of heads) {
    if (head.dataset.key === key) head.setAttribute("aria-sort", down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  const lines = rowsOfTable(), value = (line) => {
    const cell = line.cells[index], raw = cell.dataset.value;
    return raw === undefined ? cell.textContent.trim().toLowerCase() : raw === "" ? null : Number(raw);
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  if (index < 0) lines.sort((a, b) => a.dataset.row - b.dataset.row);
  else lines.sort((a, b) => {
    const one = value(a), other = value(b);
    if (one === null || other === null) return (one === null) - (other === null);
    return (down ? -1 : 1) * compare(one, other);
  });
  byId("figures").tBodies[0].append(...lines);
}

function startTable() {
  for (const head of byId("figures").tHead.rows[0].cells) {
    const button = element("button", { type: "button" }, ...head.childNodes);
    button.addEventListener("click", () => {
      const key = head.dataset.key;
      change({ sort: state.sort === key ? `-${key}` : state.sort === `-${key}` ? "" : key });
    });
    head.append(button);
  }
}

function save(name, type, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
