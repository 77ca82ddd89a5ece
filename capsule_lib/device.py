"""Which device there is and what it can do; and, in this one place, names of PyTorch's that are not public."""

import contextlib
import platform
from pathlib import Path

import torch

try:
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:  # the public mode hears of each function that is called, but not of what that calls in its turn
    from torch.overrides import TorchFunctionMode

    class TorchDispatchMode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return self.__torch_dispatch__(function, types, args, kwargs)


def set_up(seed: int = 0) -> torch.device:
    """Seed torch, choose the course's plot style, say which device this kernel has (see `choose_device`), and return it."""
    import matplotlib.pyplot as plt  # here, so that importing the package stays quick

    torch.manual_seed(seed)
    plt.style.use("capsule_lib.course")
    device = choose_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"PyTorch {torch.__version__} on {device.type} ({name})")
    return device


def choose_device(index: int = 0) -> torch.device:
    """The accelerator (CUDA, Apple's MPS, ...) with this index, or the CPU where torch finds none."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.device(torch.accelerator.current_accelerator().type, index)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 by itself. Where it does not, bfloat16 works, and is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):  # younger than PyTorch 2.6
        return torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "avx512_bf16" in _cpu_info().get("flags", "").split()


def describe_machine(device: torch.device) -> str:
    """One line: PyTorch's version, the device's name, threads, and whether it has bfloat16."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        model = _cpu_info().get("model name") or platform.processor() or platform.machine()
        name = f"{model}, {torch.get_num_threads()} threads"
    return f"PyTorch {torch.__version__} on {device.type} ({name}, {'with' if has_bfloat16(device) else 'without'} bfloat16)"


def exportable(kind: type) -> type:
    """A NamedTuple that torch.export can also save, as a network's output."""
    with contextlib.suppress(ImportError):  # where the name is gone, an exported network still runs
        from torch.utils._pytree import _register_namedtuple

        _register_namedtuple(kind, serialized_type_name=f"{kind.__module__}.{kind.__qualname__}")
    return kind


def unwrapped(net: object) -> object:
    """The network inside what torch.compile, DataParallel and their like wrap around it; all else as it is."""
    while isinstance(net, torch.nn.Module) and [n for n, _ in net.named_children()] in (["_orig_mod"], ["module"]):
        (net,) = net.children()
    return net


def _cpu_info() -> dict[str, str]:
    """What Linux says of the processor; nothing elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return {key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in lines) if colon}
