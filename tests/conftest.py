"""The same for every test: a seed, no deadlines, and CUDA tests skipped where there is no CUDA."""

import pytest
import torch
from hypothesis import settings
from torch.utils.flop_counter import FlopCounterMode

torch.set_num_threads(1)  # the tensors are small; on a busy machine two threads would mostly wait for each other
settings.register_profile("course", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("course")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def multiplications():
    """A function that runs another, and says how many multiplications each kind of operation took, as PyTorch counts."""

    def count(run):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        return {str(operation): flops // 2 for operation, flops in counter.get_flop_counts()["Global"].items()}

    return count
