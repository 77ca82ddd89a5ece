"""The one line of set-up that every notebook starts with."""

import torch


def set_up(seed: int = 0) -> torch.device:
    """Seed torch, choose the course's plot style, say which device this kernel has, and return it.

    The device is the accelerator that torch finds (CUDA, Apple's MPS, ...), else the CPU.
    """
    import matplotlib.pyplot as plt  # here, so that importing the package stays quick

    torch.manual_seed(seed)
    plt.style.use("capsule_lib.course")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"PyTorch {torch.__version__} on {device.type} ({name})")
    return device
