"""python -m rayff.bench: the speed and memory of this package, measured where it is run."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from rayff.cli import run_command
from rayff.config.errors import UserError, nearest

COMMANDS = {
    "step": "one local step of each layer: plain rule against fast rule, by phase",
    "scaling": "pipelines of 1, 2, ... stages against one stage and against their plan",
    "memory": "peak memory of a step, against backpropagation",
    "backprop": "images/s and seconds to an accuracy, against backpropagation",
    "chaos": "trainings whose stages, nodes and driver are killed at random",
    "snapshot": "what a snapshot costs a training that goes on",
    "endurance": "memory of driver, stages and object store over an hour",
}

USAGE = "\n".join(
    [
        "usage: python -m rayff.bench {" + ",".join(COMMANDS) + "} [OPTIONS]",
        "",
        "Figures are medians of several runs after a warm-up; ratios are from one run.",
        "",
        *(f"  {name:<10}{what}" for name, what in COMMANDS.items()),
        "",
        "Each has its own --help. Examples:",
        "  python -m rayff.bench step --arch tinycnn",
        "  python -m rayff.bench scaling --arch tinycnn --stages 1,2",
    ]
)


def main(args: Sequence[str]) -> int:
    """Run the benchmark that the first argument names."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    name, *rest = args
    if name not in COMMANDS:
        raise UserError(
            f"unknown benchmark {name!r}{nearest(name, COMMANDS)}; known are {', '.join(COMMANDS)}"
        )
    return int(importlib.import_module(f"rayff.bench.{name}").main(rest))


if __name__ == "__main__":
    run_command(main)
