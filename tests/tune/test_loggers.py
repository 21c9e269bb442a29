"""Logging of a search: what the libraries get, and what becomes of their failures."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from ray.tune.logger import LoggerCallback

from rayff.config.errors import UserError
from rayff.console.search_view import SearchView
from rayff.tune.callback import SearchCallback
from rayff.tune.loggers import CALLBACKS, check_reachable
from rayff.tune.space import METRICS

VALUES = dict.fromkeys(METRICS, 3)


class Library(LoggerCallback):
    """Writes down its calls; the one named `broken` fails."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.calls: list[tuple[Any, ...]] = []

    def _add(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] == self.broken:
            raise ConnectionError("away")

    def setup(self, *args: Any, **info: Any) -> None:
        self._add("setup")

    def log_trial_start(self, trial: Any) -> None:
        self._add("start", str(trial))

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        self._add("result", result)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self._add("end", failed)


class Trial:
    """What of Tune's trial the callback reads."""

    config: dict[str, Any]
    status = "RUNNING"

    def __init__(self) -> None:
        self.config = {"lr": 0.1}

    def __str__(self) -> str:
        return "trial-0"


class View(SearchView):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def on_start(self, *args: Any) -> None: ...
    def on_result(self, *args: Any) -> None: ...
    def on_end(self, *args: Any) -> None: ...
    def on_message(self, text: str) -> None:
        self.messages.append(text)


def run_trial(callback: SearchCallback, starts: int = 1) -> None:
    """Call what Tune calls for a trial that fails."""
    trial: Any = Trial()
    callback.setup()
    for _ in range(starts):
        callback.on_trial_start(0, [trial], trial)
    callback.on_trial_result(1, [trial], trial, {**VALUES, "pid": 7, "config": trial.config})
    callback.on_trial_result(2, [trial], trial, {"done": True})
    for status in ("RUNNING", "ERROR", "ERROR"):
        trial.status = status
        callback.on_step_end(2, [trial])


def test_a_library_gets_each_epoch_as_a_step_and_a_trial_once() -> None:
    library = Library()
    callback = SearchCallback(Path("search"), View(), {"mlflow": library})
    run_trial(callback, starts=2)
    assert library.calls == [
        ("setup",),
        ("start", "trial-0"),
        ("result", {**VALUES, "training_iteration": 3}),
        ("end", True),
    ]
    assert (callback.configs, callback.ended) == ({"trial-0": {"lr": 0.1}}, {"trial-0": "failed"})


@pytest.mark.parametrize("broken", ["setup", "start", "result", "end"])
def test_a_library_that_fails_is_dropped_with_a_warning(broken: str) -> None:
    library, other, view = Library(broken), Library(), View()
    run_trial(SearchCallback(Path("search"), view, {"mlflow": library, "wandb": other}))
    assert library.calls[-1][0] == broken
    assert [call[0] for call in other.calls] == ["setup", "start", "result", "end"]
    assert view.messages == [
        "warning: --logger mlflow failed (away): the search continues without it"
    ]


def test_a_library_that_cannot_be_reached_is_an_error_before_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(CALLBACKS, "mlflow", lambda search: Library("setup"))
    with pytest.raises(
        UserError, match=r"^--logger mlflow cannot begin \(away\): .* leave mlflow"
    ):
        check_reachable("mlflow")


def test_the_callback_is_restored_as_that_of_the_process() -> None:
    pickled = pickle.dumps(SearchCallback(Path("search"), View(), {"mlflow": Library()}))
    newest = SearchCallback(Path("search"), View(), {})
    assert pickle.loads(pickled) is newest
