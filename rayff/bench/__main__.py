"""The command `rayff bench`: measures speed and memory."""

from __future__ import annotations

from collections.abc import Sequence

from rayff.cli import run_command, run_group

COMMANDS = {
    "step": "one training step of each layer: plain rule against fast rule, by phase",
    "losses": "one training step with each local loss, against goodness",
    "data": "images a second decoded and streamed, and the memory that streaming takes",
    "transport": "milliseconds of a message between two actors, by size and transport",
    "startup": "seconds from the command line to the first step",
    "scaling": "pipelines of 1, 2, ... stages against one stage and against their plan",
    "memory": "peak memory of a step, against backpropagation",
    "to-accuracy": "seconds, joules and memory to given accuracies, against backpropagation",
    "chaos": "trainings whose stages, nodes and driver are killed at random",
    "snapshot": "how much a snapshot slows training down",
    "endurance": "memory of driver, stages and object store over an hour",
    "kernels": "the table of convolution backends, against autotuning",
}

HELP = """\
Measure speed and memory. Figures are medians of several runs after a warm-up.

{commands}

Examples:
  rayff bench step --arch tinycnn
  rayff bench scaling --arch tinycnn --stages 1,2
  rayff bench step --help
"""


def main(args: Sequence[str]) -> int:
    """Run the benchmark that the first argument names."""
    return run_group("rayff.bench", COMMANDS, HELP, args)


if __name__ == "__main__":
    run_command(main)
