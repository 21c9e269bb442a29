"""A stage whose step is recorded, as on a GPU, against one that steps layer by layer."""

from typing import Any

import numpy as np
import pytest
import torch

from rayff.config.recipe import Recipe
from rayff.data.images import ImageSet
from rayff.engine.commands import Report, Snapshot, Train
from rayff.engine.learner import StageSpec
from rayff.engine.stage import Stage, local_stage
from rayff.learning.recorded import rerun
from rayff.models.zoo import architecture

NETWORK = architecture("resnet", num_classes=2, image_channels=3, width=4)


def stage(**changes: Any) -> Stage:
    generator = np.random.default_rng(0)
    images = ImageSet(
        images=generator.integers(0, 256, (14, 3, 32, 32), dtype=np.uint8),
        labels=generator.integers(0, 2, 14),
    )
    recipe = Recipe(batch_size=4, lr=0.01, **changes)
    spec = StageSpec(
        architecture=NETWORK, is_last=True, recipe=recipe, seed=1, precision="fp32", rule="fast"
    )
    return local_stage(spec, torch.device("cpu"), {"train": images})


def train(some: Stage) -> tuple[list[Report], Report]:
    """Two chunks of an epoch whose last batch is smaller, then a snapshot."""
    order = np.arange(14)
    reports = []
    for step, parts in ((0, (order[:4], order[4:8])), (2, (order[8:12], order[12:]))):
        command = Train(epoch=0, step=step, lr=0.02 / (step + 1), batches=parts)
        reports.append(some.handle(command, None)[1])
    return reports, some.handle(Snapshot(epoch=1, batch=0), None)[1]


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_it_gives_the_same_bits(optimizer: str):
    plain, recorded = stage(optimizer=optimizer), stage(optimizer=optimizer)
    recorded.learner.record = rerun
    reports, snapshot = train(plain)
    found, found_snapshot = train(recorded)
    assert recorded.learner.replayed is not None
    assert plain.learner.replayed is None
    assert [report.loss_sums for report in found] == [report.loss_sums for report in reports]
    for index, state in snapshot.states.items():
        assert found_snapshot.states[index].tobytes() == state.tobytes()
