"""The paper's recipes, and what stands over what."""

from dataclasses import asdict

import pytest

from rayff.config.recipe import Recipe
from rayff.config.train_config import TrainConfig
from rayff.models.zoo import ZOO

SHARED = {"epochs": 150, "batch_size": 128, "lr": 0.08, "lr_min": 0.008, "dropout": 0.2}


@pytest.mark.parametrize(
    ("arch", "own"),
    [
        ("resnet", {"optimizer": "adamw", "weight_decay": 5e-4}),
        ("tinycnn", {"optimizer": "adamw", "weight_decay": 0.01}),
        ("vgg", {"optimizer": "adam", "weight_decay": 0.0}),
    ],
)
def test_a_run_that_says_nothing_follows_the_paper(arch: str, own: dict[str, object]):
    assert asdict(TrainConfig(arch=arch).recipe({})) == {**SHARED, **own}


@pytest.mark.parametrize("arch", [name for name in ZOO if name not in ("vgg", "tinycnn")])
def test_relatives_of_the_resnet_follow_its_recipe(arch: str):
    assert TrainConfig(arch=arch).recipe({}) == TrainConfig(arch="resnet").recipe({})


def test_the_tasks_own_values_stand_over_the_papers():
    recipe = TrainConfig(arch="vgg").recipe({"epochs": 7, "optimizer": "sgd", "lr": 0.5})
    assert (recipe.epochs, recipe.optimizer, recipe.lr) == (7, "sgd", 0.5)
    assert (recipe.batch_size, recipe.weight_decay) == (128, 0.0)


def test_what_the_run_says_stands_over_both():
    task = {"epochs": 7, "lr": 0.5, "dropout": 0.1}
    recipe = TrainConfig(arch="tinycnn", epochs=3, dropout=0, weight_decay=0).recipe(task)
    assert recipe == Recipe(
        epochs=3,
        batch_size=128,
        optimizer="adamw",
        lr=0.5,
        lr_min=0.008,
        weight_decay=0,
        dropout=0,
    )


def test_a_resolved_run_has_its_recipe_written_out_and_resolves_to_itself():
    run = TrainConfig(arch="vgg", seed=4, stages=2, lr=0.3)
    resolved = run.resolved({"epochs": 7})
    assert (resolved.epochs, resolved.lr, resolved.optimizer) == (7, 0.3, "adam")
    assert (resolved.batch_size, resolved.lr_min, resolved.dropout) == (128, 0.008, 0.2)
    assert (resolved.arch, resolved.seed, resolved.stages) == ("vgg", 4, 2)
    assert resolved.resolved({"epochs": 9, "lr": 1.0, "batch_size": 5}) == resolved
    assert run.epochs is None
