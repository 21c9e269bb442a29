"""What stands between Ray Tune and who watches a search."""

from __future__ import annotations

import os
import signal
from typing import Any, ClassVar

from ray import tune
from ray.tune.experiment import Trial

from rayff.console.search_view import SearchView
from rayff.engine.stop import StopRequest


class SearchCallback(tune.Callback):
    """Hands Tune's events to the view, and a request to stop to Tune.

    Tune keeps its callbacks with its state; this one is kept as the one that the process made
    last.
    """

    current: ClassVar[SearchCallback]

    def __init__(self) -> None:
        SearchCallback.current = self
        self.view: SearchView | None = None
        self.stop = StopRequest()
        self.passed_on = False
        self.configs: dict[str, dict[str, Any]] = {}
        """The options of all trials, by name."""
        self.ended: dict[str, str] = {}
        """How trials ended, by name."""

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return current_search_callback, ()

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Show it."""
        if self.view is not None:
            self.view.on_start(str(trial), trial.config)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Show it."""
        if self.view is not None and "epoch" in result:
            self.view.on_result(str(trial), result)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Note and show which trials have ended, and pass a request to stop on."""
        self._note(trials)
        if self.stop.requested and not self.passed_on:
            self.passed_on = True  # Tune keeps its state and ends, as at a Ctrl-C
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Note the trials of a search that was complete when it was resumed: it takes no step.

        After a step it is too late: Tune has marked all trials under way as ended by now.
        """
        if not self.configs:
            self._note(trials)

    def _note(self, trials: list[Trial]) -> None:
        for trial in trials:
            name, status = str(trial), trial.status
            self.configs[name] = trial.config
            if status in (Trial.TERMINATED, Trial.ERROR) and name not in self.ended:
                self.ended[name] = status
                if self.view is not None:
                    self.view.on_end(name, "failed" if status == Trial.ERROR else "done")
            if status not in (Trial.TERMINATED, Trial.ERROR):  # a failed one goes on
                self.ended.pop(name, None)


def current_search_callback() -> SearchCallback:
    """Return the watcher that this process made last."""
    return SearchCallback.current
