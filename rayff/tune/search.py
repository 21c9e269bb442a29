"""A search: Ray Tune runs trainings side by side and leaves a folder.

    FOLDER/search.json        what is searched, for `--resume` and for the table
    FOLDER/trials/TRIAL/      the run directory of each trial
    FOLDER/tune/              Ray Tune's state, which `--resume` restores
    FOLDER/results.parquet    a row per trial

Resuming unpickles Ray Tune's state: resume only searches that you trust.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ray import tune
from ray.tune.experiment import Trial
from rich.text import Text

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.console.outlet import run_console
from rayff.console.search_view import SearchView
from rayff.data.loading import data_options, load_task
from rayff.distributed.loggers import check_loggers
from rayff.distributed.placement import Node, nodes
from rayff.distributed.session import ray_session
from rayff.engine.preparation import assemble
from rayff.runs.run_directory import (
    SEARCH,
    TRIALS,
    RunDirectory,
    read_json,
    resume_command,
    write_json,
)
from rayff.tune.callback import SearchCallback
from rayff.tune.loggers import CALLBACKS, check_reachable
from rayff.tune.results import Row, ranked, results_table, trial_row, write_results
from rayff.tune.schedulers import SearcherName, check_strategy, make_algorithm, make_scheduler
from rayff.tune.space import Mode, SearchSpace
from rayff.tune.trial import trial_bundles, trial_config, trial_function, trial_resources

T = TypeVar("T")

STATE = "tune/experiment_state-*.json"
"""Files of Ray Tune, without which a search cannot be continued."""

_KEPT_CHECKPOINTS = 4
"""Checkpoints of a trial from which others can continue."""

_ENVIRONMENT = {
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # a search that is killed loses a second
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # run directories have the metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # StopRequest handles it
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints a header at any verbosity
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the command prints them at the end
}


@dataclass(frozen=True, kw_only=True)
class Search:
    """The content of search.json."""

    description: str
    metric: str
    mode: Mode
    clones: bool
    """Whether trials continue from checkpoints of others."""
    varied: list[str]
    """The options that differ between trials."""
    num_trials: int
    published: list[tuple[str, str, float]]
    """Test accuracy that others published: architecture, task, percent."""
    loggers: list[str]
    """The libraries to which the search logs its trials, such as mlflow."""
    cwd: str
    """Working directory of the command, for relative paths."""

    @classmethod
    def read(cls, folder: Path) -> Search:
        """Read the search in a folder; UserError if there is none."""
        path = folder / SEARCH
        if not path.exists():
            raise UserError(
                f"--resume: {folder} holds no search (it has no {SEARCH}); name the folder of "
                "one with --run-dir, or leave --resume out to start one there"
            )
        try:
            return cls(**read_json(path))
        except TypeError as error:
            raise UserError(f"{path} is not the file of a search: {error}") from error


def start_search(space: SearchSpace, searcher: SearcherName, folder: Path) -> int:
    """Run a search in a new or empty folder and print its results; return the exit code.

    Raises:
        UserError: a mistake in the space or its data, or a trial that the cluster cannot hold.
    """
    folder = folder.expanduser().absolute()
    RunDirectory(folder).check_new()
    check_strategy(space, searcher)
    algorithm = make_algorithm(space, searcher)
    check_loggers(space.loggers)
    epochs = longest_trial(space)
    with ray_session() as session:
        check_resources(space, nodes())
        for name in space.loggers:
            check_reachable(name)
        search = Search(
            description=space.description(searcher),
            metric=space.metric,
            mode=space.mode,
            clones=space.scheduler == "pbt",
            varied=space.varied,
            num_trials=space.num_trials,
            published=[(*key, value) for key, value in space.published.items()],
            loggers=space.loggers,
            cwd=os.getcwd(),
        )
        write_json(folder, SEARCH, dataclasses.asdict(search))
        session.begin(folder, STATE)
        trainable, callback = _set_up(search, folder)
        tuner = tune.Tuner(
            trainable,
            param_space=dict(space.param_space),
            tune_config=tune.TuneConfig(
                metric=space.metric,
                mode=space.mode,
                search_alg=algorithm,
                scheduler=make_scheduler(space, epochs),
                num_samples=space.num_samples,
                max_concurrent_trials=space.max_concurrent,
                reuse_actors=True,  # a process with torch in it takes seconds to start
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                verbose=0,
                callbacks=[callback],
                checkpoint_config=tune.CheckpointConfig(
                    num_to_keep=_KEPT_CHECKPOINTS if search.clones else None
                ),
            ),
        )
        return _run(tuner, callback, search, folder)


def resume_search(folder: Path) -> int:
    """Resume the search in a folder: finished trials stay, unfinished and failed ones continue."""
    folder = folder.expanduser().absolute()
    search = Search.read(folder)
    check_loggers(search.loggers)
    state = str(folder / "tune")
    if not tune.Tuner.can_restore(state):
        raise UserError(
            f"the search in {folder} was stopped before its first trial; delete the folder and "
            "start it again"
        )
    with ray_session() as session:
        session.begin(folder, STATE)
        trainable, callback = _set_up(search, folder)
        tuner = tune.Tuner.restore(state, trainable=trainable, resume_errored=True)
        return _run(tuner, callback, search, folder)


def longest_trial(space: SearchSpace) -> int:
    """Check options, network and data of the possible trials; return the most epochs of one."""
    load = functools.cache(load_task)

    def epochs(run: TrainConfig) -> int:
        data = load(data_options(run))
        return assemble(run, data, RunDirectory(Path())).recipe.epochs

    return max(_for_each_point(space, epochs))


def check_resources(space: SearchSpace, there: Sequence[Node]) -> None:
    """Raise a UserError if there is a possible trial that the nodes can never hold."""
    _for_each_point(space, lambda run: trial_resources(run, there))


def _for_each_point(space: SearchSpace, call: Callable[[TrainConfig], T]) -> list[T]:
    results = []
    for point in space.points():
        try:
            results.append(call(trial_config(point)))
        except UserError as error:
            which = ", ".join(f"{name}={point[name]}" for name in space.varied if name in point)
            if not which:
                raise
            raise UserError(f"a trial of the search ({which}) cannot run: {error}") from error
    return results


def _trial_name(trial: Trial) -> str:
    """Return trial-00003: by number where Tune counts its trials, else by its id."""
    return f"trial-{trial.trial_id.rpartition('_')[2]}"


def _set_up(search: Search, folder: Path) -> tuple[Any, SearchCallback]:
    """Return what Tune calls: the function of a trial with its resources, and the callback."""
    os.environ.update(_ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    header = f"{search.description}\nsearch folder {folder}"
    view = SearchView(run_console(highlight=False), header, search.varied, search.num_trials)
    function = trial_function(folder / TRIALS, Path(search.cwd), clones=search.clones)
    loggers = {name: CALLBACKS[name](folder.name) for name in search.loggers}
    return tune.with_resources(function, trial_bundles), SearchCallback(folder, view, loggers)


def _run(tuner: tune.Tuner, callback: SearchCallback, search: Search, folder: Path) -> int:
    """Run Tune to the end or to a request to stop; write and print the results.

    Returns:
        the exit code: 0, 1 if a trial failed, or 128 plus the number of a signal.
    """
    with callback.view, callback.stop:
        grid = tuner.fit()
    results = [grid[index] for index in range(len(grid))]
    errors = {Path(result.path).name: result.error for result in results}
    rows = [
        trial_row(folder / TRIALS / name, config, callback.ended.get(name), errors.get(name))
        for name, config in sorted(callback.configs.items())
    ]
    write_results(folder / "results.parquet", rows)
    failed = print_results(search, rows)
    if callback.stop.requested:
        command = f"continue with: {resume_command(folder)}"
        run_console(highlight=False).print(command, soft_wrap=True)
    return int(failed) if callback.stop.signum is None else 128 + callback.stop.signum


def print_results(search: Search, rows: Sequence[Row]) -> bool:
    """Print the table, the best trial and the failed ones; return whether one failed."""
    console = run_console(highlight=False, width=10_000)  # nothing is cut: the terminal wraps
    points = ranked(rows, search)
    console.print()
    console.print(results_table(points, search))
    if points and points[0][0]["epoch"]:
        best = points[0][0]
        console.print(Text(f"best: {best['trial']}, {best['run_dir']}", "bold"))
    failed = [row for row in rows if row["status"] == "failed"]
    for row in failed:
        console.print(Text(f"{row['trial']} failed: {row['error']}", "red"))
    return bool(failed)
