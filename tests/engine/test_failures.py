"""Disks that are full and losses that diverge: the last good checkpoint stays."""

import errno
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load

from rayff import TrainConfig, load_model
from rayff.config.errors import RunError, TrainingDiverged
from rayff.engine import local
from rayff.engine.commands import Command, Snapshot
from rayff.engine.learner import LocalLearner
from rayff.engine.pipeline import LocalPipeline, Result
from rayff.engine.preparation import prepare
from rayff.engine.run import Run
from rayff.runs import checkpoint as checkpoint_module
from rayff.runs import files as files_module
from rayff.runs.files import write_durably
from rayff.runs.metrics import read_metrics
from tests.helpers.augmentations import OF_SIXTEEN
from tests.helpers.mistakes import refused
from tests.helpers.runs import (
    RecordingCallback,
    StopAfter,
    layer_files,
    timeless,
    train_locally,
)
from tests.helpers.tiny_task import tiny_config
from tests.runs.checkpoints import names


@pytest.fixture
def config(tiny_task: str, tmp_path: Path) -> TrainConfig:
    return tiny_config(tiny_task, tmp_path / "run")


class TestADiskThatIsFull:
    @pytest.fixture
    def fail_at(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType, str], None]:
        def fail(module: ModuleType, part: str) -> None:
            """Let a module's writes fail whose path has `part` in it."""

            def write(path: Path, data: bytes | memoryview) -> None:
                if part in str(path):
                    raise OSError(errno.ENOSPC, "No space left on device")
                write_durably(path, data)

            monkeypatch.setattr(module, "write_durably", write)

        return fail

    def test_warns_and_training_goes_on(
        self,
        config: TrainConfig,
        tiny_task: str,
        tmp_path: Path,
        fail_at: Callable[[ModuleType, str], None],
    ) -> None:
        whole = train_locally(tiny_config(tiny_task, tmp_path / "whole"))
        fail_at(checkpoint_module, "step-00000003")
        recording = RecordingCallback()
        result = train_locally(config, recording)
        assert timeless(result.metrics) == timeless(whole.metrics)
        (warning,) = [line for line in recording.lines if line.startswith("warning")]
        for part in ("step 3", "No space left on device", "training goes on"):
            assert part in warning
        assert layer_files(result.run_dir, 6) == layer_files(whole.run_dir, 6)
        assert names(tmp_path / "run" / "checkpoints") == ["step-00000006"]

    @pytest.mark.parametrize(
        ("chunks", "step"), [(None, 6), (6, 4)], ids=["at the end", "at a stop"]
    )
    def test_the_final_checkpoint_raises_and_the_one_before_stays(
        self,
        config: TrainConfig,
        monkeypatch: pytest.MonkeyPatch,
        fail_at: Callable[[ModuleType, str], None],
        chunks: int | None,
        step: int,
    ) -> None:
        fail_at(checkpoint_module, f"step-{step:08d}")
        recording = RecordingCallback()
        with pytest.raises(RunError, match="No space left.*make room.*--resume"):
            train_locally(config, recording, *([StopAfter(chunks)] if chunks else []))
        assert recording.lines[-1] == "end: RunError"
        assert prepare(config, resume=True).progress.epoch == 1
        monkeypatch.undo()
        assert train_locally(config, resume=True).complete
        assert len(layer_files(config.run_dir, 6)) == 4

    def test_a_model_that_was_not_written_is_when_the_run_is_resumed(
        self,
        config: TrainConfig,
        monkeypatch: pytest.MonkeyPatch,
        fail_at: Callable[[ModuleType, str], None],
    ) -> None:
        fail_at(files_module, "model.safetensors")
        for resume in (False, True):
            with pytest.raises(RunError, match="No space left.*make room"):
                train_locally(config, resume=resume)
        monkeypatch.undo()
        train_locally(config, resume=True)
        weights = load_model(str(config.run_dir)).state_dict()
        for index, (_, state) in enumerate(sorted(layer_files(config.run_dir, 6).items())):
            assert torch.equal(weights[f"chain.layers.{index}.weight"], load(state)["weight"])


class BrokenAfterSnapshot(LocalPipeline):
    """One weight of a layer is lost after a snapshot."""

    layer = 0

    def stream(self, commands: Iterable[Command]) -> Iterator[Result]:
        for command, reports in super().stream(commands):
            yield command, reports
            if isinstance(command, Snapshot):
                learner_of(self).chain.parts()[self.layer].weight.data[0, 0, 0, 0] = float("nan")


def learner_of(pipeline: LocalPipeline) -> LocalLearner:
    learner = pipeline.stages[0].learner
    assert isinstance(learner, LocalLearner)
    return learner


class TestDivergence:
    @pytest.mark.parametrize("layer", [0, 2])
    def test_leaves_the_last_good_checkpoint(
        self,
        config: TrainConfig,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        layer: int,
    ) -> None:
        monkeypatch.setattr(local, "LocalPipeline", BrokenAfterSnapshot)
        monkeypatch.setattr(BrokenAfterSnapshot, "layer", layer)
        recording = RecordingCallback()
        with pytest.raises(TrainingDiverged, match=f"layer {layer} became nan at step 3"):
            train_locally(config, recording)
        assert "step-00000003" in recording.lines
        assert recording.lines[-1] == "end: TrainingDiverged"
        latest = prepare(config, resume=True).checkpoint
        assert latest is not None
        assert latest.step == 3
        assert all(load(s.tobytes())["weight"].isfinite().all() for s in latest.states.values())
        assert len(read_metrics(tmp_path / "run" / "metrics.parquet")) == 1
        load_model(tmp_path / "run")

    def test_in_the_last_batch_of_an_epoch_is_not_written_over_the_good_one(
        self, tiny_task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The loss is that of the weights before the step, so it is still finite."""
        config = tiny_config(tiny_task, tmp_path / "run", keep_checkpoints=1, batch_size=96)
        train_locally(config, StopAfter(3))
        good = layer_files(config.run_dir, 1)
        make_pipeline = local.local_pipeline

        def breaks_its_step(run: Run, *args: object) -> LocalPipeline:
            pipeline = make_pipeline(run, *args)  # type: ignore[arg-type]
            learner_of(pipeline).optimizers[1].weight_decay = float("nan")
            return pipeline

        monkeypatch.setattr(local, "local_pipeline", breaks_its_step)
        with pytest.raises(TrainingDiverged, match="layer 1 became nan at step 2"):
            train_locally(config, resume=True)
        assert layer_files(config.run_dir, 1) == good
        assert prepare(config, resume=True).progress.epoch == 1


def test_an_augmentation_that_fails_in_training_ends_the_run_in_a_sentence(
    tiny_task: str, tmp_path: Path
) -> None:
    """It is tried on 16 images, and a batch has 40."""
    config = tiny_config(tiny_task, tmp_path / "run", augment=OF_SIXTEEN)
    recording = RecordingCallback()
    sentence = r"^--augment: of_sixteen fails on images \(40, 3, 32, 32\) uint8: RuntimeError: "
    with refused(sentence + r".*augmentations.py, line \d+\)$"):
        train_locally(config, recording)
    assert recording.lines == ["start", "end: UserError"]
