"""Which device there is, and what it can do."""

import platform
from pathlib import Path

import torch


def set_up(seed: int = 0) -> torch.device:
    """Seed torch, choose the course's plot style, say which device this kernel has, and return it.

    The device is the accelerator that torch finds (CUDA, Apple's MPS, ...), else the CPU.
    """
    import matplotlib.pyplot as plt  # here, so that importing the package stays quick

    torch.manual_seed(seed)
    plt.style.use("capsule_lib.course")
    device = choose_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"PyTorch {torch.__version__} on {device.type} ({name})")
    return device


def choose_device(index: int = 0) -> torch.device:
    """The accelerator with this index, or the CPU where torch finds none."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.device(torch.accelerator.current_accelerator().type, index)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 by itself. Where it does not, bfloat16 works, and is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def describe_machine(device: torch.device) -> str:
    """One line: PyTorch's version, the device's name, threads, and whether it has bfloat16."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.is_file() else []
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        name = (
            f"{models[0] if models else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
        )
    return f"PyTorch {torch.__version__} on {device.type} ({name}, {'with' if has_bfloat16(device) else 'without'} bfloat16)"
