"""Promise 2 in one process: the cut changes nothing."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from rayff.config.local_loss import LossConfig
from rayff.engine.commands import Report
from rayff.engine.pipeline import LocalPipeline
from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture
from tests.engine.stages import CLASSES, RESNET, evaluate, make_stage, states_of, train
from tests.helpers.augmentations import DARKEN
from tests.helpers.losses import LINEAR
from tests.helpers.modules import HERE

Result = tuple[dict[int, bytes], list[Report]]

OWN = {
    "loss": LossConfig(name=LINEAR),
    "augment": f"flip,{DARKEN}",
    "optimizer": "torch.optim:RMSprop",
}
"""A user's local loss, whose heads learn too, augmentation and optimizer."""
AUGMENT = {"augment": "crop:4,flip,cutout:8,translate:2"}

HEADS = {"loss": LossConfig(name="linear_similarity", label_smoothing=0.1), "rule": "fast"}
"""A built-in loss with heads, by the analytic step."""

RECIPE = {**HEADS, "optimizer": "muon", "clip_norm": 0.01, "lr_scale": 0.25}
"""All that a recipe does to a layer's step."""


def run(cuts: tuple[int, ...], network: Architecture = RESNET, **how: Any) -> Result:
    """Train, evaluate, train; return all bits of the states and the reports of the whole."""
    slices = network.stages(cuts)
    stages = [
        make_stage(part, first=part is slices[0], last=part is slices[-1], **how)
        for part in slices
    ]
    asked = (np.array([0, 4]), np.array([1, 2]))
    commands = [
        train((0, 1, 2), (3, 4)),
        dataclasses.replace(evaluate((0, 1, 2, 3, 4), (5, 6, 7, 8)), logits=asked),
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


@pytest.mark.parametrize(
    "how", [{"precision": "bf16"}, {"rule": "fast"}, AUGMENT, OWN, HEADS, RECIPE], ids=str
)
def test_whatever_the_layers_learn_by(how: dict[str, Any], one_stage: Result) -> None:
    whole = run((), **how)
    assert whole[0] != one_stage[0]
    assert_same(run((2, 7, 12), **how), whole)


def test_every_chunk_gives_the_same_bits_of_augmented_images() -> None:
    """A step counts batches, however many of them a command has."""
    found = []
    for chunks in (
        ([(0, 1, 2), (3, 4), (5, 6)],),
        ([(0, 1, 2)], [(3, 4), (5, 6)]),
        (
            [(0, 1, 2)],
            [(3, 4)],
            [(5, 6)],
        ),
    ):
        stages = [
            make_stage(part, first=part.layers[0].index == 0, last=number == 1, **AUGMENT)
            for number, part in enumerate(RESNET.stages((7,)))
        ]
        steps = itertools.accumulate((len(chunk) for chunk in chunks), initial=0)
        commands = [train(*chunk, step=step) for chunk, step in zip(chunks, steps, strict=False)]
        list(LocalPipeline(stages).stream(commands))
        found.append(states_of(*stages))
    assert found == [found[0]] * 3


MODULES = {
    name: architecture(name, num_classes=CLASSES, image_channels=3, width=4)
    for name in (f"{HERE}:every_kind", "vgg8b")
}
PREDSIM = {"loss": LossConfig(name="predsim")}


@pytest.fixture(scope="module")
def modules_in_one_stage() -> dict[str, Result]:
    return {name: run((), network, **PREDSIM) for name, network in MODULES.items()}


@pytest.mark.parametrize(
    ("name", "cut"),
    [(name, cut) for name, network in MODULES.items() for cut in range(1, len(network))],
)
def test_every_cut_between_modules_gives_the_same_bits(
    name: str, cut: int, modules_in_one_stage: dict[str, Result]
) -> None:
    assert_same(run((cut,), MODULES[name], **PREDSIM), modules_in_one_stage[name])


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("how", [{}, {"precision": "bf16"}], ids=str)
def test_each_module_by_itself_gives_the_same_bits(
    name: str, how: dict[str, Any], modules_in_one_stage: dict[str, Result]
) -> None:
    network = MODULES[name]
    whole = run((), network, **PREDSIM, **how)
    assert (whole[0] == modules_in_one_stage[name][0]) == (not how)
    assert_same(run(tuple(range(1, len(network))), network, **PREDSIM, **how), whole)
