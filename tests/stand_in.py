"""A stand-in accelerator: a device whose numbers are the CPU's, and which refuses what CUDA or Apple's MPS would refuse.

    python tests/stand_in.py python -m capsule_lib.train --out runs/trial    # or any other command

Every process below that command finds the device when it imports torch, as it would find one that a package brings.
A tensor on it keeps a CPU tensor inside. Which operations CUDA and MPS have, and which of them take a tensor from the
CPU beside others, stands in the list of operations that PyTorch is generated from and comes with.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, NamedTuple

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "stand_in"
STANDS_FOR = ("CUDA", "MPS")
COPIES = {"aten::copy_", "aten::_to_copy", "aten::to.other", "aten::fill_.Tensor"}  # from any device to any other
FACTORIES = ("empty.memory_format", "empty_strided", "tril_indices", "triu_indices")  # what makes all tensors
LOWERED = ("conv1d", "conv2d", "conv3d", "linear", "matmul", "mm", "bmm", "mv", "addmm", "baddbmm", "einsum")
ATEN, EVERYTHING = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
operations = 0  # that ran on the device


class Refused(BaseException):
    """A real accelerator would raise an error here. This is no Exception, so that nothing catches it and goes on."""


class Operation(NamedTuple):
    kernels: set[str]  # kinds of devices, "Composite..." where it is made of other operations
    iterates: bool  # so that it takes a single number from the CPU beside tensors on the device
    random: bool


@cache
def operation_list() -> dict[str, Operation]:
    path = Path(torch.__file__).parents[1] / "torchgen/packaged/ATen/native/native_functions.yaml"
    found, delegates = {}, {}
    for entry in path.read_text().split("\n- func: ")[1:]:
        name = "aten::" + entry[: entry.index("(")]
        kernels = set(re.findall(r"\w+", " ".join(re.findall(r"^    ([\w, ]+): ", entry, re.M)))) or {"Composite"}
        if "ufunc_inner_loop" in entry:
            kernels |= {"CPU", "CUDA"}
        found[name] = Operation(kernels, "device_check: NoCheck" in entry, "Generator?" in entry.split("\n")[0])
        if delegate := re.search(r"structured_delegate: (\S+)", entry):
            delegates[name] = "aten::" + delegate[1]
    return {name: op._replace(kernels=found[delegates.get(name, name)].kernels) for name, op in found.items()}


def look_up(name: str) -> Operation:
    """What the list says; one that is not there, such as another package's, is taken to run everywhere."""
    return operation_list().get(name, Operation({"Composite"}, False, False))


@cache
def lacking(name: str) -> str | None:
    """A kind of device that has no kernel for the operation."""
    kernels = look_up(name).kernels
    everywhere = any(kernel.startswith("Composite") for kernel in kernels)
    return None if everywhere else next((device for device in STANDS_FOR if device not in kernels), None)


class StandIn(torch.Tensor):
    """A tensor on the device. Its numbers are those of `inner`, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        if inner.dtype in (torch.float64, torch.complex128):
            raise Refused(f"MPS has no {inner.dtype}: use float32, or stay on the CPU")
        inner = inner.resolve_conj().resolve_neg()  # which torch would do at a level that operations here have left
        outer = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            storage_size=2**60,  # an operation in place may make it larger; nothing is stored, so there is always room
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        outer.inner = inner
        return outer

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return run(operation, *args, **(kwargs or {}))

    def __tensor_flatten__(self):  # with this pair, a module swaps its parameters for those on the device
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(parts, context, size, stride):
        return StandIn(parts["inner"])

    # The rest is what torch does by other means for a class that is not its own.
    def __repr__(self):
        return f"{repr(self.detach().cpu())[:-1]}, device='{self.device}')"

    def __format__(self, spec):
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    def __deepcopy__(self, memo):
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        copy.grad = None if self.grad is None else self.grad.clone()
        copy.__dict__ |= {name: value for name, value in self.__dict__.items() if name != "inner"}  # being a parameter
        return memo.setdefault(id(self), copy)

    def __reduce_ex__(self, protocol):
        if isinstance(self, torch.nn.Parameter):
            return torch._utils._rebuild_parameter, (self.data, self.requires_grad, OrderedDict())
        parts = (self.detach().cpu(), self.dtype, str(self.device), self.requires_grad)
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, parts

    def __array__(self, *args, **kwargs):
        self.numpy()

    def numpy(self, **kwargs):
        raise Refused(f"numpy() of a tensor on {self.device}: bring it to the CPU first, with .cpu()")

    def tolist(self):
        return self.inner.tolist()

    def data_ptr(self):
        return self.inner.data_ptr()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    @property
    def data(self):
        return super().data

    @data.setter
    def data(self, value):
        value = value.detach().requires_grad_(self.requires_grad)
        value._is_param = isinstance(self, torch.nn.Parameter)
        swap_tensors(self, value)


class Storage(torch.UntypedStorage):
    """What `torch.load` reads for the device: a tensor that is built on it comes to be there."""

    @property
    def device(self):
        return torch.device(NAME, 0)


class Generator(torch._C.Generator):
    """Random numbers for the device, and for it alone."""

    known: ClassVar[dict[int, "Generator"]] = {}  # by address: C++ hands each on as a new object, of the plain class

    def __new__(cls, device="cpu"):
        if torch.device(device).type != NAME:
            return torch._C.Generator(device)
        self = super().__new__(cls)
        return cls.known.setdefault(self._cdata, self)

    @property
    def device(self):
        return torch.device(NAME, 0)


def run(operation, *args, **kwargs):
    """Run an operation on the CPU tensors inside. Each one that has a tensor or a result on the device comes here."""
    global operations
    operations += 1
    name = operation.name()
    given, generators, places = {}, [], set()  # given: tensors by the identity of what is inside
    on_device = True  # the result

    def inside(x):
        nonlocal on_device
        if isinstance(x, torch.Tensor):
            inner = x.inner if isinstance(x, StandIn) else x
            places.add(inner is x)
            given[id(inner)] = x
            return inner
        if isinstance(x, (list, tuple)):
            return [inside(element) for element in x]
        if isinstance(x, torch.device):
            on_device = x.type == NAME
            if on_device and x.index:
                raise Refused(f"there is no device {x}: {NAME} has one device")
            return torch.device("cpu") if on_device else x
        if isinstance(x, torch._C.Generator):
            if x._cdata not in Generator.known:
                raise Refused(f"{name} on {NAME} takes a generator of {NAME}, not of {x.device}")
            generators.append((x, x.clone_state()))
            return generators[-1][1]
        return x

    def outside(x):
        if isinstance(x, torch.Tensor):
            if on_device:
                return given[id(x)] if id(x) in given else StandIn(x)
            return x.clone() if id(x) in given else x
        return type(x)(map(outside, x)) if isinstance(x, (list, tuple)) else x

    inner_args, inner_kwargs = inside(args), {key: inside(x) for key, x in kwargs.items()}
    if len(places) == 2 and name not in COPIES:
        refuse_mixture(operation, args, kwargs)
    if on_device and lacking(name):
        raise Refused(f"{name} on {NAME}: {lacking(name)} does not have it: bring its tensors to the CPU")
    with torch._C._DisableAutocast():  # the CPU's
        result = operation(*inner_args, **inner_kwargs)
    for generator, used in generators:
        generator.set_state(used.get_state())
    for outer in given.values() if operation._schema.is_mutable else ():
        if isinstance(outer, StandIn) and (outer.shape, outer.stride()) != (outer.inner.shape, outer.inner.stride()):
            with no_dispatch():  # the operation has changed the shape in place
                outer.as_strided_(outer.inner.shape, outer.inner.stride(), outer.inner.storage_offset())
    return outside(result)


def refuse_mixture(operation, args, kwargs):
    """Raise where CUDA would not take tensors of two devices."""
    found, iterates = {}, look_up(operation.name()).iterates
    for position, argument in enumerate(operation._schema.arguments):
        given = args[position] if position < len(args) else kwargs.get(argument.name)
        several = isinstance(given, (list, tuple))
        written = argument.alias_info is not None and argument.alias_info.is_write
        for x in given if several else [given]:
            if not isinstance(x, torch.Tensor):
                continue
            number = x.dim() == 0 and not written and not isinstance(x, StandIn)  # of the CPU
            index = several and argument.name == "indices" and isinstance(args[0], StandIn)
            put = x.dim() == 0 and argument.name == "values"  # cpu_tensor[mask] = number of the device
            if not (iterates and (number or index or put)):
                found.setdefault(x.device, f"{argument.name!r} {list(x.shape)} is on {x.device}")
    if len(found) > 1:
        raise Refused(f"{operation.name()} takes tensors of one device, but {' and '.join(found.values())}")


def run_random(kernel, keys, *args, **kwargs):
    """An operation on the CPU, unless it is given random numbers of the device."""
    if any(isinstance(x, torch._C.Generator) and x._cdata in Generator.known for x in (*args, *kwargs.values())):
        raise Refused(f"an operation on cpu takes a generator of cpu, not of {NAME}")
    return kernel.call_boxed(keys, *args, **kwargs)


def run_lowered(operation, *args):
    """An operation under autocast, in lower precision."""

    def lower(x):
        if isinstance(x, (list, tuple)):
            return [lower(element) for element in x]
        return x.to(torch.get_autocast_dtype(NAME)) if isinstance(x, StandIn) and x.is_floating_point() else x

    with torch._C._DisableAutocast():
        return operation(*lower(args))


def activate() -> None:
    """Make the device known to this process's torch. It can't be taken back."""
    backend = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        synchronize=lambda device=None: None,
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
        manual_seed_all=lambda seed: None,  # without a generator, it shares the CPU's
        get_rng_state=lambda device=None: torch.get_rng_state(),
        set_rng_state=lambda state, device=None: torch.set_rng_state(state),
        _is_in_bad_fork=lambda: False,
    )
    _setup_privateuseone_for_python_backend(NAME, backend_module=backend)
    torch.accelerator.synchronize = backend.synchronize
    torch.Generator = Generator
    torch.utils.swap_tensors = swap_tensors
    torch.serialization.register_package(0, lambda storage: None, load_to_device)
    # What does not come to `StandIn` by itself: what has no tensor on the device yet, and what autocast changes.
    for name in (*FACTORIES, "copy_"):
        ATEN.impl(name, partial(run, overload(name)), "PrivateUse1")
    EVERYTHING.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in LOWERED:
        ATEN.impl(name, partial(run_lowered, overload(name)), "AutocastPrivateUse1")
    with warnings.catch_warnings(action="ignore"):  # that a kernel is replaced
        for name, operation in operation_list().items():
            if operation.random and "CPU" in operation.kernels:
                kernel = torch.library.get_kernel(name, "CPU")
                ATEN.impl(name, partial(run_random, kernel), "CPU", with_keyset=True)


def swap_tensors(one, other) -> None:
    """As `torch.utils.swap_tensors`, but also where a graph still holds one of the two: no matter on CUDA."""
    one.__class__, other.__class__ = other.__class__, one.__class__
    one.__dict__, other.__dict__ = other.__dict__, one.__dict__
    torch._C._swap_tensor_impl(one, other)


def load_to_device(storage, place: str) -> Storage | None:
    return Storage(storage.nbytes()).copy_(storage, False) if place.startswith(NAME) else None


def overload(name: str):
    packet, _, rest = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), rest or "default")


@contextlib.contextmanager
def environment() -> Iterator[dict[str, str]]:
    """Environment variables by which a process and its children have the device."""
    with tempfile.TemporaryDirectory() as folder:
        entry = Path(folder) / f"{NAME}-0.dist-info" / "entry_points.txt"
        entry.parent.mkdir()
        entry.write_text(f"[torch.backends]\n{NAME} = stand_in:activate\n")
        path = [folder, str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        yield {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


if __name__ == "__main__":
    with environment() as variables:
        sys.exit(subprocess.run(sys.argv[1:], env=variables).returncode)
