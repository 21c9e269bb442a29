"""MLflow and Weights & Biases: they get the epochs, and nothing they do ends a run or slows it."""

import dataclasses
import importlib.util
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.store.tracking.file_store import FileStore

from rayff import TrainConfig
from rayff.config.errors import UserError
from rayff.distributed.loggers import LoggerCallback, MLflowCallback, WandbCallback, options
from rayff.engine.callbacks import Callback
from rayff.runs.metrics import EpochRecord, IntervalRecord, scalars
from rayff.train import main as train
from rayff.tune.__main__ import main as tune
from tests.helpers.runs import StopAfter, train_locally
from tests.helpers.stages import OPTIONS


class Library(LoggerCallback):
    """A library that writes down what it gets; the call named `broken` fails."""

    def __init__(self, broken: str = "") -> None:
        super().__init__("mlflow")
        self.broken = broken
        self.name_and_dir: tuple[str, str] | None = None
        self.config: dict[str, Any] = {}
        self.values: dict[int, Mapping[str, float]] = {}
        self.intervals: dict[int, Mapping[str, float]] = {}
        self.failed: bool | None = None
        self.warnings: list[str] = []
        self.warn = self.warnings.append

    def _fail(self, call: str) -> None:
        if call == self.broken:
            raise ConnectionError("the server\nis away")

    def begin(self, name: str, config: dict[str, Any], run_dir: str) -> None:
        self._fail("begin")
        self.name_and_dir, self.config = (name, run_dir), config

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        self._fail("log")
        assert epoch not in self.values, "each epoch once"
        self.values[epoch] = values

    def log_interval(self, step: int, values: Mapping[str, float]) -> None:
        assert step not in self.intervals, "each interval once"
        self.intervals[step] = values

    def end(self, *, failed: bool) -> None:
        self._fail("end")
        self.failed = failed


@pytest.fixture
def config(tiny_task: str, tmp_path: Path) -> TrainConfig:
    return TrainConfig(**OPTIONS, task=tiny_task, run_dir=str(tmp_path / "first"))


class TestALibrary:
    def test_gets_the_options_and_every_epoch(self, config: TrainConfig) -> None:
        library = Library()
        result = train_locally(config, library)
        assert library.name_and_dir == ("first", config.run_dir)
        assert (library.config["width"], library.config["rule"]) == (4, "fast"), "as resolved"
        assert "limit" not in library.config, "what was not said is left out"
        assert library.values == {record.epoch: scalars(record) for record in result.metrics}
        assert library.values[3]["layer_loss/2"] == result.metrics[2].layer_loss[2]
        assert library.failed is False
        assert not library.warnings
        assert not library.intervals

    def test_gets_intervals_where_they_are_asked_for(self, config: TrainConfig) -> None:
        library, restarted = Library(), Library()
        result = train_locally(dataclasses.replace(config, log_every=2), library)
        last = result.metrics[-1].step
        assert list(library.intervals) == list(range(2, last + 1, 2))
        assert {"batch/loss", "batch/lr", "batch/layer_loss/0"} <= library.intervals[2].keys()
        for step in (2, 4, 2, 4, 6):
            values = IntervalRecord(
                epoch=1, step=step, lr=0.1, loss=1.0, images_per_s=1.0, layer_loss=[]
            )
            restarted.on_interval(values)
        assert list(restarted.intervals) == [2, 4, 6]

    def test_does_not_get_what_a_storages_uri_may_hide(self) -> None:
        said = options(
            TrainConfig(storage_path="s3://bucket/runs?access_key=ME&secret_key=SECRET")
        )
        assert said["storage_path"] == "s3://bucket/runs"

    def test_gets_an_epoch_once_that_is_trained_again(self, config: TrainConfig) -> None:
        library = Library()
        (first, second, third) = train_locally(config).metrics
        for record in (first, second, first, second, third):
            library.on_epoch_end(record)
        assert list(library.values) == [1, 2, 3]

    def test_gets_the_epochs_before_a_resumption(self, config: TrainConfig) -> None:
        train_locally(config, StopAfter(chunks=10))
        library = Library()
        result = train_locally(config, library, resume=True)
        assert library.values == {record.epoch: scalars(record) for record in result.metrics}
        assert list(library.values) == [1, 2, 3]

    def test_learns_that_a_run_failed(self, config: TrainConfig) -> None:
        class Broken(Callback):
            def on_epoch_end(self, record: EpochRecord) -> None:
                raise ZeroDivisionError

        library = Library()
        with pytest.raises(ZeroDivisionError):
            train_locally(config, library, Broken())
        assert library.failed is True

    @pytest.mark.parametrize(
        ("broken", "warning", "times"),
        [
            ("log", "--logger mlflow failed (the server is away): training goes on", 3),
            ("end", "--logger mlflow could not end its run (the server is away): training", 1),
        ],
    )
    def test_that_fails_does_not_end_the_run(
        self, broken: str, warning: str, times: int, config: TrainConfig
    ) -> None:
        library = Library(broken)
        assert train_locally(config, library).complete
        assert len(library.warnings) == times
        assert all(each.startswith(warning) for each in library.warnings)

    def test_that_cannot_begin_is_a_mistake_before_training(self, config: TrainConfig) -> None:
        library = Library("begin")
        with pytest.raises(UserError, match=r"^--logger mlflow cannot begin a run \(the server"):
            train_locally(config, library)
        assert library.failed is None


@pytest.mark.parametrize("found", [None, ModuleSpec("mlflow", None)], ids=["nothing", "a folder"])
@pytest.mark.parametrize("command", [train, lambda args: tune(["quick", *args])])
def test_a_library_that_is_missing_is_named_with_what_installs_it(
    found: Any,
    command: Callable[[list[str]], int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^--logger mlflow needs .*: pip install mlflow, or"):
        command(["--logger", "tensorboard,mlflow", "--run-dir", "run"])
    assert not (tmp_path / "run").exists()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of MLflow's."""
    uri = (tmp_path / "mlflow").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    yield
    mlflow.set_tracking_uri(None)


def logged(name: str) -> Any:
    """Return the run of that name in MLflow."""
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    (run,) = [run for run in runs if run.info.run_name == name]
    return run


@pytest.mark.usefixtures("store")
class TestMLflow:
    def test_has_parameters_and_metrics_by_epoch(self, config: TrainConfig) -> None:
        result = train_locally(dataclasses.replace(config, log_every=3), MLflowCallback())
        run = logged("first")
        assert run.info.status == "FINISHED"
        assert run.data.params["width"] == "4"
        assert run.data.tags["run_dir"] == config.run_dir
        own = {n: v for n, v in run.data.metrics.items() if not n.startswith("batch/")}
        assert own == scalars(result.metrics[-1])
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "valid_accuracy")
        assert {point.step: point.value for point in history} == {
            record.epoch: record.valid_accuracy for record in result.metrics
        }
        losses = mlflow.MlflowClient().get_metric_history(run.info.run_id, "batch/loss")
        assert {point.step for point in losses} == {4, 6, 10, 12, 16, 18}, "ends of chunks of 2"

    def test_that_is_slow_does_not_slow_the_run(
        self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It stores nothing until the training is over."""
        stored: list[str] = []
        trained = threading.Event()
        usual = FileStore.log_batch

        def late(self: Any, *args: Any, **kwargs: Any) -> None:
            metrics = kwargs.get("metrics") or next(iter(args[1:]), None)
            if metrics:
                assert trained.wait(60)
                stored.append("epoch")
            usual(self, *args, **kwargs)

        class Last(Callback):
            def on_end(self, error: BaseException | None) -> None:
                assert not stored
                trained.set()

        monkeypatch.setattr(FileStore, "log_batch", late)
        result = train_locally(config, MLflowCallback(), Last())
        assert result.complete
        assert stored
        assert logged("first").data.metrics == scalars(result.metrics[-1])

    def test_that_loses_values_in_the_background_is_a_warning(
        self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(self: Any, *args: Any, **kwargs: Any) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(FileStore, "log_batch", full)
        monkeypatch.setattr("rayff.distributed.loggers.options", lambda config: {})
        warnings: list[str] = []
        callback = MLflowCallback()
        callback.warn = warnings.append
        assert train_locally(config, callback).complete
        (warning,) = warnings
        assert re.fullmatch(r"--logger mlflow lost values \(.*disk full.*\): .*", warning)
        assert logged("first").info.status == "FINISHED"


def test_wandb_leaves_its_file_in_the_run_directory(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    train_locally(dataclasses.replace(config, log_every=1), WandbCallback())
    (file,) = Path(config.run_dir or "").glob("wandb/offline-run-*/run-*.wandb")
    parts = b"first", b"layer_valid_accuracy/2", b"batch/layer_loss/2"
    deadline = time.monotonic() + 30.0  # a process of its own writes it
    while not all(part in file.read_bytes() for part in parts):
        assert time.monotonic() < deadline, file.read_bytes()
        time.sleep(0.1)
