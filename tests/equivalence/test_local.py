"""Promise 2 in one process: the cut changes nothing."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from rayff.engine.commands import Report
from rayff.engine.pipeline import LocalPipeline
from tests.engine.stages import RESNET, evaluate, make_stage, states_of, train
from tests.helpers.augmentations import DARKEN
from tests.helpers.losses import LINEAR

Result = tuple[dict[int, bytes], list[Report]]

OWN = {"loss": LINEAR, "augment": f"flip,{DARKEN}", "optimizer": "torch.optim:RMSprop"}
"""A user's local loss, whose heads learn too, augmentation and optimizer."""


def run(cuts: tuple[int, ...], **how: Any) -> Result:
    """Train, evaluate, train; return all bits of the states and the reports of the whole."""
    slices = RESNET.stages(cuts)
    stages = [
        make_stage(part, first=part is slices[0], last=part is slices[-1], **how)
        for part in slices
    ]
    commands = [
        train((0, 1, 2), (3, 4)),
        dataclasses.replace(evaluate((0, 1, 2, 3, 4), (5, 6, 7, 8)), logits=True),
        train((5, 6), step=2),
    ]
    results = list(LocalPipeline(stages).stream(commands))
    assert [command for command, _ in results] == commands
    merged = []
    for _, reports in results:
        assert len({report.images for report in reports}) == 1
        assert all(report.hits is None for report in reports[:-1])
        sums = sum((report.loss_sums for report in reports), ())
        images, hits = reports[0].images, reports[-1].hits
        merged.append(
            Report(
                started_s=0.0,
                busy_s=0.0,
                images=images,
                loss_sums=sums,
                hits=hits,
                logits=reports[-1].logits,
            )
        )
    return states_of(*stages), merged


def assert_same(found: Result, expected: Result) -> None:
    assert found[0] == expected[0]
    for report, other in zip(found[1], expected[1], strict=True):
        assert (report.images, report.loss_sums) == (other.images, other.loss_sums)
        assert np.array_equal(report.hits, other.hits)  # type: ignore[arg-type]
        assert list(map(bytes, report.logits)) == list(map(bytes, other.logits))


@pytest.fixture(scope="module")
def one_stage() -> Result:
    return run(())


@pytest.mark.parametrize("cut", range(1, 17))
def test_every_cut_gives_the_same_bits(cut: int, one_stage: Result) -> None:
    assert_same(run((cut,)), one_stage)


@pytest.mark.parametrize("cuts", [(2, 7, 12), tuple(range(1, 17))], ids=["4", "17"])
def test_many_stages_give_the_same_bits(cuts: tuple[int, ...], one_stage: Result) -> None:
    assert_same(run(cuts), one_stage)


@pytest.mark.parametrize("how", [{"precision": "bf16"}, {"rule": "fast"}, OWN], ids=str)
def test_whatever_the_layers_learn_by(how: dict[str, Any], one_stage: Result) -> None:
    whole = run((), **how)
    assert whole[0] != one_stage[0]
    assert_same(run((2, 7, 12), **how), whole)
