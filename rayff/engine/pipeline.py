"""The interface of pipelines, and the pipeline of the local backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

from rayff.engine.commands import Chunk, Command, Report
from rayff.engine.stage import Stage

Result = tuple[Command, list[Report]]
"""A command and what each stage reports of it, in the order of the stages."""


class Pipeline(Protocol):
    """Consecutive stages that carry out commands, on either backend."""

    def stream(self, commands: Iterable[Command]) -> Iterator[Result]:
        """Carry out commands in order and give back their results in the same order.

        Commands are taken from the iterator a bounded number ahead of the results.
        """
        ...


class LocalPipeline:
    """All stages in this process, one after the other."""

    def __init__(self, stages: list[Stage]) -> None:
        self.stages = stages

    def stream(self, commands: Iterable[Command]) -> Iterator[Result]:
        """Carry out commands one at a time; nothing is in flight between two results."""
        for command in commands:
            chunk: Chunk | None = None
            reports: list[Report] = []
            for stage in self.stages:
                chunk, report = stage.handle(command, chunk)
                reports.append(replace(report, memory_bytes=0) if reports else report)
            yield command, reports
