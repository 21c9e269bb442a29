"""A search's results for MLflow and Weights & Biases, through Ray Tune's callbacks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.logger import LoggerCallback

from rayff.config.errors import UserError
from rayff.distributed.loggers import (
    mlflow_experiment,
    mlflow_uri,
    sentence,
    wandb_options,
)
from rayff.tune.callback import current_search_callback
from rayff.tune.space import METRICS


class SearchLogger(LoggerCallback):
    """Ray's callback for a library, of which no failure ends a search.

    It hands on what an epoch says of a trial, and the epoch as the step; a failure is said, and
    ends the logging. Tune keeps its callbacks with its state; this one is made anew.

    Args:
        name: of the library.
        search: the name of the search, to which the runs of its trials belong.
        inner: Ray's callback; by default that of the library.
    """

    def __init__(self, name: str, search: str, inner: LoggerCallback | None = None) -> None:
        super().__init__()
        self.name = name
        self.search = search
        self._inner: Any = inner or _CALLBACKS[name](search)
        self._ready = False
        self._begun: set[str] = set()

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return SearchLogger, (self.name, self.search)

    def begin(self) -> None:
        """Reach the library before the first trial starts.

        Raises:
            UserError: it cannot be reached, or lets nobody in.
        """
        try:
            self._inner.setup()
        except Exception as error:  # each library has errors of its own
            raise UserError(
                f"--logger {self.name} cannot begin ({sentence(error)}); mend that, or leave "
                f"{self.name} out of --logger"
            ) from error
        self._ready = True

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Reach the library, where that was not done yet."""
        if not self._ready:
            self._attempt(lambda: self._inner.setup())
            self._ready = True

    def log_trial_start(self, trial: Trial) -> None:
        """Begin a run; a trial that goes on from another one's checkpoint stays the same run."""
        if trial.trial_id not in self._begun:
            self._begun.add(trial.trial_id)
            self._attempt(lambda: self._inner.log_trial_start(trial))

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        """Add an epoch."""
        if "epoch" in result:
            values = {name: result[name] for name in METRICS if name in result}
            values["training_iteration"] = result["epoch"]
            self._attempt(lambda: self._inner.log_trial_result(iteration, trial, values))

    def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
        """End a run."""
        self._begun.discard(trial.trial_id)
        self._attempt(lambda: self._inner.log_trial_end(trial, failed))

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Wait for what is still to be sent."""
        self._attempt(lambda: self._inner.on_experiment_end(trials, **info))

    def _attempt(self, log: Callable[[], None]) -> None:
        if self._inner is None:
            return
        try:
            log()
        except Exception as error:  # each library has errors of its own
            self._inner = None
            view = current_search_callback().view
            if view is not None:
                view.on_message(
                    f"warning: --logger {self.name} failed ({sentence(error)}): the search goes "
                    "on without it"
                )


def _mlflow(search: str) -> LoggerCallback:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    return MLflowLoggerCallback(
        tracking_uri=mlflow_uri(), experiment_name=mlflow_experiment(), tags={"search": search}
    )


def _wandb(search: str) -> LoggerCallback:
    from ray.air.integrations.wandb import WandbLoggerCallback

    return WandbLoggerCallback(group=search, **wandb_options())


_CALLBACKS: dict[str, Callable[[str], LoggerCallback]] = {"mlflow": _mlflow, "wandb": _wandb}
