"""The plan of a pipeline: where it is cut, and what each stage gets."""

from __future__ import annotations

from dataclasses import dataclass

from rayff.partition.cuts import Costs
from rayff.spec import Architecture


@dataclass(frozen=True, kw_only=True)
class StageResources:
    """What one stage takes of the cluster."""

    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """Torch threads of the stage: its whole CPUs, at least one."""
        return max(1, int(self.cpus))

    def __str__(self) -> str:
        cpus = f"{self.cpus:g} CPU{'' if self.cpus == 1 else 's'}"
        return f"{self.gpus:g} GPU, {cpus}" if self.gpus else cpus


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cuts, with the resources of each stage and what was measured to find them."""

    architecture: Architecture
    cuts: tuple[int, ...]
    resources: StageResources
    costs: Costs
    """Of one training batch, as measured."""

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(self.cuts) + 1

    @property
    def stage_names(self) -> list[str]:
        """The layers of each stage, such as "layers 0-4"."""
        slices = self.architecture.stages(self.cuts)
        pairs = [(part[0].index, part[len(part) - 1].index) for part in slices]
        return [f"layer {a}" if a == b else f"layers {a}-{b}" for a, b in pairs]

    def __str__(self) -> str:
        count = f"{self.num_stages} stage{'s' if self.num_stages > 1 else ''}"
        return f"{count} ({' | '.join(self.stage_names)}), {self.resources} each"


CHUNK_S = 0.3
"""Seconds of a default chunk: long against a message's cost, short against a person's patience."""
CHUNK_BYTES = 64 * 2**20
"""Bytes of a default chunk at most, so that a window of them is small against any store."""


def default_chunk(plan: Plan, *, batch_size: int, bytes_per_element: int) -> int:
    """Return how many batches a message takes when nobody says."""
    crossing = max((plan.architecture.crossing(cut) for cut in plan.cuts), default=0)
    by_bytes = CHUNK_BYTES // max(1, crossing * batch_size * bytes_per_element)
    by_time = CHUNK_S / max(1e-6, max(plan.costs.stages_s(plan.cuts)))
    return max(1, min(64, int(by_time), by_bytes))
