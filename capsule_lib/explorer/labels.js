// The page's side of labels.Labels: names, for a screen reader, what Jupyter's own widgets leave without a name.
const name = (part, words) => {
  if (words && part.getAttribute("aria-label") !== words) part.setAttribute("aria-label", words);
};

function nameAll(explorer, pictures) {
  for (const slider of explorer.querySelectorAll(".widget-slider")) {
    const words = slider.querySelector(".widget-label").title; // the tooltip, on a label that is hidden
    for (const part of slider.querySelectorAll(".noUi-handle, .widget-readout")) name(part, words);
    if (slider.title !== words) slider.title = words;
  }
  for (const button of explorer.querySelectorAll("button[title]"))
    if (!/\p{L}/u.test(button.textContent)) name(button, button.title);
  for (const text of explorer.querySelectorAll('input[placeholder]:not([placeholder=""])')) // its label is a number
    name(text, `${text.placeholder}: ${text.closest(".widget-text").querySelector(".widget-label").textContent}`);
  for (const [kind, words] of Object.entries(pictures))
    for (const picture of explorer.querySelectorAll(`img.${kind}`)) name(picture, words);
}

function render({ model, el }) {
  let explorer, waiting;
  const update = () => nameAll(explorer, model.get("pictures"));
  const watcher = new MutationObserver(update);
  const begin = () => {
    explorer = el.closest(".capsule-explorer");
    if (!explorer) {
      waiting = requestAnimationFrame(begin); // not on the page yet
      return;
    }
    update();
    // Controls come one by one, and tooltips change.
    watcher.observe(explorer, { childList: true, subtree: true, attributes: true, attributeFilter: ["title"] });
  };
  begin();
  return () => {
    cancelAnimationFrame(waiting);
    watcher.disconnect();
  };
}

export default { render };
