// What is seen and done: the explorer as an anywidget front end, and `mount` for a page without Python.
//
// One state goes one way round: a control calls `change`, which sets the state and asks for a frame; a frame computes
// what the state shows (network.js) and paints it. So a burst of moves paints its last one, and nothing waits in a queue.

import { LIMITS, mnistLike, Network, readSafetensors, Spreads } from "./network.js";

const STEPS = 40; // of a slider to each side
const SWEEP = 11; // pictures of a dimension, as in the paper's figure 4
const PAST = 8; // pictures that are kept in sight
const PATIENCE = 20000; // milliseconds until Python counts as gone
const EASE = 260; // milliseconds from one digit to the next
const PATHS = 12; // input capsules that are joined to the class they speak for
const CLOUD = 100; // real digits in the plane
const CLASS_STATE = ["strokes", "index", "partner", "shown_class", "morph", "knobs"]; // what a new class puts back

// ---- Small helpers -------------------------------------------------------------------------------------------------

/** An element. Texts become text, never markup; names that begin with "on" are listeners. */
function element(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "polyline", "circle", "line", "rect", "title"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  // Else JupyterLab takes keys for its own commands. It looks at the part that has the focus before those around it.
  if (["button", "input", "select", "summary", "canvas"].includes(tag)) made.setAttribute("data-lm-suppress-shortcuts", "true");
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** An input whose text counts when it is left, or at Enter; JupyterLab keeps Enter from being a change. */
const field = (attributes, commit) => element("input", { ...attributes, onchange: commit, onkeydown: (event) => event.key === "Enter" && commit() });

const signed = (x, digits = 1) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const range = (count) => Array.from({ length: count }, (_, n) => n);
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const frame = () => new Promise(requestAnimationFrame);
const pick = (count) => Math.floor(Math.random() * count);
const bytesOf = (data) => (data instanceof Uint8Array ? data : new Uint8Array(data.buffer ?? data, data.byteOffset ?? 0, data.byteLength));

/** What the browser keeps between visits; a browser that refuses leaves everything else as it is. */
const memory = {
  read(name, otherwise) {
    try {
      return JSON.parse(localStorage.getItem(`capsule-explorer ${name}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  write(name, value) {
    try {
      localStorage.setItem(`capsule-explorer ${name}`, JSON.stringify(value));
      return true;
    } catch {
      return false;
    }
  },
};

// ---- The link: a state as the part of an address after # -----------------------------------------------------------

const compact = (x) => String(Math.round(1000 * x) / 1000);

/** As short as can be: what is as at the beginning is left out. */
export function toLink(state, fresh) {
  const parts = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (name !== "label" && same(value, fresh[name])) continue;
    if (name === "knobs") parts.set(name, value.map((knob, d) => (knob ? `${d}:${compact(knob)}` : "")).filter(Boolean).join(" "));
    else if (name === "strokes") parts.set(name, value.map((stroke) => stroke.map((p) => p.map(compact).join()).join(" ")).join(";"));
    else parts.set(name, value);
  }
  return `#${parts}`;
}

/** The state in a link. Throws an Error where it isn't one. */
export function fromLink(hash, fresh) {
  const state = { ...fresh };
  const number = (text, name) => {
    if (text.trim() === "" || !Number.isFinite(Number(text))) throw new Error(`The link's ${name} should be a number; got “${text}”.`);
    return Number(text);
  };
  for (const [name, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (!(name in fresh)) throw new Error(`The link names “${name}”, which is nothing here.`);
    if (name === "source" || name === "units") state[name] = text;
    else if (name === "knobs") {
      state.knobs = [...fresh.knobs];
      for (const part of text.split(" ").filter(Boolean)) {
        const [d, knob] = part.split(":");
        state.knobs[number(d, "dimension")] = number(knob ?? "", "slider");
      }
    } else if (name === "strokes")
      state.strokes = text.split(";").filter(Boolean).map((stroke) => stroke.split(" ").map((p) => p.split(",").map((x) => number(x, "drawing"))));
    else state[name] = number(text, name);
  }
  return state;
}

// ---- Pictures ------------------------------------------------------------------------------------------------------

/** Paint an image [C, H, W], grey as ink on paper, with three channels in its colours. */
function paint(canvas, image, [channels, height, width], ink) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const pixels = new ImageData(width, height);
  const size = width * height;
  for (let n = 0; n < size; n++) {
    if (channels === 3) for (let c = 0; c < 3; c++) pixels.data[4 * n + c] = 255 * image[c * size + n];
    else {
      pixels.data.set(ink, 4 * n);
      let mean = 0;
      for (let c = 0; c < channels; c++) mean += image[c * size + n] / channels;
      pixels.data[4 * n + 3] = 255 * mean;
    }
    if (channels === 3) pixels.data[4 * n + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

// More and less: vermilion and blue, which colour-blind readers tell apart (Okabe and Ito), lighter on a dark page.
const tones = (ink) => (ink[0] > 128 ? [[255, 146, 72], [86, 180, 233]] : [[213, 94, 0], [0, 114, 178]]);

/** Paint where `image` has more ink than `base`, and where less. */
function paintDifference(canvas, image, base, [channels, height, width], [more, less]) {
  const pixels = new ImageData(width, height);
  const size = width * height;
  for (let n = 0; n < size; n++) {
    let difference = 0;
    for (let c = 0; c < channels; c++) difference += (image[c * size + n] - base[c * size + n]) / channels;
    pixels.data.set(difference > 0 ? more : less, 4 * n);
    pixels.data[4 * n + 3] = 255 * Math.min(1, Math.abs(difference));
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

/** The outline of an image's ink, where it is half dark, as the d of an SVG path in pixels (marching squares). */
function outline(image, [channels, height, width]) {
  const at = (x, y) => range(channels).reduce((sum, c) => sum + image[(c * height + y) * width + x], 0) / channels;
  let path = "";
  for (let y = 0; y + 1 < height; y++)
    for (let x = 0; x + 1 < width; x++) {
      const corners = [[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]];
      const crossings = [];
      for (let n = 0; n < 4; n++) {
        const [a, b] = [corners[n], corners[(n + 1) % 4]];
        const [from, to] = [at(...a), at(...b)];
        if (from > 0.5 === to > 0.5) continue;
        const share = (0.5 - from) / (to - from);
        crossings.push([0, 1].map((axis) => (a[axis] + share * (b[axis] - a[axis]) + 0.5).toFixed(2)).join(" "));
      }
      for (let n = 0; n < crossings.length; n += 2) path += `M${crossings[n]}L${crossings[n + 1]}`;
    }
  return path;
}

// ---- The explorer --------------------------------------------------------------------------------------------------

class Explorer {
  constructor(model, el) {
    this.model = model;
    this.el = el;
    this.config = model.get("_config");
    this.network = new Network(readSafetensors(bytesOf(model.get("_weights"))), this.config);
    this.spreads = new Spreads(readSafetensors(bytesOf(model.get("_spreads"))));
    const { J, D, shape } = this.network;
    Object.assign(this, { J, D, shape, readings: new Map(), clouds: new Map(), past: [], future: [], listeners: [], patience: PATIENCE });
    if (this.spreads.shape.join() !== [J, D].join())
      throw new Error(`This network's spreads are ${J} x ${D}, these are ${this.spreads.shape.join(" x ")}: measure them on it.`);
    this.takeDigits();
    this.names = { ...model.get("_names"), ...(this.kernel ? {} : memory.read("names", {})) };
    this.fresh = {
      source: model.get("source") ?? "", label: this.classes[0], strokes: [], index: 0, partner: 0, shown_class: null,
      units: "standard deviations", morph: 0, knobs: Array(D).fill(0), iterations: this.config.iterations,
    };
    this.state = { ...this.fresh };
    for (const name of Object.keys(this.fresh)) this.state[name] = model.get(name) ?? this.state[name];
    this.build();
    if (model.get("_link")) this.openLink();
    for (const name of [...Object.keys(this.fresh), "_digits", "_names", "_notice"]) this.listen(model, `change:${name}`, () => this.fromPython());
    this.go("start");
  }

  get kernel() {
    return typeof this.model.send === "function";
  }

  /** Listen to a model or an element until the explorer leaves the page. */
  listen(target, name, action, options) {
    const [on, off] = target.addEventListener ? ["addEventListener", "removeEventListener"] : ["on", "off"];
    target[on](name, action, options);
    this.listeners.push(() => target[off](name, action, options));
  }

  leave() {
    for (const stop of this.listeners) stop();
    this.gone = true;
    this.el.replaceChildren();
  }

  takeDigits() {
    this.digits = this.model.get("_digits");
    const { images, labels } = readSafetensors(bytesOf(this.digits));
    if (!images || !labels) throw new Error("The digits should be images and labels.");
    const size = this.shape.reduce((product, n) => product * n, 1);
    if (images.data.length !== labels.data.length * size)
      throw new Error(`The digits should be ${this.shape.join(" x ")} pixels each; these are ${images.shape.slice(1).join(" x ")}.`);
    this.asked = new Map(); // digits that only Python had, by "label index"
    this.members = range(this.J).map(() => []);
    labels.data.forEach((label, n) => this.members[label]?.push(n));
    this.classes = range(this.J).filter((j) => this.members[j].length);
    if (!this.classes.length) throw new Error("There is no digit of the network's classes here.");
    const scale = images.data instanceof Uint8Array ? 255 : 1; // bytes, or numbers in 0..1
    const image = (n) => Float32Array.from(images.data.subarray(n * size, (n + 1) * size), (x) => x / scale);
    this.image = (label, index) => this.asked.get(`${label} ${index}`) ?? image(this.members[label][index]);
    const counts = this.model.get("_counts");
    this.count = (label) => (this.kernel && counts?.[label]) || (this.members[label]?.length ?? 0);
    this.readings.clear();
    this.clouds.clear();
  }

  // -- The state

  get shown() {
    return this.state.shown_class ?? this.state.label;
  }

  get kind() {
    return this.state.units === "principal axes" ? "axis" : "dimension";
  }

  /** Where a state is wrong, in a sentence; null where it is right. */
  fault(state) {
    const limit = LIMITS[state.units];
    const count = this.count(state.label);
    const within = (n, end) => Number.isInteger(n) && n >= 0 && n < end;
    if (!count) return `There is no digit of class ${state.label} here: choose one of ${this.classes.join(", ")}.`;
    for (const name of ["index", "partner"])
      if (!within(state[name], count)) return `Class ${state.label} has digits 0 to ${count - 1}; got ${name} ${state[name]}.`;
    if (state.shown_class !== null && !within(state.shown_class, this.J)) return `This network has classes 0 to ${this.J - 1}; got ${state.shown_class}.`;
    if (!limit) return `Sliders are in ${Object.keys(LIMITS).join(", ")}; got “${state.units}”.`;
    if (!(state.morph >= 0 && state.morph <= 1)) return `Morph goes from 0 to 1; got ${state.morph}.`;
    if (!within(state.iterations - 1, 9)) return `Routing takes 1 to 9 iterations; got ${state.iterations}.`;
    if (state.knobs.length !== this.D) return `A capsule of this network has ${this.D} dimensions; got ${state.knobs.length}.`;
    if (!state.knobs.every((knob) => Math.abs(knob) <= limit)) return `Sliders in ${state.units} go from −${limit} to ${limit}.`;
    try {
      if (state.strokes.length) this.drawn(state.strokes);
    } catch (error) {
      return error.message;
    }
    return null;
  }

  /** Change the state as one step that can be undone; steps of the same `hand`, such as one slider dragged, are one. */
  change(changes, hand = null) {
    const state = { ...this.state, ...changes };
    const wrong = this.fault(state);
    if (wrong) return this.say(wrong);
    if (same(state, this.state)) return;
    if (!hand || hand !== this.hand) this.remember();
    this.hand = hand;
    this.future = [];
    this.say("");
    if (state.knobs.some(Boolean) || state.shown_class !== null) this.seen();
    const jump = !hand;
    this.state = state;
    this.toPython();
    this.go(jump ? "jump" : "move");
  }

  remember() {
    this.past.push({ state: this.state, picture: this.view?.picture, label: this.view?.read });
    if (this.past.length > 200) this.past.shift();
  }

  /** Back to what was, or forth again. */
  step(from, to) {
    if (!from.length) return;
    to.push({ state: this.state, picture: this.view?.picture, label: this.view?.read });
    this.restore(from.pop().state);
  }

  restore(state) {
    this.hand = null;
    this.state = state;
    this.say("");
    this.toPython();
    this.go("jump");
  }

  choose(changes) {
    const back = Object.fromEntries(CLASS_STATE.map((name) => [name, this.fresh[name]]));
    this.change({ ...back, ...changes });
  }

  turn(d, knob, hand = `knob ${d}`) {
    const limit = LIMITS[this.state.units];
    this.change({ knobs: this.state.knobs.with(d, clamp(knob, -limit, limit)) }, hand);
    this.last = d;
  }

  any() {
    const label = this.classes[pick(this.classes.length)];
    this.choose({ label, index: pick(this.count(label)) });
  }

  // -- Python's side, where there is one

  toPython() {
    if (!this.kernel && !this.model.get("_link")) return;
    this.soon("tell", () => {
      const { iterations, ...state } = this.state; // iterations are the page's own
      this.tell(state);
      if (this.model.get("_link")) history.replaceState(null, "", toLink(this.state, this.fresh));
    }); // a dragged slider leaves the kernel alone
  }

  tell(values) {
    this.telling = true; // so that what is told is not taken for news
    for (const [name, value] of Object.entries(values)) this.model.set(name, value);
    this.telling = false;
    try {
      this.model.save_changes?.();
    } catch {
      // The kernel has been shut down. The page goes on; what only Python has says so when it is asked for.
    }
  }

  /** Take what Python has set: all of it at once, though it comes trait by trait. */
  fromPython() {
    if (this.telling) return;
    this.soon("hear", () => {
      if (this.digits !== this.model.get("_digits")) this.takeDigits();
      this.names = { ...this.model.get("_names") };
      this.say(this.model.get("_notice") ?? "");
      const state = { ...this.state };
      for (const name of Object.keys(this.fresh)) if (name !== "iterations") state[name] = this.model.get(name) ?? this.fresh[name];
      if (!this.fault(state) && !same(state, this.state)) {
        this.remember();
        this.state = state;
        this.hand = null;
      }
      this.go("jump");
    }, 20);
  }

  /** Ask Python for what only it has; a Promise of its answer. */
  ask(question) {
    if (!this.kernel) return Promise.reject(new Error("For this, Python has to run: open it in JupyterLab."));
    return new Promise((resolve, reject) => {
      const done = (act, value) => {
        this.model.off("msg:custom", hear);
        clearTimeout(patience);
        act(value);
      };
      const hear = (answer, buffers) => {
        if (Object.keys(question).some((name) => !same(answer[name], question[name]))) return; // to another question
        if (answer.fault) done(reject, new Error(answer.fault));
        else done(resolve, { ...answer, buffers });
      };
      const giveUp = () => done(reject, new Error("Python does not answer. Does its kernel run? The rest of the explorer goes on without it."));
      const patience = setTimeout(giveUp, this.patience);
      this.model.on("msg:custom", hear);
      try {
        this.model.send(question);
      } catch {
        giveUp(); // the kernel has been shut down
      }
    });
  }

  /** Fetch digits of this state that the page does not have yet. */
  async fetchDigits() {
    const { label, index, partner, strokes, morph } = this.state;
    for (const n of [...(strokes.length ? [] : [index]), ...(morph ? [partner] : [])]) {
      if (n < this.members[label].length || this.asked.has(`${label} ${n}`)) continue;
      const { buffers } = await this.ask({ digit: [label, n] });
      this.asked.set(`${label} ${n}`, new Float32Array(bytesOf(buffers[0]).slice().buffer));
    }
  }

  openLink() {
    const open = () => {
      if (location.hash.length < 2) return;
      try {
        const state = fromLink(location.hash, this.fresh);
        const wrong = this.fault(state);
        if (wrong) throw new Error(wrong);
        this.state = state;
        this.say("");
      } catch (error) {
        this.say(`This link can't be followed. ${error.message}`);
      }
    };
    open();
    this.listen(window, "hashchange", () => {
      this.remember();
      open();
      if (same(this.past.at(-1).state, this.state)) this.past.pop();
      else this.go("jump");
    });
  }

  // -- What a state shows

  drawn(strokes) {
    const [channels, height, width] = this.shape;
    if (channels !== 1 || height !== width) throw new Error(`A drawing is grey and square; this network takes ${this.shape.join(" x ")}.`);
    return mnistLike(strokes, height);
  }

  /** A digit and what the network sees in it, worked out once. */
  reading(label, index, strokes = []) {
    const key = JSON.stringify([label, index, strokes, this.state.iterations]);
    if (!this.readings.has(key)) {
      if (this.readings.size > 500) this.readings.clear();
      const image = strokes.length ? this.drawn(strokes) : this.image(label, index);
      const { capsules, lengths } = this.network.read(image, this.state.iterations);
      const own = capsules.slice(label * this.D, (label + 1) * this.D);
      this.readings.set(key, { image, capsules, lengths, redrawn: this.network.draw(own, label) });
    }
    return this.readings.get(key);
  }

  capsuleOf({ capsules }, label = this.shown) {
    return capsules.slice(label * this.D, (label + 1) * this.D);
  }

  /** The shown class's capsule before the sliders: the digit's, or on its way to another digit's. */
  base() {
    const { label, index, strokes, partner, morph } = this.state;
    const one = this.capsuleOf(this.reading(label, index, strokes));
    if (!morph) return one;
    const other = this.capsuleOf(this.reading(label, partner));
    return one.map((x, d) => x + morph * (other[d] - x));
  }

  turned(base, knobs) {
    const shift = this.spreads.shift(knobs, this.shown, this.state.units);
    return base.map((x, d) => x + shift[d]);
  }

  /** Ask for a frame: "move" shows the new state at once, "jump" eases into it. */
  go(how) {
    if (how !== "move") this.scene = null; // sliders and histograms have to follow
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const eased = how === "jump" && !still && this.view?.shown === this.shown && this.view.capsule;
    this.easing = eased ? { from: eased, start: performance.now() } : null;
    if (how === "move") this.easing = null;
    this.wanted = true;
    if (!this.running) this.run();
  }

  async run() {
    this.running = true;
    while (!this.el.isConnected && !this.gone) await frame(); // JupyterLab puts it on the page later
    while (this.wanted && !this.gone) {
      this.wanted = Boolean(this.easing);
      try {
        await this.show();
      } catch (error) {
        this.wanted = false;
        this.say(error.message);
      }
      await frame(); // the first move is shown at once, those of a burst once per frame
    }
    this.running = false;
  }

  async show() {
    await this.fetchDigits();
    const { state, network, shown } = this;
    const digit = this.reading(state.label, state.index, state.strokes);
    const base = this.base();
    let capsule = this.turned(base, state.knobs);
    if (this.easing) {
      const share = clamp((performance.now() - this.easing.start) / EASE, 0, 1);
      const eased = 1 - (1 - share) ** 3;
      capsule = capsule.map((x, d) => this.easing.from[d] + eased * (x - this.easing.from[d]));
      if (share === 1) this.easing = null;
    }
    const picture = network.draw(capsule, shown);
    this.ink ??= getComputedStyle(this.parts.changed).color.match(/[\d.]+/g).slice(0, 3).map(Number);
    const view = { digit, base, capsule, picture, shown, ...(this.view && { lengths: this.view.lengths, seen: this.view.seen, read: this.view.read }) };
    this.view = view;
    if (!this.scene) this.setScene();
    this.paintPictures();
    this.paintKnobs();
    if (this.slow) await frame(); // a large network: the picture first
    const start = performance.now();
    if (!(this.slow && this.wanted)) view.seen = network.read(picture, state.iterations);
    this.slow = performance.now() - start > 25;
    view.lengths = view.seen.lengths;
    view.read = view.lengths.indexOf(Math.max(...view.lengths));
    this.paintLengths();
    this.paintOverview();
    this.paintPanel();
    this.soon("settle", () => this.settle(), 60);
  }
}

// ---- The page's parts: each `build...` makes one, each `paint...` brings it up to date ------------------------------

Object.assign(Explorer.prototype, {
  build() {
    const p = (this.parts = {});
    const canvas = (label) => element("canvas", { role: "img", "aria-label": label });
    const [channels, height, width] = this.shape;
    this.drawable = channels === 1 && height === width;
    p.changed = canvas("");
    p.original = element("canvas", { "aria-hidden": "true" });
    p.ghosts = element("svg", { class: "ghosts", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    p.notice = element("p", { class: "notice", role: "alert" });
    p.status = element("p", { class: "status", role: "status" });
    p.read = element("p", { class: "read" });
    p.difference = element("button", {
      class: "quiet", "aria-pressed": "false", title: "where the changed picture has more ink, and where less",
      onclick: () => this.toggleDifference(),
    }, "difference");
    p.caption = element("span");
    const changed = element("figure", { class: "changed" },
      element("div", { class: "paper" }, p.changed, p.ghosts),
      element("figcaption", {}, this.hint(2, `It is drawn again, from ${this.D} numbers.`), p.caption, p.difference));
    p.lengths = element("ol", { class: "lengths", "aria-label": "class lengths" });
    const stage = element("div", { class: "stage" }, changed, p.lengths);
    const body = element("div", { class: "body" }, this.buildBar(), this.buildPad(), stage, p.notice, element("div", { class: "side" }, p.read, this.buildOverview()), this.buildPanels(), this.buildPast(), p.status);
    p.body = body;
    this.el.classList.add("capsule-explorer");
    this.el.replaceChildren(body);
    this.buildLengths();
    this.listen(this.el, "keydown", (event) => {
      if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || event.target.matches(".name")) return;
      event.preventDefault();
      if (event.shiftKey) this.step(this.future, this.past);
      else this.step(this.past, this.future);
    });
    // Colours that are painted, not styled, follow the theme.
    const again = () => {
      this.ink = null;
      this.go("still");
    };
    this.listen(matchMedia("(prefers-color-scheme: dark)"), "change", again);
    const themes = new MutationObserver(again);
    for (const part of [document.documentElement, document.body]) themes.observe(part, { attributes: true });
    const size = new ResizeObserver(() => this.view && this.paintPanel());
    size.observe(body);
    this.listeners.push(() => (themes.disconnect(), size.disconnect()));
    this.tab("knobs");
    this.enlarge(this.drawable && this.model.get("pad") ? "pad" : "changed");
  },

  /** One of three hints of a first visit; the first slider that is turned ends them. */
  hint(n, words) {
    if (memory.read("seen", false)) return null;
    return element("p", { class: "hint" }, element("b", {}, String(n)), words);
  },

  seen() {
    if (this.parts.body.dataset.large === "pad") this.enlarge("changed");
    memory.write("seen", true);
    for (const hint of this.el.querySelectorAll(".hint")) hint.remove();
  },

  /** Which of the two pictures is the large one: the "pad", to draw on, or the "changed" one. */
  enlarge(which) {
    this.parts.body.dataset.large = which;
    this.parts.enlarge.textContent = which === "pad" ? "smaller pad" : "larger pad";
  },

  say(words) {
    this.parts.notice.textContent = words;
  },

  buildBar() {
    const p = this.parts;
    const button = (words, title, action) => element("button", { title, "aria-label": title, onclick: action }, words);
    p.classes = range(this.J).map((j) =>
      element("button", { class: "class", "aria-label": `a digit of class ${j}`, disabled: !this.members[j].length, onclick: () => this.choose({ label: j, index: pick(this.count(j)) }) }, String(j)));
    const index = (step) => () => {
      const count = this.count(this.state.label);
      this.change({ strokes: [], index: (this.state.index + step + count) % count });
    };
    p.index = field({ class: "number", type: "number", min: 0, "aria-label": "number of the digit in its class" },
      () => this.change({ strokes: [], index: Number(p.index.value) }));
    p.undo = button("↶", "undo (Ctrl+Z)", () => this.step(this.past, this.future));
    p.redo = button("↷", "do again (Ctrl+Shift+Z)", () => this.step(this.future, this.past));
    return element("div", { class: "bar" },
      element("div", { class: "classes", role: "group", "aria-label": "class of the digit" }, ...p.classes),
      element("div", { class: "which" }, button("‹", "the digit before", index(-1)), p.index, button("›", "the next digit", index(1)),
        button("any", "a random digit of any class", () => this.any())),
      element("div", { class: "which" }, p.undo, p.redo, this.buildMenu()));
  },

  buildMenu() {
    const p = this.parts;
    const select = (label, options, action) => {
      const made = element("select", { onchange: () => action(made.value) }, ...options.map(([value, words]) => element("option", { value }, words)));
      return [element("label", {}, label, made), made];
    };
    const [units, unitsSelect] = select("sliders in", Object.keys(LIMITS).map((name) => [name, name]), (value) => this.change({ units: value, knobs: this.fresh.knobs }));
    const [shown, shownSelect] = select("drawn as", [["", "its own class"], ...range(this.J).map((j) => [j, `class ${j}`])],
      (value) => this.whatIf(value === "" ? null : Number(value)));
    const sources = this.model.get("_sources") ?? [];
    const [source, sourceSelect] = select("digits from", sources.map((name) => [name, name]), (value) => {
      this.tell({ source: value }); // Python answers with its digits, and a state that fits them
    });
    Object.assign(p, { units: unitsSelect, shown: shownSelect, source: sourceSelect });
    const action = (words, act) => element("button", { onclick: () => (act(), (menu.open = false)) }, words);
    const terms = element("dl", {}, ...[
      ["dimension", `one of the ${this.D} numbers of a class capsule. Nobody told the network what it should mean.`],
      ["standard deviation", "how far real digits of this class typically lie from their mean, along this dimension."],
      ["grey hills", "where the real digits lie. The line in the middle is your digit's own value."],
      ["no digit there", "no real digit has such a value: what is drawn there, the network has never seen."],
      ["length", "how sure the network is that this class is in the picture, from 0 to 1."],
    ].flatMap(([term, words]) => [element("dt", {}, term), element("dd", {}, words)]));
    const menu = element("details", { class: "menu" }, element("summary", { "aria-label": "more", title: "more" }, "⋯"),
      element("div", {}, units, shown, sources.length > 1 ? source : null,
        action("turn all sliders at random", () => this.change({ knobs: this.fresh.knobs.map(() => (LIMITS[this.state.units] * (pick(41) - 20)) / 40) })),
        action("save the picture", () => this.download()),
        this.model.get("_link") ? action("copy the link to this", () => this.copy(location.href.split("#")[0] + toLink(this.state, this.fresh), "The link")) : null,
        action("copy as Python", () => this.copy(this.asPython(), "The line of Python")),
        terms));
    this.listen(this.el, "pointerdown", (event) => {
      if (!menu.contains(event.target)) menu.open = false;
    });
    this.listen(this.el, "keydown", (event) => {
      if (event.key === "Escape" && menu.open) {
        menu.open = false;
        menu.firstChild.focus();
      }
    });
    return menu;
  },

  whatIf(shown_class) {
    this.change({ shown_class: shown_class === this.state.label ? null : shown_class, knobs: this.fresh.knobs });
  },

  // -- The pad: the digit, and paper to draw on

  buildPad() {
    const p = this.parts;
    p.ink = element("svg", { class: "ink", viewBox: "0 0 1 1", "aria-hidden": "true" });
    p.pad = element("div", { class: "paper pad", role: "img" }, p.original, p.ink);
    p.own = element("p", { class: "own" });
    p.undoStroke = element("button", { class: "quiet", onclick: () => this.draw(this.state.strokes.slice(0, -1)) }, "undo stroke");
    p.clear = element("button", { class: "quiet", onclick: () => this.draw([]) }, "clear");
    p.enlarge = element("button", { class: "quiet", onclick: () => this.enlarge(p.body.dataset.large === "pad" ? "changed" : "pad") });
    let stroke = null;
    const place = (event) => {
      const { left, top, width, height } = p.pad.getBoundingClientRect();
      return [(event.clientX - left) / width, (event.clientY - top) / height].map((x) => Math.round(1000 * x) / 1000);
    };
    const show = () => this.paintInk([...this.state.strokes, ...(stroke ? [stroke] : [])]);
    if (this.drawable) {
      p.pad.addEventListener("pointerdown", (event) => {
        if (!event.isPrimary || event.button !== 0) return; // a second finger, or the right button
        event.preventDefault();
        p.pad.setPointerCapture(event.pointerId); // the stroke goes on outside the pad, and ends when the pen is lifted
        p.body.querySelector(".given .hint")?.remove();
        p.pad.classList.add("drawing");
        stroke = [place(event)];
        show();
      });
      p.pad.addEventListener("pointermove", (event) => {
        if (!stroke || !event.isPrimary) return;
        stroke.push(...(event.getCoalescedEvents?.() ?? [event]).map(place));
        show();
      });
      p.pad.addEventListener("lostpointercapture", () => {
        p.pad.classList.remove("drawing");
        const drawn = stroke;
        stroke = null;
        if (drawn) this.draw([...this.state.strokes, drawn]);
      });
    }
    return element("figure", { class: "given" }, p.pad,
      element("figcaption", {}, this.drawable ? this.hint(1, "Draw a digit here.") : null, p.own, this.drawable ? element("span", { class: "buttons" }, p.undoStroke, p.clear, p.enlarge) : null));
  },

  /** Make the strokes the digit, of the class that the network reads; without strokes, the digit before them comes back. */
  draw(strokes) {
    if (!strokes.length) return this.change({ strokes: [], knobs: this.fresh.knobs });
    try {
      const { lengths } = this.network.read(this.drawn(strokes), this.state.iterations);
      const order = range(this.J).filter((j) => this.members[j].length).sort((a, b) => lengths[b] - lengths[a]);
      this.choose({ strokes, label: order[0] });
    } catch (error) {
      this.say(`${error.message[0].toUpperCase()}${error.message.slice(1)}.`);
      this.paintInk(this.state.strokes);
    }
  },

  paintInk(strokes) {
    // The first point comes twice: a line without length is drawn as a dot, a line of one point not at all.
    const line = (stroke) => element("polyline", { points: [stroke[0], ...stroke].map((point) => point.join()).join(" ") });
    this.parts.ink.replaceChildren(...strokes.map(line));
  },

  // -- Pictures and lengths

  paintPictures() {
    const { parts: p, state, view } = this;
    const difference = p.difference.getAttribute("aria-pressed") === "true";
    if (difference) paintDifference(p.changed, view.picture, view.digit.redrawn, this.shape, tones(this.ink));
    else paint(p.changed, view.picture, this.shape, this.ink);
    const turned = state.knobs.filter(Boolean).length;
    const words = difference ? "more and less ink than before" : turned ? `${turned} ${turned > 1 ? this.kind.replace("axis", "axe") + "s" : this.kind} turned` : "drawn again";
    // A capsule that isn't the digit's own is short, and what it draws is a blur: say so before somebody looks for a fault.
    p.caption.textContent = state.shown_class === null ? words : `as a ${this.shown}: not this digit's class, so expect a blur`;
    p.changed.setAttribute("aria-label", `the changed picture: ${p.caption.textContent}`);
  },

  toggleDifference() {
    const on = this.parts.difference.getAttribute("aria-pressed") !== "true";
    this.parts.difference.setAttribute("aria-pressed", String(on));
    this.go("move");
  },

  buildLengths() {
    this.rows = range(this.J).map((j) => {
      const [bar, tick, value] = [element("i", { class: "bar-fill" }), element("i", { class: "tick" }), element("span", { class: "value" })];
      const button = element("button", { title: `draw from the capsule of class ${j}`, onclick: () => this.whatIf(j) },
        element("b", {}, String(j)), element("span", { class: "bar-track", "aria-hidden": "true" }, bar, tick), value);
      this.parts.lengths.append(element("li", {}, button));
      return { button, bar, tick, value };
    });
  },

  paintLengths() {
    const { view, state } = this;
    const own = view.digit.lengths;
    const read = own.indexOf(Math.max(...own));
    this.rows.forEach(({ button, bar, tick, value }, j) => {
      bar.style.scale = `${view.lengths[j]} 1`;
      tick.style.left = `${100 * own[j]}%`;
      value.textContent = view.lengths[j].toFixed(2);
      button.classList.toggle("longest", j === view.read);
      button.setAttribute("aria-pressed", String(j === this.shown));
    });
    const [now, before] = [view.lengths[view.read].toFixed(2), own[read].toFixed(2)];
    this.parts.read.replaceChildren(
      "Bars: the changed picture, read as ", element("b", {}, String(view.read)), ` (${now}). `,
      "Marks: the digit, read as ", element("b", {}, String(read)), ` (${before}).`);
    const what = state.strokes.length ? "your drawing" : `a digit of class ${state.label}`;
    this.parts.own.textContent = `${what[0].toUpperCase()}${what.slice(1)}. The network reads ${read === state.label && !state.strokes.length ? "it right" : `a ${read}`} (${before}).`;
  },

  // -- All classes' dimensions at a glance

  buildOverview() {
    const p = this.parts;
    p.overview = element("canvas", { role: "img", title: "choose a dimension of a class" });
    p.overview.addEventListener("click", (event) => {
      const { left, top, width, height } = p.overview.getBoundingClientRect();
      const d = clamp(Math.floor(((event.clientX - left) / width) * this.D), 0, this.D - 1);
      const j = clamp(Math.floor(((event.clientY - top) / height) * this.J), 0, this.J - 1);
      if (j !== this.shown) this.whatIf(j);
      this.tab("knobs");
      this.knobs[d].slider.focus();
    });
    p.overview.setAttribute("aria-label", `all ${this.D} dimensions of the ${this.J} class capsules: blue below 0, orange above`);
    p.row = element("i");
    return element("figure", { class: "overview" }, element("div", {}, p.overview, p.row),
      element("figcaption", {}, `${this.J} capsules of ${this.D} dimensions: blue below 0, orange above`));
  },

  paintOverview() {
    const { J, D, view, parts: p } = this;
    const pixels = new ImageData(D, J);
    const [more, less] = tones(this.ink);
    for (let n = 0; n < J * D; n++) {
      const x = view.seen.capsules[n];
      pixels.data.set(x > 0 ? more : less, 4 * n);
      pixels.data[4 * n + 3] = 255 * Math.min(1, Math.abs(x) * 3);
    }
    if (p.overview.width !== D || p.overview.height !== J) Object.assign(p.overview, { width: D, height: J });
    p.overview.getContext("2d").putImageData(pixels, 0, 0);
    Object.assign(p.row.style, { top: `${(100 * this.shown) / J}%`, height: `${100 / J}%` });
  },

  // -- Panels: sliders, plane, inside, sweep

  buildPanels() {
    const p = this.parts;
    p.panels = {
      knobs: this.buildKnobs(),
      plane: this.buildPlane(),
      inside: this.buildInside(),
      sweep: this.buildSweep(),
      ...(this.kernel && { measure: this.buildMeasure() }),
    };
    const words = { knobs: "dimensions", plane: "plane", inside: "inside", sweep: "sweep", measure: "measure" };
    const names = Object.keys(p.panels);
    p.tabs = names.map((name) => element("button", { role: "tab", "data-panel": name, onclick: () => this.tab(name) }, words[name]));
    const tabs = element("div", { class: "tabs", role: "tablist", "aria-label": "what to look at" }, ...p.tabs);
    tabs.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = p.tabs[(p.tabs.indexOf(event.target) + step + names.length) % names.length];
      next.click();
      next.focus();
    });
    for (const name of names) {
      p.panels[name].setAttribute("role", "tabpanel");
      p.panels[name].setAttribute("aria-label", words[name]);
      p.panels[name].classList.add("panel", name);
    }
    return element("div", { class: "panels" }, tabs, ...Object.values(p.panels));
  },

  tab(name) {
    this.panel = name;
    this.parts.body.dataset.panel = name;
    for (const tab of this.parts.tabs) {
      tab.setAttribute("aria-selected", String(tab.dataset.panel === name));
      tab.tabIndex = tab.dataset.panel === name ? 0 : -1;
    }
    for (const [panel, part] of Object.entries(this.parts.panels)) part.classList.toggle("chosen", panel === name);
    if (this.view) this.paintPanel();
  },

  paintPanel() {
    if (!this.view?.seen) return;
    for (const [name, part] of Object.entries(this.parts.panels)) {
      if (!part.checkVisibility()) continue;
      if (name === "plane") this.paintPlane();
      if (name === "inside") this.paintInside();
      if (name === "sweep") this.soon("sweep", () => this.paintSweep());
    }
  },

  /** Do it when no more such calls come. */
  soon(name, act, wait = 150) {
    this.timers ??= {};
    clearTimeout(this.timers[name]);
    this.timers[name] = setTimeout(() => !this.gone && act(), wait);
  },

  buildKnobs() {
    this.knobs = range(this.D).map((d) => {
      const name = field({ class: "name", type: "text", maxlength: 60, spellcheck: "false", autocomplete: "off", title: "what do you call it?" },
        () => this.rename(d, name.value.trim()));
      const hills = element("path", { class: "hills" });
      const slider = element("input", { type: "range", min: -STEPS, max: STEPS, step: 1,
        oninput: () => this.turn(d, (LIMITS[this.state.units] * slider.value) / STEPS),
        onkeydown: (event) => ["Delete", "Backspace"].includes(event.key) && this.turn(d, 0, null),
        ondblclick: () => this.turn(d, 0, null) });
      const value = element("output");
      const reset = element("button", { class: "reset", onclick: () => (this.turn(d, 0, null), slider.focus()) }, "↺");
      const outside = element("small", {}, "no digit there");
      const row = element("div", { class: "knob" }, name,
        element("div", { class: "track" }, element("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" }, hills), slider),
        element("div", { class: "value" }, value, reset, outside));
      for (const [event, show] of [["pointerenter", true], ["focusin", true], ["pointerleave", false], ["focusout", false]])
        row.addEventListener(event, () => this.paintGhosts(show ? d : null));
      return { row, name, hills, slider, value, reset };
    });
    const p = this.parts;
    p.morph = element("input", { type: "range", min: 0, max: 1, step: 0.01, "aria-label": "morph: how far on the way to the other digit",
      oninput: () => this.change({ morph: Number(p.morph.value) }, "morph") });
    p.partner = field({ class: "number", type: "number", min: 0, "aria-label": "number of the other digit of the class" },
      () => this.change({ partner: Number(p.partner.value) }));
    p.reset = element("button", { class: "quiet", onclick: () => this.change({ knobs: this.fresh.knobs, morph: 0 }) }, "reset all");
    return element("section", {}, this.hint(3, "Turn one of them, and watch."),
      element("div", { class: "sliders", style: `--half: ${Math.ceil(this.D / 2)}` }, ...this.knobs.map(({ row }) => row)),
      element("div", { class: "knob morph" }, element("span", { class: "name" }, "morph to digit"), element("div", { class: "track" }, p.morph), p.partner, p.reset));
  },

  key(d) {
    return `network ${this.model.get("_network")}, class ${this.shown}, ${this.kind} ${d}`;
  },

  rename(d, name) {
    const names = { ...this.names, [this.key(d)]: name };
    if (!name) delete names[this.key(d)];
    this.names = names;
    this.setScene();
    if (this.kernel) {
      this.tell({ _names: names });
    } else if (!memory.write("names", names)) this.say("Your browser keeps nothing for this page, so names last until you close it.");
  },

  /** Fit everything that only another digit, class or unit changes. */
  setScene() {
    this.scene = true;
    const { parts: p, state, spreads, shown, view } = this;
    paint(p.original, view.digit.image, this.shape, this.ink);
    this.paintInk(state.strokes);
    p.pad.classList.toggle("drawn", state.strokes.length > 0);
    const strokes = state.strokes.length;
    p.pad.setAttribute("aria-label", this.drawable
      ? `The digit, and a pad: draw on it with mouse, pen or finger. ${strokes} stroke${strokes === 1 ? "" : "s"} drawn.` : "The digit");
    p.undoStroke.hidden = p.clear.hidden = !strokes;
    p.classes.forEach((button, j) => button.setAttribute("aria-pressed", String(j === state.label)));
    const last = this.count(state.label) - 1;
    p.index.max = p.partner.max = last;
    if (p.index !== document.activeElement) p.index.value = state.index;
    p.partner.value = state.partner;
    Object.assign(p.units, { value: state.units });
    p.shown.value = state.shown_class ?? "";
    p.source.value = state.source;
    if (this.measured !== undefined && this.measured !== shown) {
      p.table.replaceChildren(); // another class's measures
      this.measured = undefined;
    }
    const limit = LIMITS[state.units];
    this.places = spreads.place(view.base, shown, state.units);
    this.knobs.forEach(({ name, hills, slider, reset }, d) => {
      const words = `${this.kind} ${d}`;
      const own = this.names[this.key(d)] ?? "";
      Object.assign(name, { value: own, placeholder: words });
      name.setAttribute("aria-label", `your name for ${words}`);
      slider.setAttribute("aria-label", own ? `${words}: ${own}` : words);
      reset.setAttribute("aria-label", `${words} back to the digit's own value`);
      const counts = spreads.histogram(shown, d, state.units);
      const most = Math.max(...counts, 1);
      const x = (bin) => 50 * ((((bin * 8) / counts.length - 4 - this.places[d]) * spreads.unit(shown, d, state.units)) / limit + 1);
      hills.setAttribute("d", `M${x(0).toFixed(1)} 24${[...counts].map((count, bin) => `V${(24 - (22 * count) / most).toFixed(1)}H${x(bin + 1).toFixed(1)}`).join("")}V24Z`);
    });
  },

  paintKnobs() {
    const { state, spreads, shown, view } = this;
    const limit = LIMITS[state.units];
    const places = spreads.place(view.capsule, shown, state.units);
    const sd = state.units === "raw" ? "" : " sd";
    this.knobs.forEach(({ row, slider, value }, d) => {
      const knob = state.knobs[d];
      const real = spreads.histogram(shown, d, state.units)[Spreads.bin(places[d])] > 0;
      const words = knob ? `${signed(knob, state.units === "raw" ? 3 : 1)}${sd}` : "";
      if (slider.value !== String(Math.round((STEPS * knob) / limit))) slider.value = Math.round((STEPS * knob) / limit);
      if (value.textContent !== words) value.textContent = words;
      row.classList.toggle("is-turned", knob !== 0);
      row.classList.toggle("outside", !real);
      const heard = `${words || "the digit's own value"}${real ? "" : ", no real digit there"}; read as ${view.read ?? ""}`;
      if (slider.getAttribute("aria-valuetext") !== heard) slider.setAttribute("aria-valuetext", heard);
    });
    this.parts.morph.value = state.morph;
    this.parts.reset.disabled = !state.knobs.some(Boolean) && !state.morph;
  },

  /** Outlines of both ends of a dimension, over the changed picture. */
  paintGhosts(d) {
    const ends = d === null || !this.view ? [] : [-1, 1];
    const limit = LIMITS[this.state.units];
    this.parts.ghosts.replaceChildren(...ends.map((end) => {
      const picture = this.network.draw(this.turned(this.view.base, this.state.knobs.with(d, end * limit)), this.shown);
      return element("path", { class: end < 0 ? "less" : "more", d: outline(picture, this.shape) });
    }));
  },

  // -- The plane of two dimensions, over the cloud of real digits

  buildPlane() {
    const p = this.parts;
    this.axes = [0, 1];
    const select = (axis, label) => {
      const made = element("select", { "aria-label": label, onchange: () => ((this.axes[axis] = Number(made.value)), this.paintPlane()) });
      return made;
    };
    p.across = select(0, "dimension from left to right");
    p.up = select(1, "dimension from below to above");
    p.plane = element("canvas", { tabindex: 0, role: "application", "aria-label": "plane: the arrow keys move the digit" });
    const drag = (event) => {
      const { left, top, width, height } = p.plane.getBoundingClientRect();
      const z = [(event.clientX - left) / width, 1 - (event.clientY - top) / height].map((share) => (2 * share - 1) * REACH);
      this.moveTo(z);
    };
    p.plane.addEventListener("pointerdown", (event) => {
      p.plane.setPointerCapture(event.pointerId);
      drag(event);
    });
    p.plane.addEventListener("pointermove", (event) => p.plane.hasPointerCapture(event.pointerId) && drag(event));
    p.plane.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const now = this.spreads.place(this.turned(this.view.base, this.state.knobs), this.shown, this.state.units);
      this.moveTo(this.axes.map((d, axis) => now[d] + step[axis] * 0.2));
    });
    p.planeWords = element("p");
    return element("section", {}, element("div", { class: "choices" }, element("label", {}, "across", p.across), element("label", {}, "up", p.up)), p.plane, p.planeWords);
  },

  /** Turn two sliders so that the capsule lies z standard deviations from the mean. */
  moveTo(z) {
    const { units } = this.state;
    const knobs = [...this.state.knobs];
    const limit = LIMITS[units];
    const own = this.spreads.place(this.view.base, this.shown, units);
    this.axes.forEach((d, axis) => (knobs[d] = clamp((z[axis] - own[d]) * this.spreads.unit(this.shown, d, units), -limit, limit)));
    this.change({ knobs }, "plane");
  },

  /** Capsules of real digits of the shown class; worked out a few at a time, while the page stays quick. */
  cloud() {
    const key = `${this.shown} ${this.state.iterations}`;
    if (!this.clouds.has(key)) {
      const points = [];
      this.clouds.set(key, points);
      const more = () => {
        const end = performance.now() + 8;
        const count = Math.min(CLOUD, this.members[this.shown]?.length ?? 0);
        while (points.length < count && performance.now() < end) points.push(this.capsuleOf(this.network.read(this.image(this.shown, points.length), this.state.iterations)));
        if (this.gone || key !== `${this.shown} ${this.state.iterations}`) return this.clouds.delete(key);
        this.paintPanel();
        if (points.length < count) setTimeout(more, 16);
      };
      setTimeout(more);
    }
    return this.clouds.get(key);
  },

  paintPlane() {
    const { parts: p, state, spreads, shown, view } = this;
    const [across, up] = this.axes;
    for (const [select, chosen] of [[p.across, across], [p.up, up]]) {
      const words = range(this.D).map((d) => this.names[this.key(d)] || `${this.kind} ${d}`);
      if (!same(words, [...select.options].map((option) => option.textContent))) select.replaceChildren(...words.map((name, d) => element("option", { value: d }, name)));
      select.value = chosen;
    }
    const [pen, size] = canvasOf(p.plane);
    const style = getComputedStyle(p.plane);
    const at = (places) => [across, up].map((d, axis) => size / 2 + ((axis ? -1 : 1) * places[d] * size) / 2 / REACH);
    pen.strokeStyle = style.borderColor;
    pen.lineWidth = 1;
    for (const z of range(2 * REACH - 1).map((n) => n + 1 - REACH)) {
      pen.globalAlpha = z ? 0.25 : 1;
      const place = size / 2 + (z * size) / 2 / REACH;
      pen.beginPath();
      pen.moveTo(place, 0);
      pen.lineTo(place, size);
      pen.moveTo(0, place);
      pen.lineTo(size, place);
      pen.stroke();
    }
    pen.globalAlpha = 0.55;
    pen.fillStyle = style.color;
    const cloud = this.cloud();
    for (const capsule of cloud) dot(pen, at(spreads.place(capsule, shown, state.units)), size / 130);
    pen.globalAlpha = 1;
    const own = at(spreads.place(view.base, shown, state.units));
    const now = at(spreads.place(view.capsule, shown, state.units));
    pen.strokeStyle = style.accentColor;
    pen.lineWidth = size / 150;
    pen.beginPath();
    pen.moveTo(...own);
    pen.lineTo(...now);
    pen.stroke();
    pen.fillStyle = style.accentColor;
    dot(pen, own, size / 80);
    dot(pen, now, size / 32);
    p.planeWords.textContent = `Drag the point. Grey: ${cloud.length} real digits of class ${shown}, in standard deviations from their mean.`;
  },

  // -- Inside the network

  buildInside() {
    const p = this.parts;
    p.inside = element("canvas", { role: "img", "aria-label": "inside the network" });
    p.insideWords = element("p");
    p.rounds = element("div", { class: "rounds", role: "group", "aria-label": "iteration that is shown" });
    const more = (step) => () => this.change({ iterations: this.state.iterations + step });
    return element("section", {},
      element("div", { class: "choices" }, element("span", {}, "after iteration"), p.rounds,
        element("button", { class: "quiet", title: "one iteration of routing less", "aria-label": "one iteration of routing less", onclick: more(-1) }, "−"),
        element("button", { class: "quiet", title: "one iteration of routing more", "aria-label": "one iteration of routing more", onclick: more(1) }, "+")),
      p.inside, p.insideWords);
  },

  paintInside() {
    const { parts: p, network, shown, view, J } = this;
    const { seen } = view;
    const count = seen.couplings.length;
    const round = Math.min(this.round ?? count - 1, count - 1);
    p.rounds.replaceChildren(...range(count).map((t) =>
      element("button", { "aria-pressed": String(t === round), onclick: () => ((this.round = t), this.paintInside(), p.rounds.children[t].focus()) }, String(t + 1))));
    const [pen, width, height] = canvasOf(p.inside, 0.8);
    const style = getComputedStyle(p.inside);
    const { grid: [rows, columns], I } = network;
    const types = this.config.types;
    const across = Math.ceil(Math.sqrt(types));
    const down = Math.ceil(types / across);
    const right = width * 0.1; // for the classes
    const cell = Math.min((width * 0.78) / (across * (columns + 1)), height / (down * (rows + 1)));
    const place = (i) => {
      const type = Math.floor(i / (rows * columns));
      const [row, column] = [Math.floor((i % (rows * columns)) / columns), i % columns];
      return [((type % across) * (columns + 1) + column + 1) * cell, (Math.floor(type / across) * (rows + 1) + row + 1) * cell];
    };
    const target = [width - right, (height * (shown + 0.5)) / J];
    const shares = network.shares(seen, shown, round);
    const strongest = range(I).sort((a, b) => shares[b] - shares[a]).slice(0, PATHS);
    const most = shares[strongest[0]] || 1;
    pen.strokeStyle = style.accentColor;
    for (const i of strongest) {
      const [x, y] = place(i);
      pen.globalAlpha = 0.25 + (0.6 * shares[i]) / most;
      pen.lineWidth = 1 + (cell * 0.5 * shares[i]) / most;
      pen.beginPath();
      pen.moveTo(x, y);
      pen.bezierCurveTo((x + target[0]) / 2, y, (x + target[0]) / 2, target[1], target[0] - cell, target[1]);
      pen.stroke();
    }
    pen.fillStyle = style.color;
    for (let i = 0; i < I; i++) {
      let squared = 0;
      for (let k = 0; k < network.K; k++) squared += seen.primary[k * I + i] ** 2;
      pen.globalAlpha = 0.12 + 0.88 * Math.min(1, seen.couplings[round][i * J + shown] * 2);
      dot(pen, place(i), cell * (0.1 + 0.4 * Math.sqrt(squared)));
    }
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    for (let j = 0; j < J; j++) {
      pen.globalAlpha = 0.35 + 0.65 * seen.rounds[round][j];
      pen.fillStyle = j === shown ? style.accentColor : style.color;
      pen.font = `${j === shown ? 700 : 400} ${Math.min(height / J, 34) * 0.8}px system-ui, sans-serif`;
      pen.fillText(j, width - right / 2, (height * (j + 0.5)) / J);
    }
    pen.globalAlpha = 1;
    const carried = strongest.reduce((sum, i) => sum + shares[i], 0);
    const lengths = seen.rounds.map((round) => round[shown].toFixed(2)).join(", ");
    p.insideWords.textContent =
      `${I} primary capsules see the changed picture: a larger dot is a longer capsule, a darker one sends more of itself to class ${shown}. ` +
      `${strongest.length} of them bring ${Math.round(100 * carried)} % of that class's length, which is ${lengths} after ${count === 1 ? "the only iteration" : `iterations 1 to ${count}`}` +
      (count === this.config.iterations ? "." : `; the network was trained with ${this.config.iterations}.`);
    p.inside.setAttribute("aria-label", p.insideWords.textContent);
  },

  // -- The paper's figure 4 for this digit

  buildSweep() {
    const p = this.parts;
    p.sweep = element("canvas", { role: "img", "aria-label": "the sweep" });
    p.sweepWords = element("p");
    p.sweep.addEventListener("click", (event) => {
      const { left, top, width, height } = p.sweep.getBoundingClientRect();
      const d = clamp(Math.floor(((event.clientY - top) / height) * this.D), 0, this.D - 1);
      const step = clamp(Math.floor(((event.clientX - left) / width) * SWEEP), 0, SWEEP - 1);
      this.turn(d, LIMITS[this.state.units] * ((2 * step) / (SWEEP - 1) - 1), null);
    });
    return element("section", {}, p.sweepWords, p.sweep);
  },

  paintSweep() {
    const { parts: p, state, network, D, shape } = this;
    const [, height, width] = shape;
    Object.assign(p.sweep, { width: SWEEP * (width + 1), height: D * (height + 1) });
    const pen = p.sweep.getContext("2d");
    const tile = element("canvas");
    for (let d = 0; d < D; d++)
      for (let n = 0; n < SWEEP; n++) {
        const knob = LIMITS[state.units] * ((2 * n) / (SWEEP - 1) - 1);
        paint(tile, network.draw(this.turned(this.view.base, state.knobs.with(d, knob)), this.shown), shape, this.ink);
        pen.drawImage(tile, n * (width + 1), d * (height + 1));
      }
    const limit = LIMITS[state.units];
    p.sweepWords.textContent = `Each row takes one ${this.kind} from −${limit} to +${limit}${state.units === "raw" ? "" : " standard deviations"}, ${this.kind} 0 above. Choose a picture to turn to it.`;
    p.sweep.setAttribute("aria-label", p.sweepWords.textContent);
  },

  // -- The past, saving, sharing

  buildPast() {
    this.parts.past = element("div", { class: "past", role: "group", "aria-label": "the last pictures" });
    return this.parts.past;
  },

  /** What can wait until the digit stands still. */
  settle() {
    const { parts: p, view } = this;
    if (!view?.lengths) return;
    p.undo.disabled = !this.past.length;
    p.redo.disabled = !this.future.length;
    p.past.replaceChildren(...this.past.slice(-PAST).filter(({ picture }) => picture).map(({ state, picture, label }) => {
      const thumb = element("canvas", { "aria-hidden": "true" });
      paint(thumb, picture, this.shape, this.ink);
      return element("button", { "aria-label": `back to a picture of class ${state.label}, read as ${label}`, onclick: () => (this.remember(), this.restore(state)) }, thumb);
    }));
    // For those who hear the page: after the last move, not at each.
    this.soon("status", () => {
      const words = `The changed picture is read as ${view.read}, length ${view.lengths[view.read].toFixed(2)}.`;
      if (p.status.textContent !== words) p.status.textContent = words;
    }, 400);
  },

  download() {
    const [, height, width] = this.shape;
    const scale = Math.max(1, Math.round(392 / height));
    const sheet = element("canvas", { width: 3 * scale * (width + 1), height: scale * height });
    const pen = sheet.getContext("2d");
    pen.fillStyle = "white";
    pen.fillRect(0, 0, sheet.width, sheet.height);
    pen.imageSmoothingEnabled = false;
    const tile = element("canvas");
    [this.view.digit.image, this.view.digit.redrawn, this.view.picture].forEach((image, n) => {
      paint(tile, image, this.shape, [0, 0, 0]);
      pen.drawImage(tile, n * scale * (width + 1), 0, scale * width, scale * height);
    });
    sheet.toBlob((blob) => {
      const link = element("a", { href: URL.createObjectURL(blob), download: `class-${this.shown}.png` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  },

  /** What `as_python` gives in Python. */
  asPython() {
    const literal = (value) => (value === null ? "None" : JSON.stringify(value));
    const given = Object.keys(this.fresh).filter((name) => name !== "iterations" && (name === "label" || !same(this.state[name], this.fresh[name])));
    return `CapsuleExplorer(${[this.model.get("_called") || "net, digits, spreads", ...given.map((name) => `${name}=${literal(this.state[name])}`)].join(", ")})`;
  },

  async copy(words, what) {
    try {
      await navigator.clipboard.writeText(words);
      this.say(`${what} is on your clipboard.`);
    } catch {
      this.say(words); // to be copied by hand
    }
  },

  // -- What each dimension does to the drawing: measured in Python

  buildMeasure() {
    const p = this.parts;
    p.table = element("div", { class: "table", tabindex: 0, role: "region", "aria-label": "measures" });
    p.measure = element("button", { onclick: () => this.measure() }, "measure what each dimension does");
    return element("section", {}, p.measure, p.table);
  },

  async measure() {
    const p = this.parts;
    const label = this.shown;
    p.measure.disabled = true;
    try {
      const { table: [caption, heads, rows] } = await this.ask({ measure: label });
      const row = (cells, tag) => element("tr", {}, ...cells.map((cell, n) => element(n ? tag : "th", {}, cell)));
      p.table.replaceChildren(element("table", {}, element("caption", {}, caption),
        row(heads.map((words) => words.join(" ").trim()), "th"), ...rows.map((cells) => row(cells, "td"))));
      this.measured = label;
    } catch (error) {
      this.say(error.message);
    }
    p.measure.disabled = false;
  },

});

const REACH = 5; // of the plane, in standard deviations

/** A canvas as sharp as the screen, cleared; `shape` is its height as a share of its width. Returns [pen, width, height]. */
function canvasOf(canvas, shape = 1) {
  const width = canvas.clientWidth || 300;
  const sharp = devicePixelRatio || 1;
  Object.assign(canvas, { width: width * sharp, height: width * shape * sharp });
  const pen = canvas.getContext("2d");
  pen.scale(sharp, sharp);
  return [pen, width, width * shape];
}

function dot(pen, [x, y], radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

// ---- Front doors ---------------------------------------------------------------------------------------------------

/** anywidget's: `model` holds the state, the weights and the digits. What can't be shown is said where it would be. */
function render({ model, el }) {
  try {
    if (!CSS.supports("color", "light-dark(red, blue)")) throw new Error("It needs a browser from 2024 or later.");
    const explorer = new Explorer(model, el);
    el.explorer = explorer; // to look at from a console
    return () => explorer.leave();
  } catch (error) {
    el.classList.add("capsule-explorer");
    el.replaceChildren(element("p", { class: "notice", role: "alert" }, `The explorer can't be shown. ${error.message}`));
  }
}

/** For a page without Python: the same, with what anywidget would have sent. Returns the function that ends it. */
export function mount(el, values) {
  const model = { get: (name) => values[name], set: (name, value) => (values[name] = value), on() {}, off() {} };
  return render({ model, el });
}

export default { render };
