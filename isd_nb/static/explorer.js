// The explorer: a map of images, and beside it whom an encoder finds similar to one of them.
//
// One file for two homes. In JupyterLab anywidget calls `render`, and the kernel answers questions. In an HTML file
// `mount` is called with everything inside, and `answersHere` does the arithmetic. Python (isd_nb/explorer.py) writes
// `header` (names and numbers) and one buffer (all arrays); `decode` puts them together again.
//
// Text from outside (class names, file names) only ever becomes `textContent` or canvas text, never HTML.

const KINDS = { u1: Uint8Array, i2: Int16Array, i4: Int32Array, f4: Float32Array };
// Points of a class have a colour and a shape; Python's `markers` are in the same order: o s ^ D v P X.
const OUTLINES = ["M8 1a7 7 0 1 0 .01 0Z", "M2 2H14V14H2Z", "M8 1L15 14H1Z", "M8 0L16 8L8 16L0 8Z", "M8 15L15 2H1Z",
  "M6 1H10V6H15V10H10V15H6V10H1V6H6Z", "M4 1L8 5L12 1L15 4L11 8L15 12L12 15L8 11L4 15L1 12L5 8L1 4Z"];
const GLIDE = 900; // milliseconds from one checkpoint to the next
const SHEET_LIMIT = 60; // images on a contact sheet

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
  const ask = (question) => new Promise((resolve, reject) => {
    const id = String(Math.random());
    waiting.set(id, { resolve, reject });
    model.send({ ...question, id });
    setTimeout(() => waiting.delete(id) && reject(new Error("the kernel does not answer; is it busy, or gone?")), 20000);
  });
  return { ask, close: () => model.off("msg:custom", listen) };
}

// The same numbers as `look_up` in isd_nb/neighbours.py: cosine, softmax over all images but the query, entropy in nats.
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

// ---- thumbnails: sheets of many small images, fetched when first needed ------------------------------------------

function thumbnails(header, arrays, ask) {
  const { size, columns, per_sheet: perSheet } = header.thumbnails;
  const sheets = new Map();
  const sheet = (number) => {
    if (!sheets.has(number)) {
      const bytes = arrays[`sheet_${number}`] ? Promise.resolve(arrays[`sheet_${number}`])
        : ask({ kind: "sheet", number }).then((answer) => answer.buffers[0]);
      const image = bytes.then((b) => createImageBitmap(new Blob([b])));
      image.catch(() => sheets.delete(number)); // ask again next time
      sheets.set(number, image);
    }
    return sheets.get(number);
  };
  return (index, pixels = 48) => { // -> a canvas that shows image `index`, now or soon
    const canvas = el("canvas", { width: size, height: size, className: "isd-image" });
    canvas.style.width = canvas.style.height = `${pixels}px`;
    canvas.style.imageRendering = size < pixels ? "pixelated" : "auto";
    canvas.dataset.index = index;
    const place = index % perSheet, x = (place % columns) * size, y = Math.floor(place / columns) * size;
    sheet(Math.floor(index / perSheet)).then((image) => {
      canvas.getContext("2d").drawImage(image, x, y, size, size, 0, 0, size, size);
      canvas.dataset.drawn = "yes";
    }, () => { canvas.title = "this thumbnail could not be loaded"; });
    return canvas;
  };
}

// ---- drawing many points: WebGL2, one draw call a map ------------------------------------------------------------

const VERTEX = `#version 300 es
in vec2 before; in vec2 after; in vec4 colour; in vec2 look; // look: shape, size
uniform float moment, pixels; uniform vec2 centre, scale;
out vec4 ink; flat out int shape;
void main() {
  gl_Position = vec4((mix(before, after, moment) - centre) * scale, 0., 1.);
  gl_PointSize = look.y * pixels;
  if (look.y == 0.) gl_Position = vec4(2., 2., 2., 1.); // hidden: outside
  ink = colour; shape = int(look.x);
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
in vec4 ink; flat in int shape; out vec4 pixel;
void main() {
  vec2 p = 2. * gl_PointCoord - 1., a = abs(p);
  float inside = shape == 0 ? 1. - length(p) : shape == 1 ? .85 - max(a.x, a.y)
    : shape == 2 ? min(.8 - p.y, .57 * (p.y + .95) - a.x) : shape == 3 ? 1. - a.x - a.y
    : shape == 4 ? min(.8 + p.y, .57 * (.95 - p.y) - a.x)
    : shape == 5 ? min(1. - max(a.x, a.y), .36 - min(a.x, a.y)) : .36 - min(abs(p.x + p.y), abs(p.x - p.y)) * .75;
  if (inside < 0.) discard;
  pixel = vec4(ink.rgb, ink.a);
}`;

function painter(canvas, count) { // -> { places, looks, draw, close }, or null without WebGL2
  const gl = canvas.getContext("webgl2", { antialias: false, alpha: false, powerPreference: "high-performance" });
  if (!gl) return null;
  const program = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program) || "no WebGL program");
  gl.useProgram(program);
  const uniform = Object.fromEntries(["moment", "pixels", "centre", "scale"].map((n) => [n, gl.getUniformLocation(program, n)]));
  gl.enable(gl.SCISSOR_TEST);
  gl.clearColor(1, 1, 1, 1);
  const buffer = () => gl.createBuffer();
  const colours = buffer(), looks = buffer(), maps = [0, 1].map(() => ({ before: buffer(), after: buffer() }));
  const fill = (target, values, usage) => {
    gl.bindBuffer(gl.ARRAY_BUFFER, target);
    gl.bufferData(gl.ARRAY_BUFFER, values, usage);
  };
  const attribute = (name, source, size, kind, normalised) => {
    const at = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, source);
    gl.enableVertexAttribArray(at);
    gl.vertexAttribPointer(at, size, kind, normalised, 0, 0);
  };
  return {
    places(map, before, after) {
      fill(maps[map].before, before, gl.DYNAMIC_DRAW);
      fill(maps[map].after, after, gl.DYNAMIC_DRAW);
    },
    looks(colourBytes, lookBytes) {
      fill(colours, colourBytes, gl.DYNAMIC_DRAW);
      fill(looks, lookBytes, gl.DYNAMIC_DRAW);
    },
    draw(map, { x, y, width, height, moment, centre, scale, pixels }) {
      gl.viewport(x, y, width, height);
      gl.scissor(x, y, width, height);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.uniform1f(uniform.moment, moment);
      gl.uniform1f(uniform.pixels, pixels);
      gl.uniform2f(uniform.centre, ...centre);
      gl.uniform2f(uniform.scale, ...scale);
      attribute("before", maps[map].before, 2, gl.FLOAT, false);
      attribute("after", maps[map].after, 2, gl.FLOAT, false);
      attribute("colour", colours, 4, gl.UNSIGNED_BYTE, true);
      attribute("look", looks, 2, gl.UNSIGNED_BYTE, false);
      gl.drawArrays(gl.POINTS, 0, count);
    },
    close: () => gl.getExtension("WEBGL_lose_context")?.loseContext(),
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

function explorer(root, header, arrays, ask, tell = () => {}) {
  const { count, classes, steps, encoders } = header, labels = arrays.labels || null;
  const state = { encoder: encoders[0], step: steps.length - 1, colour: "none", query: 0, k: header.k,
    temperature: header.temperature, hidden: new Set(), selection: [], lasso: false };
  const view = { x: 0, y: 0, zoom: 0.92 };
  const thumbnail = thumbnails(header, arrays, ask);
  const nameOf = (i) => (labels ? classes[labels[i]] : header.names ? header.names[i] : `image ${i}`);
  const shown = () => (state.encoder === "both" ? encoders : [state.encoder]);
  const ended = new AbortController(); // ends every listener outside the root

  // -- the skeleton
  const glCanvas = el("canvas"), overlay = el("canvas", { tabIndex: 0, className: "isd-overlay" });
  overlay.setAttribute("role", "application");
  overlay.setAttribute("aria-label", "Map of images. Arrows move, plus and minus zoom, 0 shows all, comma and full stop "
    + "choose the previous and the next image, space plays.");
  const hover = el("div", { className: "isd-hover", hidden: true }), note = el("div", { className: "isd-note", hidden: true });
  note.setAttribute("role", "status");
  const stage = el("div", { className: "isd-stage" }, glCanvas, overlay, hover);
  const legend = el("div", { className: "isd-legend" }), bar = el("div", { className: "isd-bar" });
  const time = el("div", { className: "isd-bar" }), ask1 = el("div", { className: "isd-bar" });
  const settings = el("div", { className: "isd-bar" }), panel = el("div", { className: "isd-panel" });
  const chosen = el("div", { className: "isd-chosen" });
  root.classList.add("isd-explorer");
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's one-letter commands stay away
  root.replaceChildren(note, el("div", { className: "isd-left" }, bar, stage, time, legend),
    el("div", { className: "isd-right" }, ask1, settings, panel, chosen));
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
    (value) => { state.encoder = value; place(state.step, false); style(); refresh(); });
  const colours = [...(labels ? [["class", "class"]] : []),
    ...(arrays.agreement ? [["agreement", "neighbours of the same class"]] : []),
    ...(arrays.difference ? [["difference", `${encoders.join(" and ")} disagree`]] : [])];
  const [colourLabel, colourBox] = select("colour", "colour", colours.length ? colours : [["none", "one"]],
    (value) => { state.colour = value; style(); drawLegend(); });
  state.colour = colourBox.value;
  const lassoButton = button("lasso", "Draw around points (or drag with Shift held)", () => {
    state.lasso = !state.lasso;
    lassoButton.setAttribute("aria-pressed", state.lasso);
  }, "lasso");
  lassoButton.setAttribute("aria-pressed", "false");
  bar.append(encoderLabel, colourLabel, lassoButton, button("+", "Zoom in", () => zoom(1.4)),
    button("\u2212", "Zoom out", () => zoom(1 / 1.4)), button("all", "Show the whole map", () => reset()));

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
    playing = setInterval(() => (state.step < steps.length - 1 ? place(state.step + 1) : stop()), GLIDE + 250);
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
  const confusing = () => { // fewest neighbours of its class first; without classes, where the encoders disagree most
    const e = encoders.indexOf(shown()[0]);
    const values = arrays.agreement ? arrays.agreement.subarray((e * steps.length + state.step) * count)
      : arrays.difference.subarray(state.step * count).map((v) => 255 - v);
    const order = among().sort((a, b) => values[a] - values[b] || a - b);
    if (order.length) choose(order[(order.indexOf(state.query) + 1) % order.length]);
  };
  ask1.append(el("label", {}, "image ", number), ...(labels ? [classLabel] : []),
    button("random", "A random image", random, "random"));
  if (arrays.agreement || arrays.difference) {
    ask1.append(button("next confusing", "The images whose neighbours agree least come first", confusing, "confusing"));
  }
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
  const now = { from: {}, to: {}, moment: 1 }; // by encoder: Float32Array (2 * count)
  const stored = (encoder, step) => {
    const start = (encoders.indexOf(encoder) * steps.length + step) * count * 2;
    return Float32Array.from(arrays.places.subarray(start, start + count * 2), (v) => v / 32767);
  };
  const between = (encoder) => { // where the points are at this moment
    const from = now.from[encoder], to = now.to[encoder];
    return now.moment >= 1 ? to : to.map((v, i) => from[i] + (v - from[i]) * now.moment);
  };
  let frame = 0, glideStart = 0, frames = 0;
  function place(step, glide = true) {
    const slow = glide && step !== state.step && !matchMedia("(prefers-reduced-motion: reduce)").matches;
    for (const encoder of encoders) {
      now.from[encoder] = slow ? between(encoder) : stored(encoder, step);
      now.to[encoder] = stored(encoder, step);
    }
    state.step = step;
    slider.value = step;
    stepText.textContent = `step ${steps[step].toLocaleString("en")}`;
    [glideStart, frames, now.moment] = [performance.now(), 0, slow ? 0 : 1];
    root.dataset.gliding = slow ? "yes" : "no";
    shown().forEach((encoder, map) => paint?.places(map, now.from[encoder], now.to[encoder]));
    style();
    refresh();
  }

  // -- colour, shape and size of every point
  const pointSize = count > 20000 ? 4 : count > 4000 ? 6 : count > 1200 ? 7 : 9;
  const visible = (i) => !labels || !state.hidden.has(labels[i]);
  function style() {
    const bytes = new Uint8Array(count * 4), looks = new Uint8Array(count * 2), palette = header.palette.map(rgb);
    const e = encoders.indexOf(shown()[0]), marked = new Set(state.selection);
    const start = state.colour === "agreement" ? (e * steps.length + state.step) * count : state.step * count;
    const values = arrays[state.colour];
    for (let i = 0; i < count; i++) {
      const colour = values ? ramp(values[start + i] / 255) : labels ? palette[labels[i] % palette.length] : palette[0];
      const pale = marked.size && !marked.has(i) ? 0.75 : 0; // what is not selected fades
      for (let c = 0; c < 3; c++) bytes[i * 4 + c] = colour[c] + (255 - colour[c]) * pale;
      bytes[i * 4 + 3] = 255;
      looks[i * 2] = labels ? labels[i] % OUTLINES.length : 0;
      looks[i * 2 + 1] = visible(i) ? pointSize : 0;
    }
    paint?.looks(bytes, looks);
    later();
  }

  // -- from the map to the screen and back
  const panes = () => shown().map((encoder, map, all) => {
    const width = overlay.clientWidth / all.length, height = overlay.clientHeight, side = Math.min(width, height) / 2;
    return { encoder, map, left: map * width, width, height, side };
  });
  const toScreen = (pane, x, y) => [pane.left + pane.width / 2 + (x - view.x) * view.zoom * pane.side,
    pane.height / 2 - (y - view.y) * view.zoom * pane.side];
  const paneAt = (x) => panes().find((p) => x >= p.left && x < p.left + p.width) || panes()[0];
  function nearestPoint(x, y, reach = 12) { // -> index, or -1
    const pane = paneAt(x), at = between(pane.encoder);
    let best = -1, least = reach * reach;
    for (let i = 0; i < count; i++) {
      const [px, py] = toScreen(pane, at[2 * i], at[2 * i + 1]), d = (px - x) ** 2 + (py - y) ** 2;
      if (d < least && visible(i)) [best, least] = [i, d];
    }
    return best;
  }

  // -- one frame
  const later = () => { frame ||= requestAnimationFrame(draw); };
  const middles = {}; // of the classes, by encoder and step
  function middle(encoder, step) {
    return (middles[`${encoder} ${step}`] ||= classes.map((_, c) => {
      const at = stored(encoder, step), mine = among0[c];
      const mid = (axis) => mine.map((i) => at[2 * i + axis]).sort((a, b) => a - b)[mine.length >> 1];
      return mine.length ? [mid(0), mid(1)] : null;
    }));
  }
  const among0 = classes.map(() => []);
  if (labels && classes.length <= 30) labels.forEach((c, i) => among0[c].push(i));
  let lassoPath = [], lastStep = state.step, leaving = state.step;
  function draw(timestamp) {
    frame = 0;
    if (now.moment < 1) {
      now.moment = Math.min(1, Math.max(0, (timestamp - glideStart) / GLIDE));
      frames += 1;
      if (now.moment < 1) later();
      else {
        root.dataset.gliding = "no";
        root.dataset.fps = (1000 * frames / (performance.now() - glideStart)).toFixed(1);
      }
    }
    if (state.step !== lastStep) [leaving, lastStep] = [lastStep, state.step];
    const ratio = window.devicePixelRatio || 1;
    const ink = overlay.getContext("2d");
    ink.setTransform(ratio, 0, 0, ratio, 0, 0);
    ink.clearRect(0, 0, overlay.clientWidth, overlay.clientHeight);
    for (const pane of panes()) {
      paint?.draw(pane.map, { x: Math.round(pane.left * ratio), y: 0, width: Math.round(pane.width * ratio),
        height: Math.round(pane.height * ratio), moment: now.moment, centre: [view.x, view.y], pixels: ratio,
        scale: [view.zoom * pane.side / (pane.width / 2), view.zoom * pane.side / (pane.height / 2)] });
      if (paint) annotate(ink, pane);
    }
    if (lassoPath.length) {
      Object.assign(ink, { strokeStyle: "#000", fillStyle: "#0072b222", lineWidth: 1.5 });
      ink.beginPath();
      lassoPath.forEach(([x, y]) => ink.lineTo(x, y));
      ink.closePath();
      ink.fill();
      ink.stroke();
    }
  }
  function annotate(ink, pane) { // names of classes, the query, its neighbours
    ink.save();
    ink.beginPath();
    ink.rect(pane.left, 0, pane.width, pane.height);
    ink.clip();
    Object.assign(ink, { textAlign: "center", textBaseline: "middle", lineJoin: "round" });
    const at = between(pane.encoder), point = (i) => toScreen(pane, at[2 * i], at[2 * i + 1]);
    const [qx, qy] = point(state.query);
    Object.assign(ink, { strokeStyle: "#0008", lineWidth: 1 });
    for (const i of answers[pane.encoder]?.rows || []) {
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
    ink.font = "bold 14px system-ui, sans-serif";
    if (labels && classes.length <= 30) {
      const a = middle(pane.encoder, leaving), b = middle(pane.encoder, state.step);
      classes.forEach((name, c) => {
        if (!b[c] || state.hidden.has(c)) return;
        const t = now.moment < 1 ? now.moment : 1;
        const [x, y] = toScreen(pane, a[c][0] + (b[c][0] - a[c][0]) * t, a[c][1] + (b[c][1] - a[c][1]) * t);
        write(ink, name.length > 18 ? `${name.slice(0, 17)}\u2026` : name, x, y);
      });
    }
    if (state.encoder === "both") write(ink, pane.encoder, pane.left + pane.width / 2, 14);
    ink.restore();
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
      const words = state.colour === "agreement" ? ["none of its 10 nearest has its class", "all of them"]
        : ["the 10 nearest are the same for both", "all differ"];
      legend.replaceChildren(el("span", {}, words[0]), el("span", { className: "isd-ramp" }), el("span", {}, words[1]));
    } else legend.replaceChildren(el("span", {}, "These images have no classes: one colour for all."));
  }

  // -- the query and its neighbours; only the newest question counts
  let answers = {}, asking = 0;
  async function refresh() {
    const turn = ++asking, step = steps[state.step];
    root.dataset.state = "asking";
    number.value = state.query;
    const question = { kind: "neighbours", step, query: state.query, k: state.k, temperature: state.temperature };
    try {
      if (busy) await busy.catch(() => {}); // a slider asks faster than anyone answers
      if (turn !== asking) return;
      busy = Promise.all(shown().map((encoder) => ask({ ...question, encoder })));
      const found = await busy;
      busy = null;
      if (turn !== asking) return;
      answers = Object.fromEntries(shown().map((encoder, i) => [encoder, found[i]]));
      drawPanel();
      say(header.note);
      Object.assign(root.dataset, { state: "ready", query: state.query, step, encoder: state.encoder });
    } catch (error) {
      if (turn === asking) { say(error.message); root.dataset.state = "failed"; }
    }
    later();
  }
  let busy = null;
  function choose(index) {
    if (!Number.isInteger(index) || index < 0 || index >= count) {
      return say(`There is no image ${index}: choose a number from 0 to ${count - 1}.`);
    }
    state.query = index;
    tell({ query: index });
    refresh();
    later();
  }
  const percent = (share) => (share >= 0.0995 ? `${(100 * share).toFixed(0)}%` : `${(100 * share).toFixed(1)}%`);
  const line = (name, share, className = "") => {
    const full = el("span", { className: `isd-share ${className}` });
    full.style.width = `${Math.max(0.5, 100 * share)}%`;
    const row = el("div", { className: "isd-line" }, el("span", { className: "isd-name", title: name }, name),
      el("span", { className: "isd-track" }, full), el("span", { className: "isd-value" }, percent(share)));
    row.dataset.share = share;
    return row;
  };
  function drawPanel() {
    const query = el("div", { className: "isd-query" }, thumbnail(state.query, 84),
      el("div", {}, el("b", {}, nameOf(state.query)), el("br"), `image ${state.query}`,
        ...(labels && header.names ? [el("br"), header.names[state.query]] : [])));
    panel.replaceChildren(query, ...shown().map((encoder) => {
      const a = answers[encoder], mine = labels ? labels[state.query] : -1;
      const grid = el("div", { className: "isd-grid" }, ...a.rows.map((i, n) => {
        const same = labels && labels[i] === mine;
        const b = el("button", { type: "button", className: labels ? (same ? "isd-same" : "isd-other") : "",
          title: `${nameOf(i)}, image ${i}: cosine ${a.similarities[n].toFixed(3)}; make it the query` },
        thumbnail(i), el("span", {}, labels ? `${same ? "\u2713" : "\u2717"} ${nameOf(i)}` : nameOf(i)),
        el("span", {}, percent(a.shares[n])));
        b.dataset.index = i;
        b.dataset.similarity = a.similarities[n];
        b.addEventListener("click", () => choose(i));
        return b;
      }));
      const order = labels ? a.by_class.map((share, c) => [share, c]).sort((x, y) => y[0] - x[0]).slice(0, 10) : [];
      const bars = order.length ? order.map(([share, c]) => {
        const row = line(classes[c], share, c === mine ? "isd-mine" : "");
        row.dataset.class = c;
        return row;
      }) : a.rows.slice(0, 8).map((i, n) => line(nameOf(i), a.shares[n]));
      const soft = el("div", { className: "isd-soft" }, el("h4", {}, `soft label${labels ? " by class" : ""}`), ...bars,
        el("p", { className: "isd-entropy" }, `entropy ${a.entropy.toFixed(2)} nats: spread as if over `
          + `${Math.exp(a.entropy).toFixed(1)} of ${(count - 1).toLocaleString("en")} images`));
      soft.dataset.entropy = a.entropy;
      const hard = el("div", { className: "isd-hard" }, el("h4", {}, "what MoCo would say"),
        line("own other view", 1), line("everybody else", 0),
        el("p", {}, "one-hot: entropy 0"));
      const column = el("div", { className: "isd-encoder" }, el("h3", {}, a.step === steps[state.step] || a.step === undefined
        ? `${encoder}'s neighbours` : `${encoder}'s neighbours at step ${a.step.toLocaleString("en")}`), grid, soft, hard);
      column.dataset.encoder = encoder;
      return column;
    }));
  }

  // -- a selection: contact sheet and counts
  function selectInside(path) {
    const pane = paneAt(path[0][0]), at = between(pane.encoder), inside = [];
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
  function pick(indices) {
    state.selection = indices;
    tell({ selection: indices });
    style();
    if (!indices.length) return chosen.replaceChildren();
    const counts = classes.map((_, c) => labels ? indices.filter((i) => labels[i] === c).length : 0);
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
      button("clear", "Select nothing", () => pick([]))), ...rows, el("div", { className: "isd-sheet" }, ...images),
    ...(indices.length > SHEET_LIMIT ? [el("p", {}, `and ${(indices.length - SHEET_LIMIT).toLocaleString("en")} more`)] : []));
    chosen.dataset.count = indices.length;
  }

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
  const here = (event) => { const box = overlay.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  overlay.addEventListener("pointerdown", (event) => {
    const at = here(event);
    press = { at, last: at, moved: false, lasso: state.lasso || event.shiftKey };
    try { overlay.setPointerCapture(event.pointerId); } catch { /* a pointer made by a script */ }
    hover.hidden = true;
  });
  overlay.addEventListener("pointermove", (event) => {
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
  overlay.addEventListener("pointerup", release);
  overlay.addEventListener("pointercancel", release);
  overlay.addEventListener("pointerleave", () => { hover.hidden = true; });
  overlay.addEventListener("wheel", (event) => { // the page scrolls until the map has been clicked
    if (document.activeElement !== overlay && !overlay.getRootNode().activeElement?.isSameNode(overlay) && !event.ctrlKey) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), ...here(event));
  }, { passive: false });
  function showHover([x, y]) {
    const i = nearestPoint(x, y);
    hover.hidden = i < 0;
    if (i < 0 || hover.dataset.index === String(i)) return;
    hover.dataset.index = i;
    hover.replaceChildren(thumbnail(i, 64), el("div", {}, nameOf(i)), el("div", {}, `image ${i}`));
    hover.style.left = `${Math.min(x + 14, overlay.clientWidth - 100)}px`;
    hover.style.top = `${y > 130 ? y - 120 : y + 14}px`;
  }
  const move = (dx, dy) => { view.x += dx / view.zoom; view.y += dy / view.zoom; later(); };
  const keys = { ArrowLeft: () => move(-0.1, 0), ArrowRight: () => move(0.1, 0), ArrowUp: () => move(0, 0.1),
    ArrowDown: () => move(0, -0.1), "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: reset,
    ",": () => choose((state.query + count - 1) % count), ".": () => choose((state.query + 1) % count),
    Escape: () => pick([]), " ": () => play.click() };
  overlay.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  });

  // -- start
  let paint = null;
  try { paint = header.without_webgl ? null : painter(glCanvas, count); } catch (error) { console.warn(error); }
  if (!paint) { // the static picture instead; the panel works all the same
    stage.replaceChildren(el("img", { src: header.picture, alt: "the map as a picture" }));
    bar.querySelectorAll("button").forEach((b) => { b.disabled = true; });
    header.note = "This browser shows no WebGL 2, so the map is a picture that does not move. The panel works all the same.";
  }
  const watch = new ResizeObserver(() => {
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [glCanvas, overlay]) {
      canvas.width = Math.round(stage.clientWidth * ratio);
      canvas.height = Math.round(stage.clientHeight * ratio);
    }
    cancelAnimationFrame(frame);
    draw(performance.now()); // at once, so that the emptied canvas is never seen
  });
  watch.observe(stage);
  glCanvas.addEventListener("webglcontextlost", (event) => {
    event.preventDefault();
    if (!ended.signal.aborted) say("The graphics were taken away by the browser; run the cell again, or reload the page.");
  });
  say(header.note);
  drawLegend();
  place(state.step, false);
  // for tests and the curious: where an image is drawn on the page, and the places that are drawn now
  root.explorer = { state, places: (encoder) => between(encoder), choose, pick,
    project(i, map = 0) {
      const pane = panes()[map], at = between(pane.encoder), box = overlay.getBoundingClientRect();
      const [x, y] = toScreen(pane, at[2 * i], at[2 * i + 1]);
      return [box.left + x, box.top + y];
    } };
  return { choose, close() { ended.abort(); stop(); watch.disconnect(); cancelAnimationFrame(frame); paint?.close(); } };
}

// ---- two homes ---------------------------------------------------------------------------------------------------

function render({ model, el: root }) { // JupyterLab, by anywidget
  const header = structuredClone(model.get("header")), arrays = decode(header, model.get("data"));
  const kernel = kernelAnswers(model);
  let mine = model.get("query");
  const tell = (values) => {
    if ("query" in values) mine = values.query;
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  };
  const made = explorer(root, header, arrays, kernel.ask, tell);
  if (mine) made.choose(mine);
  const follow = () => { if (model.get("query") !== mine) made.choose(model.get("query")); }; // Python chose
  model.on("change:query", follow);
  return () => { model.off("change:query", follow); kernel.close(); made.close(); };
}

function mount(root, header, base64) { // one HTML file
  const arrays = decode(header, Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer);
  return explorer(root, header, arrays, answersHere(header, arrays));
}

export default { render, mount };
