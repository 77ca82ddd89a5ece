"""The words of the command line: from arguments to settings, and from settings to the command that repeats a run."""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from capsule_lib.contract import Kind
from capsule_lib.train.run import command, run
from capsule_lib.training import TrainingConfig

EXAMPLES = """
examples:
  python -m capsule_lib.train --out runs/first
      the small network on the digits that ship with the course: a few minutes on a laptop
  python -m capsule_lib.train --preset paper --data mnist --epochs 20 --out runs/paper
      the paper's network on all of MNIST
  python -m capsule_lib.train --preset compact --data overlapping --out runs/overlapping
      two digits on top of each other, told apart and each redrawn alone
  python -m capsule_lib.train --data my_letters --out runs/letters
      your own pictures: my_letters/a/*.png, my_letters/b/*.png and so on, a folder for each class
  python -m capsule_lib.train --out runs/paper --resume
      go on with a run that was stopped, by Ctrl-C or by anything else
  torchrun --nproc-per-node 2 -m capsule_lib.train --preset paper --data mnist --out runs/paper
      share each batch between two processes, one for each GPU where there are GPUs

OUT then holds checkpoint.pt (what --resume needs, rewritten after every epoch), metrics.csv (a line for each epoch),
and at the end weights.safetensors with its card weights.json: the best epoch's network, measured on the test set.
Read them with capsule_lib.load_weights("OUT/weights.safetensors").
"""
FORMER_FLAGS = {"ema_decay": ["--averaging"]}  # quoted on older cards


def main() -> int:
    """Run the command with the arguments that the process was given; returns its exit code."""
    given = vars(parse_arguments())
    out, resume = Path(given.pop("out")), given.pop("resume")
    if "RANK" in os.environ:  # set by torchrun
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        code = run(out, resume, given)
        if dist.is_initialized():
            dist.barrier()  # who leaves first closes connections that the others still use
            # Everything is written. Taking the process group's threads down aborts a process now and then, so leave without.
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        return code
    except KeyboardInterrupt:
        print(
            f"\nstopped while the network was measured; go on with\n  {command({'out': out})} --resume", file=sys.stderr
        )
        return 130
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    """The arguments that were given: `out`, `resume`, and every field of `TrainingConfig` by its own name."""
    parser = argparse.ArgumentParser(
        "python -m capsule_lib.train",
        description="Train a capsule network on handwritten digits or your own pictures and save its weights.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # only what was really given counts when a run is resumed
    )
    add = parser.add_argument
    add("--out", required=True, metavar="FOLDER", help="where the run is kept; a new folder, unless you resume")
    words = "go on with the run in FOLDER, or begin it if there is none"
    add("--resume", action="store_true", default=False, help=words)
    for setting in dataclasses.fields(TrainingConfig):
        kind, words, default = setting.metadata["kind"], setting.metadata["words"], setting.default
        if setting.name == "precision":
            kind, default = (*kind, "auto"), "auto"
            words += "; auto is bfloat16 where the hardware has it"
        form = (
            {"choices": list(kind)}
            if isinstance(kind, tuple | dict)
            else {"type": reader(kind), "metavar": setting.name.upper()}
        )
        words += f" (default: {default})" if default is not None else ""
        add(flag(setting.name), *FORMER_FLAGS.get(setting.name, []), help=words.replace("%", "%%"), **form)
    return parser.parse_args()


def flag(name: str) -> str:
    """The argument of a setting."""
    return f"--{name.replace('_', '-')}"


def reader(kind: Kind | type):
    """What argparse reads an argument with; the error names what was expected."""
    if kind is str:
        return str

    def read(text: str) -> float:
        try:
            return kind.check("", kind.type(text))
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {kind.words}; got {text}") from None

    return read
