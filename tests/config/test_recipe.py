"""The table of recipes, by method, loss and architecture, and what contradicts it."""

import ast
import dataclasses
import inspect
from dataclasses import asdict
from typing import Any

import pytest

from rayff.config.errors import UserError
from rayff.config.recipe import BACKPROPAGATION, LOCAL_LOSSES, Recipe
from rayff.config.resolved import resolve_recipe, with_recipe
from rayff.config.train_config import TrainConfig

STEPS = {"lr_schedule": "step", "lr_min": None, "lr_steps": (0.5, 0.75, 0.89, 0.94)}
PREDSIM = {"epochs": 400, "optimizer": "adam", "lr": 5e-4, "lr_decay": 0.25, **STEPS}
HEADS = {"lr": 2e-3, "lr_min": 1e-5}
DIGITS = {"batch_size": 16, "lr": 0.012, "lr_min": 0.0003, "epochs": 6}


def resolved(task: dict[str, Any] | None = None, **options: Any) -> Recipe:
    return resolve_recipe(TrainConfig(**options), task or {})


class TestTheTable:
    @pytest.mark.parametrize(
        ("loss", "arch", "own"),
        [
            ("goodness", "resnet", {"weight_decay": 5e-4}),
            ("goodness", "vgg", {"optimizer": "adam"}),
            ("squared_goodness", "tinycnn", {"weight_decay": 0.01}),
            ("linear", "resnet", HEADS),
            ("linear", "vgg", HEADS),
            ("linear", "tinycnn", {**HEADS, "lr": 3e-3}),
            ("linear_similarity", "my_package:net", HEADS),
            ("my_package:Loss", "resnet", HEADS),
            ("my_package:Loss", "tinycnn", {**HEADS, "lr": 3e-3}),
            ("channel_matrix", "tinycnn", {"lr": 0.01, "lr_min": 1e-5}),
            ("predsim", "vgg8b", PREDSIM),
            ("predsim", "vgg11b", PREDSIM),
        ],
    )
    def test_by_loss_and_architecture(self, loss: str, arch: str, own: dict[str, Any]):
        """Nothing else differs from the paper's values, which Recipe() has."""
        expected = {**asdict(Recipe()), "weight_decay": 0.0, **own}
        assert asdict(resolved(loss=loss, arch=arch)) == expected

    @pytest.mark.parametrize("method", ["bp", "bp-deepsup"])
    @pytest.mark.parametrize(
        ("arch", "own"),
        [
            ("resnet", {"weight_decay": 5e-4}),
            ("tinycnn", {"weight_decay": 0.01}),
            ("vgg", {"weight_decay": 0.0, "optimizer": "adam"}),
        ],
    )
    def test_of_backpropagation(self, method: str, arch: str, own: dict[str, Any]):
        expected = {**asdict(Recipe()), "lr": 1e-3, "lr_min": 1e-4, **own}
        assert asdict(resolved(method=method, arch=arch)) == expected

    def test_the_rates_of_a_task_belong_to_the_papers_recipe(self):
        for loss in ("goodness", "squared_goodness"):
            recipe = resolved(DIGITS, loss=loss)
            assert {name: getattr(recipe, name) for name in DIGITS} == DIGITS
        for options in ({"loss": "linear"}, {"loss": "a:B"}, {"method": "bp"}):
            recipe, alone = resolved(DIGITS, **options), resolved(**options)
            assert recipe == dataclasses.replace(alone, epochs=6, batch_size=16)

    def test_the_help_says_every_default(self):
        """By the words that stand for a value in the docstrings of the options."""
        help_of = docstrings()
        for defaults in (*LOCAL_LOSSES.values(), BACKPROPAGATION):
            for values in (defaults.every, *defaults.by_arch.values()):
                for name, value in values.items():
                    digits = f"{value:f}".rstrip("0") if isinstance(value, float) else str(value)
                    assert digits.removesuffix(".") in help_of[name], (name, value)


def docstrings() -> dict[str, str]:
    """Return the docstring of each field of TrainConfig."""
    (body,) = ast.parse(inspect.getsource(TrainConfig)).body
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for field, doc in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = ast.literal_eval(doc.value)
    return found


class TestSchedules:
    def test_what_one_has_no_use_for_is_none(self):
        constant = resolved(lr_schedule="constant")
        assert (constant.lr, constant.lr_min, constant.lr_steps, constant.lr_decay) == (
            *(0.08, None, None, None),
        )
        step = resolved(lr_schedule="step", lr_decay=0.5)
        assert (step.lr_min, step.lr_steps, step.lr_decay) == (None, STEPS["lr_steps"], 0.5)
        cosine = resolved(loss="predsim", lr_schedule="cosine")
        assert (cosine.lr, cosine.lr_min, cosine.lr_steps) == (5e-4, 1e-5, None)

    @pytest.mark.parametrize("schedule", ["cosine", "constant", "step"])
    @pytest.mark.parametrize("loss", ["goodness", "linear", "predsim"])
    def test_a_recipe_that_is_written_out_resolves_to_itself(self, schedule: Any, loss: str):
        config = TrainConfig(loss=loss, lr_schedule=schedule, warmup_epochs=2, clip_norm=1.0)
        recipe = resolve_recipe(config, DIGITS)
        written = TrainConfig.from_dict(with_recipe(config, recipe).to_dict())
        assert resolve_recipe(written, {"epochs": 9, "lr": 1.0}) == recipe

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (
                {"lr_schedule": "constant", "lr_min": 0.001},
                "--lr-min 0.001 is for --lr-schedule cosine, and the run's is constant: leave it "
                "out, or use --lr-schedule cosine",
            ),
            (
                {"lr_steps": (0.5, 0.75)},
                "--lr-steps 0.5,0.75 is for --lr-schedule step, and the run's is cosine: leave it "
                "out, or use --lr-schedule step",
            ),
            (
                {"lr_decay": 0.5},
                "--lr-decay 0.5 is for --lr-schedule step, and the run's is cosine: leave it out, "
                "or use --lr-schedule step",
            ),
            (
                {"loss": "predsim", "lr_min": 0.0},
                "--lr-min 0.0 is for --lr-schedule cosine, and the run's is step: leave it out, "
                "or use --lr-schedule cosine",
            ),
            (
                {"lr": 0.01, "lr_min": 0.02},
                "--lr-min 0.02 is above the --lr 0.01 that the cosine begins with: use a lower "
                "--lr-min, or a higher --lr",
            ),
            (
                {"lr_min": 0.1},
                "--lr-min 0.1 is above the --lr 0.08 that the cosine begins with: use a lower "
                "--lr-min, or a higher --lr",
            ),
            (
                {"epochs": 3, "warmup_epochs": 4},
                "--warmup-epochs 4 is longer than the run of 3 epochs: use fewer, or more "
                "--epochs",
            ),
        ],
        ids=str,
    )
    def test_a_contradiction_is_one_sentence(self, options: dict[str, Any], sentence: str):
        with pytest.raises(UserError) as caught:
            resolved(**options)
        assert str(caught.value) == sentence

    def test_what_just_fits_is_accepted(self):
        assert resolved(lr=0.01, lr_min=0.01).lr_min == 0.01
        assert resolved(epochs=3, warmup_epochs=3).warmup_epochs == 3

    def test_the_default_end_of_the_cosine_is_not_above_its_beginning(self):
        assert resolved(lr=0.02).lr_min == 0.008
        assert resolved(lr=0.001).lr_min == 0.001
        assert resolved(DIGITS, lr=0.0001).lr_min == 0.0001
