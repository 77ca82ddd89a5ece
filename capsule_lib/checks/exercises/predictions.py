"""Commit, then reveal: a question whose answer, the rest of the cell's output, stays folded until the reader has chosen."""

import io
import sys
from base64 import b64encode
from html import escape
from typing import ClassVar

import ipywidgets as widgets
from IPython import get_ipython
from IPython.display import HTML, display

from capsule_lib.checks.exercises.answer_key import look_up
from capsule_lib.checks.exercises.record import chosen, counted, record

WIDGET = "application/vnd.jupyter.widget-view+json"


def predict(key: str, options: list[str]) -> None:
    """Ask for a prediction in the first line of a cell; what the cell displays after it is folded until an option is chosen.

    The choice is then shown beside the truth, and kept: run again, the cell is open. On a page without a kernel the output
    lies folded below the question. Progress bars (stderr), errors and other widgets are shown as always.

    Raises:
        KeyError: there is no such prediction.
        ValueError: the truth is not among the options.
    """
    truth = look_up("predictions", key).option
    if truth not in options or len(set(options)) < len(options):
        raise ValueError(f"the options of prediction {key} must differ, and {truth!r} be one of them; got {options}")
    choice = chosen(key) if chosen(key) in options else None
    fold = _Fold(is_open=choice is not None)
    if choice is None:
        display(_Question(key, options, truth, fold))
    else:
        display(HTML(_beside(choice, truth)))
    fold.start()


def _beside(choice: str, truth: str, note: str = "") -> str:
    outcome = "and so it is" if choice == truth else f"the answer is <b>{escape(truth)}</b>"
    mark = "✓" if choice == truth else "✗"
    return f'<span role="alert">{mark} You predicted <b>{escape(choice)}</b>: {outcome}. ({counted()}){escape(note)}</span>'


class _Question(widgets.VBox):
    """The options as buttons."""

    def __init__(self, key: str, options: list[str], truth: str, fold: "_Fold"):
        self.key, self.options, self.truth, self.fold = key, options, truth, fold
        layout = widgets.Layout(width="auto", height="auto", padding="4px 12px")
        self.buttons = [widgets.Button(description=option, layout=layout) for option in options]
        for button in self.buttons:
            button.on_click(lambda pressed: self.choose(pressed.description))
        self.message = widgets.HTML("Your prediction, before you look?")
        row = widgets.HBox(self.buttons, layout=widgets.Layout(flex_flow="row wrap"))
        super().__init__([self.message, row])

    def choose(self, choice: str) -> None:
        for button in self.buttons:
            button.disabled = True
            button.icon = "check" if button.description == choice else ""
        note = record("predictions", self.key, choice)
        self.message.value = _beside(choice, self.truth, note)
        self.fold.open()

    def _repr_mimebundle_(self, **kwargs):
        words = f"Predict before you look: {', '.join(self.options[:-1])}, or {self.options[-1]}?"
        return super()._repr_mimebundle_(**kwargs) | {"text/plain": words, "text/html": f"<p>{escape(words)}</p>"}


class _Fold:
    """Collects what the running cell displays, and shows it in one piece when the cell ends: folded, or open."""

    SUMMARY: ClassVar = {False: "Made your prediction? Open the answer", True: "The answer"}

    def __init__(self, is_open: bool):
        self.is_open, self.parts, self.handle = is_open, [], None

    def start(self) -> None:
        self.shell = get_ipython()
        if not hasattr(getattr(self.shell, "display_pub", None), "register_hook"):
            return  # no notebook: there is nothing to fold
        self.stdout, sys.stdout = sys.stdout, _Text(self.parts)
        sys.displayhook = self._last_expression  # IPython puts its own back when the cell ends
        self.shell.display_pub.register_hook(self._collect)
        self.shell.events.register("post_run_cell", self._stop)

    def _collect(self, message: dict) -> dict | None:
        content = message["content"]
        if message["msg_type"] != "display_data" or WIDGET in content["data"]:
            return message
        self.parts.append((content["data"], content["metadata"]))
        return None

    def _last_expression(self, value) -> None:
        if value is not None and not self.shell.displayhook.quiet():
            display(value)

    def _stop(self, _=None) -> None:
        sys.stdout = self.stdout
        self.shell.display_pub.unregister_hook(self._collect)
        self.shell.events.unregister("post_run_cell", self._stop)
        if self.parts:
            self.handle = display(self._bundle(), raw=True, display_id=True)

    def open(self) -> None:
        self.is_open = True
        if self.handle:
            self.handle.update(self._bundle(), raw=True)

    def _bundle(self) -> dict[str, str]:
        texts = [data.get("text/plain", "").strip("\n") for data, _ in self.parts]
        plain = "\n".join(text for text in texts if text and not (text[0] == "<" and text[-1] == ">"))
        inside = "".join(_as_html(*part) for part in self.parts)
        summary = f'<summary style="cursor: pointer">{self.SUMMARY[self.is_open]}</summary>'
        page = f"<details{' open' * self.is_open}>{summary}{inside}</details>"
        return {"text/html": page, "text/plain": plain or "A picture"}


def _as_html(data: dict, metadata: dict) -> str:
    if "text/html" in data:
        return f"<div>{data['text/html']}</div>"
    if picture := data.get("image/png"):
        alt = escape(metadata.get("image/png", {}).get("alt", ""))
        coded = b64encode(picture).decode() if isinstance(picture, bytes) else "".join(picture.split())
        return f'<img alt="{alt}" src="data:image/png;base64,{coded}" style="max-width: 100%"/>'
    return f"<pre>{escape(data.get('text/plain', ''))}</pre>"


class _Text(io.TextIOBase):
    """In the place of stdout: what is printed joins what is displayed, in its order."""

    def __init__(self, parts: list):
        self.parts = parts

    def write(self, text: str) -> int:
        if self.parts and self.parts[-1][1].get("printed"):
            self.parts[-1][0]["text/plain"] += text
        else:
            self.parts.append(({"text/plain": text}, {"printed": True}))
        return len(text)
