// What a page computes without a kernel: a capsule network, from the file that PyTorch loads; knobs in standard
// deviations; and a digit from pen strokes. Nothing here knows of a page, and nothing is imported.
//
// Arrays are flat and in PyTorch's order. Shape letters as everywhere in the course: I input capsules of K dimensions,
// J output capsules of D dimensions, C H W image. Sums run in double precision, so what differs from PyTorch is its rounding.

// ---- Weights: the safetensors format -------------------------------------------------------------------------------
// 8 bytes: the header's length; the header, JSON: name -> dtype, shape, [start, end]; then the numbers, one after another.

const BYTES = { F16: 2, BF16: 2, F32: 4, I64: 8, U8: 1 };

/** The tensors of a safetensors file, {name: {shape, data}}, from its bytes (Uint8Array). Throws an Error that says what is wrong. */
export function readSafetensors(bytes) {
  const { buffer, byteOffset, byteLength } = bytes;
  const fault = (what) => new Error(`This is not a whole safetensors file (${what}): restore it.`);
  if (byteLength < 8) throw fault(`it has ${byteLength} bytes`);
  const length = Number(new DataView(buffer, byteOffset).getBigUint64(0, true));
  if (8 + length > byteLength) throw fault("its header is cut short");
  let header;
  try {
    header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  } catch {
    throw fault("its header is not JSON");
  }
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: place }] of Object.entries(header ?? {})) {
    if (name === "__metadata__") continue;
    if (!(dtype in BYTES)) throw new Error(`${name} holds numbers of type ${dtype}: save it as F16, BF16, F32, I64 or U8.`);
    const count = shape.reduce((product, size) => product * size, 1);
    const [start, end] = place.map((offset) => 8 + length + offset);
    if (end - start !== count * BYTES[dtype]) throw fault(`${name} has another size than its shape`);
    if (end > byteLength) throw fault(`${name} is cut short`);
    tensors[name] = { shape, data: numbers(bytes.slice(start, end), dtype) }; // a copy, because a view must be aligned
  }
  return tensors;
}

function numbers(bytes, dtype) {
  if (dtype === "U8") return bytes;
  if (dtype === "F32") return new Float32Array(bytes.buffer);
  if (dtype === "I64") return Float64Array.from(new BigInt64Array(bytes.buffer), Number);
  const table = dtype === "F16" ? float16Values() : null;
  const halves = new Uint16Array(bytes.buffer);
  const values = new Float32Array(halves.length);
  for (let n = 0; n < halves.length; n++) values[n] = table ? table[halves[n]] : bfloat16Value(halves[n]);
  return values;
}

let float16 = null; // the value of each of the 65,536 half-precision numbers
function float16Values() {
  float16 ??= Float32Array.from({ length: 65536 }, (_, bits) => {
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    const size = exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25);
    return (bits >> 15 ? -1 : 1) * (exponent < 31 ? size : fraction ? NaN : Infinity);
  });
  return float16;
}

const word = new DataView(new ArrayBuffer(4));
function bfloat16Value(bits) {
  word.setUint32(0, bits << 16); // the upper half of a float32
  return word.getFloat32(0);
}

// ---- The network ---------------------------------------------------------------------------------------------------

const STRIDE = 2; // of the primary capsules' convolution; that of a stem of one convolution is 1
const EPSILON = 1e-5; // of batch norm, PyTorch's own
const PARTS = ["weight", "bias", "running_mean", "running_var"]; // of a layer; the last two are batch norm's

/**
 * Stem, primary capsules, routing and decoder of one image at a time: model.CapsNet's forward pass.
 *
 * `tensors` are those of `readSafetensors`, `config` is the card's (a CapsNetConfig as JSON), which also says what shapes
 * can't: image_shape, kernel_size, stem, types, primary_dim, iterations. Throws an Error where tensors and config don't fit.
 */
export class Network {
  constructor(tensors, config) {
    const { image_shape: shape, classes, class_dim, kernel_size, types, primary_dim } = config;
    if (!config.decoder_hidden) throw new Error("This network has no decoder, so it can't draw: build it with decoder_hidden.");
    // In a stem of several layers a batch norm and a ReLU follow each convolution, so every third one is a convolution.
    const stem = config.stem
      ? config.stem.map(([channels, kernel, stride], n) => ({ name: `stem.${3 * n}`, norm: `stem.${3 * n + 1}`, channels, kernel, stride }))
      : [{ name: "stem", channels: config.stem_channels, kernel: kernel_size, stride: 1 }];
    const primary = { name: "primary_caps.conv", channels: types * primary_dim, kernel: kernel_size, stride: STRIDE };
    const expected = {};
    let map = shape; // [C, H, W], from one convolution to the next
    for (const one of [...stem, primary]) {
      const { name, norm, channels, kernel, stride } = one;
      const depthwise = config.depthwise && one === primary;
      expected[`${name}.weight`] = [channels, depthwise ? 1 : map[0], kernel, kernel];
      if (!depthwise) expected[`${name}.bias`] = [channels];
      if (norm) {
        for (const part of PARTS) expected[`${norm}.${part}`] = [channels];
        expected[`${norm}.num_batches_tracked`] = []; // a single number, which only training needs
      }
      one.takes = map;
      map = [channels, ...map.slice(1).map((side) => Math.floor((side - kernel) / stride) + 1)];
    }
    const grid = map.slice(1);
    const inputs = types * grid[0] * grid[1];
    expected["digit_caps.weight"] = [classes, primary_dim, inputs, class_dim];
    const sizes = [classes * class_dim, ...config.decoder_hidden, shape[0] * shape[1] * shape[2]];
    for (let n = 1; n < sizes.length; n++) {
      expected[`decoder.layers.${2 * n - 2}.weight`] = [sizes[n], sizes[n - 1]];
      expected[`decoder.layers.${2 * n - 2}.bias`] = [sizes[n]];
    }
    for (const name of new Set([...Object.keys(expected), ...Object.keys(tensors)])) {
      const [wanted, found] = [expected[name], tensors[name]?.shape].map((sizes) => (sizes ? sizes.join(" x ") || "1" : "absent"));
      if (wanted !== found) throw new Error(`The weights don't fit the network: ${name} should be ${wanted} and is ${found}.`);
    }
    const layer = (name) => Object.fromEntries(PARTS.map((part) => [part, tensors[`${name}.${part}`]?.data]));
    Object.assign(this, { config, grid, shape, J: classes, D: class_dim, I: inputs, K: primary_dim });
    this.stem = stem.map(({ name, norm, takes, kernel, stride }) =>
      convolution(norm ? normalised(layer(name), layer(norm)) : layer(name), takes, kernel, stride));
    this.primary = (config.depthwise ? depthwise : convolution)(layer(primary.name), primary.takes, kernel_size, STRIDE);
    this.weight = tensors["digit_caps.weight"].data;
    this.votes = new Float64Array(classes * inputs * class_dim);
    // A fully connected layer is a convolution over a picture of one pixel.
    this.layers = sizes.slice(1).map((_, n) => convolution(layer(`decoder.layers.${2 * n}`), [sizes[n], 1, 1], 1, 1));
  }

  /**
   * What the network sees in an image [C, H, W] with values in 0..1:
   * primary [K, I]; capsules [J, D]; lengths [J]; and, for each iteration of routing, couplings [I, J] and its lengths [J].
   */
  read(image, iterations = this.config.iterations) {
    // Channel k * types + t is dimension k of type t: so the convolution's channels, rows and columns are [K, I] already.
    const features = this.stem.reduce((map, layer) => relu(layer(map)), image);
    const primary = this.primary(features).slice();
    squash(primary, this.K, this.I, 1);
    vote(primary, this.weight, this.votes, this);
    return { primary, ...route(this.votes, this, iterations) };
  }

  /** The picture [C, H, W] that the decoder draws from a capsule [D] of class `label`. */
  draw(capsule, label) {
    let x = new Float64Array(this.J * this.D); // the other classes' capsules are masked to 0
    x.set(capsule, label * this.D);
    this.layers.forEach((layer, n) => {
      x = layer(n ? relu(x) : x);
    });
    return Float32Array.from(x, (value) => 1 / (1 + Math.exp(-value)));
  }

  /** How much of the length of class `label` each input capsule brings, [I]: shares that sum to 1. Of the last image that was read. */
  shares({ couplings }, label, iteration = couplings.length - 1) {
    const { I, J, D, votes } = this;
    const c = couplings[iteration];
    const s = new Float64Array(D); // sum of c u_hat, before squash
    for (let i = 0; i < I; i++)
      for (let d = 0; d < D; d++) s[d] += c[i * J + label] * votes[(label * I + i) * D + d];
    const squared = s.reduce((sum, x) => sum + x * x, 0) || 1;
    return Float64Array.from({ length: I }, (_, i) => {
      let along = 0;
      for (let d = 0; d < D; d++) along += votes[(label * I + i) * D + d] * s[d];
      return (c[i * J + label] * along) / squared;
    });
  }
}

const BLOCK = 8; // channels that are summed at a time: as many sums as a processor keeps at hand

function relu(values) {
  for (let n = 0; n < values.length; n++) if (values[n] < 0) values[n] = 0;
  return values;
}

/** A convolution and the batch norm after it, in evaluation mode, as one layer: batch norm scales and shifts each channel. */
function normalised({ weight, bias }, norm) {
  const scale = Float64Array.from(norm.weight, (gain, o) => gain / Math.sqrt(norm.running_var[o] + EPSILON));
  return { weight, scale, bias: scale.map((factor, o) => (bias[o] - norm.running_mean[o]) * factor + norm.bias[o]) };
}

/** A function from [C, H, W] to [channels, rows, columns], without padding. Its result is good until its next call: memory is used again. */
function convolution({ weight, bias, scale = bias.map(() => 1) }, [C, H, W], size, stride) {
  const [rows, columns] = [H, W].map((length) => Math.floor((length - size) / stride) + 1);
  const places = rows * columns;
  const window = C * size * size;
  const blocks = Math.ceil(bias.length / BLOCK);
  // Four of five inputs are 0: paper round a digit, and features that ReLU cut off. So each window becomes a list of what
  // is not 0. And the kernels are sorted by block, then by input: what is read together lies together, in the cache.
  const values = new Float64Array(places * window);
  const inputs = new Int32Array(places * window);
  const ends = new Int32Array(places + 1);
  const out = new Float64Array(bias.length * places);
  const kernels = new Float32Array(blocks * window * BLOCK);
  for (let o = 0; o < bias.length; o++)
    for (let n = 0; n < window; n++)
      kernels[(Math.floor(o / BLOCK) * window + n) * BLOCK + (o % BLOCK)] = weight[o * window + n];
  return (image) => {
    let count = 0;
    for (let p = 0; p < places; p++) {
      const corner = Math.floor(p / columns) * stride * W + (p % columns) * stride;
      let n = 0;
      for (let c = 0; c < C; c++)
        for (let dy = 0; dy < size; dy++) {
          const from = corner + (c * H + dy) * W;
          for (let dx = 0; dx < size; dx++, n++) {
            const value = image[from + dx];
            if (value === 0) continue;
            values[count] = value;
            inputs[count++] = n * BLOCK;
          }
        }
      ends[p + 1] = count;
    }
    for (let block = 0; block < blocks; block++)
      for (let p = 0; p < places; p++) {
        const sums = product(kernels, block * window * BLOCK, values, inputs, ends[p], ends[p + 1]);
        for (let n = 0, o = block * BLOCK; n < BLOCK && o < bias.length; n++, o++) out[o * places + p] = bias[o] + scale[o] * sums[n];
      }
    return out;
  };
}

const sums = new Float64Array(BLOCK);
/** The inputs start..end of one window, times the kernels of a block of channels. */
function product(kernels, block, values, inputs, start, end) {
  let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0; // local numbers stay in registers, an array would not
  for (let n = start; n < end; n++) {
    const x = values[n];
    const at = block + inputs[n];
    a += x * kernels[at];
    b += x * kernels[at + 1];
    c += x * kernels[at + 2];
    d += x * kernels[at + 3];
    e += x * kernels[at + 4];
    f += x * kernels[at + 5];
    g += x * kernels[at + 6];
    h += x * kernels[at + 7];
  }
  sums.set([a, b, c, d, e, f, g, h]);
  return sums;
}

/** Likewise for a convolution in which each channel has a kernel of its own, weight [C, 1, size, size], and no bias. */
function depthwise({ weight }, [C, H, W], size, stride) {
  const [rows, columns] = [H, W].map((length) => Math.floor((length - size) / stride) + 1);
  const out = new Float64Array(C * rows * columns);
  return (image) => {
    for (let n = 0; n < out.length; n++) {
      const c = Math.floor(n / (rows * columns));
      const row = Math.floor(n / columns) % rows;
      const corner = (c * H + row * stride) * W + (n % columns) * stride;
      let sum = 0;
      for (let dy = 0; dy < size; dy++)
        for (let dx = 0; dx < size; dx++) sum += weight[(c * size + dy) * size + dx] * image[corner + dy * W + dx];
      out[n] = sum;
    }
    return out;
  };
}

/** Squash vectors in place: dimension d of vector n lies at d * step + n * next. s |s| / (1 + |s|^2) needs no division by |s|. */
function squash(vectors, dimensions, step, next) {
  for (let n = 0; n < vectors.length / dimensions; n++) {
    let squared = 0;
    for (let d = 0; d < dimensions; d++) squared += vectors[d * step + n * next] ** 2;
    const factor = Math.sqrt(squared) / (1 + squared);
    for (let d = 0; d < dimensions; d++) vectors[d * step + n * next] *= factor;
  }
}

/** Votes u_hat [J, I, D] of input capsules u [K, I] by the weight [J, K, I, D]. */
function vote(u, weight, votes, { I, J, K, D }) {
  votes.fill(0);
  for (let j = 0; j < J; j++)
    for (let k = 0; k < K; k++)
      for (let i = 0; i < I; i++) {
        const input = u[k * I + i];
        const from = ((j * K + k) * I + i) * D;
        const to = (j * I + i) * D;
        for (let d = 0; d < D; d++) votes[to + d] += input * weight[from + d];
      }
}

/** Routing by agreement (procedure 1): votes [J, I, D] -> capsules [J, D], and how it came to them, iteration by iteration. */
function route(votes, { I, J, D }, iterations) {
  const b = new Float64Array(I * J);
  const couplings = [];
  const rounds = []; // the lengths after each iteration
  let v;
  for (let t = 0; t < iterations; t++) {
    const c = new Float64Array(I * J);
    for (let i = 0; i < I; i++) {
      let largest = -Infinity;
      for (let j = 0; j < J; j++) largest = Math.max(largest, b[i * J + j]);
      let sum = 0;
      for (let j = 0; j < J; j++) sum += c[i * J + j] = Math.exp(b[i * J + j] - largest);
      for (let j = 0; j < J; j++) c[i * J + j] /= sum;
    }
    v = new Float64Array(J * D);
    for (let j = 0; j < J; j++)
      for (let i = 0; i < I; i++)
        for (let d = 0; d < D; d++) v[j * D + d] += c[i * J + j] * votes[(j * I + i) * D + d];
    squash(v, D, 1, D);
    couplings.push(c);
    rounds.push(lengthsOf(v, J, D));
    if (t < iterations - 1)
      for (let j = 0; j < J; j++)
        for (let i = 0; i < I; i++)
          for (let d = 0; d < D; d++) b[i * J + j] += votes[(j * I + i) * D + d] * v[j * D + d];
  }
  return { capsules: v, lengths: rounds.at(-1), couplings, rounds };
}

function lengthsOf(v, J, D) {
  return Float64Array.from({ length: J }, (_, j) => Math.hypot(...v.subarray(j * D, (j + 1) * D)));
}

// ---- Knobs: how far real digits spread, spreads.Spreads ------------------------------------------------------------

export const LIMITS = { "standard deviations": 4, raw: 0.25, "principal axes": 4 }; // a knob lies between -limit and +limit
const BINS = 24; // of the histograms, over -4..4 standard deviations

/** mean, std, axis_std [J, D], axes [J, D, D], counts, axis_counts [J, D, 24], as tensors of `readSafetensors`. */
export class Spreads {
  constructor(tensors) {
    for (const name of ["mean", "std", "axes", "axis_std", "counts", "axis_counts"]) {
      if (!tensors[name]) throw new Error(`The spreads lack ${name}: measure them again.`);
      this[name] = tensors[name].data;
    }
    this.shape = tensors.mean.shape;
  }

  /** What knobs [D] in these units add to a capsule of class `label`, [D]. */
  shift(knobs, label, units) {
    if (units === "raw") return Float64Array.from(knobs);
    const { std, D } = this.#of(label, units);
    if (units !== "principal axes") return std.map((one, d) => knobs[d] * one);
    return std.map((_, d) => knobs.reduce((sum, knob, n) => sum + knob * std[n] * this.axes[(label * D + n) * D + d], 0));
  }

  /** How many standard deviations a capsule [D] lies from its class's mean, along each dimension or axis, [D]. */
  place(capsule, label, units) {
    const { std, D } = this.#of(label, units);
    const away = Float64Array.from(capsule, (x, d) => x - this.mean[label * D + d]);
    if (units !== "principal axes") return away.map((x, d) => x / std[d]);
    return std.map((one, n) => away.reduce((sum, x, d) => sum + x * this.axes[(label * D + n) * D + d], 0) / one);
  }

  /** How many real digits lie in each of the 24 bins along dimension or axis d; which bin z standard deviations fall into. */
  histogram(label, d, units) {
    const counts = units === "principal axes" ? this.axis_counts : this.counts;
    const from = (label * this.shape[1] + d) * BINS;
    return counts.subarray(from, from + BINS);
  }

  static bin(z) {
    return Math.min(BINS - 1, Math.max(0, Math.floor((z + 4) * (BINS / 8))));
  }

  /** One standard deviation along dimension or axis d, in the units of its knob. */
  unit(label, d, units) {
    return units === "raw" ? this.std[label * this.shape[1] + d] : 1;
  }

  #of(label, units) {
    const D = this.shape[1];
    const std = units === "principal axes" ? this.axis_std : this.std;
    return { D, std: Float64Array.from(std.subarray(label * D, (label + 1) * D), (one) => Math.max(one, 1e-12)) };
  }
}

// ---- A drawing as a digit of MNIST: drawing.mnist_like -------------------------------------------------------------

const BOX = 20 / 28; // the digit's longer side, as a share of the image's
const PEN = 2.6 / 28; // the pen's width, likewise
const SPECK = 0.03; // what is smaller than this share of the paper is a slip of the hand, not a digit

/**
 * Strokes [[[x, y], ...], ...] as MNIST's digits were made: an image [size, size] in 0..1, ink 1, scaled into 20/28 of the
 * size with its centre of mass in the middle. Throws an Error where nothing is drawn, or only a speck.
 */
export function mnistLike(strokes, size = 28) {
  const lines = strokes.filter((stroke) => stroke.length);
  const points = lines.flat();
  if (!points.length) throw new Error("nothing is drawn yet: draw a digit first");
  if (!points.flat().every(Number.isFinite)) throw new Error("a coordinate is not a finite number: give points as [x, y], from 0 to 1");
  const [low, high] = [Math.min, Math.max].map((pick) => [0, 1].map((axis) => points.reduce((far, p) => pick(far, p[axis]), points[0][axis])));
  const extent = Math.max(high[0] - low[0], high[1] - low[1]);
  if (extent < SPECK) throw new Error("the drawing is a speck, too small to enlarge: draw the digit across the pad");
  const scale = ((BOX - PEN) * size) / extent; // the ink reaches half a pen beyond the points
  const place = [0, 1].map((axis) => size / 2 - (scale * (low[axis] + high[axis])) / 2);
  const drawn = () => inked(lines.map((line) => line.map((p) => [0, 1].map((axis) => scale * p[axis] + place[axis]))), size);
  const ink = drawn();
  const total = ink.reduce((sum, x) => sum + x, 0);
  const middle = Math.floor(size / 2) + 0.5;
  place[0] += middle - ink.reduce((sum, x, n) => sum + x * ((n % size) + 0.5), 0) / total;
  place[1] += middle - ink.reduce((sum, x, n) => sum + x * (Math.floor(n / size) + 0.5), 0) / total;
  return Float32Array.from(drawn());
}

/** How much of each pixel a round pen covers that is moved along the lines. */
function inked(lines, size) {
  const nearest = new Float64Array(size * size).fill(Infinity); // squared distance of each pixel's middle to the lines
  for (const line of lines)
    for (let n = 0; n < Math.max(1, line.length - 1); n++) {
      const [x, y] = line[n];
      const [dx, dy] = line.length > 1 ? [line[n + 1][0] - x, line[n + 1][1] - y] : [0, 0];
      const length = Math.max(dx * dx + dy * dy, 1e-12);
      for (let pixel = 0; pixel < nearest.length; pixel++) {
        const px = (pixel % size) + 0.5 - x;
        const py = Math.floor(pixel / size) + 0.5 - y;
        const along = Math.min(1, Math.max(0, (px * dx + py * dy) / length)); // 0 at the segment's start, 1 at its end
        const squared = (px - along * dx) ** 2 + (py - along * dy) ** 2;
        if (squared < nearest[pixel]) nearest[pixel] = squared;
      }
    }
  return nearest.map((squared) => Math.min(1, Math.max(0, (PEN * size) / 2 + 0.5 - Math.sqrt(squared))));
}
