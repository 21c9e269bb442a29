"""The command `rayff bench transport`: Time messages between two actors, by size and transport.

Each message is a tensor that one actor hands to the other as stages do, with several of them on
the way; the time of a message is that of all of them over their number. The direct transports are
timed where the devices have them: gloo on CPUs, cuda-ipc, nccl and nixl on GPUs.

Examples:
  rayff bench transport --transports object-store,gloo --sizes 1,8 --repeats 2
  rayff bench transport --device cuda --gpus-per-stage 0.5 --transports object-store,cuda-ipc
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from rayff.bench.command import BenchCommand, benchmark
from rayff.bench.results import Results, in_turns
from rayff.config.train_config import Device, TrainConfig


@dataclass(frozen=True, kw_only=True)
class TransportCommand(BenchCommand):
    """The options."""

    transports: str = "object-store"
    """Transports as in training, with commas between them."""
    sizes: tuple[int, ...] = (1, 4, 16, 64)
    """MiB of a message, such as 1,16."""
    messages: int = 20
    """Messages of a repetition."""
    window: int = 4
    """Messages on the way at most."""
    device: Device = "auto"
    """Device of both actors; auto is a GPU where the cluster has one."""
    gpus_per_stage: float | None = None
    """GPUs of each actor; 0.5 puts both on one. Default: as in training."""
    repeats: int = 5
    """Repetitions, of which the median is reported."""


def measure(command: TransportCommand, results: Results) -> None:
    """Fill in the table and the figures."""
    from rayff.distributed.hop import message_s, resize, start_pair
    from rayff.distributed.placement import nodes, stage_resources
    from rayff.distributed.session import ray_session
    from rayff.distributed.transport import make_transport

    options: dict[str, Any] = {"device": command.device, "gpus_per_stage": command.gpus_per_stage}
    runs = [
        TrainConfig(stages=2, cpus_per_stage=1, transport=name, **options)  # type: ignore[arg-type]
        for name in command.transports.split(",")
    ]
    rows = []
    with ray_session():
        each = [stage_resources(run, nodes(), 2) for run in runs][0]
        pair = start_pair(each)
        transports = {
            run.transport: make_transport(run, gpus=each.gpus, warn=results.notes.append)
            for run in runs
        }
        for transport in transports.values():
            transport.connect(pair)
        for size in command.sizes:
            resize(pair, size * 2**20)
            works: dict[str, Callable[[], float]] = {
                name: partial(message_s, transport, pair, command.messages, command.window)
                for name, transport in transports.items()
            }
            for name, taken in in_turns(works, command.repeats).items():
                rate = size / 1024 / median(taken)
                rows.append(
                    {"transport": name, "MiB": size, "message_s": taken, "GiB_per_s": rate}
                )
    results.figures["messages"] = rows
    results.table(
        f"messages between two actors on {'GPUs' if each.gpus else 'CPUs'}, {command.window} on "
        "the way",
        rows,
        "transport MiB message_s GiB_per_s",
    )


main = benchmark(TransportCommand, measure)
