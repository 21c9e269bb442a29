"""The callback of a search: what the logging libraries get, and how it is restored."""

import pickle
from pathlib import Path
from unittest.mock import MagicMock, Mock, call, create_autospec

import pytest
from ray.tune.logger import LoggerCallback

from rayff.config.errors import UserError
from rayff.console.search_view import SearchView
from rayff.tune.callback import SearchCallback
from rayff.tune.loggers import CALLBACKS, check_reachable
from rayff.tune.space import METRICS

VALUES = dict.fromkeys(METRICS, 3)


def run_trial(**loggers: Mock) -> tuple[SearchCallback, MagicMock]:
    """Call what Tune calls for a trial that continues from another, and then fails."""
    trial = MagicMock(config={"lr": 0.1}, status="RUNNING")
    trial.__str__.return_value = "trial-0"  # type: ignore[attr-defined]
    callback = SearchCallback(Path("search"), create_autospec(SearchView), loggers)
    callback.setup()
    for _ in range(2):
        callback.on_trial_start(0, [trial], trial)
    callback.on_trial_result(1, [trial], trial, {**VALUES, "pid": 7, "config": trial.config})
    callback.on_trial_result(2, [trial], trial, {"done": True})
    for trial.status in ("RUNNING", "ERROR", "ERROR"):
        callback.on_step_end(2, [trial])
    return callback, trial


def test_a_library_gets_each_epoch_as_a_step_and_a_trial_once() -> None:
    library = create_autospec(LoggerCallback)
    callback, trial = run_trial(mlflow=library)
    assert library.mock_calls == [
        call.setup(),
        call.log_trial_start(trial),
        call.log_trial_result(1, trial, {**VALUES, "training_iteration": 3}),
        call.log_trial_end(trial, True),
    ]
    assert (callback.configs, callback.ended) == ({"trial-0": {"lr": 0.1}}, {"trial-0": "failed"})


@pytest.mark.parametrize(
    "broken", ["setup", "log_trial_start", "log_trial_result", "log_trial_end"]
)
def test_a_library_that_fails_is_dropped_with_a_warning(broken: str) -> None:
    library, other = create_autospec(LoggerCallback), create_autospec(LoggerCallback)
    getattr(library, broken).side_effect = ConnectionError("away")
    callback, _ = run_trial(mlflow=library, wandb=other)
    assert library.mock_calls[-1][0] == broken
    assert len(other.mock_calls) == 4
    warning = "warning: --logger mlflow failed (away): the search continues without it"
    assert callback.view.on_message.mock_calls == [call(warning)]  # type: ignore[attr-defined]


def test_a_library_that_cannot_be_reached_is_an_error_before_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = create_autospec(LoggerCallback)
    library.setup.side_effect = ConnectionError("away")
    monkeypatch.setitem(CALLBACKS, "mlflow", lambda search: library)
    with pytest.raises(
        UserError, match=r"^--logger mlflow cannot begin \(away\): .* leave mlflow"
    ):
        check_reachable("mlflow")


def test_the_callback_is_restored_as_that_of_the_process() -> None:
    pickled = pickle.dumps(run_trial()[0])
    newest, _ = run_trial()
    assert pickle.loads(pickled) is newest
