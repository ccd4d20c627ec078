// The page of `swapfast watch`. All that comes from a model folder is shown as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const mayAsk = document.body.dataset.rights === "write";
const runs = [];            // what is known of each run, and its elements
let selected = 0;           // the run that keys mean
let chosen = null;          // the iteration whose pictures are shown, null for now
let zoom = 0;               // 0 fits the width; else px of the screen for one of the picture
let view = null;            // "sheet" or "0>1", faces of the first side and what the second makes of them; null: no choice yet
let shows = "swap";         // or "original"
let showsMask = true;
let stream = null, heardAt = 0;

// --- numbers ---------------------------------------------------------------------------------------------------

function number(value, digits = 4) {
  if (value === undefined || value === null) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  return String(Number(value.toPrecision(Math.max(digits, Math.ceil(Math.log10(size + 1))))));
}

function duration(seconds) {
  const parts = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = parts.findIndex(([, length]) => seconds >= length);
  if (first < 0) return "0 s";
  const [unit, length] = parts[first];
  const whole = Math.floor(seconds / length);
  if (unit === "s" || unit === "min") return `${whole} ${unit}`;
  const [small, smallLength] = parts[first + 1];
  return `${whole} ${unit} ${Math.floor((seconds % length) / smallLength)} ${small}`;
}

const ago = (seconds) => seconds < 2 ? "just now" : `${duration(seconds)} ago`;

// --- what the server tells -------------------------------------------------------------------------------------

function connect() {
  if (stream) stream.close();
  stream = new EventSource("events");
  stream.addEventListener("everything", (event) => { heard(); takeEverything(JSON.parse(event.data), event.lastEventId); });
  stream.addEventListener("news", (event) => { heard(); takeNews(JSON.parse(event.data), event.lastEventId); });
  stream.onopen = heard;
  stream.onerror = () => {
    const isRefused = stream.readyState === EventSource.CLOSED;
    say(isRefused ? "the page's process was started anew: open the address that it printed" :
                    "no answer from the page's process; trying again");
    if (isRefused) setTimeout(connect, 5000);
  };
}

function heard() { heardAt = performance.now(); say(""); }

function say(text) { $("connection").textContent = text; $("connection").hidden = !text; }

const messageNumber = (id) => Number(id.split("-")[1] || 0);

function takeEverything(list, id) {
  if (list.length !== runs.length) {
    $("runs").replaceChildren();
    runs.length = 0;
    list.forEach((_, index) => runs.push(makeRun(index)));
  }
  list.forEach((told, index) => {
    const run = runs[index];
    run.name = told.name;
    run.folder = told.folder;
    run.tail = told.tail;
    run.points = {};
    takeState(run, told);
    run.pictures = told.pictures;
    showTail(run);
    fetchCurves(run, index);
  });
  select(Math.min(selected, runs.length - 1));
  showHistory();
  showPictures();
}

function takeNews(list, id) {
  for (const told of list) {
    const run = runs[told.run];
    if (!run) continue;
    if (told.state) takeState(run, told);
    if (told.tail) {
      run.tail = (told.tail_anew ? [] : run.tail).concat(told.tail).slice(-200);
      showTail(run);
    }
    if (told.pictures) { run.pictures = told.pictures; showHistory(); }
    if (told.curves_anew !== undefined) fetchCurves(run, told.run);
    else if (told.curves && run.waiting) run.waiting.push([messageNumber(id), told.curves]);
    else if (told.curves && messageNumber(id) > run.curvesAt) addPoints(run, told.curves);
    showPicture(run);
  }
  drawCharts();
}

async function fetchCurves(run, index) {
  const news = run.waiting = []; // what comes meanwhile; a later call has another list
  try {
    const answer = await fetch(`curves?run=${index}`);
    if (!answer.ok) throw new Error(String(answer.status));
    const curves = await answer.json();
    if (news !== run.waiting) return;
    run.width = curves.width;
    run.points = curves.points;
    run.curvesAt = curves.message;
    run.waiting = null;
    showFigures(run);
    for (const [message, changes] of news) if (message > curves.message) addPoints(run, changes);
    drawCharts();
  } catch (error) {
    if (news === run.waiting) setTimeout(() => fetchCurves(run, index), 3000);
  }
}

function addPoints(run, changes) {
  for (const [key, points] of Object.entries(changes)) {
    const own = run.points[key] ||= [];
    for (const point of points) {
      while (own.length && own[own.length - 1][0] >= point[0]) own.pop();
      own.push(point);
    }
  }
}

// --- runs ------------------------------------------------------------------------------------------------------

function makeRun(index) {
  const element = $("run").content.firstElementChild.cloneNode(true);
  $("runs").append(element);
  const run = {element, pictures: [], tail: [], points: {}, width: 1, curvesAt: 0, waiting: null, state: {latest: {}, about: {}}};
  const find = (selector) => element.querySelector(selector);
  Object.assign(run, {viewport: find(".viewport"), canvas: find("canvas"), nothing: find(".nothing"), answer: find(".answer")});
  for (const button of element.querySelectorAll("button[data-do]")) {
    button.hidden = !mayAsk;
    button.onclick = () => ask(index, button.dataset.do);
  }
  element.addEventListener("pointerdown", () => select(index));
  pan(run.viewport);
  return run;
}

function takeState(run, told) {
  run.state = told.state;
  run.ages = told.ages;
  run.agesAt = performance.now();
  const {element, state} = run, {latest, about} = state;
  const words = {training: "training", idle: "no run", gone: "folder is gone"};
  const status = element.querySelector(".status");
  element.querySelector(".name").textContent = run.name;
  element.querySelector(".name").title = run.folder;
  status.textContent = state.step === null && state.status === "training" ? "starting" : words[state.status];
  status.className = `status badge ${state.status === "training" ? "training" : state.status === "gone" ? "warning" : ""}`;
  const share = about.iterations && state.step !== null ? Math.min(1, state.step / about.iterations) : 0;
  element.querySelector(".bar div").style.width = `${100 * share}%`;
  element.querySelector(".bar").setAttribute("aria-valuenow", Math.round(100 * share));
  for (const button of element.querySelectorAll("button[data-do]")) button.disabled = state.status !== "training";
  showFigures(run);
}

function showFigures(run) {
  const {state, element} = run, {latest, about} = state;
  const since = (performance.now() - run.agesAt) / 1000;
  const wanted = about.iterations ? ` of ${about.iterations.toLocaleString("en")}` : "";
  let text = state.step === null ? "nothing is logged yet" : `iteration ${state.step.toLocaleString("en")}${wanted}`;
  if (state.time_left_s !== null) text += `, ${duration(Math.max(0, state.time_left_s - since))} left`;
  if (state.reading !== null) text += `, reading the log: ${Math.round(100 * state.reading)} %`;
  if (state.status === "training" && run.ages.log + since > 90) text += `, nothing new for ${duration(run.ages.log + since)}`;
  element.querySelector(".progress").textContent = text;
  const rows = [];
  for (const side of sidesOf(run)) {
    const held = latest[`validation_loss_${side}`];
    rows.push([`loss ${side.toUpperCase()}`, number(latest[`loss_${side}`]) + (held === undefined ? "" : `, held out ${number(held)}`)]);
  }
  if (latest.swap_quality !== undefined) rows.push(["swap of held-out faces", `${number(latest.swap_quality)} dB`]);
  if (latest.swap_leak !== undefined) rows.push(["the swap keeps of A's skin", `${Math.max(0, Math.round(100 * latest.swap_leak))} %`]);
  rows.push(["faces/s", number(latest.faces_per_s, 3)]);
  rows.push(["waiting for data", latest.data_wait === undefined ? "–" : `${(100 * latest.data_wait).toFixed(1)} %`]);
  if (latest.memory_gpu_mib !== undefined) {
    const peak = latest.memory_gpu_peak_mib;
    rows.push(["GPU memory", `${gibibytes(latest.memory_gpu_mib)}${peak === undefined ? "" : `, at most ${gibibytes(peak)}`}`]);
  } else if (latest.memory_host_mib !== undefined) rows.push(["memory", gibibytes(latest.memory_host_mib)]);
  rows.push(["learning rate", number(latest.learning_rate, 3)]);
  rows.push(["last checkpoint", state.checkpoint === null ? "–" : `${state.checkpoint.toLocaleString("en")}, ${ago(run.ages.checkpoint + since)}`]);
  if (state.backup !== null) rows.push(["best", state.backup.toLocaleString("en")]);
  if (state.snapshots) rows.push(["snapshots", String(state.snapshots)]);
  if (about.batch_size) rows.push(["batch", `${about.batch_size} a side${about.precision ? `, ${about.precision}` : ""}${about.processes > 1 ? `, ${about.processes} processes` : ""}`]);
  if (state.damaged) rows.push(["unreadable lines", String(state.damaged)]);
  if (state.sampled) rows.push(["log", "very long: curves of samples"]);
  $("mask").hidden = !runs.some((one) => one.state.has_plain);
  const words = element.querySelector(".verdict");
  words.textContent = [state.verdict.text, state.verdict.warning].filter(Boolean).join("; ");
  words.classList.toggle("warning", state.verdict.warning !== "");
  const list = element.querySelector("dl");
  const shown = JSON.stringify(rows);
  if (run.rows === shown) return;
  run.rows = shown;
  list.replaceChildren(...rows.map(([name, value]) => {
    const pair = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    pair.append(term, text);
    return pair;
  }));
}

const gibibytes = (mib) => `${number(mib / 1024, 3)} GiB`;
const sidesOf = (run) => Object.keys(run.state.latest).map((key) => /^loss_([a-z])$/.exec(key)?.[1]).filter(Boolean).sort();

function showTail(run) {
  const pre = run.element.querySelector("pre");
  const isAtEnd = pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 4;
  pre.textContent = run.tail.join("\n");
  if (isAtEnd) pre.scrollTop = pre.scrollHeight;
}

function select(index) {
  selected = index;
  runs.forEach((run, place) => run.element.classList.toggle("selected", runs.length > 1 && place === index));
}

async function ask(index, what) {
  const run = runs[index];
  if (!mayAsk || !run || run.state.status !== "training") return;
  if (what === "stop" && !await confirmStop(run)) return;
  run.answer.textContent = `${what} ...`;
  try {
    const answer = await fetch("do", {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({run: index, do: what}),
    });
    const isTold = answer.headers.get("Content-Type")?.startsWith("application/json");
    const problem = isTold ? (await answer.json()).problem : (await answer.text()).trim();
    run.answer.textContent = problem ?? {save: "will save after this iteration", snapshot: "will save and keep it", stop: "will save and stop"}[what];
  } catch {
    run.answer.textContent = "no answer from the page's process";
  }
  setTimeout(() => { run.answer.textContent = ""; }, 8000);
}

function confirmStop(run) {
  const dialog = $("stop");
  $("stop-name").textContent = run.name;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "stop"), {once: true}));
}

// --- pictures --------------------------------------------------------------------------------------------------

// Where the cells of a sheet are: cells of one size below a header, all columns once, or twice side by side.
function cellsOf(image, sides) {
  const columns = sides * (sides + 1);
  for (const halves of [1, 2]) {
    const size = image.naturalWidth / (columns * halves); // no whole number where the picture was made smaller
    const header = size < Math.round(size) + .01 && size > Math.round(size) - .01 ? Math.floor(size / 4.5) : size / 4.5;
    const rows = Math.round((image.naturalHeight - header) / size);
    if (rows < 1 || Math.abs(header + rows * size - image.naturalHeight) > .04 * size) continue;
    return {size, header, rows, halves, columns};
  }
  return null;
}

function draw(run) {
  const {image, canvas} = run;
  run.canvas.hidden = !image;
  if (!image) return;
  const cells = isSheet() ? null : cellsOf(image, sidesOf(run).length || 2);
  const context = canvas.getContext("2d");
  if (!cells) {
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    context.drawImage(image, 0, 0);
  } else {
    const {size, header, rows, halves, columns} = cells;
    const [from, to] = view.split(">").map(Number), sides = sidesOf(run).length || 2;
    const first = from * (sides + 1);
    const others = [from, ...Array.from({length: sides}, (_, side) => side).filter((side) => side !== from)];
    const column = shows === "swap" ? first + 1 + others.indexOf(to) : first;
    const count = rows * halves, across = Math.ceil(Math.sqrt(2 * count));
    canvas.width = across * size;
    canvas.height = Math.ceil(count / across) * size;
    for (let place = 0; place < count; place++) {
      const half = Math.floor(place / rows), row = place % rows;
      context.drawImage(image, (half * columns + column) * size, header + row * size, size, size,
                        (place % across) * size, Math.floor(place / across) * size, size, size);
    }
  }
  fit(run);
}

function fit(run) {
  const {canvas, viewport} = run;
  canvas.style.width = zoom ? `${canvas.width * zoom / devicePixelRatio}px` : "100%";
  const shown = zoom || viewport.clientWidth * devicePixelRatio / canvas.width;
  viewport.classList.toggle("pixels", shown > 1);
  viewport.classList.toggle("zoomed", zoom > 0);
}

// The newest picture that is not newer than what the slider shows: all runs at the same iteration.
function pictureStep(run) {
  if (chosen === null) return null;
  let found;
  for (const step of run.pictures) if (step <= chosen) found = step;
  return found;
}

function showPicture(run) {
  const step = pictureStep(run);
  const index = runs.indexOf(run);
  const isMissing = step === undefined || (step === null && !run.state.preview);
  const mask = showsMask ? "" : "&mask=0";
  const address = isMissing ? "" : step === null ? `picture?run=${index}&of=${run.state.preview}${mask}` : `picture?run=${index}&step=${step}${mask}`;
  if (run.address === address) return;
  run.address = address;
  const caption = run.element.querySelector(".caption");
  run.nothing.hidden = !isMissing;
  run.nothing.textContent = step === undefined ? "no picture was kept up to this iteration" : "no preview yet: it is drawn at every save";
  if (isMissing) {
    run.image = null;
    caption.textContent = "";
    draw(run);
    return;
  }
  const image = new Image();
  image.onload = () => {
    if (run.address !== address) return;
    run.image = image;
    caption.textContent = step === null ? "preview of the last save" : `iteration ${step.toLocaleString("en")}`;
    run.canvas.setAttribute("aria-label", `faces and what the model makes of them, ${caption.textContent}`);
    showViews();
    draw(run);
  };
  image.onerror = () => { if (run.address === address) run.address = null; }; // it was being replaced: the next news tries again
  image.src = address;
}

function showPictures() { runs.forEach(showPicture); }

function redraw() { runs.forEach(draw); }

function showViews() {
  const count = Math.max(2, ...runs.map((run) => sidesOf(run).length));
  const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", list = [["sheet", "whole sheet"]];
  if (runs.some((run) => run.image && cellsOf(run.image, sidesOf(run).length || 2))) {
    for (let from = 0; from < count; from++)
      for (let to = 0; to < count; to++) list.push([`${from}>${to}`, from === to ? `${letters[from]} again` : `${letters[from]} to ${letters[to]}`]);
  }
  const select = $("view");
  if (view === null && list.length > 1) view = innerWidth < 640 ? "0>1" : "sheet"; // a sheet is too small for a phone
  if (select.options.length !== list.length) select.replaceChildren(...list.map(([value, text]) => new Option(text, value)));
  if (view !== null && !list.some(([value]) => value === view)) view = "sheet";
  select.value = view ?? "sheet";
  $("flip").disabled = isSheet();
}

const isSheet = () => view === null || view === "sheet";
function setView(value) { view = value; shows = "swap"; showFlip(); showViews(); redraw(); }
function nextView(direction) {
  const options = [...$("view").options].map((option) => option.value);
  setView(options[(options.indexOf(view ?? "sheet") + direction + options.length) % options.length]);
}
function flip() {
  if (isSheet()) { const swap = [...$("view").options].find((option) => option.value === "0>1"); if (swap) setView("0>1"); return; }
  shows = shows === "swap" ? "original" : "swap";
  showFlip();
  redraw();
}
function showFlip() { $("flip").textContent = shows; $("flip").setAttribute("aria-pressed", String(shows === "swap")); }
function setZoom(value) {
  zoom = value;
  $("zoom").textContent = zoom ? `${zoom} x` : "fit";
  runs.forEach(fit);
}
const larger = () => setZoom(zoom === 0 ? 1 : Math.min(16, zoom * 2));
const smaller = () => setZoom(zoom <= 1 ? 0 : zoom / 2);

// Dragging moves a picture that is larger than its frame, and those of the other runs with it.
function pan(viewport) {
  let from = null;
  viewport.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse" && zoom) from = [event.clientX + viewport.scrollLeft, event.clientY + viewport.scrollTop];
  });
  viewport.addEventListener("pointermove", (event) => {
    if (from && event.buttons) viewport.scrollTo(from[0] - event.clientX, from[1] - event.clientY);
    else from = null;
  });
  viewport.addEventListener("scroll", () => {
    for (const {viewport: other} of runs)
      if (other !== viewport) other.scrollTo(viewport.scrollLeft, viewport.scrollTop);
  });
}

// --- history ---------------------------------------------------------------------------------------------------

const allSteps = () => [...new Set(runs.flatMap((run) => run.pictures))].sort((a, b) => a - b);

function showHistory() {
  const steps = allSteps(), slider = $("history");
  slider.max = steps.length;
  slider.disabled = $("play").disabled = !steps.length;
  let place = steps.length;
  if (chosen !== null) { place = steps.findLastIndex((step) => step <= chosen); if (place < 0) chosen = null, place = steps.length; }
  slider.value = place;
  $("chosen").textContent = chosen === null ? "now" : chosen.toLocaleString("en");
  slider.setAttribute("aria-valuetext", $("chosen").textContent);
  $("live").hidden = chosen === null;
}

function choose(place) {
  const steps = allSteps();
  chosen = place >= steps.length ? null : steps[Math.max(0, place)];
  showHistory();
  showPictures();
  drawCharts();
}

const move = (by) => choose(Number($("history").value) + by);
const goLive = () => choose(Infinity);

let playing = null;
function play(wanted = !playing) {
  clearInterval(playing);
  playing = null;
  if (wanted && allSteps().length) {
    if (chosen === null) choose(0);
    playing = setInterval(() => { move(1); if (chosen === null) play(false); }, 250);
  }
  $("play").setAttribute("aria-pressed", String(!!playing));
}

// --- curves ----------------------------------------------------------------------------------------------------

const LEFT_OUT = /^(loss|validation_total|iterations_per_s|.*_gain_before(_[a-z])?)$/; // said elsewhere, or in another unit
const ORDER = ["loss", "swap_quality", "swap_leak", "psnr", "gain"];
const LAST = ["faces_per_s", "data_wait", "memory", "learning_rate", "gradient_norm"];

// Which chart a column belongs to, and how it is drawn there.
function place(key, sides) {
  const match = /^(validation_)?(.+)_([a-z])$/.exec(key);
  if (match && sides.includes(match[3])) return {chart: match[2], side: sides.indexOf(match[3]), isHeldOut: !!match[1], label: `${match[3].toUpperCase()}${match[1] ? " held out" : ""}`};
  const memory = /^memory_(.+)_mib$/.exec(key);
  if (memory) return {chart: "memory", side: ["gpu", "gpu_peak", "host"].indexOf(memory[1]), isHeldOut: false, label: memory[1].replace("_", " ")};
  if (key === "swap_gain") return {chart: "gain", side: 2, isHeldOut: true, label: "swap"};
  return {chart: key, side: 0, isHeldOut: /^swap_/.test(key), label: ""};
}

function title(chart) {
  const titles = {loss: "loss", swap_quality: "swap of held-out faces, dB", swap_leak: "share of A's skin that the swap keeps", psnr: "held-out faces, dB", gain: "dB gained in 1,000 iterations", faces_per_s: "faces/s", data_wait: "share of the time waiting for data", memory: "memory, MiB", learning_rate: "learning rate", gradient_norm: "gradient norm"};
  return titles[chart] || chart.replaceAll("_", " ");
}

function collect() {
  const charts = new Map();
  runs.forEach((run, index) => {
    const sides = sidesOf(run);
    for (const [key, points] of Object.entries(run.points)) {
      if (LEFT_OUT.test(key) || !points.length) continue;
      const where = place(key, sides);
      if (!charts.has(where.chart)) charts.set(where.chart, []);
      charts.get(where.chart).push({...where, run, index, points, width: run.width});
    }
  });
  const rank = (chart) => ORDER.includes(chart) ? ORDER.indexOf(chart) : LAST.includes(chart) ? 200 + LAST.indexOf(chart) : 100;
  return [...charts].sort(([a], [b]) => rank(a) - rank(b) || a.localeCompare(b));
}

const color = (style, number) => style.getPropertyValue(`--c${number % 8}`).trim();
const colorNumber = (line) => runs.length > 1 ? line.index : Math.max(0, line.side);

let isDrawing = false;
function drawCharts() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => { isDrawing = false; drawAll(); });
}

const figures = new Map();
function drawAll() {
  const charts = collect(), style = getComputedStyle(document.documentElement);
  const names = charts.map(([name]) => name);
  for (const [name, figure] of figures) if (!names.includes(name)) { figure.element.remove(); figures.delete(name); }
  charts.forEach(([name, lines], place) => {
    if (!figures.has(name)) figures.set(name, makeFigure(name));
    const figure = figures.get(name);
    figure.lines = lines;
    if ($("charts").children[place] !== figure.element) $("charts").insertBefore(figure.element, $("charts").children[place] || null);
    drawFigure(figure, style);
  });
  showLegend(style);
}

function makeFigure(name) {
  const element = document.createElement("figure"), caption = document.createElement("figcaption");
  const heading = document.createElement("span"), values = document.createElement("span"), canvas = document.createElement("canvas");
  heading.textContent = title(name);
  caption.append(heading, values);
  element.append(caption, canvas);
  const figure = {element, canvas, values, lines: [], at: null};
  const look = (x) => { figure.at = x; drawFigure(figure, getComputedStyle(document.documentElement)); };
  canvas.addEventListener("pointermove", (event) => look(event.offsetX / canvas.clientWidth));
  canvas.addEventListener("pointerleave", () => look(null));
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${title(name)} by iteration`);
  return figure;
}

// The mean of a bucket is drawn in its middle; smoothing is a running mean without the pull of its first value.
function smoothed(line, first) {
  const weight = line.isHeldOut ? 0 : Number($("smoothing").value), list = [];
  let sum = 0, total = 0;
  for (const [bucket, mean, low = mean, high = mean] of line.points) {
    sum = weight * sum + (1 - weight) * mean;
    total = weight * total + (1 - weight);
    const step = line.width === 1 ? bucket : (bucket + .5) * line.width;
    if (step >= first) list.push({step, value: sum / total, low, high});
  }
  return list;
}

function drawFigure(figure, style) {
  const {canvas} = figure, ratio = devicePixelRatio, width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width) return;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const last = Math.max(1, ...figure.lines.map((line) => (line.points[line.points.length - 1][0] + (line.width > 1)) * line.width));
  const first = $("recent").checked ? Math.floor(.8 * last) : 0;
  const isLogarithmic = $("logarithmic").checked;
  const lines = figure.lines.map((line) => ({...line, list: smoothed(line, first)})).filter((line) => line.list.length);
  const values = lines.flatMap((line) => line.list.map((point) => point.value)).filter((value) => !isLogarithmic || value > 0);
  if (!values.length) return;
  const transform = isLogarithmic ? (value) => Math.log10(Math.max(value, 1e-30)) : (value) => value;
  let low = Math.min(...values.map(transform)), high = Math.max(...values.map(transform));
  const margin = (high - low) * .06 || Math.abs(high) * .05 || .5;
  low -= margin; high += margin;
  if (!isLogarithmic && Math.min(...values) >= 0) low = Math.max(low, 0);
  const box = {left: 56, right: width - 8, top: 6, bottom: height - 18};
  const x = (step) => box.left + (step - first) / Math.max(1, last - first) * (box.right - box.left);
  const y = (value) => box.bottom - (transform(value) - low) / (high - low) * (box.bottom - box.top);
  drawAxes(context, style, box, {low, high, first, last, isLogarithmic}, x);
  context.save();
  context.beginPath();
  context.rect(box.left, box.top - 2, box.right - box.left, box.bottom - box.top + 4);
  context.clip();
  for (const line of lines) drawLine(context, style, line, x, y);
  drawCursor(context, style, box, x);
  context.restore();
  showValues(figure, lines, box, width, first, last);
}

function drawAxes(context, style, box, range, x) {
  context.strokeStyle = style.getPropertyValue("--line");
  context.fillStyle = style.getPropertyValue("--faint");
  context.font = "11px system-ui";
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (let place = 0; place <= 3; place++) {
    const share = place / 3, level = range.low + (range.high - range.low) * share;
    const height = box.bottom - share * (box.bottom - box.top);
    context.beginPath();
    context.moveTo(box.left, height);
    context.lineTo(box.right, height);
    context.stroke();
    context.fillText(number(range.isLogarithmic ? 10 ** level : level, 3), box.left - 4, height);
  }
  context.textBaseline = "alphabetic";
  for (let place = 0; place <= 2; place++) {
    const step = Math.round(range.first + (range.last - range.first) * place / 2);
    context.textAlign = ["left", "center", "right"][place];
    context.fillText(step.toLocaleString("en"), x(step), box.bottom + 14);
  }
}

function drawLine(context, style, line, x, y) {
  context.strokeStyle = context.fillStyle = color(style, colorNumber(line));
  if (runs.length === 1 && !line.isHeldOut && line.list.some((point) => point.high > point.low)) {
    context.globalAlpha = .14;
    context.beginPath();
    line.list.forEach((point) => context.lineTo(x(point.step), y(point.high)));
    line.list.slice().reverse().forEach((point) => context.lineTo(x(point.step), y(point.low)));
    context.fill();
    context.globalAlpha = 1;
  }
  context.lineWidth = line.isHeldOut ? 1 : 1.6;
  context.setLineDash(runs.length > 1 && line.side ? [5, 3] : []);
  context.beginPath();
  line.list.forEach((point) => context.lineTo(x(point.step), y(point.value)));
  context.stroke();
  context.setLineDash([]);
  if (line.isHeldOut || line.list.length === 1) {
    for (const point of line.list.length > 80 ? line.list.slice(-1) : line.list) {
      context.beginPath();
      context.arc(x(point.step), y(point.value), 2.2, 0, 7);
      context.fill();
    }
  }
}

// Where the slider stands.
function drawCursor(context, style, box, x) {
  if (chosen === null) return;
  context.strokeStyle = style.getPropertyValue("--accent");
  context.beginPath();
  context.moveTo(x(chosen), box.top);
  context.lineTo(x(chosen), box.bottom);
  context.stroke();
}

// The values under the pointer, else at the slider, else the last ones: of all runs at the same iteration.
function showValues(figure, lines, box, width, first, last) {
  let step = chosen ?? Infinity;
  if (figure.at !== null) step = first + (figure.at * width - box.left) / (box.right - box.left) * (last - first);
  const parts = lines.map((line) => {
    const point = line.list.findLast((one) => one.step <= step) || line.list[0];
    const name = [runs.length > 1 ? line.run.name : "", line.label].filter(Boolean).join(" ");
    return `${name} ${number(point.value)}`.trim();
  });
  const at = Number.isFinite(step) ? `at ${Math.max(0, Math.round(step)).toLocaleString("en")}: ` : "";
  figure.values.textContent = at + parts.slice(0, 8).join(" · ");
}

function showLegend(style) {
  const sides = [...new Set(runs.flatMap(sidesOf))].sort(), items = [];
  const item = (text, number, kind) => {
    const element = document.createElement("span"), line = document.createElement("i");
    line.style.borderColor = number === null ? style.getPropertyValue("--faint") : color(style, number);
    line.style.borderTopStyle = kind;
    element.append(line, text);
    items.push(element);
  };
  if (runs.length > 1) {
    runs.forEach((run, index) => item(run.name, index, "solid"));
    if (sides.length > 1) item(`side ${sides.slice(1).join(", ").toUpperCase()}`, null, "dashed");
  } else sides.forEach((side, index) => item(`side ${side.toUpperCase()}`, index, "solid"));
  if (runs.some((run) => Object.keys(run.points).some((key) => key.startsWith("validation_")))) item("held out", null, "dotted");
  $("legend").replaceChildren(...items);
}

// --- light and dark, keys --------------------------------------------------------------------------------------

function remembered(key, value) {
  try {
    if (value === undefined) return localStorage.getItem(key);
    localStorage.setItem(key, value);
  } catch { /* a browser that keeps nothing */ }
  return value;
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
function showTheme() {
  const theme = remembered("theme") || (prefersDark.matches ? "dark" : "light");
  document.documentElement.classList.toggle("dark", theme === "dark");
  drawCharts();
}
function changeTheme() {
  remembered("theme", document.documentElement.classList.contains("dark") ? "light" : "dark");
  showTheme();
}

function toggleMask() {
  if ($("mask").hidden) return;
  showsMask = !showsMask;
  $("mask").setAttribute("aria-pressed", String(showsMask));
  showPictures();
}

const KEYS = {
  " ": flip, v: () => nextView(1), V: () => nextView(-1), m: toggleMask, "+": larger, "=": larger, "-": smaller, 0: () => setZoom(0),
  ArrowLeft: () => move(-1), ArrowRight: () => move(1), p: () => play(), l: goLive, End: goLive, Home: () => choose(0),
  s: () => ask(selected, "save"), n: () => ask(selected, "snapshot"), x: () => ask(selected, "stop"), t: changeTheme,
  "?": () => $("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const target = event.target, isTyped = target.matches("input, select");
  if (isTyped && !(target.type === "checkbox" && event.key !== " ")) { if (!/^[a-z?]$/i.test(event.key) || target.matches("select")) return; }
  if (event.key === " " && target.matches("button, summary")) return; // it presses that
  if (target.matches(".viewport, pre") && event.key.startsWith("Arrow") && zoom) return; // it moves that
  const number = Number(event.key);
  const action = number >= 1 && number <= runs.length ? () => { select(number - 1); runs[number - 1].element.scrollIntoView({block: "nearest"}); } : Object.hasOwn(KEYS, event.key) ? KEYS[event.key] : null;
  if (!action) return;
  event.preventDefault();
  action();
});

const actions = {theme: changeTheme, help: KEYS["?"], flip, mask: toggleMask, smaller, larger, play: () => play(), live: goLive};
for (const [id, action] of Object.entries(actions)) $(id).onclick = action;
$("view").onchange = (event) => setView(event.target.value);
$("history").oninput = (event) => choose(Number(event.target.value));
for (const id of ["smoothing", "logarithmic", "recent"]) $(id).oninput = drawCharts;
prefersDark.addEventListener("change", showTheme);
addEventListener("resize", () => { drawCharts(); runs.forEach(fit); });
document.addEventListener("visibilitychange", () => { // a page that nobody sees costs nothing
  if (!document.hidden) connect();
  else if (stream) { stream.close(); stream = null; }
});
setInterval(() => { if (!document.hidden) runs.forEach((run) => run.ages && showFigures(run)); }, 5000);

$("rights").hidden = mayAsk;
if (location.search) history.replaceState(null, "", location.pathname); // the token is in a cookie from here on
showViews();
showFlip();
showTheme();
connect();
