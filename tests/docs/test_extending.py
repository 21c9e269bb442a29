"""The examples of docs/extending.md train, each named by its import path."""

import sys
from pathlib import Path
from typing import Any

import pytest

import rayff
from rayff.engine.evaluation import evaluate
from tests.docs.pages import examples, write_modules

SMALL: dict[str, Any] = {
    "arch": "tinycnn",
    "width": 10,
    "task": "digits",
    "limit": 64,
    "epochs": 1,
    "logger": "none",
}
OPTIONS = {
    "my_losses": {"loss": "my_losses:MeanAndSpread"},
    "my_nets": {"arch": "my_nets:build"},
    "my_blocks": {"arch": "my_blocks:build", "loss": "linear", "stages": 2},
    "my_vit": {"arch": "my_vit:build", "loss": "linear", "width": 1, "stages": 2},
    "my_optimizers": {"optimizer": "my_optimizers:NAdam"},
    "my_data": {"task": "my_data:load", "batch_size": 16},
    "my_augment": {"augment": "my_augment:flip"},
}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the examples importable, anew in each test."""
    write_modules(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in (*OPTIONS, "my_callbacks"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def train(folder: Path, callbacks: Any = (), **options: Any) -> Any:
    config = rayff.TrainConfig(**{**SMALL, **options, "run_dir": str(folder / "run")})
    return rayff.Trainer(config, backend="local", callbacks=callbacks).fit()


def test_every_example_is_used() -> None:
    titles = {e.title.removesuffix(".py") for e in examples() if e.title is not None}
    assert titles == {*OPTIONS, "my_callbacks", "my_space"}


@pytest.mark.parametrize("name", OPTIONS)
def test_example_trains(name: str, tmp_path: Path) -> None:
    result = train(tmp_path, **OPTIONS[name])
    assert len(result.metrics) == 1
    found = evaluate(result.run_dir, limit=SMALL["limit"])
    assert found.accuracy == result.metrics[-1].test_accuracy


def test_callback_stops_the_run(tmp_path: Path) -> None:
    from my_callbacks import StopWithoutProgress

    result = train(tmp_path, callbacks=[StopWithoutProgress(patience=1)], epochs=40, lr=0.0)
    assert len(result.metrics) < 40
