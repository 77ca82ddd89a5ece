"""What routing costs on this machine: time and memory of three forms that give the same numbers.

    python -m capsule_lib.bench                  the routing layer, and a training step of the paper's network
    python -m capsule_lib.bench --pixels 256     the largest batch at 256 x 256 x 3 that two steps can train in 20 GiB
    python -m capsule_lib.bench --explorer       from a knob of the explorer to its new picture

Every measurement has a process of its own, so that no form inherits memory from another. Forms take turns, and a time is
the median over all turns: compare the forms of one run, not the times of two. One layer is also measured beside two busy
processes, as on a laptop or a shared machine.
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

from capsule_lib.bench.convolution import convolve
from capsule_lib.data import load_digits
from capsule_lib.device import choose_device, describe_machine, has_bfloat16
from capsule_lib.files import check_new, writable_path, write_whole
from capsule_lib.layers import DigitCaps
from capsule_lib.losses import margin_loss, reconstruction_loss
from capsule_lib.model import PRESETS, CapsNet
from capsule_lib.routing import dynamic_routing, squash
from capsule_lib.weights import WEIGHTS, load_pretrained

K, J, D = 8, 10, 16  # the paper's capsules
LAYERS = [(1152, 32), (1152, 128), (4608, 32)]  # input capsules (28 and 40 pixels) and images
BUSY_LAYER = LAYERS[1]  # the one that is also measured beside busy processes


class NaiveCaps(DigitCaps):
    """Votes by a broadcast product, which copies the whole weight for every image, as most published ports do."""

    def __init__(self, in_capsules: int, in_dim: int, out_capsules: int, out_dim: int, iterations: int = 3):
        nn.Module.__init__(self)
        self.iterations = iterations
        self.weight = nn.Parameter(0.1 * torch.randn(1, out_capsules, in_capsules, out_dim, in_dim))

    def forward(self, u: Tensor) -> Tensor:
        u_hat = (self.weight @ u[:, None, :, :, None]).squeeze(4)  # [1, J, I, D, K] @ [B, 1, I, K, 1] -> [B, J, I, D]
        b = u.new_zeros(*u_hat.shape[:3], 1)
        for t in range(self.iterations):
            last = t == self.iterations - 1
            votes = u_hat if last else u_hat.detach()
            v = squash((b.softmax(dim=1) * votes).sum(dim=2, keepdim=True))
            if not last:
                b = b + (votes * v).sum(dim=3, keepdim=True)
        return v.squeeze(2)


class EinsumCaps(DigitCaps):
    """Votes by einsum, which copies no weight, and the readable routing."""

    def forward(self, u: Tensor) -> Tensor:
        return dynamic_routing(self.votes(u), self.iterations)


FORMS = {"naive": NaiveCaps, "einsum": EinsumCaps, "vote-free": DigitCaps}


def measure_layer(form: str, in_capsules: int, batch: int, device: str = "cpu", seconds: float = 2.0) -> dict:
    """Forward and backward of one routing layer, in seconds, and the bytes it needs beyond its weight and input."""
    tiny = FORMS[form](8, K, J, D).to(device)(torch.randn(8, 8, K, device=device))
    tiny.backward(torch.ones_like(tiny))  # loads code that the first backward pass of a process needs
    layer = FORMS[form](in_capsules, K, J, D).to(device)
    u = torch.randn(batch, K, in_capsules, device=device).transpose(1, 2).requires_grad_()
    towards = torch.randn(batch, J, D, device=device)

    def forward() -> Tensor:
        layer.weight.grad = u.grad = None
        return layer(u)

    return _measure(forward, lambda v: v.backward(towards), torch.device(device), seconds)


def measure_step(form: str, convolution: str, batch: int, device: str = "cpu", seconds: float = 6.0) -> dict:
    """A training step of the paper's network: forward and loss, then backward and Adam. The primary capsules' convolution
    is 'direct', 'bfloat16' (direct, as the stem's), or 'fourier'."""
    net = with_form(CapsNet.from_preset("paper"), form)
    if convolution == "fourier":
        conv = net.primary_caps.conv
        conv.forward = lambda x: convolve(x, conv.weight, conv.bias, conv.stride[0])
    net.to(device)
    bfloat16 = convolution == "bfloat16"
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    x, y = torch.rand(batch, 1, 28, 28, device=device), torch.arange(batch, device=device) % 10

    def backward(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return _measure(lambda: _loss(net, x, y, bfloat16), backward, torch.device(device), seconds)


def two_steps_at(pixels: int, form: str, batch: int, gib: float) -> dict:
    """Two Adam steps of the paper's network on coloured pictures, in a process that may not hold more than `gib` GiB."""
    import resource  # here, because Windows has none

    resource.setrlimit(resource.RLIMIT_DATA, 2 * (int(gib * 2**30),))
    bfloat16 = has_bfloat16(torch.device("cpu"))
    started = time.perf_counter()
    try:
        with torch.device("meta"):
            config = dataclasses.replace(PRESETS["paper"], image_shape=(3, pixels, pixels))
            net = with_form(CapsNet(config), form)
        net.to_empty(device="cpu")
        for p in net.parameters():  # quicker than the layers' own first numbers, and as good for a measurement
            p.data.uniform_(-0.01, 0.01)
        optimizer = torch.optim.Adam(net.parameters(), fused=True)
        x, y = torch.rand(batch, 3, pixels, pixels), torch.arange(batch) % 10
        for _ in range(2):
            loss = _loss(net, x, y, bfloat16)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        fits = bool(torch.isfinite(loss))
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error):
            raise
        fits = False
    return {
        "form": form,
        "pixels": pixels,
        "batch": batch,
        "limit_gib": gib,
        "fits": fits,
        "parameters": sum(p.numel() for p in net.parameters()),
        "bfloat16": bfloat16,
        "peak_gib": round(_peak_bytes(torch.device("cpu")) / 2**30, 2),
        "seconds": round(time.perf_counter() - started, 1),
    }


def with_form(net: CapsNet, form: str) -> CapsNet:
    """The network, its class capsules routed in another form."""
    config = net.config
    in_capsules = net.digit_caps.weight.shape[2]
    net.digit_caps = FORMS[form](in_capsules, config.primary_dim, config.classes, config.class_dim, config.iterations)
    return net


def in_own_process(measure: Callable, *arguments) -> dict:
    """What `measure` returns, called in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


@contextlib.contextmanager
def busy_process() -> Iterator[subprocess.Popen]:
    """A process that computes all the time. It ends with the block; and with this process, however that ends, because its
    input is then at its end."""
    code = """
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too, and is for the one that started it to answer
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()
while True:
    pass
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def _loss(net: CapsNet, x: Tensor, y: Tensor, bfloat16: bool) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        out = net(x, y)
    return margin_loss(out.lengths, y) + reconstruction_loss(out.reconstruction, x)


def _measure(forward: Callable, backward: Callable, device: torch.device, seconds: float) -> dict:
    def wait() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter()

    _start_peak(device)
    before = _peak_bytes(device)
    backward(forward())
    peak = _peak_bytes(device) - before
    times, begin = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        start = wait()
        result = forward()
        middle = wait()
        backward(result)
        times.append((middle - start, wait() - middle))
    forward_s, backward_s = (statistics.median(column) for column in zip(*times, strict=True))
    return {"forward_s": forward_s, "backward_s": backward_s, "peak_bytes": peak}


def _start_peak(device: torch.device) -> None:
    """From here on the peak counts anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5")


def _peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held (on CUDA: that torch has held there) since `_start_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS; since the process began


def _layer_rows(in_capsules: int, batch: int, device: str, turns: int, where: str = "") -> list[dict]:
    """One layer in all forms: its rows in the record, under a heading that says `where` it was measured."""
    print(f"\nrouting layer, {in_capsules:,} capsules, {batch} images, {device}{where}")
    calls = {form: (measure_layer, form, in_capsules, batch, device) for form in FORMS}
    of = {"device": device, "in_capsules": in_capsules, "batch": batch}
    return [of | {"form": form, **row} for form, row in _compare(calls, turns)]


def bench(turns: int) -> dict:
    """Measure all layers and steps. Prints a table as it goes."""
    accelerator = choose_device()
    devices = ["cpu"] if accelerator.type == "cpu" else ["cpu", accelerator.type]
    result = {
        "machines": [describe_machine(torch.device(d)) for d in devices],
        "turns": turns,
        "layers": [],
        "steps": [],
    }
    for line in result["machines"]:
        print(line)
    for device in devices:
        for in_capsules, batch in LAYERS:
            result["layers"] += _layer_rows(in_capsules, batch, device, turns)
        if device == "cpu":
            with busy_process(), busy_process():
                rows = _layer_rows(*BUSY_LAYER, device, turns, ", beside two busy processes")
            result["beside_two_busy_processes"] = rows
        print(f"\ntraining step of the paper's network, 128 images, {device}")
        calls = {form: (measure_step, form, "direct", 128, device) for form in FORMS}
        if device == "cpu":  # elsewhere it is direct
            calls["vote-free, Fourier convolution"] = (measure_step, "vote-free", "fourier", 128, device)
        if has_bfloat16(torch.device(device)):
            calls["vote-free, bfloat16 convolutions"] = (measure_step, "vote-free", "bfloat16", 128, device)
        for form, row in _compare(calls, turns):
            result["steps"].append({"device": device, "batch": 128, "form": form, **row})
    return result


def _compare(calls: dict[str, tuple], turns: int) -> Iterator[tuple[str, dict]]:
    """Run the calls in turns; prints and yields the medians of each, with its ratios to the first."""
    taken = [{name: in_own_process(*call) for name, call in calls.items()} for _ in range(turns)]
    print(f"{'':34}{'forward':>10}{'backward':>10}{'together':>10}{'faster':>9}{'memory':>11}{'less':>8}")
    first = None
    for name in calls:
        row = {key: statistics.median(turn[name][key] for turn in taken) for key in taken[0][name]}
        row["together_s"] = row["forward_s"] + row["backward_s"]
        first = first or row
        row["times_faster"] = first["together_s"] / row["together_s"]
        row["times_less_memory"] = first["peak_bytes"] / row["peak_bytes"]
        times = "".join(f"{1e3 * row[key]:7.0f} ms" for key in ("forward_s", "backward_s", "together_s"))
        memory = f"{row['peak_bytes'] / 1e6:8.0f} MB{row['times_less_memory']:7.1f}x"
        print(f"{name:34}{times}{row['times_faster']:8.1f}x{memory}", flush=True)
        yield name, row


def largest_batches(pixels: int, gib: float) -> dict:
    """The largest batch of each form, sought by doubling and then halving the gap."""
    result = {"machine": describe_machine(torch.device("cpu")), "tried": []}
    for form in ("vote-free", "naive"):

        def fits(batch: int, form: str = form) -> bool:
            result["tried"].append(row := in_own_process(two_steps_at, pixels, form, batch, gib))
            print(json.dumps(row), flush=True)
            return row["fits"]

        low, high = 0, 1
        while fits(high):
            low, high = high, 2 * high
        while high - low > max(1, low // 8):
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        result[form] = low
        print(f"{form}: two steps fit in {gib} GiB with {low} images, and not with {high}")
    return result


def measure_explorer(name: str, moves: int = 200) -> dict:
    """Milliseconds in Python from a knob's new value to the new picture, class lengths included; and to a sweep sheet."""
    from capsule_lib.explorer import (  # here, because the other measurements need no widgets
        CapsuleExplorer,
        load_spreads,
    )

    shown = CapsuleExplorer(load_pretrained(name), load_digits("shipped", "test"), load_spreads(name), label=4)

    def milliseconds(act: Callable) -> float:
        start = time.perf_counter()
        act()
        return 1e3 * (time.perf_counter() - start)

    def turn(n: int) -> None:
        shown.knobs = [(n % 33 - 16) / 8 if d == n % len(shown.knobs) else 0.0 for d in range(len(shown.knobs))]
        assert shown.changed is not None  # worked out when it is read

    turns = sorted(milliseconds(lambda n=n: turn(n)) for n in range(moves))
    sheets = sorted(milliseconds(shown.sheet) for _ in range(20))
    result = {"network": name, "knob_ms": turns[moves // 2], "knob_95_ms": turns[moves * 95 // 100]}
    return {**result, "sheet_ms": sheets[10], "sheet_95_ms": sheets[19]}


def explorer_times() -> dict:
    """`measure_explorer` of the networks that ship. Prints as it goes."""
    result = {"machine": describe_machine(torch.device("cpu")), "explorer": []}
    for name in [preset for preset in PRESETS if (WEIGHTS / f"{preset}.safetensors").is_file()]:
        result["explorer"].append(row := in_own_process(measure_explorer, name))
        print(
            f"{name:6} a knob to its picture: median {row['knob_ms']:.0f} ms, 95 % within {row['knob_95_ms']:.0f} ms;"
            f"  sheet: median {row['sheet_ms']:.0f} ms, 95 % within {row['sheet_95_ms']:.0f} ms"
        )
    return result


def main() -> int:
    parser = argparse.ArgumentParser("python -m capsule_lib.bench", description="What routing costs on this machine.")
    parser.add_argument("--pixels", type=int, help="instead: the largest batch of coloured pictures of this size")
    parser.add_argument("--explorer", action="store_true", help="instead: how fast the explorer answers")
    parser.add_argument(
        "--gib", type=float, default=20, help="with --pixels: memory that the process may hold (default: 20)"
    )
    parser.add_argument("--turns", type=int, default=3, help="how often each form is measured (default: 3)")
    parser.add_argument("--out", type=writable_path, help="also write the result to this file, as JSON")
    given = parser.parse_args()
    if given.out:
        try:
            check_new(given.out)  # before ten minutes of measuring
        except FileExistsError as error:
            parser.error(str(error))
    if given.explorer:
        result = explorer_times()
    else:
        result = largest_batches(given.pixels, given.gib) if given.pixels else bench(given.turns)
    if given.out:
        write_whole({given.out: (json.dumps(result, indent=1) + "\n").encode()})
        print(f"\nwritten to {given.out}")
    return 0
