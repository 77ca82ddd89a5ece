"""Answers are judged in words, predictions stay folded until chosen, solutions are right, and progress survives anything."""

import json
import math
import re
import subprocess
import sys
import threading
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from solutions import asked, executable, execute, proving, solution

from capsule_lib import checks
from capsule_lib.checks.exercises import answer_key, answers, record
from capsule_lib.checks.exercises.answer_key import Expected, Truth

FOLDER = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("[0-9]*.ipynb"))
NAMES = [path.stem for path in PATHS]
PREDICTION = "\n".join(  # adds keys of its own to the answer key, inside a kernel
    [
        "from capsule_lib import checks, plots",
        "from capsule_lib.checks.exercises import answer_key",
        "from capsule_lib.checks.exercises.answer_key import Expected, Truth",
        "answer_key._all = lambda kind: {",
        "    'predictions': {'03.2': Truth('it shrinks', 'x < 1'), '03.3': Truth('it grows', 'x < 1')},",
        "    'exercises': {'03.1': Expected(0.25)},",
        "}[kind]",
    ]
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPSULE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def key(monkeypatch):
    """An answer key that a test fills."""
    key = {"exercises": {}, "predictions": {}}
    monkeypatch.setattr(answer_key, "_all", lambda kind: key[kind])
    return key


# --- the answer key and the notebooks -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_keys_and_notebook_belong_together(path):
    """Each key is asked once, in its own notebook, in order; each exercise has a solution; predict stands first in its cell."""
    number, cells = path.stem[:2], nbformat.read(path, as_version=4).cells
    for kind, call in (("exercises", "answer"), ("predictions", "predict")):
        found = [key for cell in cells for key in asked(cell, call)]
        expected = sorted(
            (k for k in answer_key.keys(kind) if k.startswith(number)), key=lambda k: int(k.split(".")[1])
        )
        assert found == expected, kind
    solved = {key for cell in cells for key in re.findall(r'checks\.answer\("(.*?)"', solution(cell))}
    assert {k for k in answer_key.keys("exercises") if k.startswith(number)} <= solved
    for cell in cells:
        if asked(cell, "predict"):
            assert cell.source.startswith("checks.predict(")
        assert not re.search(r"^(def )?my_\w+\s*[=(]", solution(cell), re.M), "a solution overwrites the reader's own"


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_any_cell_can_be_run_again(path):
    """All cells, then all backwards, in one kernel; what was predicted comes true both times."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    execute(new_notebook(cells=[new_code_cell(cell.source) for cell in [*cells, *reversed(cells)]]), FOLDER)


def test_a_cell_that_can_not_be_run_again_is_found():
    sources = ["x = 1", "y = x + 1", "x = 'text'"]
    execute(new_notebook(cells=[new_code_cell(source) for source in sources]), ".")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="can only concatenate"):
        execute(new_notebook(cells=[new_code_cell(source) for source in [*sources, *sources[::-1]]]), ".")


# --- the helper itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", ["x = 0.5 ** 2\nchecks.answer(\n    '03.1',\n    x,\n)", "x = 1\nassert x == 1\nx += 1"]
)
def test_a_right_solution_passes(code, key):
    key["exercises"]["03.1"] = Expected(0.25)
    exec(proving(code), {"checks": checks})


WRONG = [
    "checks.answer('03.1', 0.5)",
    "checks.answer('03.1', None)",
    "print('done')",
    "assert 1 == 2",
    "undefined",
    "5",
]


@pytest.mark.parametrize("code", WRONG)
def test_a_wrong_solution_fails(code, key):
    key["exercises"]["03.1"] = Expected(0.25)
    with pytest.raises((AssertionError, NameError)):
        exec(proving(code), {"checks": checks})


def test_solutions_run_in_the_notebook_in_their_place(tmp_path):
    text = "<details><summary>Solution</summary>\n\n```python\ny = x\n```\n\nand\n\n```python\nassert y == 1\n```\n\n</details>"
    block = new_markdown_cell(text, metadata={"tags": ["solution"]})
    execute(new_notebook(cells=[new_code_cell("x = 1"), block, new_code_cell("x = 2")]), tmp_path)
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="assert y == 1"):
        execute(new_notebook(cells=[new_code_cell("x = 1"), new_code_cell("x = 2"), block]), tmp_path)


def test_a_solution_that_proves_nothing_is_refused():
    with pytest.raises(AssertionError, match="proves nothing"):
        proving("x = 1")
    with pytest.raises(AssertionError, match="without a"):
        solution(new_markdown_cell("It is 5.", metadata={"tags": ["solution"]}))


def test_a_truth_that_is_not_measured_fails(key):
    key["predictions"]["03.2"] = Truth("it shrinks", "x > 1")
    cells = [new_code_cell(PREDICTION), new_code_cell("checks.predict('03.2', ['it shrinks', 'it grows'])\nx = 0.5")]
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="prediction 03.2"):
        execute(new_notebook(cells=cells), ".")
    assert len(executable(new_notebook(cells=cells)).cells) == 3


def test_the_written_copies_compare_and_prove(tmp_path, monkeypatch):
    """What `make test` hands to nbval: every cell with its stored output, and between them what has to be true."""
    (path,) = FOLDER.glob("03*.ipynb")
    script = [sys.executable, Path(__file__).with_name("solutions.py"), tmp_path / "copies", path]
    subprocess.run(script, check=True, capture_output=True)
    stored, copy = (nbformat.read(place, as_version=4) for place in (path, tmp_path / "copies" / path.name))
    assert [cell for cell in copy.cells if cell.id in {cell.id for cell in stored.cells}] == stored.cells
    added = [cell.source for cell in copy.cells if cell.id not in {cell.id for cell in stored.cells}]
    assert sum("prediction 03." in source for source in added) == sum(
        k.startswith("03") for k in answer_key.keys("predictions")
    )
    assert sum("_verdict" in source for source in added) == sum(bool(solution(cell)) for cell in stored.cells)


# --- answers --------------------------------------------------------------------------------------------------------

NUMBER = Expected(42.5, "it is so", mistakes={10.0: "ten is half of it"})


@pytest.mark.parametrize(
    "given",
    [42.5, 42.6, torch.tensor(42.5), torch.tensor([[42.5]], requires_grad=True), np.float64(42.5), np.array([42.5])],
)
def test_a_right_number_in_any_form(given):
    assert NUMBER.judge(given) == (True, "it is so")


@pytest.mark.parametrize(
    "given, says",
    [
        (10, "ten is half of it"),
        (-42.5, "sign"),
        (4250.0, "share"),
        (0.425, "percentage"),
        (42500, "factor of 1,000"),
        (42.5 * 1e6 / 1024**2, "MiB"),
        (50, "too large"),
        (40, "too small"),
        ("42.5", "leave out the quotes"),
        (True, "expected a number, got True"),
        (math.nan, "not a finite number"),
        (torch.tensor(math.inf), "not a finite number"),
        (torch.ones(3), "expected a number, got 3 values"),
        ([42.5], "expected a number, got 1 values"),
        ({"a": 1}, "got a dict"),
        (2 + 3j, "expected a number"),
        (torch.ones, "call it"),
        (torch.ones(0), "got 0 values"),
    ],
)
def test_a_wrong_number_is_diagnosed(given, says):
    verdict = NUMBER.judge(given)
    assert verdict.passed is False and says in verdict.message and "42.5" not in verdict.message.replace("'42.5'", "")


def test_whole_numbers_are_exact_unless_said_otherwise():
    assert Expected(6_804_224).judge(6_804_224.0) and not Expected(6_804_224).judge(6_804_225)
    assert Expected(1000, within=0.1).judge(1050) and not Expected(1000, within=0.1).judge(1200)
    assert Expected(0).judge(torch.tensor(0.0)) and not Expected(0).judge(1e-3)
    assert Expected(0.0).judge(1e-3) and Expected(0.0).judge(-1).message == "-1 is too small"


CHOICE = Expected("b", mistakes={"a": "a overlooks the sign", "c": "c overlooks the size"})


@pytest.mark.parametrize("given, passed, says", [
    ("b", True, "right"), (" B ", True, "right"), ("a", False, "sign"), ("C", False, "size"),
    ("d", False, "one of 'a', 'b', 'c'"), (2, False, "words in quotes, one of 'a', 'b', 'c'; got 2"),
])  # fmt: skip
def test_a_choice(given, passed, says):
    verdict = CHOICE.judge(given)
    assert verdict.passed is passed and says in verdict.message


def test_a_truth_value_is_not_a_number_or_a_word():
    assert Expected(True).judge(True) and Expected(True).judge(torch.tensor(True))
    assert Expected(True).judge(False).message == "not this one"
    for given in (1, "True", None, [True]):
        assert "expected True or False" in Expected(True).judge(given).message


def test_several_numbers():
    expected = Expected([1, 2, 7.0])
    for given in ([1, 2, 7], (1, 2, 7.01), torch.tensor([1, 2, 7]), [torch.tensor(1), np.int64(2), 7]):
        assert expected.judge(given)
    assert expected.judge([1, 2, 8]).message == "2 of the 3 numbers are right"
    assert "expected 3 numbers" in expected.judge([1, 2]).message and "expected 3 numbers" in expected.judge(1).message
    assert "leave out the quotes" in expected.judge([1, "2", 7]).message


def test_answer_knows_stubs_functions_and_keys(key):
    key["exercises"] |= {"03.1": NUMBER, "03.2": checks.squash}
    for stub in (None, ..., [None, None], (1, None), {"A": None}, [[...], 1]):
        assert repr(answers.answer("03.1", stub)) == "… not answered yet"
    assert answers.answer("03.2", lambda s: None).passed is None
    assert answers.answer("03.2", lambda s: s).passed is False
    assert answers.answer("03.2", 5).passed is False
    with pytest.raises(KeyError, match=r"no '03.7' among the exercises: choose one of 03.1, 03.2"):
        answers.answer("03.7", 1)


def test_what_the_reader_gives_never_raises(key):
    class Hostile:
        def __getattr__(self, name):
            raise RuntimeError(name)

        def __repr__(self):
            raise RuntimeError("no")

    key["exercises"] |= {"03.1": NUMBER, "03.2": CHOICE, "03.3": Expected([1, 2]), "03.4": Expected(True)}
    key["exercises"]["03.5"] = checks.squash
    for name in key["exercises"]:
        for given in (Hostile(), [Hostile()], {}, set(), "", b"", object, torch.nn.Linear(1, 1), [[1, 2], 3], 10**400):
            assert answers.answer(name, given).passed in (False, None)


# --- progress -------------------------------------------------------------------------------------------------------


def test_only_right_answers_count_and_reset_forgets_them(key, home):
    key["exercises"] |= {"03.1": NUMBER, "03.2": NUMBER, "04.1": NUMBER}
    key["predictions"]["03.1"] = Truth("a", "True")
    assert record.counted() == "0 of 1 predictions, 0 of 3 exercises"
    answers.answer("03.1", 1), answers.answer("03.1", None)
    assert record.counted().endswith("0 of 3 exercises") and not home.exists()
    for exercise in ("03.1", "03.1", "03.2", "04.1"):
        assert answers.answer(exercise, 42.5).message == "it is so"
    assert record.counted() == "0 of 1 predictions, 3 of 3 exercises"
    assert sorted(path.name for path in home.rglob("*") if path.is_file()) == ["03.json", "04.json"]
    del key["exercises"]["04.1"]  # what the course no longer asks does not count
    assert record.counted() == "0 of 1 predictions, 2 of 2 exercises"
    checks.progress(reset=True)
    assert record.counted() == "0 of 1 predictions, 0 of 2 exercises"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"predictions": 3}', b"\xff\xfe", json.dumps([1]).encode()])
def test_a_damaged_file_counts_as_nothing_and_is_replaced(key, home, content):
    key["exercises"]["03.1"] = NUMBER
    (home / "progress").mkdir(parents=True)
    (home / "progress/03.json").write_bytes(content)
    assert record.counted() == "0 of 0 predictions, 0 of 1 exercises"
    assert answers.answer("03.1", 42.5).message == "it is so"
    assert record.counted() == "0 of 0 predictions, 1 of 1 exercises"


def test_where_nothing_can_be_kept_a_word_says_so(key, home):
    key["exercises"]["03.1"] = NUMBER
    home.write_text("a file in the folder's place")  # like a folder that is read-only, but for root too
    verdict = answers.answer("03.1", 42.5)
    assert verdict.passed and "could not be kept" in verdict.message and "CAPSULE_HOME" in verdict.message
    checks.progress(), checks.progress(reset=True)


def test_a_full_disk_leaves_what_was_kept(key, home, monkeypatch):
    key["exercises"] |= {"03.1": NUMBER, "03.2": NUMBER}
    answers.answer("03.1", 42.5)

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left on device" in answers.answer("03.2", 42.5).message
    monkeypatch.undo()
    monkeypatch.setenv("CAPSULE_HOME", str(home))
    assert list(record._read(home / "progress/03.json")["exercises"]) == ["03.1"]


def test_two_notebooks_at_once(home, key):
    key["exercises"] |= {f"{n:02d}.1": NUMBER for n in range(8)}
    threads = [threading.Thread(target=answers.answer, args=(name, 42.5)) for name in key["exercises"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert record.counted() == "0 of 0 predictions, 8 of 8 exercises"


# --- predictions ----------------------------------------------------------------------------------------------------


def ran(*sources):
    """Outputs of each cell, run in one kernel; an error is an output like any other."""
    cells = [new_code_cell(PREDICTION), *map(new_code_cell, sources)]
    notebook = new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=60, allow_errors=True, store_widget_state=False).execute()
    return [cell.outputs for cell in notebook.cells[1:]]


ASK = "checks.predict('03.2', ['it grows', 'it shrinks'])\n"
SHOWING = """x = 0.5
print("printed", x)
import sys; print("progress", file=sys.stderr)
plots.table({"square": x**2})
from PIL import Image
plots.show(Image.new("L", (4, 4)), "A <black> square.")
print("and after")
x**3"""


def test_what_a_cell_displays_is_folded_and_nothing_else():
    slider = ASK + "import ipywidgets\nprint('hidden')\nipywidgets.IntSlider()"
    error = ASK + "print('before')\n1 / 0"
    silent = "checks.predict('03.3', ['it grows', 'no'])\n1;"
    folded, after, broken, free, live, nothing = ran(
        ASK + SHOWING, "print('free')\n2", error, "print('free')", slider, silent
    )

    question, stderr, fold = folded
    assert question.data["text/plain"] == "Predict before you look: it grows, or it shrinks?"
    assert "it grows, or it shrinks" in question.data["text/html"] and stderr.text == "progress\n"
    page = fold.data["text/html"]
    assert page.startswith("<details><summary") and page.endswith("</details>") and "<img alt=" in page
    parts = "printed 0.5", "<table>", "data:image/png", "<em>A &lt;black&gt; square", "and after", "0.125"
    order = [page.index(part) for part in parts]
    assert order == sorted(order) and 'alt="A &lt;black&gt; square."' in page
    assert fold.data["text/plain"] == "printed 0.5\nsquare  0.25\nand after\n0.125"
    assert after[0].text == "free\n" and after[1].data["text/plain"] == "2" and after[1].output_type == "execute_result"

    assert [out.output_type for out in broken] == ["display_data", "error", "display_data"]
    assert "before" in broken[2].data["text/html"] and free[0].text == "free\n"
    assert ["application/vnd.jupyter.widget-view+json" in out.data for out in live] == [True, True, False]
    assert len(nothing) == 1


CHOOSE = """import gc
questions = [found for found in gc.get_objects() if type(found).__name__ == "_Question"]
question = next(found for found in questions if not found.buttons[0].disabled)
question.buttons[BUTTON].click()
print(question.message.value, [button.disabled for button in question.buttons])"""


def test_choosing_opens_the_fold_shows_both_and_is_kept():
    ask, forget = ASK + "print('hidden')", "checks.progress(reset=True)"
    wrong = [ask, CHOOSE.replace("BUTTON", "0"), ask, forget]
    right = [ask, CHOOSE.replace("BUTTON", "1"), ask, forget, ask]
    outputs = ran(*wrong, *right)
    for n, says in [
        (0, "✗ You predicted <b>it grows</b>: the answer is <b>it shrinks</b>"),
        (4, "✓ You predicted <b>it shrinks</b>: and so it is"),
    ]:
        first, choosing, again, forgotten, *_ = outputs[n:]
        assert first[1].data["text/html"].startswith("<details open>")  # brought up to date after the choice
        assert says in choosing[0].text and "1 of 2 predictions, 0 of 1 exercises" in choosing[0].text
        assert "[True, True]" in choosing[0].text
        assert says in again[0].data["text/html"] and again[1].data["text/html"].startswith("<details open>")
        assert forgotten[0].data["text/plain"] == "0 of 2 predictions, 0 of 1 exercises"
    assert outputs[-1][1].data["text/html"].startswith("<details><")


def test_wrong_options_are_refused(key):
    key["predictions"]["03.2"] = Truth("it shrinks", "True")
    for options in (["it grows", "it stays"], ["it shrinks", "it shrinks"], []):
        with pytest.raises(ValueError, match=r"options of prediction 03.2"):
            checks.predict("03.2", options)
    with pytest.raises(KeyError, match=r"among the predictions: choose one of 03.2"):
        checks.predict("03.9", ["a", "b"])


def test_outside_a_notebook_nothing_is_hidden(key, capsys):
    key["predictions"]["03.2"] = Truth("it shrinks", "True")
    checks.predict("03.2", ["it grows", "it shrinks"])
    print("seen")
    assert "seen" in capsys.readouterr().out
