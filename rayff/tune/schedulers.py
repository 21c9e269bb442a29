"""Ray Tune's search algorithms and schedulers, set up for a space."""

from __future__ import annotations

from typing import Any, Literal

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher

from rayff.config.errors import UserError
from rayff.tune.space import SearchSpace, is_grid

SearcherName = Literal["random", "optuna"]

_MUTABLE = ("lr", "lr_min", "weight_decay", "dropout")
"""Options that may change when a trial continues from the checkpoint of another."""


def check_strategy(space: SearchSpace, searcher: SearcherName) -> None:
    """Raise a UserError if the space does not fit its scheduler or searcher."""
    grids = [name for name, value in space.param_space.items() if is_grid(value)]
    if searcher == "optuna" and grids:
        raise UserError(
            f"--search optuna draws its points, but {', '.join(grids)} is a grid: use "
            "tune.choice in the space, one seed, or --search random"
        )
    if space.scheduler == "pbt":
        fixed = [name for name in space.varied if name not in _MUTABLE or name in grids]
        if fixed or not space.varied:
            raise UserError(
                "--scheduler pbt continues trials from the checkpoints of others and changes only "
                f"{', '.join(_MUTABLE)}, drawn from samplers, but {', '.join(fixed) or 'none'} "
                "varies; use --scheduler asha or none, or another space"
            )


def make_algorithm(space: SearchSpace, searcher: SearcherName) -> SearchAlgorithm | Searcher:
    """Return the search algorithm, which draws the same points for each seed of a grid."""
    given = space.param_space.get("seed", 0)
    seed = given if isinstance(given, int) else 0
    if searcher == "random":
        return BasicVariantGenerator(
            constant_grid_search=True,
            random_state=seed,
            max_concurrent=space.max_concurrent or 0,
        )
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError as error:
        raise UserError("--search optuna needs Optuna: pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return OptunaSearch(metric=space.metric, mode=space.mode, seed=seed)


def explored(config: dict[str, Any]) -> dict[str, Any]:
    """Return a mutated configuration whose cosine does not rise."""
    if "lr_min" in config and "lr" in config:
        config = {**config, "lr_min": min(config["lr_min"], config["lr"])}
    return config


def make_scheduler(space: SearchSpace, epochs: int) -> TrialScheduler:
    """Return the scheduler for trials of at most so many epochs."""
    if space.scheduler == "asha":
        # A trial ends by itself: at its last epoch there is nothing left to stop.
        return AsyncHyperBandScheduler(
            time_attr="epoch", max_t=epochs + 1, grace_period=max(1, epochs // 10)
        )
    if space.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr="epoch",
            perturbation_interval=max(1, epochs // 8),
            hyperparam_mutations={name: space.param_space[name] for name in space.varied},
            custom_explore_fn=explored,
        )
    return FIFOScheduler()  # type: ignore[no-untyped-call]
