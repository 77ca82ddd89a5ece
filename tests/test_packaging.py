"""The course as others get it: a wheel, a lock, folders that can't be written, and what stands in for private names of PyTorch."""

import errno
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from capsule_lib import (
    CapsNet,
    CapsNetConfig,
    device,
    load_digits,
    load_pretrained,
    load_weights,
    save_weights,
    weights,
)
from capsule_lib.checks.exercises import record
from capsule_lib.data import digits
from capsule_lib.explorer import CapsuleExplorer, load_spreads, save_spreads
from capsule_lib.explorer import spreads as spreads_file
from capsule_lib.files import capsule_home, find, is_writable, writable_path, write_whole
from capsule_lib.train.command import main as train
from capsule_lib.weights import read_card

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [Requirement(r) for r in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]
TINY = CapsNetConfig((1, 9, 9), classes=3, stem_channels=4, kernel_size=3, types=2, class_dim=5, decoder_hidden=(8, 9))


# A wheel


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Where a wheel lies unpacked. It was built, without a network, from a copy of the repository in which people have worked."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"
    for name in ("capsule_lib", "data"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("*MNIST"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, checkout / name)
    for rubbish in ("data/MNIST/raw/train-images-idx3-ubyte", "capsule_lib/explorer/capsule_names.json"):
        write_whole({checkout / rubbish: b"of a reader's own"})
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=checkout, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "site")  # all that installing does with a package of Python alone
    shutil.rmtree(checkout)
    return folder / "site"


@pytest.fixture
def python(site, tmp_path):
    """A function that runs Python in an empty folder, with the course of the wheel and all else of this environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CAPSULE_")}
    environment |= {"PYTHONPATH": str(site), "CAPSULE_HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    (tmp_path / "elsewhere").mkdir()

    def run(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, env=environment, cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=True
        ).stdout

    return run


def test_a_wheel_has_every_file_of_the_package_and_of_the_data_and_nothing_else(site):
    def files(folder, *left_out):
        paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        return {path for path in paths if not {"__pycache__", ".ipynb_checkpoints", *left_out} & set(path.parts)}

    package = files(ROOT / "capsule_lib", "capsule_names.json")
    shipped = {path for path in files(ROOT / "data", "MNIST", "FashionMNIST") if path.suffix != ".py"}
    assert {Path(name) for name in ("explorer/explorer.js", "course.mplstyle", "explorer/page.html")} <= package
    assert {
        Path(name) for name in ("weights/results.md", "weights/paper.safetensors", "benchmarks/two-cores.json")
    } <= shipped
    assert files(site / "capsule_lib") == package | {"shipped" / path for path in shipped}
    for path in shipped:
        assert (site / "capsule_lib" / "shipped" / path).read_bytes() == (ROOT / "data" / path).read_bytes()


def test_an_installed_course_works_from_any_folder(python, site):
    script = """
import importlib, pkgutil, capsule_lib
from capsule_lib.data import DATA
for module in pkgutil.walk_packages(capsule_lib.__path__, "capsule_lib."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from capsule_lib.explorer import CapsuleExplorer, load_spreads
capsule_lib.set_up()
images, labels = capsule_lib.load_digits(split="test")
for name in ("small", "paper"):
    out = capsule_lib.load_pretrained(name)(images[:100])
    assert (out.lengths.argmax(1) == labels[:100]).float().mean() > 0.95
CapsuleExplorer(capsule_lib.load_pretrained("small"), (images, labels), load_spreads("small"), label=3)
print(DATA)
"""
    assert python("-c", script).splitlines()[-1] == str(site / "capsule_lib" / "shipped")


@pytest.mark.parametrize("command", ["train", "bench"])
def test_an_installed_course_has_its_commands(python, command):
    assert f"usage: python -m capsule_lib.{command}" in python("-m", f"capsule_lib.{command}", "--help")


@pytest.mark.parametrize("call", [load_digits, load_pretrained, load_spreads, lambda: load_pretrained("paper")])
def test_a_course_without_its_data_says_how_to_get_them(tmp_path, monkeypatch, call):
    """As when only the folder capsule_lib was copied."""
    monkeypatch.setattr(digits, "DATA", tmp_path / "data")
    for module in (weights, spreads_file):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path / "data/weights")
    with pytest.raises(
        (FileNotFoundError, ValueError), match=r"missing.*git checkout -- data, or.*pip install FOLDER"
    ) as e:
        call()
    assert "\n" not in str(e.value)


# Folders that can't be written


READ_ONLY = []


def refuse(event, args):
    """Python tells of everything that it is about to do to files; what would write into READ_ONLY fails here, for root too."""
    if not READ_ONLY or event not in ("open", "os.mkdir", "os.rename", "os.remove"):
        return
    if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
        return
    for path in args[: 2 if event == "os.rename" else 1]:
        if isinstance(path, str | bytes | os.PathLike) and Path(os.path.abspath(os.fsdecode(path))).is_relative_to(
            READ_ONLY[0]
        ):
            raise OSError(READ_ONLY[1], os.strerror(READ_ONLY[1]), os.fsdecode(path))


sys.addaudithook(refuse)


@pytest.fixture(params=[errno.EACCES, errno.EROFS], ids=["no permission", "mounted read-only"])
def course(request, tmp_path, monkeypatch):
    """The folder in which the reader's notebook runs: others' weights are in it, and the reader can't write there."""
    course, home = tmp_path / "course", tmp_path / "home"
    save_weights(CapsNet(TINY), course / "theirs.safetensors")
    there = {path.name: path.read_bytes() for path in course.iterdir()}
    monkeypatch.setenv("CAPSULE_HOME", str(home))
    monkeypatch.chdir(course)
    READ_ONLY[:] = [course, request.param]
    with pytest.raises(OSError):
        (course / "mine").write_text("")
    yield course
    READ_ONLY.clear()
    assert {path.name: path.read_bytes() for path in course.iterdir()} == there


def test_weights_saved_in_a_read_only_course_go_to_the_readers_folder_and_are_found_again(course, capsys):
    net = CapsNet(TINY)
    path = save_weights(net, "my_capsnet.safetensors", epochs=3)
    assert path == capsule_home() / "my_capsnet.safetensors"
    said = capsys.readouterr().out
    assert str(course) in said and "read-only" in said and str(path) in said and len(said.splitlines()) == 1
    images = torch.rand(2, 1, 9, 9)
    for name in (path, "my_capsnet.safetensors"):
        assert torch.equal(load_weights(name)(images).lengths, net.eval()(images).lengths)
        assert read_card(name)["epochs"] == 3
    assert save_weights(net, "runs/mine/my_capsnet.safetensors") == path


def test_the_readers_own_weights_go_before_those_that_lie_in_the_read_only_course(course):
    theirs, mine = load_weights("theirs.safetensors"), CapsNet(TINY)
    save_weights(mine, "theirs.safetensors")
    assert torch.equal(load_weights("theirs.safetensors").digit_caps.weight, mine.digit_caps.weight)
    assert torch.equal(load_weights(course / "theirs.safetensors").digit_caps.weight, theirs.digit_caps.weight)


def test_weights_that_are_nowhere_are_missed_where_they_were_looked_for(course):
    with pytest.raises(FileNotFoundError, match=r"no file my_typo.safetensors"):
        load_weights("my_typo.safetensors")


def test_the_explorer_keeps_names_and_pictures_in_the_readers_folder(course):
    net, some = CapsNet(TINY).eval(), (torch.rand(9, 1, 9, 9), torch.arange(9) % 3)
    shown = CapsuleExplorer(net, some, label=1)
    shown.set_state({"_names": {"dimension 2": "slant"}})  # as the page sends it
    assert (capsule_home() / "capsule_names.json").is_file()
    assert CapsuleExplorer(net, some, label=1)._names == {"dimension 2": "slant"}
    path = shown.save("three.png")
    assert path == capsule_home() / "three.png" and path.read_bytes().startswith(b"\x89PNG")


def test_whatever_is_written_by_a_full_path_into_a_read_only_folder_says_what_to_do(course):
    net = CapsNet(TINY)
    shown = CapsuleExplorer(net, (torch.rand(9, 1, 9, 9), torch.arange(9) % 3))
    for write in (
        lambda: save_weights(net, course / "net.safetensors"),
        lambda: save_weights(net, course / "new" / "net.safetensors"),
        lambda: save_spreads(shown.spreads, course / "theirs.safetensors"),
        lambda: shown.save(course / "picture.png"),
        lambda: write_whole({capsule_home() / "mine": b"", course / "theirs.json": b"mine"}),
    ):
        with pytest.raises(PermissionError, match=r"can't be written.*read-only.*folder of your own"):
            write()
    assert list(capsule_home().iterdir()) == []


def test_spreads_go_beside_the_weights_wherever_those_are(course):
    net = CapsNet(TINY)
    path = save_weights(net, "mine.safetensors")
    spreads = CapsuleExplorer(net, (torch.rand(9, 1, 9, 9), torch.arange(9) % 3)).spreads
    assert save_spreads(spreads, "mine.safetensors") == path.with_suffix(".spreads.safetensors")


def test_a_training_into_a_read_only_folder_ends_at_once_in_a_line(course, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--out", "runs/first", "--epochs", "1"])
    assert train() == 1
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert re.match(r"error: runs/first/checkpoint.pt can't be written.*folder of your own", said)


def test_where_not_even_the_readers_folder_can_be_written_the_error_names_capsule_home(course, monkeypatch):
    monkeypatch.setenv("CAPSULE_HOME", str(course / "home"))
    with pytest.raises(PermissionError, match=r"course/home/net.safetensors can't be written.*CAPSULE_HOME"):
        save_weights(CapsNet(TINY), "net.safetensors")
    assert "could not be kept" in record.record("exercises", "03.1")


def test_where_it_can_be_written_everything_stays_beside_the_notebook(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        save_weights(CapsNet(TINY), "new/net.safetensors") == Path("new/net.safetensors")
        and not capsys.readouterr().out
    )
    assert (tmp_path / "new/net.json").is_file() and is_writable(tmp_path)
    for name in ("a.png", "new/a.png", "../a.png", "no/such/folder/a.png", str(tmp_path / "a.png")):
        assert writable_path(name) == find(name) == Path(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]  # it was tried, and nothing is left of that


def test_an_absolute_path_is_never_changed(course):
    assert writable_path(course / "a.png") == course / "a.png" and not is_writable(course)


@pytest.mark.parametrize("kind", ["installed", "read-only", "checkout", "without data"])
def test_where_a_download_goes(tmp_path, monkeypatch, kind):
    from torchvision import datasets

    def download(self):
        for split, count in (("train", 60_000), ("t10k", 10_000)):
            write_whole(
                {
                    Path(self.raw_folder) / f"{split}-{name}-ubyte": header + bytes(size * count)
                    for name, header, size in [
                        ("images-idx3", bytes([0, 0, 8, 3, 0, 0, *divmod(count, 256), 0, 0, 0, 28, 0, 0, 0, 28]), 784),
                        ("labels-idx1", bytes([0, 0, 8, 1, 0, 0, *divmod(count, 256)]), 1),
                    ]
                }
            )

    own, home = tmp_path / "data", tmp_path / "home"
    if kind != "without data":
        own.mkdir()
    monkeypatch.setenv("CAPSULE_HOME", str(home))
    monkeypatch.delenv("CAPSULE_DATA", raising=False)
    monkeypatch.setattr(digits, "DATA", own)
    if kind == "installed":
        monkeypatch.setattr(digits, "INSTALLED", own)
    if kind == "read-only":
        READ_ONLY[:] = [own, errno.EROFS]
    with monkeypatch.context() as patch:
        patch.setattr(datasets.MNIST, "download", download)
        assert len(load_digits("fashion", "test")[0]) == 10_000
    READ_ONLY.clear()
    expected, other = (own, home / "data") if kind == "checkout" else (home / "data", own)
    assert (expected / "FashionMNIST/raw").is_dir() and not (other / "FashionMNIST").exists()
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: pytest.fail("it is there"))
    assert len(load_digits("fashion", "train")[0]) == 60_000


# Versions


LOCK = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
SYSTEMS = {  # as their markers are called
    "Linux": {"sys_platform": "linux", "os_name": "posix", "platform_system": "Linux"},
    "macOS": {"sys_platform": "darwin", "os_name": "posix", "platform_system": "Darwin", "platform_machine": "arm64"},
    "Windows": {"sys_platform": "win32", "os_name": "nt", "platform_system": "Windows", "platform_machine": "AMD64"},
}


@pytest.mark.parametrize("python_version", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_lock_names_one_version_of_every_dependency_on_every_system(system, python_version):
    where = SYSTEMS[system] | {"python_version": python_version, "python_full_version": f"{python_version}.9"}
    locked = {}
    for line in LOCK:
        (exact,) = line.specifier
        assert exact.operator == "=="
        if not line.marker or line.marker.evaluate(where):
            assert line.name not in locked
            locked[line.name] = exact.version
    for requirement in REQUIREMENTS:
        assert requirement.specifier.contains(locked[requirement.name]), requirement
    assert {"jupyter-server", "traitlets", "ipykernel"} <= locked.keys()  # what they need in their turn
    assert ("appnope" in locked) == (system == "macOS") and ("pywinpty" in locked) == (system == "Windows")


def test_what_pytorch_brings_for_the_gpu_is_left_to_its_build():
    assert not [line.name for line in LOCK if line.name.startswith(("cuda", "nvidia", "triton"))]


def test_every_dependency_has_a_lower_bound_and_what_is_known_not_to_work_is_left_out():
    for requirement in REQUIREMENTS:
        assert any(part.operator == ">=" for part in requirement.specifier), requirement
    (widgets,) = [r.specifier for r in REQUIREMENTS if r.name == "ipywidgets"]
    assert "8.1.9" not in widgets and "8.1.8" in widgets and "8.1.10" in widgets


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_installs_what_is_locked_unless_told_not_to():
    def commands(*arguments):
        return subprocess.check_output(["make", "-B", "-n", *arguments], cwd=ROOT, text=True)

    assert '--constraint requirements.lock --editable ".[test]"' in commands("lab")
    assert "requirements.lock" not in commands("lab", "LOCK=")


def test_one_version_of_the_course_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert citation["version"] == PROJECT["version"] and Version(changes[0]) == Version(PROJECT["version"])
    assert changes == sorted(changes, key=Version, reverse=True)
    assert citation["cff-version"] and citation["message"] and citation["title"] and citation["license"] == "MIT"
    holder = re.search(r"Copyright \(c\) \d+ (.*)", (ROOT / "LICENSE").read_text())[1]
    assert [author["name"] for author in citation["authors"]] == [holder]
    (paper,) = citation["references"]
    assert paper["title"] == "Dynamic Routing Between Capsules" and len(paper["authors"]) == 3


# Private names of PyTorch


def test_private_names_of_pytorch_stand_in_one_file():
    private = re.compile(r"\btorch(\.\w+)*\._(?!_)\w+|\b_orig_mod\b")
    files = {path: path.read_text() for path in (ROOT / "capsule_lib").rglob("*.py")}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        files[path] = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert [path.name for path, text in files.items() if private.search(text)] == ["device.py"]


def test_without_the_private_mode_the_public_one_hears_what_is_called(monkeypatch):
    monkeypatch.delattr("torch.utils._python_dispatch.TorchDispatchMode")
    Mode = runpy.run_path(device.__file__)["TorchDispatchMode"]

    class Heard(Mode):
        sizes = ()

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            result = operation(*args, **(kwargs or {}))
            self.sizes = (*self.sizes, result.numel())
            return result

    x = torch.ones(5, requires_grad=True)
    with Heard() as heard:
        y = torch.outer(x, x) * 2
    assert heard.sizes == (25, 25) and y[0, 0] == 2 and y.requires_grad


@pytest.mark.parametrize(
    ("flags", "expected"), [("fpu avx512f avx512_bf16", True), ("fpu avx512f bf16", False), ("", False)]
)
def test_bfloat16_of_a_processor_that_pytorch_does_not_describe(monkeypatch, tmp_path, flags, expected):
    """As PyTorch 2.6, and as the system says it; on a system without the file, no."""
    cpu = torch.device("cpu")
    if hasattr(torch.cpu, "get_capabilities"):
        answer = {"avx512_bf16": expected}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: answer)
        assert device.has_bfloat16(cpu) is expected
        answer.clear()
        assert device.has_bfloat16(cpu) is False
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nmodel name\t: A processor @ 2:1\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    monkeypatch.setattr(device, "Path", lambda _: info)
    assert device.has_bfloat16(cpu) is expected
    threads, words = torch.get_num_threads(), "with" if expected else "without"
    assert f"(A processor @ 2:1, {threads} threads, {words} bfloat16)" in device.describe_machine(cpu)
    info.unlink()
    assert device.has_bfloat16(cpu) is False
