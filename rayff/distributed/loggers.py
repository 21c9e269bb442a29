"""A run's metrics for MLflow and Weights & Biases, through Ray's integrations of them.

Where they are and who may write there is said as these libraries want it: MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME, WANDB_API_KEY, WANDB_MODE, WANDB_PROJECT and so on. A training that is
resumed is a new run there, with the epochs before it.
"""

from __future__ import annotations

import importlib.util
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.engine.commands import Evaluate, Report, Train
from rayff.engine.preparation import Prepared
from rayff.runs.checkpoint import Progress
from rayff.runs.metrics import METRICS_FILE, EpochRecord, read_metrics, scalars

PROJECT = "rayff"
"""The experiment of MLflow and the project of Weights & Biases, unless the environment says."""


class Sink(Protocol):
    """One run in a library."""

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add the values of an epoch."""
        ...

    def close(self, *, failed: bool) -> None:
        """End the run there."""
        ...


class MLflow:
    """A run in MLflow; to be used in the thread that made it.

    Args:
        name: of the run.
        config: its options.
        directory: its run directory, a tag.
    """

    def __init__(self, name: str, config: dict[str, Any], directory: Path) -> None:
        from ray.air.integrations.mlflow import setup_mlflow

        self._mlflow: Any = setup_mlflow(
            config,
            experiment_name=mlflow_experiment(),
            run_name=name,
            tags={"run_dir": str(directory.absolute())},
            create_experiment_if_not_exists=True,
            tracking_uri=mlflow_uri(),
        )

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add the values of an epoch."""
        self._mlflow.log_metrics(dict(values), step=epoch)

    def close(self, *, failed: bool) -> None:
        """End the run there."""
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


class Wandb:
    """A run in Weights & Biases; its files are in the run directory unless WANDB_DIR says else.

    Args:
        name: of the run.
        config: its options.
        directory: its run directory.
    """

    def __init__(self, name: str, config: dict[str, Any], directory: Path) -> None:
        from ray.air.integrations.wandb import setup_wandb

        self._run: Any = setup_wandb(
            config,
            trial_name=name,
            dir=os.environ.get("WANDB_DIR") or str(directory.absolute()),
            **wandb_options(),
        )

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add the values of an epoch."""
        self._run.log({"epoch": epoch, **values})

    def close(self, *, failed: bool) -> None:
        """End the run there, once all is sent."""
        self._run.finish(exit_code=int(failed))


SINKS: dict[str, Callable[[str, dict[str, Any], Path], Sink]] = {"mlflow": MLflow, "wandb": Wandb}
"""By the name of the library, which is that of the logger."""


def mlflow_experiment() -> str:
    """Return the experiment that the environment names, or rayff."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT


def mlflow_uri() -> str:
    """Return where MLflow keeps its runs; its calls shall not try for minutes."""
    import mlflow

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


def check_loggers(names: Iterable[str]) -> None:
    """Raise a UserError where a library is not installed."""
    for name in SINKS.keys() & set(names):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name is none
            raise UserError(
                f"--logger {name} needs its library: pip install {name}, or leave "
                f"{name} out of --logger"
            )


class RunLogger:
    """Sends the epochs of a run to a library; an Callback and a context manager.

    A thread does it, so that training waits for no server. What could not be sent is sent with
    the next epoch.

    Args:
        name: a key of SINKS.
        prepared: the run, with its directory made.
        warn: is told what went wrong.
        make: makes the run in the library; by default that of the name.
    """

    def __init__(
        self,
        name: str,
        prepared: Prepared,
        warn: Callable[[str], None],
        make: Callable[[str, dict[str, Any], Path], Sink] | None = None,
    ) -> None:
        self.name = name
        self.prepared = prepared
        self.warn = warn
        self._make = make or SINKS[name]
        self._waiting: deque[EpochRecord] = deque()
        self._newest = 0
        self._sending: Future[None] | None = None

    def __enter__(self) -> RunLogger:
        """Begin the run in the library.

        Raises:
            UserError: it cannot be reached, or lets nobody in.
        """
        directory = self.prepared.directory
        config = options(self.prepared.run)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self.name)
        try:
            begun = self._thread.submit(self._make, directory.name, config, directory.path)
            self._sink = begun.result()
        except Exception as error:  # each library has errors of its own
            self._thread.shutdown()
            raise UserError(
                f"--logger {self.name} cannot begin a run ({sentence(error)}); mend that, or "
                f"leave {self.name} out of --logger"
            ) from error
        metrics, reached = directory.path / METRICS_FILE, self.prepared.progress.epoch
        before = read_metrics(metrics) if reached and metrics.exists() else []
        for record in before:
            if record.epoch <= reached:
                self.on_epoch(record)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._collect(wait=True)
        self._send()
        self._collect(wait=True)
        end = self._thread.submit(self._sink.close, failed=kind is not None)
        self._thread.shutdown()
        if (error := end.exception()) is not None:
            self.warn(f"--logger {self.name} could not end its run ({sentence(error)})")

    def on_result(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """See whether an epoch was sent."""
        self._collect(wait=False)

    def on_epoch(self, record: EpochRecord) -> None:
        """Send an epoch; one that was trained again has the same numbers."""
        if record.epoch > self._newest:
            self._newest = record.epoch
            self._waiting.append(record)
        self._collect(wait=False)
        self._send()

    def on_checkpoint(self, path: Path) -> None:
        """Send none: checkpoints stay in the run directory."""

    def on_restart(self, stage_names: Sequence[str], progress: Progress) -> None:
        """Go on as before."""

    def on_warning(self, message: str) -> None:
        """Leave it to the others."""

    def _send(self) -> None:
        if self._waiting and self._sending is None:
            self._sending = self._thread.submit(self._send_all)

    def _send_all(self) -> None:
        while self._waiting:
            record = self._waiting[0]
            self._sink.log(record.epoch, scalars(record))
            self._waiting.popleft()

    def _collect(self, *, wait: bool) -> None:
        if self._sending is None or not (wait or self._sending.done()):
            return
        sent, self._sending = self._sending, None
        if (error := sent.exception()) is not None:
            self.warn(
                f"--logger {self.name} failed ({sentence(error)}): training goes on, and what is "
                "missing is sent again with the next epoch"
            )


def options(run: TrainConfig) -> dict[str, Any]:
    """Return what a run says of itself, for a library to keep; no secret of a storage's URI."""
    said = {name: value for name, value in run.to_dict().items() if value is not None}
    if run.storage_path is not None:
        said["storage_path"] = run.storage_path.partition("?")[0]
    return said


def sentence(error: BaseException) -> str:
    """Return what went wrong, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
