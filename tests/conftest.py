"""Fixtures that several test files share."""

import os

import pytest
import torch
from hypothesis import settings

from capsule_lib import CapsNet, CapsNetConfig, load_digits, load_pretrained

torch.set_num_threads(1)  # the tensors are small; on a busy machine two threads would mostly wait for each other
settings.register_profile("course", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("course")

# A network of a few thousand weights, on 12 x 12 pictures of three classes, with a 4 x 4 grid of capsules.
TINY = CapsNetConfig(
    image_shape=(1, 12, 12),
    classes=3,
    stem_channels=8,
    kernel_size=3,
    types=2,
    primary_dim=4,
    class_dim=5,
    decoder_hidden=(32,),
)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> CapsNet:
    return CapsNet(TINY)


@pytest.fixture(scope="session")
def small() -> CapsNet:
    """The trained network that ships with the course. Nobody changes it."""
    return load_pretrained("small")


@pytest.fixture(scope="session")
def shipped_test():
    return load_digits("shipped", "test")


@pytest.fixture(scope="session")
def mnist():
    """`load_digits('mnist', split)`, where a folder with MNIST is named; else the test is skipped."""
    if not os.environ.get("CAPSULE_DATA"):
        pytest.skip("CAPSULE_DATA names no folder with MNIST")
    return {split: load_digits("mnist", split) for split in ("train", "test")}
