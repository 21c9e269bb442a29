"""Trainings of two small stages, and their processes while they train."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import ray

OPTIONS: dict[str, Any] = {
    "arch": "tinycnn",
    "width": 4,
    "epochs": 3,
    "batch_size": 16,  # of the tiny task's 96 images: six batches an epoch
    "lr": 0.01,
    "augment": "crop:4,flip,cutout:8,translate:2",
    "chunk": 2,
    "precision": "fp32",
    "kernels": "conv",
    "cpus_per_stage": 1,
}
"""Of a run in the folder `run`, whose actors are named after it."""


def call_actor(name: str, function: Callable[[Any], Any]) -> Any:
    """Call a function with the StageActor of that name, in its process."""
    return ray.get(ray.get_actor(f"run:{name}").__ray_call__.remote(function))


def pid_of(name: str) -> int:
    """Return the process of an actor."""
    pid: int = call_actor(name, lambda actor: os.getpid())
    return pid


def kill_actor(name: str) -> None:
    """Kill the process of an actor."""
    os.kill(pid_of(name), signal.SIGKILL)


def once(line: str, act: Callable[[], object]) -> Callable[[str], None]:
    """Return an `act` for a RecordingCallback: does something at the first such line."""
    done: list[str] = []

    def acted(found: str) -> None:
        if found == line and not done:
            done.append(found)
            act()

    return acted


def as_flags(options: dict[str, Any], **more: Any) -> list[str]:
    """Return options as a command line has them."""
    given = {**options, **more}
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
