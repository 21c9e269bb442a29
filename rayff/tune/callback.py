"""Ray Tune's callback of a search: updates the view and the loggers, and stops on request."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.logger import LoggerCallback

from rayff.console.search_view import SearchView
from rayff.distributed.loggers import sentence
from rayff.engine.stop import StopRequest
from rayff.tune.space import METRICS
from rayff.tune.trial import plain


class SearchCallback(tune.Callback):
    """Follows the trials of the search in this process.

    Tune pickles its callbacks with its state. This one is restored as the newest of the process.

    Args:
        folder: folder of the search.
        view: shows the trials.
        loggers: callbacks of the libraries that log the trials, by the name of the library; one
            that fails is dropped with a warning.

    Attributes:
        stop: takes the signals while entered; they end the search, which can be resumed.
        configs: options of each trial, by its name.
        ended: "done" or "failed", by the name of a trial that has ended.
    """

    newest: ClassVar[SearchCallback]

    def __init__(
        self, folder: Path, view: SearchView, loggers: Mapping[str, LoggerCallback]
    ) -> None:
        SearchCallback.newest = self
        self.view = view
        self.loggers = dict(loggers)
        self.stop = StopRequest(
            lambda name: view.on_message(f"{name}: stopping (again to stop at once)")
        )
        self.configs: dict[str, dict[str, Any]] = {}
        self.ended: dict[str, str] = {}
        self._logged: set[str] = set()

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return getattr, (SearchCallback, "newest")

    def setup(self, *args: Any, **info: Any) -> None:
        """Connect to the libraries."""
        self._log("setup")

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Show the trial and log its options; one that continues from another's is logged on."""
        self.view.on_start(str(trial), trial.config)
        if str(trial) not in self._logged:
            self._logged.add(str(trial))
            self._log("log_trial_start", trial)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Show and log an epoch; the last result of a trial has none."""
        if "epoch" in result:
            self.view.on_result(str(trial), result)
            values = {name: result[name] for name in METRICS}
            step = {"training_iteration": result["epoch"]}
            self._log("log_trial_result", iteration, trial, {**values, **step})

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Update the states of the trials; on a request to stop, interrupt Tune."""
        self._update(trials)
        if self.stop.requested:
            os.kill(os.getpid(), signal.SIGUSR1)  # Tune saves its state and returns

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Wait until everything is logged."""
        if not self.configs:  # a search that was resumed complete takes no step
            self._update(trials)
        self._log("on_experiment_end", trials)

    def _update(self, trials: list[Trial]) -> None:
        for trial in trials:
            name, failed = str(trial), trial.status == Trial.ERROR
            self.configs[name] = plain(trial.config)
            if not failed and trial.status != Trial.TERMINATED:
                self.ended.pop(name, None)  # a failed trial that is resumed
            elif name not in self.ended:
                self.ended[name] = "failed" if failed else "done"
                if name not in self._logged and "epoch" in trial.last_result:
                    self.view.on_result(name, trial.last_result)  # of a search that is resumed
                self.view.on_end(name, self.ended[name])
                if name in self._logged:
                    self._logged.remove(name)
                    self._log("log_trial_end", trial, failed)

    def _log(self, method: str, *args: Any) -> None:
        for name, logger in list(self.loggers.items()):
            try:
                getattr(logger, method)(*args)
            except Exception as error:  # each library has errors of its own
                del self.loggers[name]
                self.view.on_message(
                    f"warning: --logger {name} failed ({sentence(error)}): the search continues "
                    "without it"
                )
