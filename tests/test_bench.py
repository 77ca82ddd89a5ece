"""The benchmark: its forms are one and the same layer, and it measures what they hold."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from capsule_lib import CapsNet
from capsule_lib.bench import measure as bench
from capsule_lib.model import PRESETS


def forms(in_capsules, in_dim, out_capsules, out_dim):
    """One layer in each form, all with the same weight."""
    layers = {name: form(in_capsules, in_dim, out_capsules, out_dim) for name, form in bench.FORMS.items()}
    weight = layers["vote-free"].weight.data
    layers["einsum"].weight.data = weight.clone()
    layers["naive"].weight.data = weight.permute(0, 2, 3, 1)[None].contiguous()  # [1, J, I, D, K]
    return {name: layer.double() for name, layer in layers.items()}


def test_all_forms_give_the_same_numbers_and_gradients():
    u, towards = torch.randn(3, 7, 4, dtype=torch.float64), torch.randn(3, 5, 6, dtype=torch.float64)
    results = {}
    for name, layer in forms(7, 4, 5, 6).items():
        layer.weight.data *= 10  # far enough from uniform couplings that an iteration counts
        own = u.clone().requires_grad_()
        v = layer(own)
        v.backward(towards)
        grad = layer.weight.grad
        results[name] = v, own.grad, grad[0].permute(0, 3, 1, 2) if name == "naive" else grad
    for name in ("naive", "einsum"):
        for got, right in zip(results[name], results["vote-free"], strict=True):
            torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-12)


def test_a_network_with_another_form_is_the_same_network():
    net = CapsNet(PRESETS["small"])
    x = torch.rand(2, 1, 28, 28)
    right = net(x).lengths
    weight = net.digit_caps.weight.data
    bench.with_form(net, "naive").digit_caps.weight.data = weight.permute(0, 2, 3, 1)[None]
    torch.testing.assert_close(net(x).lengths, right)


def test_memory_is_measured_in_a_process_of_its_own():
    needs = {
        form: bench.in_own_process(bench.measure_layer, form, 1152, 16, "cpu", 0.0)["peak_bytes"]
        for form in bench.FORMS
    }
    votes = 16 * 1152 * 10 * 16 * 4
    copies = 16 * 1152 * 10 * 16 * 8 * 4  # the weight, for every image
    assert copies < needs["naive"] and votes < needs["einsum"] < needs["naive"] / 2
    assert needs["vote-free"] < needs["naive"] / 4


def test_two_steps_that_do_not_fit_are_said_not_to_fit():
    assert bench.in_own_process(bench.two_steps_at, 28, "vote-free", 2, 8.0)["fits"]
    row = bench.in_own_process(bench.two_steps_at, 28, "naive", 400, 1.0)
    assert not row["fits"] and row["parameters"] > 8e6


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().available < 21 * 2**30, reason="needs 21 GiB of free memory")
def test_256_pixels_fit_in_20_gib_without_votes_and_not_with_copies_of_the_weight():
    row = bench.in_own_process(bench.two_steps_at, 256, "vote-free", 16, 20.0)
    assert row["fits"] and row["parameters"] == 797_326_080 and row["peak_gib"] < 20
    assert not bench.in_own_process(bench.two_steps_at, 256, "naive", 5, 20.0)["fits"]


@pytest.mark.parametrize(("convolution", "directly"), [("direct", True), ("bfloat16", True), ("fourier", False)])
def test_a_step_is_measured_with_the_convolution_it_names(monkeypatch, multiplications, convolution, directly):
    counted = []

    def count(forward, backward, device, seconds):
        counted.append(multiplications(forward)["aten.convolution"])

    monkeypatch.setattr(bench, "_measure", count)
    bench.measure_step("vote-free", convolution, 64)
    stem, primary = 64 * 400 * 256 * 81, 64 * 36 * 256 * 256 * 81
    assert counted == [stem + directly * primary]


def test_the_table_and_its_file_hold_the_ratios(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        bench,
        "in_own_process",
        lambda measure, form, *_: {
            "forward_s": {"naive": 0.6, "einsum": 0.2, "vote-free": 0.02}[form],
            "backward_s": 0.2,
            "peak_bytes": 100,
        },
    )
    monkeypatch.setattr(sys, "argv", ["bench", "--turns", "1", "--out", str(tmp_path / "b.json")])
    assert bench.main() == 0
    result = json.loads((tmp_path / "b.json").read_text())
    assert [row["times_faster"] for row in result["layers"][:3]] == pytest.approx([1, 2, 0.8 / 0.22])
    said = capsys.readouterr().out
    assert "3.6x" in said and "128 images, cpu, beside two busy processes" in said and len(result["steps"]) >= 3
    assert len(result["layers"]) == 9 * len(result["machines"])
    beside = result["beside_two_busy_processes"]
    assert [row["form"] for row in beside] == list(bench.FORMS)
    assert [row["times_faster"] for row in beside] == pytest.approx([1, 2, 0.8 / 0.22])
    assert all((row["device"], row["in_capsules"], row["batch"]) == ("cpu", 1152, 128) for row in beside)


def test_two_busy_processes_run_while_one_layer_is_measured_and_at_no_other_time(monkeypatch):
    seen, before = [], len(psutil.Process().children())

    def measure(function, form, *arguments):
        seen.append((function.__name__, arguments, len(psutil.Process().children()) - before))
        return {"forward_s": 0.1, "backward_s": 0.1, "peak_bytes": 100}

    monkeypatch.setattr(bench, "in_own_process", measure)
    monkeypatch.setattr(bench, "choose_device", lambda: torch.device("cpu"))
    bench.bench(1)
    assert [call for *call, busy in seen if busy] == 3 * [["measure_layer", (1152, 128, "cpu")]]
    assert {busy for *_, busy in seen} == {0, 2} and len(psutil.Process().children()) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_busy_process_computes_and_ends_with_its_block_whatever_happens(error):
    with pytest.raises(error), bench.busy_process() as process:
        busy = psutil.Process(process.pid)
        wait_until(lambda: busy.cpu_times().user > 0.2)
        raise error
    assert process.poll() is not None and not psutil.pid_exists(process.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_busy_processes_end_with_the_process_that_started_them(number):
    """Ctrl-C, which reaches them all; and what leaves no time to clear up."""
    code = "import time; from capsule_lib.bench.measure import busy_process\n"
    code += "with busy_process() as a, busy_process() as b: print(a.pid, b.pid, flush=True); time.sleep(100)"
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        time.sleep(0.5)
        send, to = (os.killpg, os.getpgid(process.pid)) if number == signal.SIGINT else (os.kill, process.pid)
        send(to, number)
        process.wait(30)
    assert len(pids) == 2
    left = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=30)[1]
    for busy in left:
        busy.kill()
    assert not left


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_explorers_answer_is_timed_with_its_picture_drawn(monkeypatch):
    drawn, decode = [], CapsNet.decode
    monkeypatch.setattr(CapsNet, "decode", lambda *args: (drawn.append(args), decode(*args))[1])
    row = bench.measure_explorer("small", moves=40)
    assert len(drawn) >= 80 and 0 < row["knob_ms"] <= row["knob_95_ms"] and 0 < row["sheet_ms"] <= row["sheet_95_ms"]


@pytest.mark.gpu
@pytest.mark.parametrize("form", bench.FORMS)
def test_a_row_for_cuda(form):
    row = bench.measure_layer(form, 1152, 32, "cuda", 0.1)
    assert row["forward_s"] > 0 and row["backward_s"] > 0 and row["peak_bytes"] > 1e6


def test_help():
    done = subprocess.run([sys.executable, "-m", "capsule_lib.bench", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--pixels" in done.stdout and done.stderr == ""
