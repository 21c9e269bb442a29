"""Lists of augmentations: names, strengths, the user's own, and the shares of replicas."""

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

from rayff import TrainConfig
from rayff.config.errors import UserError
from rayff.data.augmentation import (
    Augmentation,
    augment,
    parse_augmentations,
    try_augmentations,
)
from rayff.data.transforms import ImageAugmentation
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


def same(images: Tensor, generator: torch.Generator) -> Tensor:
    return images


def crops(images: Tensor, generator: torch.Generator) -> Tensor:
    return images[..., 1:]


def converts(images: Tensor, generator: torch.Generator) -> Tensor:
    return images.float()


def moves(images: Tensor, generator: torch.Generator) -> Tensor:
    return images.to("meta")


def forgets(images: Tensor, generator: torch.Generator) -> None:
    images.add_(1)


def fails(images: Tensor, generator: torch.Generator) -> Tensor:
    raise RuntimeError(f"no {images.shape[2]} pixels,\nplease")


def draws_elsewhere(images: Tensor, generator: torch.Generator) -> Tensor:
    return images + torch.randint(256, (len(images), 1, 1, 1)).to(torch.uint8)


class Adds:
    """An object that is called."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return images + self.number


ADDS_ONE = Adds(1)


def brighten(images: Tensor, generator: torch.Generator, most: int) -> Tensor:
    return images + torch.randint(most, (len(images), 1, 1, 1), generator=generator).byte()


BRIGHTER = functools.partial(brighten, most=9)
AT = {"seed": 3, "step": 7}


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
            (forgets, r"forgets returned NoneType for images \(64, 3, 4, 4\)"),
        ],
    )
    def test_another_shape_or_type_is_refused(self, function, sentence: str):
        with pytest.raises(UserError, match=f"^--augment: {sentence} .*same shape and type$"):
            augment(pixels(), [*parse_augmentations("flip"), function], seed=0, step=0)

    def test_another_device_is_refused(self):
        sentence = "^--augment: moves returned images on meta for images on cpu: leave them"
        with pytest.raises(UserError, match=sentence):
            augment(pixels(), [moves], seed=0, step=0)

    def test_an_error_is_one_sentence_with_its_line(self):
        sentence = (
            r"^--augment: fails fails on images \(64, 3, 4, 4\) uint8: RuntimeError: no 4 pixels, "
            rf"please \({__file__}, line \d+\)$"
        )
        with pytest.raises(UserError, match=sentence):
            augment(pixels(), [fails], seed=0, step=0)

    def test_the_kinds_are_applied_in_the_order_of_the_list(self):
        """And what a built-in draws depends on its place in the list alone."""
        images = pixels()
        _, _, cutout = parse_augmentations("flip,flip,cutout:2")
        found = augment(images, parse_augmentations(f"flip,{__name__}:noise,cutout:2"), **AT)
        flipped = augment(images, [*parse_augmentations("flip"), same, same], **AT)
        noisy = augment(flipped, [same, noise, same], **AT)
        assert torch.equal(found, augment(noisy, [same, same, cutout], **AT))
        assert not torch.equal(found, noisy)


def described(augmentation: Augmentation) -> object:
    """Return the name and the strength of a built-in, or the user's own."""
    if isinstance(augmentation, ImageAugmentation):
        return type(augmentation).__name__.lower(), augmentation.strength
    return augmentation


class TestNames:
    def test_names_strengths_and_import_paths_make_a_list(self):
        assert parse_augmentations("none") == ()
        found = parse_augmentations(f"crop:3,flip, cutout,{__name__}:noise,translate:12,crop")
        assert [described(each) for each in found] == [
            ("crop", 3),
            ("flip", 0),
            ("cutout", 8),
            noise,
            ("translate", 12),
            ("crop", 4),
        ]

    @pytest.mark.parametrize(
        ("names", "sentence"),
        [
            ("flipp", r"--augment: unknown augmentation 'flipp' \(did you mean 'flip'\?\)"),
            ("crpo:4", r"--augment: unknown augmentation 'crpo' \(did you mean 'crop'\?\)"),
            ("flip,", "--augment: unknown augmentation ''"),
            ("flip,none", "--augment: unknown augmentation 'none'"),
            ("none:3", "--augment: unknown augmentation 'none'"),
            (f"{__name__}:crop", f"--augment .*: {__name__} has no 'crop'"),
            ("flip,math:pi", "--augment math:pi is not callable"),
            ("flip:2", "--augment flip:2: flip takes no strength; name it alone"),
            ("flip:", "--augment flip:: flip takes no strength"),
            *(
                (
                    f"crop:{strength}",
                    f"--augment crop:{strength}: .* whole number .*such as crop:4",
                )
                for strength in ("", "0", "-1", "2.5", "a", "1e9", "9" * 5000, "٣", "4_0")
            ),
            (
                f"{__name__}:noise:3",
                f"--augment {__name__}:noise:3: a function of your own takes no strength; write "
                f"it into the function, and name {__name__}:noise",
            ),
            ("crop:4:2", "--augment crop:4:2: the strength must be a whole number"),
        ],
        ids=lambda value: value[:30],
    )
    def test_other_names_are_refused(self, names: str, sentence: str):
        with pytest.raises(UserError, match=f"^{sentence}"):
            parse_augmentations(names)


class Seldom:
    """Mirrors the whole batch at some of its calls, as by a number drawn elsewhere."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        self.calls += 1
        return images.flip(3) if self.calls % 4 == 0 else images


SELDOM = Seldom()


class TestATry:
    @pytest.mark.parametrize(
        ("names", "shape"),
        [
            ("none", (3, 32, 32)),
            ("crop:31,flip,cutout:32,translate:31", (3, 32, 32)),
            ("crop:5,translate:5,cutout:6", (1, 9, 6)),
            (f"{__name__}:noise,{__name__}:ADDS_ONE,{__name__}:BRIGHTER", (1, 32, 32)),
        ],
    )
    def test_accepts_what_works_and_draws_no_random_number(self, names: str, shape):
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        try_augmentations(names, shape)
        assert torch.rand(1) == expected

    @pytest.mark.parametrize(
        ("names", "sentence"),
        [
            ("crop:6", "--augment crop:6: images of 9x6 pixels allow a strength of 5 at most"),
            ("flip,translate:6", "--augment translate:6: images of 9x6 .* 5 at most"),
            ("cutout", "--augment cutout:8: images of 9x6 .* 6 at most"),
            ("crop:999999999", "--augment crop:999999999: images of 9x6"),
            (f"{__name__}:fails", "--augment: fails fails on images .*: no 9 pixels, please"),
            (f"{__name__}:forgets", "--augment: forgets returned NoneType"),
            (f"{__name__}:crops", r"--augment: crops returned \(16, 3, 9, 5\)"),
            (f"{__name__}:Adds", "--augment: Adds fails on images .* TypeError"),
            (
                f"{__name__}:draws_elsewhere",
                "--augment: draws_elsewhere returned other images when it was called again with "
                "the same generator: draw random numbers from the generator alone",
            ),
            (f"{__name__}:SELDOM", "--augment: .*Seldom.* returned other images when"),
        ],
    )
    def test_refuses_what_does_not_fit_the_images(self, names: str, sentence: str):
        with pytest.raises(UserError, match=f"^{sentence}"):
            try_augmentations(names, (3, 9, 6))


BUILT_IN = "crop:4,flip,cutout:8,translate:2"


@pytest.mark.parametrize("augmentations", [BUILT_IN, f"{BUILT_IN},{__name__}:noise"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_replica_sees_its_share_of_the_augmented_batch(count: int, augmentations: str, tmp_path):
    """A batch of 5 and one of 4 images: the first stage's replicas draw what one actor draws."""
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
        batches = list(stage._load("train", command, command.step))
        for number, batch in enumerate(batches):
            entered[number].append(batch.activations.features)
    images = torch.from_numpy(run.splits["train"].images)
    for number, indices in enumerate(command.batches):
        whole = images[torch.from_numpy(np.asarray(indices))]
        step = command.step + number
        expected = augment(whole, parse_augmentations(augmentations), seed=3, step=step)
        assert torch.equal(torch.cat(entered[number]), normalise(expected))
        assert not torch.equal(torch.cat(entered[number]), normalise(whole))
