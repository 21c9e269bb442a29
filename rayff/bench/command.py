"""What all benchmarks share on the command line: options, their checks, and the way they run."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from rayff.bench.results import Results
from rayff.cli import parse
from rayff.config.errors import UserError
from rayff.config.train_config import Device, Precision, TrainConfig


@dataclass(frozen=True, kw_only=True)
class BenchCommand:
    """Options of every benchmark."""

    save: str | None = None
    """JSON file to write the figures to."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            for count in value if isinstance(value, tuple) else (value,):
                if type(count) is int and count < 1 and name != "seed":
                    raise UserError(f"--{name.replace('_', '-')} must be 1 or more, not {count}")
        if self.save is not None:
            check_writable("save", self.save)


def check_writable(option: str, file: str) -> None:
    """Raise a UserError where an option names a file that cannot be written."""
    path = Path(file).absolute()
    there = next(each for each in (path, *path.parents) if each.exists())
    if path.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"--{option} {file} cannot be written; name another file")


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Options of a benchmark in this process."""

    device: Device = "auto"
    """Device; auto is a GPU where there is one."""
    threads: int | None = None
    """Torch threads. Default: one per core."""


@dataclass(frozen=True, kw_only=True)
class KernelOptions:
    """Options of a benchmark that trains by the fast rule."""

    kernels: str | None = None
    """Convolution backends of the fast rule, as in training. Default: by the table for this kind
    of machine."""
    autotune: bool = False
    """Choose the backends by a timing instead of the table."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(KernelOptions):
    """Options of a benchmark that trains on random images."""

    arch: str = "resnet"
    """Network: {architectures}, or package.module:function."""
    batch_size: int = 128
    """Images of a batch."""
    precision: Precision | None = None
    """Number format of convolutions and activations. Default: as in training."""


C = TypeVar("C", bound=BenchCommand)
Main = Callable[[Sequence[str]], int]


def benchmark(kind: type[C], measure: Callable[[C, Results], None]) -> Main:
    """Return the main function of a benchmark, whose help is the docstring of its module.

    It parses the options, measures, prints the results and saves them where asked. It returns 1
    where the benchmark checks something that does not hold, else 0.

    Args:
        kind: the options, a class called like the benchmark with `Command` behind it.
        measure: fills in the results.
    """
    words = re.findall("[A-Z][a-z]*", kind.__name__.removesuffix("Command"))
    name, module = "-".join(words).lower(), sys.modules[kind.__module__]

    def main(args: Sequence[str]) -> int:
        description = f"{module.__doc__}".partition(": ")[2]
        command = parse(kind, module=f"rayff.bench {name}", description=description, args=args)
        if isinstance(command, DeviceOptions) and command.threads is not None:
            torch.set_num_threads(command.threads)
        results = Results(name, dataclasses.asdict(command))
        measure(command, results)
        results.show()
        if command.save is not None:
            results.save(command.save)
        return 0 if results.passed else 1

    return main


def train_config(command: BenchCommand, **options: Any) -> TrainConfig:
    """Return the options of a training that a benchmark has too, with others over them."""
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    own = {name: value for name, value in vars(command).items() if name in known}
    return TrainConfig(**{**own, **options})
