// The pictures of all contestants side by side, and two of them held against each other.

const image = (row) => { const place = row.pictures[Number(state.picture)]; return place === undefined || place === null ? null : data.pictures[place]; };
const pictured = () => shown().filter((row) => image(row));
const GAINS = ["1", "4", "16"];

// The reference may be filtered away, and still is what the others are held against.
function pair() {
  const all = data.rows.filter((row) => row.job === job()).map((row) => ({ ...row, who: data.contestants[row.contestant] })).filter((row) => image(row));
  const named = (name) => all.find((row) => row.who.name === name);
  const against = named(state.against) || all.find((row) => row.who.reference) || all[0];
  const others = pictured().filter((row) => row.id !== against?.id);
  return { all, against, chosen: named(state.chosen) || others[0] || against };
}

// Small pictures are shown larger than they are: their pixels then, rather than a blur.
function shownImage(address, attributes) {
  const made = element("img", { ...attributes, src: address, draggable: "false" });
  made.addEventListener("load", () => made.classList.toggle("coarse", made.naturalWidth < 256));
  return made;
}

function figureOf(row, address, caption) {
  return element("figure", { class: "picture" }, shownImage(address, { alt: `Picture by ${row.who.name}` }), element("figcaption", {}, caption));
}

function pictureNote(row) {
  const found = row.quality;
  if (row.who.reference) return "reference";
  if (found.equal) return "equal";
  return found.psnr_db === null || found.psnr_db === undefined ? "" : `PSNR ${number(found.psnr_db)} dB`;
}

function drawGallery() {
  const rows = pictured(), chosen = pair().chosen;
  byId("gallery").replaceChildren(...rows.map((row) => {
    const note = pictureNote(row), pressed = String(chosen && row.id === chosen.id);
    const button = element("button", { type: "button", class: "thumb", "aria-pressed": pressed, "aria-label": `Compare the picture by ${row.who.name}${note ? `, ${note}` : ""}` },
      shownImage(image(row), { alt: "" }), element("span", { class: "name" }, row.who.name), element("span", { class: "soft" }, note));
    button.addEventListener("click", () => change({ chosen: row.who.name }));
    button.dataset.name = row.who.name;
    return button;
  }));
}

function choice(label, id, options, value, key) {
  const select = element("select", { id }, ...options.map(([given, text]) => element("option", { value: given }, text)));
  select.value = value;
  select.addEventListener("change", () => change({ [key]: select.value }));
  return element("label", {}, `${label} `, select);
}

function radios(legend, name, options, value, key) {
  const made = options.map(([given, text]) => {
    const input = element("input", { type: "radio", name, value: given, checked: given === value });
    input.addEventListener("change", () => change({ [key]: given }));
    return element("label", {}, input, element("span", {}, text));
  });
  return element("fieldset", { class: "segments" }, element("legend", {}, legend), ...made);
}

function drawCompare() {
  const box = byId("compare"), focused = document.activeElement && box.contains(document.activeElement) ? document.activeElement : null;
  const kept = focused && { id: focused.id, name: focused.name, value: focused.value };
  const { all, against, chosen } = pair();
  box.hidden = !against;
  byId("prompt").textContent = against ? promptText() : "";
  if (!against) { box.replaceChildren(); return; }
  const names = all.map((row) => [row.who.name, row.who.name]), swipe = state.view === "swipe", gain = GAINS.includes(state.gain) ? state.gain : "4";
  const count = Math.max(...all.map((row) => row.pictures.length));
  box.replaceChildren(
    element("div", { class: "choices" },
      choice("Picture of", "chosen", names, chosen.who.name, "chosen"), choice("against", "against", names, against.who.name, "against"),
      count > 1 ? choice("Prompt", "picture", Array.from({ length: count }, (_, index) => [String(index), promptOf(index)]), state.picture, "picture") : null,
      radios("View", "view", [["side", "Side by side"], ["swipe", "Swipe"]], swipe ? "swipe" : "side", "view"),
      swipe ? null : radios("Difference", "gain", GAINS.map((one) => [one, `×${one}`]), gain, "gain")),
    swipe ? swipeView(against, chosen) : element("div", { class: "three" }, figureOf(against, image(against), against.who.name), figureOf(chosen, image(chosen), chosen.who.name), differenceFigure(against, chosen, Number(gain))),
  );
  if (kept) (kept.id ? byId(kept.id) : box.querySelector(`[name="${kept.name}"][value="${kept.value}"]`))?.focus();
}

const promptOf = (index) => { const { prompts } = data.jobs[job()]; return prompts.length ? prompts[index % prompts.length] : `picture ${index + 1}`; };
function promptText() {
  const { seed } = data.jobs[job()], index = Number(state.picture);
  return `“${promptOf(index)}”, seed ${seed + index}. Choose a picture below to hold it against the reference. PSNR is over all pictures of a contestant together.`;
}

function swipeView(against, chosen) {
  const over = shownImage(image(chosen), { alt: `Picture by ${chosen.who.name}`, class: "over" });
  const slider = element("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": `How much is shown of ${against.who.name}, the rest is ${chosen.who.name}` });
  const frame = element("div", { class: "swipe" }, shownImage(image(against), { alt: `Picture by ${against.who.name}` }), over, element("span", { class: "edge" }));
  const move = () => frame.style.setProperty("--at", `${slider.value}%`);
  slider.addEventListener("input", move);
  move();
  return element("div", { class: "swiped" }, frame, slider, element("p", { class: "ends" }, element("span", {}, against.who.name), element("span", {}, chosen.who.name)));
}

function differenceFigure(against, chosen, gain) {
  const canvas = element("canvas", { role: "img", "aria-label": `Difference of the two pictures, times ${gain}` }), caption = element("figcaption", {}, `difference ×${gain}`);
  Promise.all([pixels(image(against)), pixels(image(chosen))]).then(([one, other]) => {
    const told = paintDifference(canvas, one, other, gain);
    caption.textContent = `difference ×${gain}: ${told}`;
    canvas.setAttribute("aria-label", caption.textContent);
    canvas.dataset.told = told;
  }).catch((error) => report("difference", error));
  return element("figure", { class: "picture" }, canvas, caption);
}

async function pixels(address) {
  const picture = new Image();
  picture.src = address;
  await picture.decode();
  const canvas = element("canvas", { width: picture.naturalWidth, height: picture.naturalHeight }), context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

function paintDifference(canvas, one, other, gain) {
  if (one.width !== other.width || one.height !== other.height) { canvas.width = 1; canvas.height = 1; return `the sizes differ (${one.width}×${one.height} and ${other.width}×${other.height})`; }
  canvas.width = one.width;
  canvas.height = one.height;
  canvas.classList.toggle("coarse", one.width < 256);
  const painted = new ImageData(one.width, one.height);
  let largest = 0, pixelsApart = 0;
  for (let at = 0; at < painted.data.length; at += 4) {
    let apart = 0;
    for (let channel = 0; channel < 3; channel++) {
      const difference = Math.abs(one.data[at + channel] - other.data[at + channel]);
      apart = Math.max(apart, difference);
      painted.data[at + channel] = difference * gain;
    }
    painted.data[at + 3] = 255;
    largest = Math.max(largest, apart);
    if (apart) pixelsApart++;
  }
  canvas.getContext("2d").putImageData(painted, 0, 0);
  return largest ? `at most ${largest} of 255, in ${pixelsApart < 100 ? `${pixelsApart} ${pixelsApart === 1 ? "pixel" : "pixels"}` : `${percent(pixelsApart, one.width * one.height)} of the pixels`}` : "none, the pictures are equal";
}

function drawPictures() {
  const any = data.rows.some((row) => row.pictures.some((place) => place !== null));
  byId("pictures").hidden = !any;
  for (const link of document.querySelectorAll('[data-part="pictures"]')) link.hidden = !any;
  if (!any) return;
  if (!(Number(state.picture) >= 0)) state.picture = "0";
  drawCompare();
  drawGallery();
}
