"""Promise 2 with a recipe that uses everything: no cut, chunk or resumption moves a bit."""

from pathlib import Path
from typing import Any

import pytest

from rayff.runs.metrics import EpochRecord
from tests.helpers.losses import LINEAR
from tests.helpers.runs import StopAfter, layer_files, timeless, train_locally
from tests.helpers.tiny_task import tiny_config

STEPS: dict[str, Any] = {"lr_schedule": "step", "lr_steps": (0.3, 0.6), "lr_decay": 0.5}
RECIPE: dict[str, Any] = {
    **{"loss": LINEAR, "optimizer": "muon", "epochs": 3, "warmup_epochs": 2},
    **{"lr": 0.02, "lr_scale": 0.5, "clip_norm": 0.05, "weight_decay": 0.1, **STEPS},
}
"""Batches of an epoch: three. The warm-up ends at the second epoch's end, the steps are at the
second and third one's beginning."""

Trained = tuple[list[EpochRecord], dict[str, bytes]]


def trained(task: str, run_dir: Path, **options: Any) -> Trained:
    result = train_locally(tiny_config(task, run_dir, **{**RECIPE, **options}))
    return timeless(result.metrics), layer_files(run_dir)


@pytest.fixture(scope="module")
def whole(tiny_task: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tiny_task, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize(
    "plan", [{"cuts": (2,)}, {"chunk": 3}, {"cuts": (1, 2, 3), "chunk": 2}, {"chunk": 9}], ids=str
)
def test_cuts_and_chunks(
    plan: dict[str, Any], tiny_task: str, whole: Trained, tmp_path: Path
) -> None:
    assert trained(tiny_task, tmp_path / "run", **plan) == whole


@pytest.mark.parametrize("chunks", [1, 2, 6, 7, 11])
def test_a_stop_in_the_warm_up_and_behind_it(
    chunks: int, tiny_task: str, whole: Trained, tmp_path: Path
) -> None:
    config = tiny_config(tiny_task, tmp_path / "run", **RECIPE)
    assert not train_locally(config, StopAfter(chunks)).complete
    moved = tiny_config(tiny_task, tmp_path / "run", **{**RECIPE, "cuts": (2,), "chunk": 2})
    result = train_locally(moved, resume=True)
    assert (timeless(result.metrics), layer_files(tmp_path / "run")) == whole


@pytest.mark.parametrize(
    "changed",
    [
        *({"warmup_epochs": 1}, {"lr_scale": 1.0}, {"clip_norm": 0.5}, {"optimizer": "adamw"}),
        *({"lr_steps": (0.3,)}, {"lr_decay": 0.25}),
        {"lr_schedule": "cosine", "lr_steps": None, "lr_decay": None},
    ],
    ids=str,
)
def test_every_value_of_the_recipe_moves_them(
    changed: dict[str, Any], tiny_task: str, whole: Trained, tmp_path: Path
) -> None:
    _, files = trained(tiny_task, tmp_path / "run", **changed)
    last = max(files)
    assert files[last] != whole[1][last]


def test_the_metrics_have_the_learning_rates(whole: Trained) -> None:
    """Of each epoch's last batch: half of the warm-up, then its end, with one step each."""
    assert [record.lr for record in whole[0]] == pytest.approx([0.01, 0.01, 0.005], rel=1e-12)
