"""Checkers for a whole network and for what feeds it, whoever wrote them."""

import contextlib
import copy
import dis
import inspect
from collections.abc import Callable, Generator, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from capsule_lib.checks.inputs import images as check_images
from capsule_lib.checks.layers import in_training_mode, untouched
from capsule_lib.checks.verdict import Asked, NoFunction, Unwritten, Wrong, checker, close, without_trailing, wrong_if


@checker
@torch.no_grad()
def network(net: nn.Module, images: Tensor, labels: Tensor | None = None):
    """Check a whole network, trained or not: softmax, batches, what the decoder gets, moves to another device.

    Lengths [B, J], capsules [B, J, D] and reconstructions are found by their shapes among what the network returns, and what the
    decoder gets at its first linear layer.

    Args:
        net: takes images, and perhaps labels after them, as class numbers or one-hot.
        images: an example of its input, at least three images that differ.
        labels: their classes, for the decoder in training; made up where there are none, other than what the network reads.
    """
    if not isinstance(net, nn.Module):
        Asked(net, "images", "lengths")  # says what is wrong with it where it is no function
        raise Unwritten("give the network itself, an nn.Module: its layers are looked at")
    fits = isinstance(images, Tensor) and images.dim() > 2 and len(images) > 2 and not close(images[:1], images[1:2])
    if not fits:
        raise Unwritten("give an example of the input too: at least three images that differ, [B, C, H, W]")
    decoder = False
    try:
        with untouched(net):
            decoder = yield from _in_use_and_training(net, images, labels)
    except Wrong as problem:
        yield str(problem)
    yield from _moves(net, images)
    decoder = (
        "the decoder gets the right capsule" if decoder else "not looked at: a decoder, which this network doesn't call"
    )
    return f"network: no softmax on the lengths, images don't disturb each other, a batch of one works, devices are free, {decoder}"


class _Call:
    """One call of a network, and what can be told from it.

    lengths [B, J], capsules [B, J, D] or None, and kept [B, J]: which capsules the decoder gets, None where there is none.
    """

    def __init__(self, net: nn.Module, *inputs: Tensor):
        fed = []
        layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
        hooks = [layer.register_forward_pre_hook(lambda layer, given: fed.append(given[0].detach().clone())) for layer in layers]  # fmt: skip
        asked = Asked(lambda *given: _Outputs(net(*given)), "images, labels"[: 6 + 8 * (len(inputs) > 1)], "lengths")
        asked.as_tensor = lambda out: out
        try:
            tensors = asked(*inputs)
        finally:
            for hook in hooks:
                hook.remove()
        count, size = len(inputs[0]), inputs[0][0].numel()
        found = [without_trailing(x.detach(), 2) for x in tensors if x.is_floating_point() and x.dim()]
        shapes = ", ".join(str(list(x.shape)) for x in found)
        found = [x for x in found if len(x) == count and x[0].numel() != size]
        self.capsules = next((x for x in found if x.dim() == 3), None)
        # A tensor of 0 and 1 alone is a mask or a set of labels.
        self.lengths = next((x for x in found if x.dim() == 2 and not ((x == 0) | (x == 1)).all()), None)
        if self.lengths is None and self.capsules is not None:
            self.lengths = self.capsules.norm(dim=2)
        if self.lengths is None:
            raise Wrong(f"no lengths [B, J] and no capsules [B, J, D] are among what it returns for {count} image{'s' * (count > 1)}: {shapes or 'nothing'}", known=1)  # fmt: skip
        classes, self.kept = self.lengths.shape[1], None
        for x in fed[::-1]:  # the first one stays
            if x.dim() == 2 and len(x) == count and x.shape[1] > classes and x.shape[1] % classes == 0:
                rows = x.reshape(count, classes, -1).norm(dim=2)
                if self.capsules is None or x.shape[1] == self.capsules[0].numel():
                    self.kept = rows > 1e-6 * rows.amax(dim=1, keepdim=True)


class _Outputs(list):
    """All tensors that a network returns, whatever they are packed in."""

    def __init__(self, out):
        super().__init__(_tensors(out))


def _tensors(out) -> Iterator[Tensor]:
    """All tensors in what a network returns, whatever they are packed in."""
    if isinstance(out, Tensor):
        yield out
    parts = out.values() if isinstance(out, dict) else out if isinstance(out, list | tuple) else vars(out).values() if hasattr(out, "__dataclass_fields__") else ()  # fmt: skip
    for part in parts:
        yield from _tensors(part)


def _in_use_and_training(net: nn.Module, images: Tensor, labels: Tensor | None) -> Generator[str, None, bool]:
    """What is wrong in eval mode and in training mode; returns whether a decoder was seen."""
    net.eval()
    made_up = torch.arange(len(images), device=images.device) % 2 if labels is None else labels
    needs = ()  # what the network can't do without
    try:
        use = _Call(net, images)
    except Wrong as problem:
        if "positional argument" not in str(problem):
            raise
        needs = (made_up,)
        with contextlib.suppress(Wrong):
            use = _Call(net, images, made_up)
            yield "in use, too, it asks for labels, which nobody has then: let the longest capsule stand in for them"
        if not needs:
            raise
    again = _Call(net, images, *needs)
    lengths, classes = use.lengths, use.lengths.shape[1]
    wrong_if(
        (not lengths.isfinite().all(), "some lengths are not finite numbers"),
        (not close(again.lengths, lengths), "the same images give other lengths each time, in eval mode too: take the randomness out"),
        (close(lengths[1:2], lengths[:1], 1e-6), "two different images give the same lengths: the network doesn't look at its input"),
    )  # fmt: skip
    sums = {axis: close(lengths.sum(axis), torch.ones_like(lengths.sum(axis)), 1e-4) for axis in (0, 1)}
    if sums[1]:
        yield f"a softmax stands on the lengths: they sum to 1 over the {classes} classes, and the margin 0.9 is out of reach. Lengths are in 0..1 by themselves"
    elif sums[0]:
        yield "a softmax over the batch stands on the lengths: they sum to 1 over the images"
    elif lengths.max() > 1 + 1e-4 or lengths.min() < 0:
        yield f"lengths run from {lengths.min():.2f} to {lengths.max():.2f}, and should lie in 0..1: squash along the dimensions of a capsule"
    try:
        alone = _Call(net, images[:1], *(x[:1] for x in needs))
        if alone.lengths.shape != lengths[:1].shape:
            raise Wrong(f"lengths come as {list(alone.lengths.shape)}")
        if not sums[0] and _mixes(net, images, needs):
            yield "the lengths of an image change with its batch-mates: average no logits and take no softmax over the batch"
    except Wrong as problem:
        yield f"a batch of one image fails: a squeeze without an axis takes the batch away, so name the axis. {problem}"
    longest = F.one_hot(lengths.argmax(1), classes).bool()
    if use.kept is not None and not needs:
        if (use.kept.sum(1) > 1).all():
            yield "the decoder gets all capsules: keep the longest alone in use, the label's alone in training"
            return True
        if not torch.equal(use.kept, longest):
            yield f"in use the decoder gets another capsule than the longest, for {int((use.kept != longest).any(1).sum())} of {len(images)} images: take no softmax over the batch before you choose"
    given = (lengths.argmax(1) + 1) % classes if labels is None else labels
    wanted = F.one_hot(given.long(), classes).bool()
    if torch.equal(wanted, longest):
        return use.kept is not None  # no difference can be seen
    net.train()
    waits, seen, gets = in_training_mode(net), use.kept is not None, []
    for form in ((given,), (wanted.float(),), ()):  # class numbers, one-hot, or no labels at all
        with contextlib.suppress(Wrong):
            if gets and not form:
                break
            training = _Call(net, images, *form)
            now = F.one_hot(training.lengths.argmax(1), classes).bool()
            if training.kept is not None:
                seen = True
                right = torch.equal(training.kept, wanted) or (waits and not torch.equal(now, longest))
                gets.append("" if right else "the longest capsule" if torch.equal(training.kept, now) else "another capsule than the label's")  # fmt: skip
    if gets and all(gets):
        yield f"in training, too, the decoder gets {gets[-1]}: it should get the label's, or it learns to draw the network's mistakes"
    return seen


def _mixes(net: nn.Module, images: Tensor, needs: tuple) -> bool:
    """Whether an image's lengths change with its batch-mates: in float64, where that shows however short the capsules are."""
    with contextlib.suppress(Exception):  # it may not run in float64
        exact = copy.deepcopy(net).double()
        alone, both = (_Call(exact, x.double(), *(y[: len(x)] for y in needs)).lengths for x in (images[:1], images))
        return not close(alone, both[:1], 1e-6)
    alone, both = (_Call(net, x, *(y[: len(x)] for y in needs)).lengths for x in (images[:1], images))
    return not close(alone, both[:1], 1e-3)


def _moves(net: nn.Module, images: Tensor) -> Iterator[str]:
    """What would keep the network from moving to another device: it is run on the meta device, which has no numbers."""
    plain = [f"{name or type(net).__name__}.{key}" for name, module in net.named_modules() for key, x in vars(module).items() if isinstance(x, Tensor)]  # fmt: skip
    if plain:
        yield f"{', '.join(plain)} stays behind when the network moves to another device: it is a plain tensor, so use register_buffer"
    kinds = {type(module) for module in net.modules() if not type(module).__module__.startswith("torch.")}
    functions = [f for kind in kinds for f in vars(kind).values() if inspect.isfunction(f)]
    written = sorted(f.__qualname__ for f in functions if any(map(_to_cuda, *_steps(f))))
    if written:
        yield f".cuda is written into {', '.join(written)}: make new tensors where the input is, with device=x.device"
    elif not plain:
        with contextlib.suppress(Exception):
            away = copy.deepcopy(net).to("meta")
            try:
                away.eval()(images.to("meta"))
            except RuntimeError as error:
                if "same device" in str(error) or "expected device" in str(error):
                    yield f"it can't move to another device: {str(error).splitlines()[0][:160]}. Make new tensors where the input is, with device=x.device"


def _steps(function: Callable) -> tuple[list, list]:
    """A function's instructions, and for each of them the next."""
    steps = list(dis.get_instructions(function))
    return steps[:-1], steps[1:]


def _to_cuda(step: dis.Instruction, following: dis.Instruction) -> bool:
    """Whether two instructions are those of x.cuda() or x.to("cuda"); torch.cuda.is_available() moves nothing."""
    method = following.opname in ("LOAD_ATTR", "LOAD_METHOD") and step.argval != "torch"
    return following.argval == "cuda" and (method or step.argval == "to")


@checker
def loader(train: Iterable, test: Iterable | None = None):
    """Check what feeds a network: moves of the training images, the test images left as they are, the scale of both.

    Args:
        train, test: a DataLoader, a dataset, or anything that gives (images, labels) and can be gone through more than once.
    """
    for name, given in (("train", train), ("test", test)):
        if (name == "train" or given is not None) and not (
            isinstance(given, Iterable) or hasattr(given, "__getitem__")
        ):
            raise NoFunction(f"checks.loader takes loaders or datasets; {name} is {type(given).__name__}")
    readings = [_batch(train) for _ in range(8)]
    pictures, labels = readings[0]
    if test is not None:
        seen, _ = _batch(test)
        if any(not torch.equal(seen, _batch(test)[0]) for _ in range(3)):
            yield "test images come out different each time: they are augmented, too. Move the training images alone"
        if torch.equal(seen, pictures):
            yield "the test images are the training images"
        if scale := _scale("test", seen):
            yield scale
    if scale := _scale("training", pictures):
        yield scale
    if labels is not None and labels.is_floating_point() and labels.dim() < 2:
        yield "labels come as floating-point numbers: give class numbers as integers, or one-hot rows"
    moved = [_shifts(pictures, other) for other, _ in readings[1:]]
    together = [len(set(shifts)) == 1 for shifts in moved if shifts and set(shifts) != {(0, 0)}]
    if len(together) > 2 and all(together):
        yield "all pictures of a batch make the same move: draw one for each image by itself"
    same = all(torch.equal(pictures, other) for other, _ in readings[1:])
    looked = "" if test is not None else ". Not looked at: the test images"
    return f"loader: {'training images are never moved' if same else 'training images move, each by itself'}, {'test images stay, ' * (test is not None)}all within the sigmoid's reach{looked}"


def _batch(given: Iterable) -> tuple[Tensor, Tensor | None]:
    """The first 16 images and labels, read anew, in their order."""
    if isinstance(given, DataLoader) and not isinstance(given.dataset, IterableDataset):
        first = Subset(given.dataset, range(min(16, len(given.dataset))))
        given = DataLoader(first, batch_size=16, collate_fn=given.collate_fn)
    elif isinstance(given, torch.utils.data.Dataset) and hasattr(given, "__len__"):
        given = DataLoader(Subset(given, range(min(16, len(given)))), batch_size=16)
    if iter(given) is given:
        raise Unwritten("this can be gone through only once: give the loader or the dataset itself, not an iterator")
    try:
        batch = list(_tensors(next(iter(given))))
    except StopIteration:
        raise Unwritten("the loader is empty") from None
    pictures = next((x for x in batch if x.dim() > 2), None)
    if pictures is None:
        raise Unwritten(f"no images [B, C, H, W] are in a batch; there are {', '.join(str(list(x.shape)) for x in batch) or 'no tensors'}")  # fmt: skip
    return pictures, next((x for x in batch if x is not pictures and len(x) == len(pictures)), None)


def _scale(which: str, pictures: Tensor) -> str:
    verdict = check_images(pictures)
    return "" if verdict else f"{which} images: {verdict.message}"


def _shifts(before: Tensor, after: Tensor, most: int = 6) -> list[tuple[int, int]]:
    """By how much each picture has moved from one reading to the next; [] where one did anything else, or is black."""
    if before.shape != after.shape or before.shape[-1] <= 2 * most:
        return []
    inner = [x.flatten(1, -3)[:, :1] if x.dim() > 3 else x[:, None] for x in (before.float(), after.float())]
    height, width = inner[0].shape[2:]
    middle = inner[1][:, :, most:-most, most:-most]
    places = [(dy, dx) for dy in range(-most, most + 1) for dx in range(-most, most + 1)]
    windows = torch.stack([inner[0][:, :, most - dy : height - most - dy, most - dx : width - most - dx] for dy, dx in places])  # fmt: skip
    off = (windows - middle).abs().amax((2, 3, 4))  # [places, N]
    return [places[n] for n in off.argmin(0).tolist()] if (off.amin(0) < 1e-3).all() and middle.any() else []
