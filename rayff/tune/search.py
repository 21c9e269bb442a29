"""A search: Ray Tune runs trainings side by side, and a folder keeps all that it finds.

    FOLDER/search.json        what is searched, for `--resume` and for the table
    FOLDER/trials/TRIAL/      the run directory of each trial
    FOLDER/tune/              Ray Tune's own state, which `--resume` restores
    FOLDER/results.parquet    one row a trial

Ray Tune keeps its state as pickles and reads them again: resume no search of a stranger.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from rayff.config.errors import UserError
from rayff.config.resolved import resolve_recipe
from rayff.console.search_view import Watch
from rayff.data.tasks import TaskData, load_task, task_recipe
from rayff.distributed.loggers import LOGGERS, check_loggers
from rayff.distributed.placement import Node, nodes
from rayff.distributed.session import ray_session
from rayff.engine.preparation import assemble
from rayff.engine.stop import StopRequest
from rayff.runs.files import write_atomically
from rayff.runs.run_directory import SEARCH, TRIALS, RunDirectory, read_json
from rayff.tune.callback import SearchCallback
from rayff.tune.loggers import SearchLogger
from rayff.tune.results import TrialRow, plain, trial_row, write_results
from rayff.tune.schedulers import (
    SearcherName,
    check_strategy,
    first_seed,
    make_algorithm,
    make_scheduler,
)
from rayff.tune.space import Mode, SchedulerName, SearchSpace
from rayff.tune.trial import trial_bundles, trial_config, trial_function, trial_resources

_KEPT_CLONES = 4
"""Checkpoints of a trial that others can go on from."""

_ENVIRONMENT = {
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # a search that is killed knows what it had a second before
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # run directories have the metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # a request to stop goes through the watcher
    "RAY_AIR_NEW_OUTPUT": "0",  # whose header comes at any verbosity
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # their sentences come at the end
}


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched, and how: search.json."""

    space: str
    title: str
    metric: str
    mode: Mode
    scheduler: SchedulerName
    searcher: SearcherName
    num_samples: int
    max_concurrent: int | None
    seed: int
    """Of the points that are drawn."""
    epochs: int
    """Of the longest trial."""
    varied: list[str]
    """The options that differ from trial to trial."""
    num_trials: int
    published: list[tuple[str, str, float]]
    """Test accuracy of others: architecture, task, percent."""
    loggers: list[str] = dataclasses.field(default_factory=list)
    """The libraries that get the results of all trials, such as mlflow."""

    @classmethod
    def read(cls, folder: Path) -> Search:
        """Read the search that is in a folder.

        Raises:
            UserError: there is none.
        """
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


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search came to."""

    search: Search
    rows: list[TrialRow]
    stopped_by: int | None
    """Number of the signal that stopped it early, or None."""


def start_search(
    space: SearchSpace, searcher: SearcherName, folder: Path, watch: Watch
) -> SearchResult:
    """Run a search, in a folder that is new or empty.

    Raises:
        UserError: a mistake in the space or its data, or a trial that the cluster cannot hold.
    """
    folder = folder.expanduser().absolute()
    RunDirectory(folder).check_new()
    check_strategy(space, searcher)
    algorithm = make_algorithm(space, searcher)
    loggers = space_loggers(space)
    check_loggers(loggers)
    with ray_session():
        epochs = check_points(space, nodes())
        search = Search(
            space=space.name,
            title=space.title,
            metric=space.metric,
            mode=space.mode,
            scheduler=space.scheduler,
            searcher=searcher,
            num_samples=space.num_samples,
            max_concurrent=space.max_concurrent,
            seed=first_seed(space),
            epochs=epochs,
            varied=space.varied,
            num_trials=space.num_trials,
            published=[(*key, value) for key, value in space.published.items()],
            loggers=loggers,
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(dataclasses.asdict(search), indent=2) + "\n"
            write_atomically(folder / SEARCH, text.encode())
        except OSError as error:
            raise UserError(
                f"--run-dir {folder} cannot be written: {error.strerror}; name another folder"
            ) from error
        os.environ.update(_ENVIRONMENT)
        watcher = SearchCallback()
        callbacks = [SearchLogger(name, folder.name) for name in loggers]
        for callback in callbacks:
            callback.begin()
        tuner = tune.Tuner(
            _trainable(folder, search),
            param_space=dict(space.param_space),
            tune_config=tune.TuneConfig(
                metric=space.metric,
                mode=space.mode,
                search_alg=algorithm,
                scheduler=make_scheduler(space, epochs),
                num_samples=space.num_samples,
                max_concurrent_trials=space.max_concurrent,
                reuse_actors=True,  # a process with torch in it takes seconds to start
                trial_name_creator=trial_name,
                trial_dirname_creator=trial_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                verbose=0,
                callbacks=[watcher, *callbacks],
                checkpoint_config=tune.CheckpointConfig(
                    num_to_keep=_KEPT_CLONES if space.scheduler == "pbt" else None
                ),
            ),
        )
        return _run(tuner, search, folder, watcher, watch)


def resume_search(folder: Path, watch: Watch) -> SearchResult:
    """Go on with the search in a folder: finished trials stay, unfinished and failed ones go on.

    Raises:
        UserError: there is no search in the folder.
    """
    folder = folder.expanduser().absolute()
    search = Search.read(folder)
    check_loggers(search.loggers)
    state = str(folder / "tune")
    if not tune.Tuner.can_restore(state):
        raise UserError(
            f"the search in {folder} was stopped before its first trial; delete the folder and "
            "start it again"
        )
    with ray_session():
        os.environ.update(_ENVIRONMENT)
        watcher = SearchCallback()  # before Tune looks for it
        trainable = _trainable(folder, search)
        tuner = tune.Tuner.restore(state, trainable=trainable, resume_errored=True)
        return _run(tuner, search, folder, watcher, watch)


def space_loggers(space: SearchSpace) -> list[str]:
    """Return the libraries that get the results of a space's trials.

    Raises:
        UserError: they differ from trial to trial.
    """
    if "logger" in space.varied:
        raise UserError(
            f"the search space {space.name!r}: logger holds for the whole search; give one value"
        )
    said = {name: space.param_space[name] for name in ("logger",) if name in space.param_space}
    return [name for name in trial_config(said).loggers if name in LOGGERS]


def _trainable(folder: Path, search: Search) -> Any:
    function = trial_function(folder, clones=search.scheduler == "pbt")
    return tune.with_resources(function, trial_bundles)


def trial_name(trial: Trial) -> str:
    """Return trial-00003: by number where Tune counts its trials, else by its id."""
    return f"trial-{trial.trial_id.rpartition('_')[2]}"


def check_points(space: SearchSpace, there: Sequence[Node]) -> int:
    """Check what the trials can be, before the first one starts.

    Returns:
        the epochs of the longest one.

    Raises:
        UserError: a trial that cannot be, or that the cluster can never hold.
    """
    data: dict[tuple[Any, ...], TaskData] = {}
    epochs = 1
    for point in space.points():
        try:
            run = trial_config(point)
            source = run.task, run.data_dir, run.download
            if source not in data:
                folder = None if run.data_dir is None else Path(run.data_dir)
                data[source] = load_task(run.task, data_dir=folder, download=run.download)
            epochs = max(epochs, assemble(run, data[source], RunDirectory(Path())).recipe.epochs)
            trial_resources(run, there)
        except UserError as error:
            which = ", ".join(f"{name}={point[name]}" for name in space.varied if name in point)
            if not which:
                raise
            raise UserError(f"a trial of the search ({which}) cannot run: {error}") from error
    return epochs


def _run(
    tuner: tune.Tuner, search: Search, folder: Path, watcher: SearchCallback, watch: Watch
) -> SearchResult:
    """Let Tune run to the end, or to a request to stop, and write results.parquet."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    header = "\n".join(
        line
        for line in (
            search.title,
            f"{search.num_trials} trials of the space {search.space}, {search.searcher} search, "
            f"scheduler {search.scheduler}, by {search.metric} ({search.mode})",
            f"search folder {folder}",
        )
        if line
    )
    with watch(header, search.varied, search.num_trials) as view:
        watcher.view = view
        watcher.stop = StopRequest(
            lambda name: view.on_message(
                f"{name}: stopping; go on with --run-dir {folder} --resume (again to stop at once)"
            )
        )
        with watcher.stop:
            grid = tuner.fit()
    errors = {
        Path(result.path).name: result.error for result in (grid[i] for i in range(len(grid)))
    }
    rows = [_row(folder, name, watcher, errors.get(name)) for name in sorted(watcher.configs)]
    write_results(folder / "results.parquet", rows)
    return SearchResult(search=search, rows=rows, stopped_by=watcher.stop.signum)


def _row(
    folder: Path, name: str, watcher: SearchCallback, error: BaseException | None
) -> TrialRow:
    config = plain(watcher.configs[name])
    row = trial_row(name, folder / TRIALS / name, config)
    if name not in watcher.ended:
        return row
    if watcher.ended[name] == Trial.ERROR:
        return dataclasses.replace(row, status="failed", error=_sentence(error))
    run = trial_config(config)
    epochs = resolve_recipe(run, task_recipe(run.task)).epochs
    is_last = row.last and row.last.epoch == epochs
    return dataclasses.replace(row, status="finished" if is_last else "stopped")


def _sentence(error: BaseException | None) -> str:
    """Return what a trial failed of, without the traceback."""
    cause: Any = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines() or ["no reason is known"]
    return lines[-1]


def published_of(search: Search) -> Mapping[tuple[str, str], float]:
    """Return the figures of others by architecture and task."""
    return {(arch, task): value for arch, task, value in search.published}
