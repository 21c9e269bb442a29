"""The stage actor: a thin shell around a plain Stage."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from rayff.cluster.transport import PackedBatch, pack_chunk, unpack_chunk
from rayff.data.images import ImageSet, Split
from rayff.learning.chain import Crossing
from rayff.partition.profile import time_layers
from rayff.spec import Architecture, Recipe
from rayff.training.messages import Batch, Chunk, Command, Report
from rayff.training.stage import DTYPES, Stage, StageSpec

_LINK_BYTES = 8 * 2**20


class StageActor:
    """Owns a stage; its methods run in the order called.

    It starts without layers, so that it can time them where they will run, and gets its slice
    of the chain once the cuts are known.

    Args:
        threads: torch threads.
        device: "cpu" or "cuda"; Ray has made the GPUs of others invisible.
    """

    def __init__(self, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = True  # the same bits for every plan, on GPUs too
        self.device = torch.device(device)
        self.stage: Stage | None = None
        self.reports: deque[Report] = deque()

    def profile(
        self, architecture: Architecture, recipe: Recipe, precision: str
    ) -> tuple[list[float], float]:
        """Return the seconds of a training batch in each layer, and the seconds a byte takes
        to the object store and back."""
        layer_s = time_layers(architecture, recipe, self.device, DTYPES[precision])
        payload = np.zeros(_LINK_BYTES, dtype=np.uint8)
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            ray.get(ray.put(payload))
            seconds.append(time.perf_counter() - start)
        return layer_s, min(seconds) / _LINK_BYTES

    def set_up(
        self,
        spec: StageSpec,
        data: Mapping[Split, ImageSet] | None,
        states: Mapping[int, NDArray[np.uint8]] | None,
    ) -> None:
        """Build the stage: fresh, or from the layers of a snapshot."""
        self.stage = None  # free the one before first
        self.stage = Stage(spec, self.device, data, states)

    def handle(
        self, command: Command, message: list[PackedBatch] | Chunk | None
    ) -> tuple[list[PackedBatch] | None, Report]:
        """Carry out a command; the message goes on through the object store."""
        chunk, report = self._handle(command, message)
        return pack_chunk(chunk), report

    def send(self, command: Command, message: list[Any] | None) -> list[Any]:
        """Carry out a command; the message goes on as tensors, device to device."""
        chunk, report = self._handle(command, message)
        self.reports.append(report)
        return [
            (batch.crossing.features, batch.crossing.shortcut, batch.labels, batch.goodness)
            for batch in chunk or ()
        ]

    def report(self) -> Report:
        """Return the report of the oldest `send` that has not been asked for."""
        return self.reports.popleft()

    def _handle(self, command: Command, message: list[Any] | None) -> tuple[Chunk | None, Report]:
        assert self.stage is not None, "set_up comes before the first command"
        return self.stage.handle(command, self._receive(message))

    def _receive(self, message: list[Any] | None) -> Chunk | None:
        """Return the chunk of a message of either transport, on this stage's device."""
        if not message or not isinstance(message[0][0], torch.Tensor):
            return unpack_chunk(message, self.device)
        return [
            Batch(
                crossing=Crossing(features=features, shortcut=shortcut),
                labels=labels,
                goodness=tuple(goodness),
            )
            for features, shortcut, labels, goodness in message
        ]


def remote_stage(transport_options: Mapping[str, Any], **options: Any) -> Any:
    """Return the actor class with its resources; it never restarts by itself.

    A restarted stage would have lost its layers and would go on with fresh ones, so a death is
    an error that the driver sees.
    """
    wrap: Any = ray.remote
    actor = wrap(max_restarts=0, max_task_retries=0, **transport_options)(StageActor)
    return actor.options(**options)
