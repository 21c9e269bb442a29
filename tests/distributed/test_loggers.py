"""MLflow and Weights & Biases: they get the epochs, and nothing they do ends a run or slows it."""

import copy
import dataclasses
import importlib.util
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from ray.tune import grid_search
from ray.tune.logger import LoggerCallback

from rayff.config.errors import UserError
from rayff.config.kernels import Kernels
from rayff.config.train_config import TrainConfig
from rayff.distributed.loggers import MLflow, RunLogger, options
from rayff.engine.preparation import Prepared, prepare
from rayff.runs.checkpoint import Checkpoint, Progress
from rayff.runs.metrics import Metrics, scalars
from rayff.train import main as train
from rayff.tune.__main__ import main as tune
from rayff.tune.callback import SearchCallback
from rayff.tune.loggers import SearchLogger
from rayff.tune.search import space_loggers
from rayff.tune.space import SearchSpace
from tests.helpers.ray_instance import local_ray
from tests.helpers.tiny_task import write_tiny_task
from tests.runs.test_metrics import record

PATIENCE_S = 60


class Library:
    """A library that writes down what it gets; `before` is called first each time."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.before = before
        self.name, self.config, self.directory = "", dict[str, Any](), Path()
        self.epochs: list[int] = []
        self.values: list[Mapping[str, float]] = []
        self.failed: bool | None = None

    def __call__(self, name: str, config: dict[str, Any], directory: Path) -> "Library":
        self.name, self.config, self.directory = name, config, directory
        return self

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        self.before()
        self.epochs.append(epoch)
        self.values.append(values)

    def close(self, *, failed: bool) -> None:
        self.failed = failed


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    task = write_tiny_task(tmp_path)
    run = TrainConfig(width=4, task=task, batch_size=16, epochs=9, run_dir=str(tmp_path / "first"))
    made = prepare(run, resume=False).settled("fp32", (Kernels(),) * 4)
    made.directory.create(made.run)
    return made


class TestARunLogger:
    def test_hands_on_the_options_and_every_epoch(self, prepared: Prepared) -> None:
        library = Library()
        with RunLogger("mlflow", prepared, pytest.fail, library) as logger:
            for epoch in (1, 2, 3):
                logger.on_epoch(record(epoch))
        assert (library.name, library.directory) == ("first", prepared.directory.path)
        assert (library.config["width"], library.config["precision"]) == (4, "fp32")
        assert "limit" not in library.config, "what was not said is left out"
        assert library.epochs == [1, 2, 3]
        assert library.values[2] == scalars(record(3))
        assert library.values[2]["layer_loss/2"] == 1 / 3
        assert library.failed is False

    def test_does_not_hand_on_what_a_storages_uri_may_hide(self) -> None:
        said = options(
            TrainConfig(storage_path="s3://bucket/runs?access_key=ME&secret_key=SECRET")
        )
        assert said["storage_path"] == "s3://bucket/runs"

    def test_lets_no_slow_library_hold_up_the_run(self, prepared: Prepared) -> None:
        goes_on = threading.Event()
        library = Library(before=lambda: goes_on.wait(PATIENCE_S) and None)
        with RunLogger("mlflow", prepared, pytest.fail, library) as logger:
            for epoch in (1, 2, 3):
                logger.on_epoch(record(epoch))
            assert library.epochs == [], "it still waits for the first"
            goes_on.set()
        assert library.epochs == [1, 2, 3]

    def test_warns_of_a_failure_and_sends_the_epoch_with_the_next(
        self, prepared: Prepared
    ) -> None:
        broken = [ConnectionError("the server\nis away")]

        def fail_once() -> None:
            if broken:
                raise broken.pop()

        library, warnings = Library(before=fail_once), list[str]()
        with RunLogger("mlflow", prepared, warnings.append, library) as logger:
            logger.on_epoch(record(1))
            while not warnings:
                logger.on_result(None, [])  # type: ignore[arg-type]
            assert library.epochs == []
            logger.on_epoch(record(2))
        assert library.epochs == [1, 2]
        assert len(warnings) == 1
        assert warnings[0].startswith("--logger mlflow failed (the server is away): training goes")

    def test_that_never_reaches_its_library_again_ends_with_the_run(
        self, prepared: Prepared
    ) -> None:
        def fail() -> None:
            raise ConnectionError("away")

        warnings: list[str] = []
        with RunLogger("wandb", prepared, warnings.append, Library(before=fail)) as logger:
            logger.on_epoch(record(1))
        assert all("--logger wandb failed (away)" in warning for warning in warnings)
        assert warnings

    def test_says_in_the_library_that_a_run_failed(self, prepared: Prepared) -> None:
        library = Library()
        with (
            pytest.raises(ZeroDivisionError),
            RunLogger("mlflow", prepared, pytest.fail, library),
        ):
            raise ZeroDivisionError
        assert library.failed is True

    def test_does_not_send_an_epoch_again_that_is_trained_again(self, prepared: Prepared) -> None:
        library = Library()
        with RunLogger("mlflow", prepared, pytest.fail, library) as logger:
            for epoch in (1, 2, 1, 2, 3):
                logger.on_epoch(record(epoch))
        assert library.epochs == [1, 2, 3]

    def test_of_a_resumed_run_sends_the_epochs_before_it(self, prepared: Prepared) -> None:
        with Metrics(prepared.directory.path) as metrics:
            for epoch in (1, 2, 3):
                metrics.append(record(epoch))
        reached = Checkpoint(step=12, progress=Progress(epoch=2), states={})
        library = Library()
        resumed = dataclasses.replace(prepared, checkpoint=reached)
        with RunLogger("mlflow", resumed, pytest.fail, library) as logger:
            logger.on_epoch(record(3, loss=0.2))
        assert library.epochs == [1, 2, 3]
        assert library.values[2] == scalars(record(3, loss=0.2))

    def test_that_cannot_begin_is_a_mistake_before_training(self, prepared: Prepared) -> None:
        def refuse(*_: Any) -> Any:
            raise PermissionError("no key")

        logger = RunLogger("wandb", prepared, pytest.fail, refuse)
        with pytest.raises(UserError, match=r"^--logger wandb cannot begin a run \(no key\)"):
            logger.__enter__()


class TestALibraryThatIsMissing:
    @pytest.fixture(params=[None, ModuleSpec("mlflow", None)], ids=["nothing", "a folder"])
    def missing(self, request: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: request.param)
        monkeypatch.chdir(tmp_path)

    @pytest.mark.usefixtures("missing")
    @pytest.mark.parametrize("command", [train, lambda args: tune(["quick", *args])])
    def test_is_named_with_what_installs_it(
        self, command: Callable[[list[str]], int], tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match=r"^--logger mlflow needs .*: pip install mlflow, or"):
            command(["--logger", "tensorboard,mlflow", "--run-dir", "run"])
        assert not (tmp_path / "run").exists()


class Callback(LoggerCallback):
    """Ray's callback for a library, as far as it is called."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.calls: list[tuple[Any, ...]] = []

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] == self.broken:
            raise ConnectionError("away")

    def setup(self, *args: Any, **kwargs: Any) -> None:
        self._note("setup")

    def log_trial_start(self, trial: Any) -> None:
        self._note("start", trial.trial_id)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        self._note("result", result)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self._note("end", failed)


TRIAL: Any = SimpleNamespace(trial_id="a_00001")


class TestASearchLogger:
    def test_hands_on_what_an_epoch_says_with_the_epoch_as_the_step(self) -> None:
        inner = Callback()
        logger = SearchLogger("mlflow", "search", inner)
        logger.begin()
        logger.setup()
        logger.log_trial_start(TRIAL)
        logger.log_trial_result(1, TRIAL, {"epoch": 3, "lr": 0.1, "pid": 7, "config": {"lr": 1}})
        logger.log_trial_result(2, TRIAL, {"done": True})
        logger.log_trial_end(TRIAL, failed=True)
        assert inner.calls == [
            ("setup",),
            ("start", "a_00001"),
            ("result", {"epoch": 3, "lr": 0.1, "training_iteration": 3}),
            ("end", True),
        ]

    def test_begins_a_trial_once_that_goes_on_with_other_options(self) -> None:
        inner = Callback()
        logger = SearchLogger("mlflow", "search", inner)
        logger.log_trial_start(TRIAL)
        logger.log_trial_start(TRIAL)
        assert inner.calls == [("start", "a_00001")]

    @pytest.mark.parametrize("broken", ["setup", "start", "result", "end"])
    def test_warns_of_a_failure_and_is_quiet_from_there(self, broken: str) -> None:
        messages: list[str] = []
        SearchCallback().view = SimpleNamespace(on_message=messages.append)  # type: ignore[assignment]
        inner = Callback(broken)
        logger = SearchLogger("mlflow", "search", inner)
        logger.setup()
        for _ in range(2):
            logger.log_trial_start(TRIAL)
            logger.log_trial_result(1, TRIAL, {"epoch": 1})
            logger.log_trial_end(TRIAL)
        assert [call[0] for call in inner.calls][-1] == broken
        assert messages == [
            "warning: --logger mlflow failed (away): the search goes on without it"
        ]

    def test_that_cannot_begin_is_a_mistake_before_the_search(self) -> None:
        with pytest.raises(UserError, match=r"^--logger mlflow cannot begin \(away\)"):
            SearchLogger("mlflow", "search", Callback("setup")).begin()

    def test_is_one_for_the_whole_search(self) -> None:
        space = SearchSpace(name="both", param_space={"logger": grid_search(["mlflow", "none"])})
        with pytest.raises(UserError, match="logger holds for the whole search"):
            space_loggers(space)
        fixed = space.fixed({"logger": "tensorboard,wandb"}, ())
        assert space_loggers(fixed) == ["wandb"]

    def test_is_made_anew_when_the_search_goes_on(self) -> None:
        again = copy.copy(SearchLogger("mlflow", "search"))
        assert (again.name, again.search) == ("mlflow", "search")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder of MLflow's."""
    uri = (tmp_path / "mlflow").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    yield uri
    mlflow.set_tracking_uri(None)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases without its server."""
    monkeypatch.setenv("WANDB_MODE", "offline")


def logged() -> dict[str, Any]:
    """Return the runs in MLflow by name."""
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return {run.info.run_name: run for run in runs}


@pytest.mark.usefixtures("store")
class TestMLflowItself:
    def test_has_parameters_and_metrics_by_epoch(self, prepared: Prepared) -> None:
        with RunLogger("mlflow", prepared, pytest.fail, MLflow) as logger:
            for epoch in (1, 2):
                logger.on_epoch(record(epoch))
        run = logged()["first"]
        assert run.info.status == "FINISHED"
        assert run.data.params["width"] == "4"
        assert run.data.tags["run_dir"] == str(prepared.directory.path)
        assert run.data.metrics == scalars(record(2))
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "valid_accuracy")
        assert [(point.step, point.value) for point in history] == [
            (epoch, record(epoch).valid_accuracy) for epoch in (1, 2)
        ]


@pytest.mark.usefixtures("offline")
class TestWandbItself:
    def test_leaves_its_file_in_the_run_directory(self, prepared: Prepared) -> None:
        with RunLogger("wandb", prepared, pytest.fail) as logger:
            logger.on_epoch(record(1))
        (file,) = prepared.directory.path.glob("wandb/offline-run-*/run-*.wandb")
        wanted = b"first", b"layer_valid_accuracy/2"
        deadline = time.monotonic() + 30.0  # a process of its own writes it
        while not all(words in file.read_bytes() for words in wanted):
            assert time.monotonic() < deadline, file.read_bytes()
            time.sleep(0.1)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("store", "offline")
class TestTheCommands:
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def cluster(cls) -> Iterator[None]:
        with local_ray():
            yield

    def test_a_training_is_a_run(self, tmp_path: Path) -> None:
        flags = ["--width", "4", "--batch-size", "16", "--epochs", "2", "--kernels", "conv/conv"]
        flags += ["--stages", "1"]
        run_dir = tmp_path / "first"
        task = write_tiny_task(tmp_path)
        code = train(
            [*flags, "--task", task, "--run-dir", str(run_dir), "--logger", "mlflow,wandb"]
        )
        assert code == 0
        run = logged()["first"]
        assert (run.info.status, run.data.params["width"]) == ("FINISHED", "4")
        assert run.data.params["precision"] in ("fp32", "bf16"), "what the run found out"
        assert 0 <= run.data.metrics["valid_accuracy"] <= 100
        assert len(list(run_dir.glob("wandb/offline-run-*/run-*.wandb"))) == 1
        assert not (run_dir / "tensorboard").exists(), "it was not asked for"

    def test_each_trial_of_a_search_is_a_run(self, tmp_path: Path) -> None:
        (tmp_path / "space.py").write_text(
            "from ray import tune\n"
            f"param_space = {{'width': 4, 'task': {write_tiny_task(tmp_path)!r}, 'epochs': 2,\n"
            "    'batch_size': 16, 'kernels': 'conv/conv', 'precision': 'fp32',\n"
            "    'lr_min': 0.0, 'lr': tune.grid_search([0.01]), 'cpus_per_stage': 1}\n"
        )
        folder = tmp_path / "search"
        space = str(tmp_path / "space.py")
        loggers = "tensorboard,mlflow,wandb"
        assert tune([space, "--run-dir", str(folder), "--logger", loggers]) == 0
        runs = logged()
        assert {name: run.info.status for name, run in runs.items()} == {"trial-00000": "FINISHED"}
        assert runs["trial-00000"].data.params["lr"] == "0.01"
        assert runs["trial-00000"].data.tags["search"] == "search"
        assert runs["trial-00000"].data.metrics["epoch"] == 2
        assert (folder / "trials" / "trial-00000" / "tensorboard").exists()
        assert len(list(folder.glob("tune/trial-*/wandb/offline-run-*/run-*.wandb"))) == 1
