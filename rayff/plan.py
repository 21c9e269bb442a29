"""The command `rayff plan`: shows how a network would be cut into stages, without training."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from rayff.cli import parse, run_command
from rayff.config.activity import activity
from rayff.config.errors import UserError
from rayff.config.simulation import SimulationOptions
from rayff.config.text import plural
from rayff.config.train_config import Device, Precision, RuleName, TrainConfig
from rayff.console.activity_view import ActivityView
from rayff.console.plan_view import plan_console, show_plan, show_simulation

DESCRIPTION = """\
Time the layers of a network on this cluster and show how it would be cut into stages.

With --simulate plan for any number of devices from a profile of one, without Ray and without the
hardware; --save-profile makes a profile of the devices of this cluster.

Examples:
  rayff plan --arch resnet --stages 4
  rayff plan --arch resnet --cuts 5,9,13 --batch-size 64
  rayff plan --arch resnet --stages 8 --replicas auto
  rayff plan --arch resnet_large --simulate h200 --devices 8,64,1024 --mtbf 50000
  rayff plan --arch resnet --save-profile profile.json
  rayff plan --arch resnet --simulate profile.json --devices 16
"""


@dataclass(frozen=True, kw_only=True)
class PlanCommand(SimulationOptions):
    """The options."""

    arch: str = "tinycnn"
    """Architecture: {architectures}, or package.module:function."""
    width: int | None = None
    """Channels of the first layer. Default: the architecture's own."""
    task: str = "cifar10"
    """Data set that gives image channels and classes: {tasks}, a folder or URI of images, or
    package.module:function."""
    image_size: int | None = None
    """Pixels a side of the images. Default: the architecture's own."""
    batch_size: int | None = None
    """Images per batch. Default: the task's own, else the paper's 128."""
    precision: Precision | None = None
    """Number format of convolutions and features. Default: as in training."""
    loss: str = "goodness"
    """Local loss of every layer: {losses}, or package.module:Class."""
    rule: RuleName | None = None
    """How a layer computes its gradient: fast (in closed form) or plain (by autograd). Default:
    as in training."""
    kernels: str | None = None
    """How each layer's convolution is computed, FORWARD/GRADIENT, each one of {kernels}. Default:
    by a table for this kind of machine, as in training."""
    device: Device = "auto"
    """Where the layers are timed; auto takes a GPU where the cluster has one."""
    stages: int | None = None
    """Number of stages, or of actors with --replicas auto; it may exceed the size of this cluster.
    Default: as in training."""
    cuts: tuple[int, ...] | None = None
    """Cuts to evaluate: the first layer of each stage but the first, such as 5,9,13. Default: the
    best ones."""
    replicas: str | None = None
    """Actors per stage, such as 1,2,1, or auto for the best ones. Default: one per stage."""
    cpus_per_stage: float | None = None
    """CPUs (and torch threads) per stage. Default: those of the cluster, shared evenly."""
    json: bool = False
    """Print the plan as JSON."""
    save_profile: str | None = None
    """Time the layers anew, alone and beside each other, write them to this file with the speed
    of object store and all-reduce, and plan nothing."""

    def __post_init__(self) -> None:
        if self.save_profile is not None and (self.simulate is not None or self.json):
            other = "--json" if self.simulate is None else "--simulate"
            raise UserError(f"--save-profile writes a file and plans nothing; leave {other} out")
        self.check_simulation()

    def run(self) -> TrainConfig:
        """Return the run that is planned."""
        known = {field.name for field in dataclasses.fields(TrainConfig)}
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        given = {n: value for n, value in values.items() if n in known and value is not None}
        return TrainConfig(**given)


def main(args: Sequence[str]) -> int:
    """Time the layers and print the plan."""
    command = parse(PlanCommand, module="rayff.plan", description=DESCRIPTION, args=args)
    if command.save_profile is not None:
        return _save_profile(command, command.save_profile)
    facts, show = _simulated(command) if command.simulate is not None else _measured(command)
    if command.json:
        print(json.dumps(facts, indent=2))
    else:
        show(facts)
    return 0


Facts = dict[str, Any]


def _measured(command: PlanCommand) -> tuple[Facts, Callable[[Facts], None]]:
    with ActivityView(Console(stderr=True, emoji=False)):
        with activity("loading torch and Ray"):
            from rayff.distributed.planner import plan_run
        return plan_run(command.run(), warn=_warn), show_plan


def _simulated(command: PlanCommand) -> tuple[Facts, Callable[[Facts], None]]:
    with ActivityView(Console(stderr=True, emoji=False)):
        with activity("loading torch"):
            from rayff.engine.simulated_plan import simulated_plan
        return simulated_plan(command.run(), command), show_simulation


def _save_profile(command: PlanCommand, path: str) -> int:
    with ActivityView(Console(stderr=True, emoji=False)):
        with activity("loading torch and Ray"):
            from rayff.distributed.profiling import save_profile
        profile = save_profile(command.run(), path)
    plan_console().print(
        f"{path}: {profile.hardware}, {plural(profile.threads, 'thread')}, {profile.precision}, "
        f"times of {', '.join(profile.networks())}",
        soft_wrap=True,
    )
    return 0


def _warn(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
