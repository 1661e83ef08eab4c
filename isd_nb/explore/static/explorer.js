// The explorer: a map of images, and beside it the images that an encoder places nearest to one of them.
//
// One page for two homes. In JupyterLab anywidget calls `render`, and the kernel computes neighbours. In an HTML file
// `mount` is called with everything inside, and `answersHere` does the arithmetic. Python (isd_nb/explore/explorer.py)
// writes `header` (names and numbers) and one buffer (all arrays); `decode` puts them together again. The functions of
// contours.js stand before this file, in the same module.
//
// Text from outside (class names, file names) only ever becomes `textContent` or canvas text, never HTML.

const KINDS = { u1: Uint8Array, u2: Uint16Array, i2: Int16Array, i4: Int32Array, f4: Float32Array };
// Points of a class have a colour and a shape; Python's `markers` are in the same order: o s ^ D v P X.
const OUTLINES = ["M8 1a7 7 0 1 0 .01 0Z", "M2 2H14V14H2Z", "M8 1L15 14H1Z", "M8 0L16 8L8 16L0 8Z", "M8 15L15 2H1Z",
  "M6 1H10V6H15V10H10V15H6V10H1V6H6Z", "M4 1L8 5L12 1L15 4L11 8L15 12L12 15L8 11L4 15L1 12L5 8L1 4Z"];
const GLIDE = 900; // milliseconds from one checkpoint to the next
const SHEET_LIMIT = 60; // images on a contact sheet
const OWN = -1; // the query when it is an image of the reader's own, which is none of the set

function decode(header, data) { // -> typed arrays by name
  const buffer = data instanceof DataView ? data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength) : data;
  return Object.fromEntries(Object.entries(header.arrays).map(([name, { kind, offset, length }]) =>
    [name, new KINDS[kind](buffer, offset, length)]));
}

function el(tag, properties = {}, ...children) { // an element; strings among the children become text
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node && name !== "list") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function download(name, blob) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// A cell that a spreadsheet shows and does not execute; the same rule as `as_text` in isd_nb/engine/report.py.
const asText = (cell) => (/^[=+\-@\t\r]/.test(cell) && (!String(cell).trim() || Number.isNaN(Number(cell))) ? `'${cell}` : String(cell));
const csv = (lines) => lines.map((cells) => cells.map(asText).map((cell) => // RFC 4180
  (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell)).join(",")).join("\r\n") + "\r\n";

// ---- names: held as they are, shown with escapes for what is not seen or reverses text, as `printable` in isd_nb/errors.py

const UNSEEN = /[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]/;
const escaped = (letter) => (letter === "\\" ? "\\\\" : letter < "\x80" ? `\\x${letter.charCodeAt(0).toString(16).padStart(2, "0")}`
  : `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`);
const printable = (name) => (UNSEEN.test(name) ? name.replace(new RegExp(`${UNSEEN.source}|\\\\`, "g"), escaped) : name);
// As names are compared: in one Unicode form and case, any blanks as one, without letters that are not seen.
const fold = (text) => text.replace(/\p{Cf}/gu, "").normalize("NFKC").replace(/\s+/g, " ").toLowerCase().normalize("NFKC");
const findable = (name) => [...new Set([name, printable(name)])].map(fold).join("\n");
const segmenter = globalThis.Intl?.Segmenter && new Intl.Segmenter();
const cut = (name, most) => { // an emoji of several code points is one letter
  const letters = segmenter ? Array.from(segmenter.segment(name), ({ segment }) => segment) : Array.from(name);
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}\u2026` : name;
};

// ---- who answers: the kernel, or arithmetic on the features in this file ----------------------------------------

function kernelAnswers(model) {
  const waiting = new Map();
  const listen = (message, buffers) => {
    const done = waiting.get(message.id);
    waiting.delete(message.id);
    if (done && message.error) done.reject(new Error(message.error));
    else if (done) done.resolve({ ...message, buffers });
  };
  model.on("msg:custom", listen);
  const ask = (question, files = []) => new Promise((resolve, reject) => {
    const id = String(Math.random());
    waiting.set(id, { resolve, reject });
    model.send({ ...question, id }, undefined, files);
    setTimeout(() => waiting.delete(id) && reject(new Error("the kernel does not reply; is it busy, or gone?")), 20000);
  });
  return { ask, close: () => model.off("msg:custom", listen) };
}

// The same numbers as `look_up` in isd_nb/explore/neighbours.py: cosine, softmax over all images but the query, entropy in nats.
function answersHere(header, arrays) {
  const { count, width } = header;
  return async ({ encoder, step, query, k, temperature }) => {
    const e = header.encoders.indexOf(encoder);
    const s = header.feature_steps.includes(step) ? header.feature_steps.indexOf(step) : header.feature_steps.length - 1;
    const start = (e * header.feature_steps.length + s) * count * width;
    const features = arrays.features.subarray(start, start + count * width);
    const similarities = new Float32Array(count);
    for (let i = 0; i < count; i++) {
      let sum = 0;
      for (let f = 0; f < width; f++) sum += features[i * width + f] * features[query * width + f];
      similarities[i] = sum / (32767 * 32767);
    }
    const rows = [];
    for (let i = 0; i < count; i++) { // the k best so far, best first
      if (i === query || (rows.length === k && similarities[i] <= similarities[rows[k - 1]])) continue;
      let at = rows.length;
      while (at > 0 && similarities[rows[at - 1]] < similarities[i]) at--;
      rows.splice(at, 0, i);
      if (rows.length > k) rows.pop();
    }
    const highest = similarities[rows[0]];
    const share = (i) => Math.exp((similarities[i] - highest) / temperature);
    let total = 0, moment = 0;
    const byClass = header.classes.map(() => 0);
    for (let i = 0; i < count; i++) {
      if (i === query) continue;
      const part = share(i);
      total += part;
      moment += part * (similarities[i] - highest) / temperature;
      if (arrays.labels) byClass[arrays.labels[i]] += part;
    }
    return { rows, similarities: rows.map((i) => similarities[i]), shares: rows.map((i) => share(i) / total),
      by_class: byClass.map((part) => part / total), entropy: Math.log(total) - moment / total,
      step: header.feature_steps[s] };
  };
}

// ---- thumbnails: cut from sheets that lie here, or asked for as strips, many in one question -----------------------

function thumbnails(header, arrays, ask, kind) { // kind: "image", or "other" for another view of each image
  const { size, columns } = header.thumbnails, perSheet = columns * columns;
  const sheets = new Map(), strips = new Map(); // promises of { image, x, y }
  let wanted = [];
  const bitmap = (bytes) => createImageBitmap(new Blob([bytes]));
  const fromSheet = (index) => {
    const number = Math.floor(index / perSheet), place = index % perSheet;
    if (!sheets.has(number)) sheets.set(number, bitmap(arrays[`${kind}_${number}`]));
    return sheets.get(number).then((image) => ({ image, x: (place % columns) * size, y: Math.floor(place / columns) * size }));
  };
  const flush = async () => { // all thumbnails that were wanted since the last moment
    const asked = wanted;
    wanted = [];
    try {
      const image = await bitmap((await ask({ kind, rows: asked.map(({ index }) => index) })).buffers[0]);
      asked.forEach(({ resolve }, n) => resolve({ image, x: n * size, y: 0 }));
    } catch (error) {
      asked.forEach(({ index, reject }) => { strips.delete(index); reject(error); }); // ask again next time
    }
  };
  const fromStrip = (index) => {
    if (strips.size > 5000) strips.clear();
    if (!strips.has(index)) {
      if (!wanted.length) setTimeout(flush);
      strips.set(index, new Promise((resolve, reject) => wanted.push({ index, resolve, reject })));
    }
    return strips.get(index);
  };
  const find = arrays[`${kind}_0`] ? fromSheet : fromStrip;
  return (index, pixels = 48) => { // -> a canvas that shows image `index`, now or soon
    const canvas = el("canvas", { width: size, height: size, className: "isd-image" });
    canvas.style.width = canvas.style.height = `${pixels}px`;
    canvas.style.imageRendering = size < pixels ? "pixelated" : "auto";
    Object.assign(canvas.dataset, { index, kind });
    find(index).then(({ image, x, y }) => {
      canvas.getContext("2d").drawImage(image, x, y, size, size, 0, 0, size, size);
      canvas.dataset.drawn = "yes";
    }, () => { canvas.title = "this thumbnail could not be loaded"; });
    return canvas;
  };
}

// ---- drawing many points: pixel by pixel, on the processor --------------------------------------------------------
// Fifty thousand points of 4 x 4 pixels are less than a million writes. That takes milliseconds on any machine, while
// WebGL needs a GPU to be fast, may be missing, and can be taken away at any moment.

const INSIDE = [ // the shapes of OUTLINES; x and y from -1 to 1, y downwards
  (x, y) => Math.hypot(x, y) < 1,
  (x, y) => Math.max(Math.abs(x), Math.abs(y)) < 0.85,
  (x, y) => y < 0.8 && Math.abs(x) < 0.57 * (y + 0.95),
  (x, y) => Math.abs(x) + Math.abs(y) < 1,
  (x, y) => y > -0.8 && Math.abs(x) < 0.57 * (0.95 - y),
  (x, y) => Math.min(Math.abs(x), Math.abs(y)) < 0.36,
  (x, y) => Math.min(Math.abs(x + y), Math.abs(x - y)) < 0.48,
];
const HIDDEN = 0, PALE = 1, CLEAR = 2; // what a point can be; the clear ones are drawn over the pale ones

function stamp(inside, size, stride) { // pixels of one shape around a point: full ones, and partly covered ones
  const full = [], edge = [], cover = [], half = size >> 1;
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      let hits = 0;
      for (let s = 0; s < 16; s++) {
        const x = (column + (s % 4) / 4 + 0.125) / size, y = (row + (s >> 2) / 4 + 0.125) / size;
        hits += inside(2 * x - 1, 2 * y - 1);
      }
      const offset = (row - half) * stride + column - half;
      if (hits > (size < 6 ? 6 : 13)) full.push(offset); // the smallest have hard edges: these are the ones that are many
      else if (hits > 1 && size > 5) { edge.push(offset); cover.push(hits * 16); }
    }
  }
  return { full: Int32Array.from(full), edge: Int32Array.from(edge), cover: Uint8Array.from(cover) };
}

function painter(canvas, count) {
  const ink = canvas.getContext("2d", { alpha: false });
  let picture, pixels, stride, width, height, margin, stamps; // the picture has a margin, so that no stamp leaves it
  function put(at, mark, colour) {
    for (let k = 0; k < mark.full.length; k++) pixels[at + mark.full[k]] = colour;
    for (let k = 0; k < mark.edge.length; k++) {
      const q = at + mark.edge[k], t = mark.cover[k], under = pixels[q];
      const r = (under & 255) + ((((colour & 255) - (under & 255)) * t) >> 8);
      const g = (under >> 8 & 255) + ((((colour >> 8 & 255) - (under >> 8 & 255)) * t) >> 8);
      const b = (under >> 16 & 255) + ((((colour >> 16 & 255) - (under >> 16 & 255)) * t) >> 8);
      pixels[q] = 0xff000000 | b << 16 | g << 8 | r;
    }
  }
  return {
    ink,
    resize(wide, high, size) { // in pixels of the screen
      [canvas.width, canvas.height, width, height, margin] = [wide, high, wide, high, size];
      stride = wide + 2 * margin;
      picture = new ImageData(stride, high + 2 * margin);
      pixels = new Uint32Array(picture.data.buffer);
      stamps = INSIDE.map((inside) => stamp(inside, size, stride));
    },
    clear() { pixels.fill(0xffffffff); },
    points(at, colours, { shapes, layers }, { left, right, x0, y0, scale }, layer) { // at: (2 * count), x and y by turns
      for (let i = 0; i < count; i++) {
        if (layers[i] !== layer) continue;
        const x = Math.round(x0 + at[2 * i] * scale), y = Math.round(y0 - at[2 * i + 1] * scale);
        if (x >= left && x < right && y >= 0 && y < height) put((y + margin) * stride + x + margin, stamps[shapes[i]], colours[i]);
      }
    },
    show() { ink.putImageData(picture, -margin, -margin); },
  };
}

// ---- the explorer itself -----------------------------------------------------------------------------------------

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
// Blue, grey, yellow: light and dark differ along the way, so it can be read without colour vision.
const RAMP = ["#00326e", "#5d6479", "#9b9477", "#ffe44d"].map(rgb);
function ramp(t) {
  const at = Math.min(t, 0.9999) * (RAMP.length - 1), i = Math.floor(at);
  return RAMP[i].map((v, c) => Math.round(v + (RAMP[i + 1][c] - v) * (at - i)));
}
const word = ([r, g, b]) => (0xff000000 | b << 16 | g << 8 | r) >>> 0; // as a pixel lies in memory
const pale = (colour) => colour.map((v) => Math.round(v + (255 - v) * 0.75));
const LEGENDS = { // what the two ends of the ramp mean
  agreement: () => ["none of its 10 nearest has its class", "all of them"],
  difference: () => ["the 10 nearest are the same for both", "all differ"],
  hubness: (most) => ["nobody names it as a neighbour", `a hub: ${most.toLocaleString("en")} name it`],
};

function explorer(root, header, arrays, ask, tell = () => {}) {
  const { count, steps, encoders } = header, labels = arrays.labels || null;
  const classes = header.classes.map(printable), tags = classes.map((name) => cut(name, 18));
  const paths = header.names?.map(printable), files = paths?.map((path) => path.slice(path.lastIndexOf("/") + 1));
  const state = { encoder: encoders[0], step: steps.length - 1, colour: "none", query: 0, k: header.k,
    temperature: header.temperature, hidden: new Set(), selection: [], lasso: false, own: null,
    contours: false, names: true };
  const view = { x: 0, y: 0, zoom: 0.92 };
  const ofTheSet = thumbnails(header, arrays, ask, "image"), otherView = thumbnails(header, arrays, ask, "other");
  const thumbnail = (index, pixels) => { // of an image of the set, or of the reader's own
    if (index !== OWN) return ofTheSet(index, pixels);
    const canvas = el("canvas", { className: "isd-image" }), picture = new Image();
    canvas.style.width = canvas.style.height = `${pixels}px`;
    picture.onload = () => {
      Object.assign(canvas, { width: picture.width, height: picture.height });
      canvas.getContext("2d").drawImage(picture, 0, 0);
      canvas.dataset.drawn = "yes";
    };
    picture.src = state.own.picture;
    Object.assign(canvas.dataset, { index, kind: "own" });
    return canvas;
  };
  const nameOf = (i) => (i === OWN ? printable(state.own.name) : labels ? classes[labels[i]] : files ? files[i] : `image ${i}`);
  const shown = () => (state.encoder === "both" ? encoders : [state.encoder]);

  // -- the skeleton
  const canvas = el("canvas", { tabIndex: 0, className: "isd-map" });
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "Map of images. Arrows move, plus and minus zoom, 0 shows all, comma and full stop "
    + "choose the previous and the next image, S selects what is in view, Escape selects nothing, space plays, E changes the "
    + "encoder, C draws contours, N the names of classes, slash goes to the search.");
  const hover = el("div", { className: "isd-hover", hidden: true }), note = el("div", { className: "isd-note", hidden: true });
  note.setAttribute("role", "status");
  const stage = el("div", { className: "isd-stage" }, canvas, hover);
  const help = el("details", { className: "isd-help" }, el("summary", {}, "mouse and keys"), el("ul", {}, ...[
    "Click a point, a thumbnail or a neighbour to make it the query.",
    "Drag to move, turn the wheel to zoom (after a click on the map), drag with Shift held to select.",
    "Keys on the map: arrows move, + and \u2212 zoom, 0 shows all; comma and full stop choose the previous and the next "
      + "image; S selects what is in view, Escape nothing; space plays; E changes the encoder, C draws contours, N names; / searches.",
    "Contours hold 80% of a class; without classes 90%, 50% and 25% of all images.",
    header.own ? "own image: a picture file of yours becomes the query. UMAP has not placed it: its ring lies amid its neighbours."
      : "An image of your own needs the network: open the explorer in JupyterLab."].map((text) => el("li", {}, text))));
  const legend = el("div", { className: "isd-legend" }), bar = el("div", { className: "isd-bar" });
  const time = el("div", { className: "isd-bar" }), ask1 = el("div", { className: "isd-bar" });
  const ask2 = el("div", { className: "isd-bar" });
  const settings = el("div", { className: "isd-bar" }), panel = el("div", { className: "isd-panel" });
  const chosen = el("div", { className: "isd-chosen" });
  root.classList.add("isd-explorer");
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's one-letter commands stay away
  root.replaceChildren(note, el("div", { className: "isd-left" }, bar, stage, time, legend, help),
    el("div", { className: "isd-right" }, ask1, ask2, settings, panel, chosen));
  const say = (text) => { note.textContent = text; note.hidden = !text; };

  // -- controls
  const option = (value, text) => el("option", { value }, text);
  const select = (label, name, options, change) => {
    const box = el("select", { name }, ...options.map(([v, t]) => option(v, t)));
    box.addEventListener("change", () => change(box.value));
    return [el("label", {}, `${label} `, box), box];
  };
  const button = (text, title, press, name = "") => {
    const b = el("button", { type: "button", title, name }, text);
    b.addEventListener("click", press);
    return b;
  };
  const [encoderLabel, encoderBox] = select("encoder", "encoder",
    [...encoders.map((e) => [e, e]), ...(encoders.length > 1 ? [["both", encoders.join(" | ")]] : [])],
    (value) => { state.encoder = value; style(); drawLegend(); refresh(); });
  const colours = [labels ? ["class", "class"] : ["none", "one for all"],
    ...(arrays.agreement ? [["agreement", "neighbours of the same class"]] : []),
    ...(arrays.difference ? [["difference", `${encoders.join(" and ")} disagree`]] : []),
    ...(arrays.hubness ? [["hubness", "hubs"]] : [])];
  const [colourLabel, colourBox] = select("colour", "colour", colours,
    (value) => { state.colour = value; style(); drawLegend(); });
  state.colour = colourBox.value;
  const lassoButton = button("lasso", "Draw around points (or drag with Shift held)", () => {
    state.lasso = !state.lasso;
    lassoButton.setAttribute("aria-pressed", state.lasso);
  }, "lasso");
  lassoButton.setAttribute("aria-pressed", "false");
  bar.append(encoderLabel, colourLabel, lassoButton, button("+", "Zoom in", () => zoom(1.4)),
    button("\u2212", "Zoom out", () => zoom(1 / 1.4)), button("all", "Show the whole map", () => reset()));
  const check = (name, text, title) => { // a switch of `state`
    const box = el("input", { type: "checkbox", name, checked: state[name] });
    box.addEventListener("change", () => { state[name] = box.checked; later(); });
    bar.append(el("label", { title }, box, ` ${text}`));
    return box;
  };
  const contourBox = check("contours", "contours", "Lines of equal density");
  const nameBox = labels && classes.length <= 30 ? check("names", "names", "The name of each class at its middle") : null;
  bar.append(button("PNG", "Save the map as a picture", () => {
    draw(performance.now());
    canvas.toBlob((blob) => download("map.png", blob));
  }, "png"));

  const stepText = el("output", { className: "isd-step" });
  const slider = el("input", { type: "range", name: "step", min: 0, max: steps.length - 1, value: state.step });
  slider.setAttribute("aria-label", "training step");
  slider.addEventListener("input", () => place(Number(slider.value)));
  let playing = null;
  const stop = () => { clearInterval(playing); playing = null; play.textContent = "\u25b6 play"; };
  const play = button("\u25b6 play", "Watch the map grow", () => {
    if (playing) return stop();
    if (state.step === steps.length - 1) place(0, false);
    play.textContent = "\u25a0 stop";
    playing = setInterval(() => {
      if (now.moment === 1) (state.step < steps.length - 1 ? place(state.step + 1) : stop());
    }, GLIDE + 250);
  }, "play");
  time.append(play, slider, stepText);
  time.hidden = steps.length < 2;

  const number = el("input", { type: "number", name: "query", min: 0, max: count - 1, value: 0 });
  number.addEventListener("input", () => number.value && choose(Number(number.value))); // JupyterLab eats Enter
  const [classLabel, classBox] = select("of class", "class",
    [["", "any"], ...classes.map((c, i) => [String(i), c])], () => random());
  const among = () => { // images of the chosen class
    const all = [...Array(count).keys()];
    return classBox.value === "" || !labels ? all : all.filter((i) => labels[i] === Number(classBox.value));
  };
  const random = () => { const a = among(); if (a.length) choose(a[Math.floor(Math.random() * a.length)]); };
  const row = () => (encoders.indexOf(shown()[0]) * steps.length + state.step) * count; // where this moment's values begin
  const next = (values) => { // the image after the query, smallest value first
    const order = among().sort((a, b) => values(a) - values(b) || a - b);
    if (order.length) choose(order[(order.indexOf(state.query) + 1) % order.length]);
  };
  const confusing = () => { // fewest neighbours of its class first; without classes, where the encoders disagree most
    const start = arrays.agreement ? row() : state.step * count;
    next(arrays.agreement ? (i) => arrays.agreement[start + i] : (i) => -arrays.difference[start + i]);
  };
  const hub = () => { const start = row(); next((i) => -arrays.hubness[start + i]); };
  const search = el("input", { type: "search", name: "search", placeholder: header.names ? "class or file name" : "class name" });
  const hits = el("output", { className: "isd-hits" });
  let folded = null; // made at the first search
  const matches = () => {
    const text = fold(search.value).trim();
    if (!text) return [];
    folded ||= { classes: header.classes.map(findable), names: (header.names || []).map(findable) };
    return [...Array(count).keys()].filter((i) => (labels && folded.classes[labels[i]].includes(text)) || folded.names[i]?.includes(text));
  };
  search.addEventListener("input", () => {
    const found = matches();
    hits.textContent = search.value.trim() ? `${found.length.toLocaleString("en")} found` : "";
    if (found.length) choose(found[0]);
  });
  const nextMatch = () => { const found = matches(); if (found.length) choose(found[(found.indexOf(state.query) + 1) % found.length]); };
  if (labels || header.names) {
    ask2.append(el("label", {}, "search ", search), button("next", "The next image that was found", nextMatch, "match"),
      button("select", "Select all images that were found", () => pick(matches()), "matches"), hits);
  }
  if (header.own) {
    const file = el("input", { type: "file", accept: "image/*", name: "file", hidden: true });
    file.addEventListener("change", async () => {
      const [mine] = file.files;
      file.value = "";
      if (!mine) return;
      try { await ask({ kind: "own", name: mine.name }, [await mine.arrayBuffer()]); } catch (error) { say(error.message); }
    });
    ask2.append(button("own image \u2026", "A picture file of yours becomes the query", () => file.click(), "own"), file);
  }
  ask2.hidden = !ask2.childElementCount;
  ask1.append(el("label", {}, "image ", number), ...(labels ? [classLabel] : []),
    button("random", "A random image", random, "random"));
  if (arrays.agreement || arrays.difference) {
    ask1.append(button("next confusing", labels ? "The images with the fewest neighbours of their class come first"
      : "The images about which the encoders disagree most come first", confusing, "confusing"));
  }
  ask1.append(button("next hub", "The images that most others name as a neighbour come first", hub, "hub"));
  const range = (label, name, min, max, value, step, show, change) => {
    const input = el("input", { type: "range", name, min, max, step, value }), text = el("output", {}, show(value));
    input.addEventListener("input", () => { text.textContent = show(Number(input.value)); change(Number(input.value)); refresh(); });
    return el("label", {}, `${label} `, input, text);
  };
  settings.append(
    range("neighbours", "k", 1, Math.min(48, count - 1), state.k, 1, String, (v) => { state.k = v; }),
    range("temperature", "temperature", -2.3, 0, Math.log10(state.temperature), 0.05, (v) => (10 ** v).toFixed(3),
      (v) => { state.temperature = 10 ** v; }));

  // -- places of points, now and while they glide
  const now = { moment: 1, from: {}, at: {}, to: {} }; // by encoder: (2 * count), written over and over, and the goal
  for (const encoder of encoders) for (const kind of ["from", "at"]) now[kind][encoder] = new Float32Array(2 * count);
  const stored = (encoder, step) => { // from -32767 to 32767
    const start = (encoders.indexOf(encoder) * steps.length + step) * count * 2;
    return arrays.places.subarray(start, start + count * 2);
  };
  function glide() { // move the points to where they are at this moment
    for (const encoder of encoders) {
      const from = now.from[encoder], to = now.to[encoder], at = now.at[encoder], t = now.moment;
      for (let i = 0; i < at.length; i++) at[i] = from[i] + (to[i] / 32767 - from[i]) * t;
    }
  }
  let frame = 0, glideStart = 0, frames = 0;
  function place(step, slowly = true) {
    const slow = slowly && step !== state.step && !matchMedia("(prefers-reduced-motion: reduce)").matches;
    leaving = slow ? state.step : step;
    for (const encoder of encoders) {
      now.from[encoder].set(now.at[encoder]);
      now.to[encoder] = stored(encoder, step);
    }
    state.step = step;
    slider.value = step;
    stepText.textContent = `step ${steps[step].toLocaleString("en")}`;
    [glideStart, frames, now.moment] = [performance.now(), 0, slow ? 0 : 1];
    glide();
    root.dataset.gliding = slow ? "yes" : "no";
    style();
    if (state.colour !== "class") drawLegend(); // the largest hub is another at each step
    refresh();
  }

  // -- colour, shape and size of every point
  const pointSize = count > 20000 ? 4 : count > 4000 ? 6 : count > 1200 ? 7 : 9;
  const visible = (i) => !labels || !state.hidden.has(labels[i]);
  const looks = { shapes: new Uint8Array(count), layers: new Uint8Array(count),
    colours: Object.fromEntries(encoders.map((encoder) => [encoder, new Uint32Array(count)])) };
  if (labels) for (let i = 0; i < count; i++) looks.shapes[i] = labels[i] % OUTLINES.length;
  let most = 0; // of `hubness` at this moment
  function style() {
    const values = arrays[state.colour], { selection } = state, marked = new Uint8Array(count);
    const start = (encoder) => (state.colour === "difference" ? state.step : encoders.indexOf(encoder) * steps.length + state.step) * count;
    const of = (encoder) => values.subarray(start(encoder), start(encoder) + count);
    most = state.colour === "hubness" ? Math.max(1, ...shown().map((encoder) => of(encoder).reduce((a, b) => Math.max(a, b)))) : 0;
    const share = most ? (v) => Math.log1p(v) / Math.log1p(most) : (v) => v / 255; // hubs are few and far above the rest
    const scale = values ? Array.from({ length: most ? most + 1 : 256 }, (_, v) => ramp(share(v))) : header.palette.map(rgb);
    const clear = Uint32Array.from(scale, word), faded = Uint32Array.from(scale, (colour) => word(pale(colour)));
    for (const i of selection) marked[i] = 1;
    for (let i = 0; i < count; i++) { // what is not selected fades
      looks.layers[i] = !visible(i) ? HIDDEN : selection.length && !marked[i] ? PALE : CLEAR;
    }
    for (const encoder of shown()) {
      const ink = looks.colours[encoder], mine = values ? of(encoder) : labels;
      for (let i = 0; i < count; i++) {
        const colour = values ? mine[i] : labels && state.colour === "class" ? mine[i] % clear.length : 0;
        ink[i] = looks.layers[i] === PALE ? faded[colour] : clear[colour];
      }
    }
    later();
  }

  // -- from the map to the screen and back
  const panes = () => shown().map((encoder, map, all) => {
    const width = canvas.clientWidth / all.length, height = canvas.clientHeight, side = Math.min(width, height) / 2;
    return { encoder, map, left: map * width, width, height, side };
  });
  const toScreen = (pane, x, y) => [pane.left + pane.width / 2 + (x - view.x) * view.zoom * pane.side,
    pane.height / 2 - (y - view.y) * view.zoom * pane.side];
  const paneAt = (x) => panes().find((p) => x >= p.left && x < p.left + p.width) || panes()[0];
  function nearestPoint(x, y, reach = 12) { // -> index, or -1
    const pane = paneAt(x), at = now.at[pane.encoder], scale = view.zoom * pane.side;
    const mx = view.x + (x - pane.left - pane.width / 2) / scale, my = view.y + (pane.height / 2 - y) / scale;
    let best = -1, least = (reach / scale) ** 2;
    for (let i = 0; i < count; i++) {
      const d = (at[2 * i] - mx) ** 2 + (at[2 * i + 1] - my) ** 2;
      if (d < least && looks.layers[i] !== HIDDEN) [best, least] = [i, d];
    }
    return best;
  }

  // -- one frame
  const later = () => { frame ||= requestAnimationFrame(draw); };
  const middles = {}; // of the classes, by encoder and step
  function middle(encoder, step) {
    return (middles[`${encoder} ${step}`] ||= classes.map((_, c) => {
      const at = stored(encoder, step), mine = members[c];
      const mid = (axis) => Int16Array.from(mine, (i) => at[2 * i + axis]).sort()[mine.length >> 1] / 32767;
      return mine.length ? [mid(0), mid(1)] : null;
    }));
  }
  const lines = { key: "" }; // the contours that were drawn last, by encoder
  function contours(encoder) { // -> [{ colour, segments }]
    const key = `${state.step} ${state.colour} ${[...state.hidden].sort()}`;
    if (lines.key !== key) for (const e of [...encoders, "key"]) delete lines[e];
    lines.key = key;
    return (lines[encoder] ||= byClass() ? members.flatMap((mine, c) => (state.hidden.has(c) || !mine.length ? []
      : contoursAround(encoder, mine, [0.8], header.palette[c % header.palette.length])))
      : contoursAround(encoder, [...Array(count).keys()].filter(visible), [0.9, 0.5, 0.25], "#333333"));
  }
  const byClass = () => state.colour === "class" && classes.length <= 30;
  function contoursAround(encoder, chosen, shares, colour) {
    const at = now.at[encoder], grid = densityOf(at, chosen);
    return shares.map((share) => ({ colour, segments: contourOf(grid, levelAround(grid, at, chosen, share)) }));
  }
  const members = classes.map(() => []);
  if (labels && classes.length <= 30) labels.forEach((c, i) => members[c].push(i));
  const paint = painter(canvas, count);
  let lassoPath = [], leaving = state.step, ratio = 0; // ratio: pixels of the screen in one of the page; 0 before the first look
  function draw(timestamp) {
    frame = 0;
    if (now.moment < 1) {
      now.moment = Math.min(1, now.moment + 0.2, Math.max(0, (timestamp - glideStart) / GLIDE)); // no jump on a slow machine
      glide();
      frames += 1;
      if (now.moment < 1) later();
      else {
        root.dataset.gliding = "no";
        root.dataset.fps = (1000 * frames / (performance.now() - glideStart)).toFixed(1);
      }
    }
    if (!ratio) return;
    paint.clear();
    for (const pane of panes()) {
      const scale = view.zoom * pane.side * ratio;
      const where = { left: Math.round(pane.left * ratio), right: Math.round((pane.left + pane.width) * ratio), scale,
        x0: (pane.left + pane.width / 2) * ratio - view.x * scale, y0: pane.height / 2 * ratio + view.y * scale };
      for (const layer of state.selection.length ? [PALE, CLEAR] : [CLEAR]) {
        paint.points(now.at[pane.encoder], looks.colours[pane.encoder], looks, where, layer);
      }
    }
    paint.show();
    const ink = paint.ink;
    ink.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (state.contours && now.moment === 1) for (const pane of panes()) drawContours(ink, pane);
    for (const pane of panes()) annotate(ink, pane);
    if (lassoPath.length) {
      Object.assign(ink, { strokeStyle: "#000", fillStyle: "#0072b222", lineWidth: 1.5 });
      ink.beginPath();
      lassoPath.forEach(([x, y]) => ink.lineTo(x, y));
      ink.closePath();
      ink.fill();
      ink.stroke();
    }
  }
  function drawContours(ink, pane) {
    ink.save();
    ink.beginPath();
    ink.rect(pane.left, 0, pane.width, pane.height);
    ink.clip();
    ink.lineWidth = 1.5;
    for (const { colour, segments } of contours(pane.encoder)) {
      ink.strokeStyle = colour;
      ink.beginPath();
      for (let i = 0; i < segments.length; i += 4) {
        ink.moveTo(...toScreen(pane, segments[i], segments[i + 1]));
        ink.lineTo(...toScreen(pane, segments[i + 2], segments[i + 3]));
      }
      ink.stroke();
    }
    ink.restore();
  }
  function middleOf({ rows, shares }, at) { // where an image without a place is drawn: amid its neighbours
    const total = shares.reduce((a, b) => a + b, 0) || 1;
    const mean = (axis) => rows.reduce((sum, i, n) => sum + at[2 * i + axis] * shares[n], 0) / total;
    return [mean(0), mean(1)];
  }
  function annotate(ink, pane) { // names of classes, the query, its neighbours
    ink.save();
    ink.beginPath();
    ink.rect(pane.left, 0, pane.width, pane.height);
    ink.clip();
    Object.assign(ink, { textAlign: "center", textBaseline: "middle", lineJoin: "round" });
    const at = now.at[pane.encoder], point = (i) => toScreen(pane, at[2 * i], at[2 * i + 1]);
    const found = current(pane.encoder);
    if (state.query !== OWN || found) drawQuery(ink, found, point, state.query === OWN
      ? toScreen(pane, ...middleOf(found, at)) : point(state.query));
    ink.font = "bold 14px system-ui, sans-serif";
    if (labels && state.names && classes.length <= 30) {
      const a = middle(pane.encoder, leaving), b = middle(pane.encoder, state.step); // the names glide along
      classes.forEach((_, c) => {
        if (!b[c] || state.hidden.has(c)) return;
        const [x, y] = toScreen(pane, a[c][0] + (b[c][0] - a[c][0]) * now.moment, a[c][1] + (b[c][1] - a[c][1]) * now.moment);
        write(ink, tags[c], x, y);
      });
    }
    if (state.encoder === "both") write(ink, pane.encoder, pane.left + pane.width / 2, 14);
    ink.restore();
  }
  function drawQuery(ink, found, point, [qx, qy]) { // a ring, and a line to each neighbour
    Object.assign(ink, { strokeStyle: "#0008", lineWidth: 1 });
    for (const i of found?.rows || []) {
      const [x, y] = point(i);
      ink.beginPath();
      ink.moveTo(qx, qy);
      ink.lineTo(x, y);
      ink.stroke();
      ink.beginPath();
      ink.arc(x, y, pointSize * 0.7, 0, 7);
      ink.stroke();
    }
    Object.assign(ink, { strokeStyle: "#000", lineWidth: 3 });
    ink.beginPath();
    ink.arc(qx, qy, pointSize, 0, 7);
    ink.stroke();
  }
  function write(ink, text, x, y) {
    Object.assign(ink, { strokeStyle: "#fffd", lineWidth: 4, fillStyle: "#000" });
    ink.strokeText(text, x, y);
    ink.fillText(text, x, y);
  }

  // -- legend: what the colours mean; classes can be switched off
  function drawLegend() {
    if (state.colour === "class") {
      const buttons = classes.map((name, c) => {
        const colour = header.palette[c % header.palette.length];
        const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
        icon.setAttribute("viewBox", "0 0 16 16");
        path.setAttribute("d", OUTLINES[c % OUTLINES.length]);
        path.setAttribute("fill", colour);
        icon.append(path);
        const b = button("", "Show or hide this class", () => {
          if (!state.hidden.delete(c)) state.hidden.add(c);
          b.setAttribute("aria-pressed", !state.hidden.has(c));
          style();
        });
        b.setAttribute("aria-pressed", !state.hidden.has(c));
        b.append(icon, name);
        return b;
      });
      const all = (on) => button(on ? "all" : "none", on ? "Show every class" : "Hide every class", () => {
        state.hidden = new Set(on ? [] : classes.keys());
        style();
        drawLegend();
      });
      legend.replaceChildren(...buttons, ...(classes.length > 1 ? [all(true), all(false)] : []));
    } else if (arrays[state.colour]) {
      const words = LEGENDS[state.colour](most);
      legend.replaceChildren(el("span", {}, words[0]), el("span", { className: "isd-ramp" }), el("span", {}, words[1]));
    } else legend.replaceChildren(); // one for all
  }

  // -- the query and its neighbours; only the newest question counts
  let answers = {}, asking = 0; // by encoder, each with the query, step and own image that it belongs to
  const current = (encoder) => { // the answer to what is shown now, if it is here
    const found = answers[encoder];
    return found && found.of.query === state.query && found.of.step === state.step && found.of.own === state.own ? found : null;
  };
  async function refresh() {
    const turn = ++asking, step = steps[state.step], of = { query: state.query, step: state.step, own: state.own };
    root.dataset.state = "asking";
    number.value = state.query === OWN ? "" : state.query;
    const question = { kind: "neighbours", step, query: state.query, k: state.k, temperature: state.temperature };
    try {
      if (busy) await busy.catch(() => {}); // a slider asks faster than anyone answers
      if (turn !== asking) return;
      busy = Promise.all(shown().map((encoder) => ask({ ...question, encoder })));
      const found = await busy;
      busy = null;
      if (turn !== asking) return;
      answers = Object.fromEntries(shown().map((encoder, i) => [encoder, { ...found[i], of }]));
      drawPanel();
      say(header.note);
      Object.assign(root.dataset, { state: "ready", query: state.query, step, encoder: state.encoder });
    } catch (error) {
      if (turn === asking) {
        answers = {};
        panel.replaceChildren(); // it would show the neighbours of an earlier query
        say(error.message);
        root.dataset.state = "failed";
      }
    }
    later();
  }
  let busy = null;
  function choose(index) {
    if (!Number.isInteger(index) || index >= count || index < (state.own ? OWN : 0)) {
      return say(`There is no image ${index}: choose a number from 0 to ${count - 1}.`);
    }
    state.query = index;
    tell({ query: index });
    refresh();
    later();
  }
  function hold({ name, picture } = {}) { // an image of the reader's own, which the kernel has read; -> whether there is one
    if (picture) state.own = { name, picture };
    return Boolean(picture);
  }
  const adopt = (own) => { if (hold(own)) choose(OWN); };
  const percent = (share) => (share === 0 ? "0%" : share >= 0.0995 ? `${(100 * share).toFixed(0)}%` : `${(100 * share).toFixed(1)}%`);
  const line = (name, share, className = "") => {
    const full = el("span", { className: `isd-share ${className}` });
    full.style.width = `${share && Math.max(0.5, 100 * share)}%`;
    const row = el("div", { className: "isd-line" }, el("span", { className: "isd-name", title: name }, name),
      el("span", { className: "isd-track" }, full), el("span", { className: "isd-value" }, percent(share)));
    row.dataset.share = share;
    return row;
  };
  const bars = (...lines) => el("div", { className: "isd-bars" }, ...lines);
  function drawPanel() {
    const mineIsOwn = state.query === OWN, others = (count - !mineIsOwn).toLocaleString("en");
    const query = el("div", { className: "isd-query" }, thumbnail(state.query, 84),
      el("div", {}, el("b", {}, nameOf(state.query)), el("br"), mineIsOwn ? "your own image" : `image ${state.query}`,
        ...(!mineIsOwn && labels && files ? [el("br"), el("span", { title: paths[state.query] }, files[state.query])] : [])));
    const hard = el("div", { className: "isd-hard" }, ...(header.other_views && !mineIsOwn ? [otherView(state.query, 48)] : []),
      el("div", {}, el("h4", {}, "MoCo's label"), bars(line("own other view", 1, "isd-hot"),
        line(`all ${others} others`, 0, "isd-hot")),
      el("p", {}, "one-hot, whatever the images show: entropy 0")));
    panel.replaceChildren(query, ...shown().map((encoder) => {
      const a = answers[encoder], mine = labels && !mineIsOwn ? labels[state.query] : -1;
      const grid = el("div", { className: "isd-grid" }, ...a.rows.map((i, n) => {
        const known = labels && !mineIsOwn, same = known && labels[i] === mine; // of an own image the class is unknown
        const b = el("button", { type: "button", className: known ? (same ? "isd-same" : "isd-other") : "",
          title: `${nameOf(i)}, image ${i}: cosine ${a.similarities[n].toFixed(3)}; make it the query` },
        thumbnail(i), el("span", {}, known ? `${same ? "\u2713" : "\u2717"} ${nameOf(i)}` : nameOf(i)),
        el("span", { className: "isd-isd" }, `ISD ${percent(a.shares[n])}`),
        el("span", { className: "isd-moco", title: "MoCo's label for every other image is 0" }, "MoCo 0%"));
        b.dataset.index = i;
        b.dataset.similarity = a.similarities[n];
        b.addEventListener("click", () => choose(i));
        return b;
      }));
      const order = labels ? a.by_class.map((share, c) => [share, c]).sort((x, y) => y[0] - x[0]).slice(0, 10) : [];
      const lines = order.length ? order.map(([share, c]) => {
        const row = line(classes[c], share, c === mine ? "isd-mine" : "");
        row.dataset.class = c;
        return row;
      }) : a.rows.slice(0, 8).map((i, n) => line(nameOf(i), a.shares[n]));
      const soft = el("div", { className: "isd-soft" }, el("h4", {}, `soft label${labels ? " by class" : ""}`), bars(...lines),
        el("p", { className: "isd-entropy" }, `entropy ${a.entropy.toFixed(2)} nats: spread as if over `
          + `${Math.exp(a.entropy).toFixed(1)} of ${others} images`));
      soft.dataset.entropy = a.entropy;
      const column = el("div", { className: "isd-encoder" }, el("h3", {}, a.step === steps[state.step] || a.step === undefined
        ? `${encoder}'s neighbours` : `${encoder}'s neighbours at step ${a.step.toLocaleString("en")}`), grid, soft);
      column.dataset.encoder = encoder;
      return column;
    }), hard);
  }

  // -- a selection: contact sheet and counts
  function selectInside(path) {
    const pane = paneAt(path[0][0]), at = now.at[pane.encoder], inside = [];
    for (let i = 0; i < count; i++) {
      if (!visible(i)) continue;
      const [x, y] = toScreen(pane, at[2 * i], at[2 * i + 1]);
      let odd = false; // crossings of a ray to the right
      for (let a = 0, b = path.length - 1; a < path.length; b = a++) {
        const [xa, ya] = path[a], [xb, yb] = path[b];
        if ((ya > y) !== (yb > y) && x < ((xb - xa) * (y - ya)) / (yb - ya) + xa) odd = !odd;
      }
      if (odd) inside.push(i);
    }
    pick(inside);
  }
  const selectView = () => { // for hands without a mouse
    const pane = panes()[0], { left, width, height } = pane;
    selectInside([[left, 0], [left + width, 0], [left + width, height], [left, height]]);
  };
  function pick(indices) {
    const wrong = indices.find((i) => !Number.isInteger(i) || i < 0 || i >= count);
    if (wrong !== undefined) return say(`There is no image ${wrong}: select numbers from 0 to ${count - 1}.`);
    state.selection = indices;
    tell({ selection: indices });
    style();
    if (!indices.length) return chosen.replaceChildren();
    const counts = classes.map(() => 0);
    if (labels) for (const i of indices) counts[labels[i]] += 1;
    const most = counts.map((n, c) => [n, c]).filter(([n]) => n).sort((a, b) => b[0] - a[0]);
    const rows = most.slice(0, 12).map(([n, c]) => {
      const row = line(classes[c], n / indices.length);
      row.lastChild.textContent = n.toLocaleString("en");
      return row;
    });
    const images = indices.slice(0, SHEET_LIMIT).map((i) => {
      const b = button("", `${nameOf(i)}, image ${i}`, () => choose(i));
      b.append(thumbnail(i, 32));
      return b;
    });
    chosen.replaceChildren(el("h3", {}, `${indices.length.toLocaleString("en")} selected `,
      button("clear", "Select nothing", () => pick([])), " ",
      button("CSV", "Save the selection as a table", () => download("selection.csv",
        new Blob([selectionTable(indices)], { type: "text/csv;charset=utf-8" })), "csv")), bars(...rows), el("div", { className: "isd-sheet" }, ...images),
    ...(indices.length > SHEET_LIMIT ? [el("p", {}, `and ${(indices.length - SHEET_LIMIT).toLocaleString("en")} more`)] : []));
    chosen.dataset.count = indices.length;
  }

  const selectionTable = (indices) => csv([["image", "class", "file"], ...indices.map((i) =>
    [i, labels ? header.classes[labels[i]] : "", header.names ? header.names[i] : ""])]);

  // -- mouse and keyboard
  const zoom = (factor, x, y) => { // about a place on the screen, by default the middle
    const pane = x === undefined ? panes()[0] : paneAt(x);
    const [dx, dy] = x === undefined ? [0, 0] : [x - pane.left - pane.width / 2, pane.height / 2 - y];
    const to = Math.min(200, Math.max(0.3, view.zoom * factor));
    view.x += (dx / pane.side) * (1 / view.zoom - 1 / to);
    view.y += (dy / pane.side) * (1 / view.zoom - 1 / to);
    view.zoom = to;
    later();
  };
  const reset = () => { Object.assign(view, { x: 0, y: 0, zoom: 0.92 }); later(); };
  let press = null;
  const here = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return; // the right one opens the menu of the page, the middle one scrolls
    const at = here(event);
    press = { at, last: at, moved: false, lasso: state.lasso || event.shiftKey };
    try { canvas.setPointerCapture(event.pointerId); } catch { /* a pointer made by a script */ }
    hover.hidden = true;
  });
  canvas.addEventListener("pointermove", (event) => {
    const at = here(event);
    if (!press) return showHover(at);
    press.moved ||= Math.hypot(at[0] - press.at[0], at[1] - press.at[1]) > 4;
    if (!press.moved) return;
    if (press.lasso) lassoPath.push(at);
    else {
      const { side } = panes()[0];
      view.x -= (at[0] - press.last[0]) / (side * view.zoom);
      view.y += (at[1] - press.last[1]) / (side * view.zoom);
    }
    press.last = at;
    later();
  });
  const release = (event) => {
    if (!press) return;
    const { moved, lasso, at } = press;
    press = null;
    if (event.type === "pointercancel") lassoPath = [];
    else if (!moved) { const i = nearestPoint(...at); if (i >= 0) choose(i); }
    else if (lasso && lassoPath.length > 2) selectInside(lassoPath);
    lassoPath = [];
    later();
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => { hover.hidden = true; });
  canvas.addEventListener("wheel", (event) => { // the page scrolls until the map has been clicked
    if (document.activeElement !== canvas && !canvas.getRootNode().activeElement?.isSameNode(canvas) && !event.ctrlKey) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), ...here(event));
  }, { passive: false });
  function showHover([x, y]) {
    const i = nearestPoint(x, y);
    hover.hidden = i < 0;
    if (i < 0) return;
    if (hover.dataset.index !== String(i)) {
      hover.dataset.index = i;
      hover.replaceChildren(thumbnail(i, 64), el("div", {}, nameOf(i)), el("div", {}, `image ${i}`));
    }
    hover.style.left = `${Math.min(x + 14, canvas.clientWidth - 100)}px`;
    hover.style.top = `${y > 130 ? y - 120 : y + 14}px`;
  }
  const move = (dx, dy) => { view.x += dx / view.zoom; view.y += dy / view.zoom; later(); };
  const keys = { ArrowLeft: () => move(-0.1, 0), ArrowRight: () => move(0.1, 0), ArrowUp: () => move(0, 0.1),
    ArrowDown: () => move(0, -0.1), "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: reset,
    ",": () => choose((Math.max(state.query, 0) + count - 1) % count), ".": () => choose((state.query + 1) % count),
    s: selectView, Escape: () => pick([]), " ": () => play.click(), c: () => contourBox.click(), n: () => nameBox?.click(),
    "/": () => search.focus(), e: () => {
      encoderBox.selectedIndex = (encoderBox.selectedIndex + 1) % encoderBox.options.length;
      encoderBox.dispatchEvent(new Event("change"));
    } };
  canvas.addEventListener("keydown", (event) => {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key; // with Shift and Caps Lock, too
    if (!keys[key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    keys[key]();
  });

  // -- start
  const watch = new ResizeObserver(() => {
    if (!stage.clientWidth) return;
    ratio = Math.min(window.devicePixelRatio || 1, count > 20000 ? 1.5 : 2);
    paint.resize(Math.round(stage.clientWidth * ratio), Math.round(stage.clientHeight * ratio), Math.round(pointSize * ratio));
    cancelAnimationFrame(frame);
    draw(performance.now()); // at once, so that the emptied canvas is never seen
  });
  watch.observe(stage);
  say(header.note);
  place(state.step, false);
  drawLegend();
  // for tests and the curious: where an image is drawn on the page, and the places that are drawn now
  root.explorer = { state, places: (encoder) => now.at[encoder], choose, pick, contours,
    project(i, map = 0) {
      const pane = panes()[map], at = now.at[pane.encoder], box = canvas.getBoundingClientRect();
      const [x, y] = toScreen(pane, at[2 * i], at[2 * i + 1]);
      return [box.left + x, box.top + y];
    } };
  return { choose, adopt, hold, pick, close() { stop(); watch.disconnect(); cancelAnimationFrame(frame); } };
}

// ---- two homes ---------------------------------------------------------------------------------------------------

function render({ model, el: root }) { // JupyterLab, by anywidget
  const header = structuredClone(model.get("header")), arrays = decode(header, model.get("data"));
  const kernel = kernelAnswers(model);
  const known = { query: model.get("query"), selection: model.get("selection") }; // as this view last had or gave them
  const tell = (values) => {
    Object.assign(known, values);
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  };
  const made = explorer(root, header, arrays, kernel.ask, tell);
  made.hold(model.get("own"));
  if (known.query !== 0) made.choose(known.query);
  if (known.selection?.length) made.pick(known.selection);
  const follow = (name, act) => () => { // Python or another view chose
    if (JSON.stringify(model.get(name)) !== JSON.stringify(known[name])) act(model.get(name));
  };
  const heard = { "change:query": follow("query", made.choose), "change:selection": follow("selection", made.pick),
    "change:own": () => made.adopt(model.get("own")) };
  for (const [event, act] of Object.entries(heard)) model.on(event, act);
  return () => {
    for (const [event, act] of Object.entries(heard)) model.off(event, act);
    kernel.close();
    made.close();
  };
}

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function mount(root, header, base64) { // one HTML file
  const arrays = decode(header, bytesOf(base64).buffer);
  return explorer(root, header, arrays, answersHere(header, arrays));
}

export default { render, mount };
