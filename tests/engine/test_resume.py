"""Stopped, killed and resumed at any place, a run ends with the bits of an undisturbed one."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from rayff import TrainConfig, load_model
from rayff.runs.metrics import read_metrics
from tests.helpers.augmentations import DARKEN
from tests.helpers.losses import LINEAR
from tests.helpers.runs import (
    KillAfter,
    Killed,
    RecordingCallback,
    StopAfter,
    layer_files,
    timeless,
    train_locally,
)
from tests.helpers.tiny_task import BATCHES, tiny_config

LAST = 2 * BATCHES
Undisturbed = tuple[list[Any], dict[str, bytes], dict[str, bytes]]


def model_files(run_dir: Path | str | None) -> dict[str, bytes]:
    """Return the trained network and its description, byte for byte."""
    names = ("model.safetensors", "architecture.json")
    return {name: (Path(str(run_dir)) / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def undisturbed(tiny_task: str, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    records = train_locally(tiny_config(tiny_task, run_dir)).metrics
    return timeless(records), layer_files(run_dir, LAST), model_files(run_dir)


@pytest.fixture
def config(tiny_task: str, tmp_path: Path) -> TrainConfig:
    return tiny_config(tiny_task, tmp_path / "run")


def assert_same(config: TrainConfig, undisturbed: Undisturbed) -> None:
    """Compare files and records, train_loss bit for bit, with the undisturbed run's.

    The model has its temperatures and its fusion too.
    """
    saved = read_metrics(Path(str(config.run_dir)) / "metrics.parquet")
    assert timeless(saved) == undisturbed[0]
    assert layer_files(config.run_dir, LAST) == undisturbed[1]
    assert model_files(config.run_dir) == undisturbed[2]


@pytest.mark.parametrize("chunks", range(1, 10))
def test_a_stop_at_every_place(config: TrainConfig, undisturbed: Undisturbed, chunks: int) -> None:
    stopped = train_locally(config, StopAfter(chunks))
    assert not stopped.complete
    assert stopped.stopped_by is None
    result = train_locally(TrainConfig(**{**config.to_dict(), "chunk": 2}), resume=True)
    assert result.complete
    assert timeless(result.metrics) == undisturbed[0]
    assert_same(config, undisturbed)


@pytest.mark.parametrize("chunks", [3, 4, 5, 7])
def test_a_stop_where_few_epochs_are_evaluated(
    config: TrainConfig, undisturbed: Undisturbed, chunks: int
) -> None:
    """The same bits, and of the records the last one."""
    rarely = dataclasses.replace(config, eval_every=2)
    assert not train_locally(rarely, StopAfter(chunks)).complete
    result = train_locally(rarely, resume=True)
    assert result.complete
    assert timeless(result.metrics) == undisturbed[0][-1:]
    assert layer_files(config.run_dir, LAST) == undisturbed[1]
    assert model_files(config.run_dir) == undisturbed[2]
    assert train_locally(rarely, resume=True).metrics == result.metrics


def test_again_and_again_and_with_other_cuts(
    config: TrainConfig, undisturbed: Undisturbed
) -> None:
    train_locally(config, StopAfter(1))
    for cuts in (None, (1,), (1, 2, 3), (3,), (2,), (1, 3)):
        moved = TrainConfig(**{**config.to_dict(), "cuts": cuts})
        train_locally(moved, StopAfter(2), resume=True)
    assert_same(config, undisturbed)


@pytest.mark.parametrize("chunks", [2, 7])
def test_with_heads_an_augmentation_and_an_optimizer_of_the_users_own(
    tiny_task: str, tmp_path: Path, chunks: int
) -> None:
    augment = f"crop:4,flip,{DARKEN},cutout:8,translate:2"
    own = {"loss": LINEAR, "augment": augment, "optimizer": "torch.optim:RMSprop"}
    whole = tiny_config(tiny_task, tmp_path / "whole", **own)
    train_locally(whole)
    config = tiny_config(tiny_task, tmp_path / "run", **own)
    train_locally(config, StopAfter(chunks))
    train_locally(config, resume=True)
    assert layer_files(tmp_path / "run", LAST) == layer_files(tmp_path / "whole", LAST)
    heads = [name for name in load_model(tmp_path / "run").state_dict() if "loss.head" in name]
    assert len(heads) == 2 * 4


def test_a_complete_run_trains_nothing_and_writes_its_model_again(
    config: TrainConfig, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    train_locally(config)
    (tmp_path / "run" / "model.safetensors").unlink()
    recording = RecordingCallback()
    result = train_locally(config, recording, resume=True)
    assert timeless(result.metrics) == undisturbed[0]
    assert recording.lines == []
    assert_same(config, undisturbed)
    load_model(tmp_path / "run")


@pytest.mark.parametrize("chunks", [3, 4])
def test_a_stop_before_or_in_an_evaluation_is_over_when_the_evaluation_is(
    tiny_task: str, tmp_path: Path, chunks: int
) -> None:
    config = tiny_config(tiny_task, tmp_path / "run", epochs=1)
    train_locally(config, StopAfter(chunks))
    recording = RecordingCallback()
    train_locally(config, recording, resume=True)
    assert recording.lines == ["start", "valid", "test", "epoch 1", "step-00000003", "end"]
    assert train_locally(config, recording, resume=True).complete
    assert len(recording.lines) == 6


def test_a_killed_run_goes_on_from_its_last_epoch(
    config: TrainConfig, undisturbed: Undisturbed
) -> None:
    with pytest.raises(Killed):
        train_locally(config, KillAfter(7))
    recording = RecordingCallback()
    train_locally(config, recording, resume=True)
    assert recording.lines[:2] == ["start", "train 3"]
    assert_same(config, undisturbed)


def test_a_row_without_its_checkpoint_is_written_again(
    tiny_task: str, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    config = tiny_config(tiny_task, tmp_path / "run", checkpoint_every=2)
    with pytest.raises(Killed):  # epoch 1 is in the metrics and has no checkpoint
        train_locally(config, KillAfter(6))
    assert len(read_metrics(tmp_path / "run" / "metrics.parquet")) == 1
    train_locally(config, resume=True)
    assert_same(config, undisturbed)
