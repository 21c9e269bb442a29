"""Augmentation of whole batches: a function of seed, step and position in the batch."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rayff import TrainConfig
from rayff.config.errors import UserError
from rayff.data.augmentation import augment, flip, parse_augmentations
from rayff.engine.commands import Train
from rayff.engine.learner import StageSpec, make_learner
from rayff.engine.preparation import prepare
from rayff.engine.replicas import Replica
from rayff.engine.stage import Stage
from rayff.learning.chain import normalise
from tests.helpers.layers import CPU
from tests.helpers.tiny_task import write_tiny_task


def pixels(batch: int = 64) -> Tensor:
    return torch.randint(256, (batch, 3, 4, 4), dtype=torch.uint8)


def noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Add another number to each image."""
    added = torch.randint(256, (len(images), 1, 1, 1), generator=generator)
    return images + added.to(torch.uint8)


def crops(images: Tensor, generator: torch.Generator) -> Tensor:
    return images[..., 1:]


def converts(images: Tensor, generator: torch.Generator) -> Tensor:
    return images.float()


class TestFlip:
    def test_half_of_the_images_are_mirrored_left_to_right(self):
        images = pixels(400)
        found = flip(images, torch.Generator().manual_seed(0))
        mirrored = images.flip(3)
        kinds = [
            (torch.equal(image, before), torch.equal(image, other))
            for image, before, other in zip(found, images, mirrored, strict=True)
        ]
        assert set(kinds) == {(True, False), (False, True)}
        assert sum(other for _, other in kinds) == pytest.approx(200, abs=60)  # six deviations

    def test_the_given_images_are_not_changed(self):
        images = pixels()
        before = images.clone()
        flip(images, torch.Generator().manual_seed(0))
        assert torch.equal(images, before)


class TestAugment:
    def test_it_follows_from_seed_step_and_place_in_the_list_alone(self):
        images, other = pixels(), {"seed": 3, "step": 8}
        first = augment(images, [noise], seed=3, step=7)
        torch.rand(3)
        assert torch.equal(augment(images, [noise], seed=3, step=7), first)
        assert not torch.equal(augment(images, [noise], **other), first)
        assert not torch.equal(augment(images, [noise], seed=4, step=7), first)
        twice = augment(images, [noise, noise], seed=3, step=7)
        assert not torch.equal(twice - first, first - images), "each has a generator of its own"

    @pytest.mark.parametrize(
        ("function", "sentence"),
        [
            (crops, r"crops returned \(64, 3, 4, 3\) torch.uint8 for images \(64, 3, 4, 4\)"),
            (converts, r"converts returned \(64, 3, 4, 4\) torch.float32 for images"),
        ],
    )
    def test_another_shape_or_type_is_refused(self, function, sentence: str):
        with pytest.raises(UserError, match=f"^--augment: {sentence} .*same shape and type$"):
            augment(pixels(), [flip, function], seed=0, step=0)


class TestNames:
    def test_names_and_import_paths_make_a_list(self):
        assert parse_augmentations("none") == ()
        assert parse_augmentations(f"flip, {__name__}:noise") == (flip, noise)

    @pytest.mark.parametrize(
        ("names", "sentence"),
        [
            ("flipp", r"--augment: unknown augmentation 'flipp' \(did you mean 'flip'\?\)"),
            ("flip,", "--augment: unknown augmentation ''"),
            ("flip,none", "--augment: unknown augmentation 'none'"),
            (f"{__name__}:crop", f"--augment .*: {__name__} has no 'crop'"),
        ],
    )
    def test_other_names_are_refused(self, names: str, sentence: str):
        with pytest.raises(UserError, match=f"^{sentence}"):
            parse_augmentations(names)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_replica_sees_its_share_of_the_augmented_batch(count: int, tmp_path):
    """A batch of 5 and one of 4 images: the first stage's replicas draw what one actor draws."""
    augmentations = f"flip,{__name__}:noise"
    config = TrainConfig(
        **{"task": write_tiny_task(tmp_path / "task", num_train=9), "batch_size": 5, "seed": 3},
        **{"arch": "tinycnn", "width": 4, "augment": augmentations, "rule": "plain"},
        run_dir=str(tmp_path / "run"),
    )
    run = prepare(config, resume=False).resolve("fp32", ())
    command = next(iter(run.schedule(chunk=2).commands()))
    assert isinstance(command, Train)
    entered: dict[int, list[Tensor]] = {0: [], 1: []}
    for index in range(count):
        spec = StageSpec(
            architecture=run.architecture[:1],
            is_last=False,
            config=run.resolved,
            replica=Replica(index=index, count=count),
        )
        stage = Stage(spec, CPU, make_learner(spec, CPU), run.splits)
        batches = list(stage._load("train", command.batches, command.step))
        for number, batch in enumerate(batches):
            entered[number].append(batch.activations.features)
    images = torch.from_numpy(run.splits["train"].images)
    for number, indices in enumerate(command.batches):
        whole = images[torch.from_numpy(np.asarray(indices))]
        expected = augment(whole, [flip, noise], seed=3, step=command.step + number)
        assert torch.equal(torch.cat(entered[number]), normalise(expected))
        assert not torch.equal(torch.cat(entered[number]), normalise(whole))
