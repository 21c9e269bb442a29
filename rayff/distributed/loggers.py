"""Callbacks that send a run's metrics to MLflow and Weights & Biases, through Ray's integrations.

Their own settings hold: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, WANDB_API_KEY, WANDB_MODE,
WANDB_PROJECT and so on. Both send in the background. A training that is resumed is a new run
there, with the epochs before it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.engine.callbacks import Callback
from rayff.engine.run import Run
from rayff.partition.plan import Plan
from rayff.runs.metrics import METRICS_FILE, EpochRecord, IntervalRecord, read_metrics, scalars

PROJECT = "rayff"
"""The experiment of MLflow and the project of Weights & Biases, unless the environment says."""


class LoggerCallback(Callback):
    """Sends the scalars of each epoch to a library; no failure of it ends the run.

    Args:
        name: of the library, as `--logger` has it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.warn: Callable[[str], None] = print
        self._newest = 0
        self._newest_step = 0
        self._begun = False

    def begin(self, name: str, config: dict[str, Any], run_dir: str) -> None:
        """Begin a run in the library."""

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Send the values of an epoch."""

    def log_interval(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values of an interval that ends behind so many batches."""

    def end(self, *, failed: bool) -> None:
        """End the run there, once everything is sent."""

    def on_start(self, run: Run, plan: Plan) -> None:
        """Begin a run in the library, with the epochs before a resumption.

        Raises:
            UserError: it cannot be reached, or refuses access.
        """
        directory = run.directory
        try:
            self.begin(directory.name, options(run.config), str(directory.path.absolute()))
        except Exception as error:  # each library has errors of its own
            raise UserError(
                f"--logger {self.name} cannot begin a run ({sentence(error)}): correct that, or "
                f"leave {self.name} out of --logger"
            ) from error
        self._begun = True
        metrics, reached = directory.path / METRICS_FILE, run.progress.epoch
        for record in read_metrics(metrics) if reached and metrics.exists() else []:
            if record.epoch <= reached:
                self.on_epoch_end(record)

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Send an epoch; one that was trained again has the same numbers."""
        if record.epoch > self._newest:
            self._newest = record.epoch
            self._attempt(lambda: self.log(record.epoch, scalars(record)), "failed")

    def on_interval(self, record: IntervalRecord) -> None:
        """Send an interval; one that was trained again has the same losses."""
        if record.step > self._newest_step:
            self._newest_step = record.step
            self._attempt(lambda: self.log_interval(record.step, record.scalars), "failed")

    def on_end(self, error: BaseException | None) -> None:
        """End the run there."""
        if self._begun:
            self._attempt(lambda: self.end(failed=error is not None), "could not end its run")

    def _attempt(self, call: Callable[[], None], what: str) -> None:
        try:
            call()
        except Exception as error:  # each library has errors of its own
            self.warn(f"--logger {self.name} {what} ({sentence(error)}): training goes on")


class MLflowCallback(LoggerCallback):
    """A run in MLflow."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self._mlflow: Any = None
        self._sent: list[Any] = []

    def begin(self, name: str, config: dict[str, Any], run_dir: str) -> None:
        """Begin a run."""
        from ray.air.integrations.mlflow import setup_mlflow

        self._mlflow = setup_mlflow(
            config,
            experiment_name=mlflow_experiment(),
            run_name=name,
            tags={"run_dir": run_dir},
            create_experiment_if_not_exists=True,
            tracking_uri=mlflow_uri(),
        )

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Queue the values of an epoch."""
        self._sent.append(self._mlflow.log_metrics(dict(values), step=epoch, synchronous=False))

    def log_interval(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the values of an interval."""
        self._mlflow.log_metrics(dict(values), step=step, synchronous=False)

    def end(self, *, failed: bool) -> None:
        """Wait for the queue, and end the run."""
        self._mlflow.flush_async_logging()
        self._attempt(self._wait, "lost values")
        self._mlflow.end_run("FAILED" if failed else "FINISHED")

    def _wait(self) -> None:
        for operation in self._sent:
            operation.wait()  # raises what the background met


class WandbCallback(LoggerCallback):
    """A run in Weights & Biases; its files are in the run directory unless WANDB_DIR is set."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self._run: Any = None

    def begin(self, name: str, config: dict[str, Any], run_dir: str) -> None:
        """Begin a run."""
        from ray.air.integrations.wandb import setup_wandb

        folder = os.environ.get("WANDB_DIR") or run_dir
        self._run = setup_wandb(config, trial_name=name, dir=folder, **wandb_options())
        self._run.define_metric("*", step_metric="epoch")
        self._run.define_metric("batch/*", step_metric="batch/step")

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Queue the values of an epoch."""
        self._run.log({"epoch": epoch, **values})

    def log_interval(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the values of an interval."""
        self._run.log({"batch/step": step, **values})

    def end(self, *, failed: bool) -> None:
        """End the run, once everything is sent."""
        self._run.finish(exit_code=int(failed))


LOGGERS: dict[str, Callable[[], LoggerCallback]] = {
    "mlflow": MLflowCallback,
    "wandb": WandbCallback,
}
"""By the name of the library, which is that of the logger."""


def run_loggers(run: Run, warn: Callable[[str], None]) -> list[LoggerCallback]:
    """Return the callbacks of the libraries that a run names.

    Args:
        run: what is trained.
        warn: called with what failed.
    """
    found = [LOGGERS[name]() for name in run.config.loggers if name in LOGGERS]
    for callback in found:
        callback.warn = warn
    return found


def check_loggers(names: Iterable[str]) -> None:
    """Raise a UserError where a library is not installed."""
    for name in LOGGERS.keys() & set(names):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name is none
            raise UserError(
                f"--logger {name} needs its library: pip install {name}, or leave {name} out of "
                "--logger"
            )


def mlflow_experiment() -> str:
    """Return the experiment that the environment names, or rayff."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT


def mlflow_uri() -> str:
    """Return where MLflow keeps its runs; its calls shall not try for minutes, nor overtake each
    other: a store of files loses values of two batches that are written at once."""
    import mlflow

    os.environ.setdefault("MLFLOW_ASYNC_LOGGING_THREADPOOL_SIZE", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    uri: str = mlflow.get_tracking_uri()
    return uri


def wandb_options() -> dict[str, Any]:
    """Return options of `wandb.init` that keep it quiet, and one run for each call."""
    return {
        "project": os.environ.get("WANDB_PROJECT") or PROJECT,
        "mode": os.environ.get("WANDB_MODE"),
        "reinit": "create_new",
        "resume": None,
        "settings": {"console": "off", "silent": True},
    }


def options(config: TrainConfig) -> dict[str, Any]:
    """Return a run's options for a library to keep, without the query of a storage's URI."""
    given = {name: value for name, value in config.to_dict().items() if value is not None}
    if config.storage_path is not None:
        given["storage_path"] = config.storage_path.partition("?")[0]
    return given


def sentence(error: BaseException) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
