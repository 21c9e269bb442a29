"""The command `rayff plan`: shows how a network would be cut into stages, without training."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from rayff.cli import parse, run_command
from rayff.config.activity import activity
from rayff.config.kernels import summarise_kernels
from rayff.config.text import plural
from rayff.config.train_config import Device, Precision, RuleName, TrainConfig
from rayff.console.activity_view import ActivityView
from rayff.console.outlet import ResultConsole

DESCRIPTION = """\
Time the layers of a network on this cluster and show how it would be cut into stages.

Examples:
  rayff plan --arch resnet --stages 4
  rayff plan --arch resnet --cuts 5,9,13 --batch-size 64
  rayff plan --arch resnet --stages 8 --replicas auto
"""


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """The options."""

    arch: str = "tinycnn"
    """Architecture: {architectures}."""
    width: int | None = None
    """Channels of the first layer. Default: the architecture's own."""
    task: str = "cifar10"
    """Data set that gives image channels and classes: {tasks}, or a folder or URI of images."""
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

    def run(self) -> TrainConfig:
        """Return the run that is planned."""
        known = {field.name for field in dataclasses.fields(TrainConfig)}
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return TrainConfig(**{name: value for name, value in values.items() if name in known})


def main(args: Sequence[str]) -> int:
    """Time the layers and print the plan."""
    command = parse(PlanCommand, module="rayff.plan", description=DESCRIPTION, args=args)
    with ActivityView(Console(stderr=True, emoji=False)):
        with activity("loading torch and Ray"):
            from rayff.distributed.planner import plan_run
        facts = plan_run(command.run(), warn=_warn)
    if command.json:
        print(json.dumps(facts, indent=2))
    else:
        _show(facts)
    return 0


def _warn(message: str) -> None:
    print(message, file=sys.stderr)


def _show(facts: dict[str, Any]) -> None:
    console = ResultConsole(highlight=False, emoji=False)
    table = Table(
        title=f"{facts['architecture']}, batch {facts['batch_size']}, {facts['resources']}"
    )
    for name in (
        "stage",
        "layers",
        "actors",
        "seconds a batch",
        "share of the slowest",
        "weights",
        "memory, about",
        "bytes onward",
    ):
        table.add_column(name, justify="right")
    for number, stage in enumerate(facts["stages"]):
        onward = stage["bytes_onward"]
        table.add_row(
            str(number),
            stage["layers"],
            str(stage["replicas"]),
            f"{stage['seconds']:.4f}",
            f"{100 * stage['share']:.0f}%",
            f"{stage['weights'] / 1e6:.1f} M",
            f"{stage['memory_bytes'] / 2**20:,.0f} MiB",
            f"{onward / 2**20:.1f} MiB" if onward else "-",
        )
    console.print(table)
    fast = facts["rule"] == "fast"
    how = f"kernels {summarise_kernels(facts['kernels'])}" if fast else "plain rule"
    console.print(
        f"computes with {plural(facts['threads'], 'thread')}, {facts['precision']}, {how}"
    )
    cuts = ",".join(map(str, facts["cuts"])) or "none"
    console.print(f"cuts: {cuts}")
    if max(facts["replicas"]) > 1:
        console.print(
            f"replicas: {','.join(map(str, facts['replicas']))}, if they exchange gradients at "
            f"{facts['all_reduce_bytes_per_s'] / 1e9:g} GB/s (assumed)"
        )
    console.print(
        f"predicted speed-up over one such actor: {facts['speedup']:.2f}x "
        f"of {sum(facts['replicas'])}"
    )


if __name__ == "__main__":
    run_command(main)
