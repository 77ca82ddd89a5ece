// The page's side of drawing.DrawingPad: an SVG, which stays sharp on any screen, and two buttons.
const PEN = 0.08; // about as thick, on a digit that fills most of the pad, as mnist_like makes it

const element = (name, attributes) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

// The first point comes twice: a line without length is drawn as a dot, a line of one point not at all.
const line = (stroke) =>
  element("polyline", { points: [...stroke.slice(0, 1), ...stroke].map((point) => point.join()).join(" ") });

function render({ model, el }) {
  // Black on white in every theme, like the pictures of digits. An outline, unlike a border, moves no coordinates.
  const paper = element("svg", {
    viewBox: "0 0 1 1",
    role: "img",
    fill: "none",
    stroke: "black",
    "stroke-width": PEN,
    "stroke-linecap": "round",
    "stroke-linejoin": "round",
    style:
      "display: block; width: 280px; height: 280px; margin: 2px; background: white; outline: 1px solid gray; " +
      "cursor: crosshair; touch-action: none; user-select: none",
  });
  let current = []; // the points of the stroke that is being drawn

  const show = () => {
    const strokes = model.get("strokes");
    const drawn = strokes.length === 1 ? "1 stroke" : `${strokes.length} strokes`;
    paper.setAttribute("aria-label", `Drawing pad for a digit: draw with mouse, pen or finger. ${drawn} drawn.`);
    paper.replaceChildren(...[...strokes, current].map(line));
  };
  const send = (strokes) => {
    model.set("strokes", strokes);
    model.save_changes();
  };
  const draw = (event) => {
    const { left, top, width, height } = paper.getBoundingClientRect();
    const place = [(event.clientX - left) / width, (event.clientY - top) / height];
    current.push(place.map((number) => Math.round(1000 * number) / 1000));
    show();
  };
  const end = () => {
    if (!current.length) return;
    const stroke = current;
    current = [];
    send([...model.get("strokes"), stroke]);
  };

  paper.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary || event.button !== 0) return; // a second finger or the right button
    event.preventDefault();
    paper.setPointerCapture(event.pointerId); // the stroke goes on outside the pad, and ends when the pen is lifted
    draw(event);
  });
  paper.addEventListener("pointermove", (event) => {
    if (event.isPrimary && current.length) draw(event);
  });
  paper.addEventListener("lostpointercapture", (event) => {
    if (event.isPrimary) end(); // comes after pointerup and after pointercancel
  });

  const button = (text, label, change) => {
    const made = document.createElement("button");
    made.className = "jupyter-button"; // the theme's colours
    made.textContent = text;
    made.setAttribute("aria-label", label);
    made.addEventListener("click", () => send(change(model.get("strokes"))));
    return made;
  };
  const group = (style, ...parts) => {
    const made = document.createElement("div");
    made.setAttribute("style", `display: flex; ${style}`);
    made.append(...parts);
    return made;
  };
  const buttons = group(
    "flex-direction: column; gap: 4px; margin: 2px",
    button("Undo", "Undo the last stroke", (strokes) => strokes.slice(0, -1)),
    button("Clear", "Clear the drawing", () => []),
  );
  buttons.setAttribute("data-lm-suppress-shortcuts", "true"); // else JupyterLab takes Enter for its own command
  el.append(group("", paper, buttons));
  model.on("change:strokes", show);
  show();
  return () => model.off("change:strokes", show);
}

export default { render };
