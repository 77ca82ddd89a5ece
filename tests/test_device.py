"""Every notebook and the training command on an accelerator, without one: on `stand_in`, which refuses to mix devices.

`make test-device` runs all of it. A notebook on the stand-in alone:  python tests/stand_in.py jupyter lab
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from nbformat.v4 import new_code_cell
from solutions import executable

stand_in = pytest.importorskip("stand_in", exc_type=ImportError, reason="needs a torch that takes a backend in Python")
NAME = stand_in.NAME
FOLDER = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("[0-9]*.ipynb"))
# Executed after the last cell. What a control calls has been called where it stood, so it is moved to all its ends.
MOVE_CONTROLS = """
import torch
import stand_in
from ipywidgets.widgets.widget import _instances as all_widgets

assert torch.accelerator.current_accelerator().type == "stand_in", "the stand-in is not there"
assert "device" not in globals() or device.type == "stand_in", f"the device is {device}"
refused = []
for widget in list(all_widgets.values()):
    moves = [("index", n) for n in range(len(getattr(widget, "options", ())))]
    moves += [("value", getattr(widget, end)) for end in ("min", "max") if hasattr(widget, end)]
    moves += [("value", not widget.value)] if isinstance(getattr(widget, "value", None), bool) else []
    for name, value in moves:
        try:
            setattr(widget, name, value)
        except Exception:
            pass  # such as what a picture has to say of this place; what the stand-in refuses is no Exception
        except stand_in.Refused as error:
            refused.append(f"{type(widget).__name__} {widget.description!r} at {value}: {error}")
if refused:
    raise stand_in.Refused("; ".join(refused))
"""


@pytest.fixture(scope="module")
def variables():
    with stand_in.environment() as variables:
        yield {**variables, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}


def failures(notebook, name, folder, variables) -> list[str]:
    """Execute all cells on the stand-in, in `folder`: of each cell that fails its number, the line and the error."""
    whole, own = executable(notebook), {cell.id for cell in notebook.cells}
    whole.cells.append(new_code_cell(MOVE_CONTROLS))
    where = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(whole, timeout=900, allow_errors=True, resources=where, store_widget_state=False)
    client.execute(env={**variables, "CAPSULE_HOME": str(folder / "home")})
    found, number = [], 0
    for cell in whole.cells:
        number += cell.cell_type == "code" and cell.id in own
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                trace = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(output.traceback))
                lines = re.findall(r"^-+> *(\d+) *(.*)$", trace, re.M) or [("?", "")]
                place = "" if cell.id in own else "what the tests add after "
                line = f"line {lines[0][0]}: {lines[0][1]}"  # the cell's own; the last one is where it stopped
                found.append(f"{name}, {place}code cell {number}, {line}\n    {output.ename}: {output.evalue}")
    return found


def check(path, tmp_path, variables):
    folder = shutil.copytree(
        FOLDER, tmp_path / "notebooks"
    )  # where a notebook finds its pictures, and saves its network
    found = failures(nbformat.read(path, as_version=4), path.name, folder, variables)
    if found:
        pytest.fail("\n".join(found), pytrace=False)


def test_a_notebook_runs_on_the_stand_in(tmp_path, variables):
    check(PATHS[0], tmp_path, variables)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS[1:], ids=[path.stem for path in PATHS[1:]])
def test_every_notebook_runs_on_the_stand_in(path, tmp_path, variables):
    check(path, tmp_path, variables)


MISPLACED = {  # a cell to add to a notebook, and what is said of it
    "torch.zeros(2, 3, device=device) + torch.ones(2, 3)": "aten::add.Tensor takes tensors of one device, but "
    "'self' [2, 3] is on stand_in:0 and 'other' [2, 3] is on cpu",
    "x = torch.rand(2, 1, 28, 28)\nnet.stem(x)": "aten::convolution takes tensors of one device, but "
    "'input' [2, 1, 28, 28] is on cpu and 'weight' [64, 1, 9, 9] is on stand_in:0",
    "import matplotlib.pyplot as plt\n\nplt.plot(torch.ones(3, device=device))": "numpy() of a tensor on stand_in:0",
    "plots.live(lambda x: plots.digit_image(torch.rand(5, 5, device=device) @ torch.rand(5, 5)), x=widgets.IntSlider())":
    "aten::mm takes tensors of one device",  # plots.live shows errors, and does not raise them
    "plots.live(lambda x: plots.digit_image(torch.rand(5, 5) + x * torch.ones(5, 5, device=device if x else 'cpu')), "
    "x=widgets.IntSlider(0, 0, 1))": None,  # this one fails only where the slider is moved to
    "torch.rand(3, device=device, generator=torch.Generator().manual_seed(0))": "takes a generator of stand_in",
    "torch.linspace(0, 1, 3, dtype=torch.float64).to(device)": "MPS has no torch.float64",
}  # fmt: skip
PREPARED = """
import ipywidgets as widgets
import torch
from capsule_lib import CapsNet, plots, set_up

device = set_up()
net = CapsNet.from_preset("small").to(device)
"""


def test_a_misplaced_tensor_is_found(tmp_path, variables):
    """In a copy of a notebook: its set-up, and then a cell for each."""
    notebook = nbformat.read(PATHS[0], as_version=4)
    first = next(n for n, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells = [*notebook.cells[: first + 1], new_code_cell(PREPARED), *map(new_code_cell, MISPLACED)]
    found = failures(notebook, PATHS[0].name, tmp_path, variables)
    for number, (source, text) in enumerate(MISPLACED.items(), start=3):
        line = source.splitlines()[-1]
        if text:
            place = f"00_start_here.ipynb, code cell {number}, line {len(source.splitlines())}: {line}"
            assert [place in each and text in each for each in found].count(True) == 1, f"{place}\n{text}\n{found}"
    assert "what the tests add after" in found[-1] and "IntSlider 'x' at 1: aten::add.Tensor" in found[-1]
    assert len(found) == len(MISPLACED)


def test_the_training_command(tmp_path, variables):
    words = [sys.executable, str(Path(__file__).parent / "short_training.py"), "--preset", "tiny", "--epochs", "2"]
    run = subprocess.run([*words, "--out", str(tmp_path / "run")], env=variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    card = json.loads((tmp_path / "run" / "weights.json").read_text())
    assert f" on {NAME} " in card["machine"] and (tmp_path / "run" / "weights.safetensors").is_file()


@pytest.mark.parametrize("where", [NAME, pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_holds_on_any_accelerator(where, variables):
    """The stand-in's own tests; on CUDA they show that it refuses what CUDA refuses, and nothing else."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).parent / "on_device.py"),
    ]
    env = variables if where == NAME else {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, cwd=FOLDER.parent)
    assert run.returncode == 0, run.stdout[-5000:]
