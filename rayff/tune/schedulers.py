"""Who chooses the points of a search, and who ends its trials early."""

from __future__ import annotations

from typing import Literal

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

_CLONED = ("lr", "lr_min", "weight_decay", "dropout")
"""What a training may change when it goes on from another's checkpoint."""


def check_strategy(space: SearchSpace, searcher: SearcherName) -> None:
    """Raise a UserError where the space does not suit its scheduler or who draws its points."""
    grids = [name for name, value in space.param_space.items() if is_grid(value)]
    if searcher == "optuna" and grids:
        raise UserError(
            f"--search optuna draws its points, but {', '.join(grids)} is a grid: use "
            "tune.choice in the space, one seed, or --search random"
        )
    if space.scheduler == "pbt":
        fixed = [name for name in space.varied if name not in _CLONED or name in grids]
        if fixed or not space.varied:
            raise UserError(
                "--scheduler pbt goes on from other trials' checkpoints and changes "
                f"{', '.join(_CLONED)} alone, drawn from samplers"
                + (f", but {', '.join(fixed)} varies" if fixed else ", but none of them varies")
                + "; use --scheduler asha or none, or another space"
            )


def first_seed(space: SearchSpace) -> int:
    """Return the seed of the points that are drawn: the trials' own, where they have one."""
    seed = space.param_space.get("seed", 0)
    return seed if isinstance(seed, int) else 0


def make_algorithm(space: SearchSpace, searcher: SearcherName) -> SearchAlgorithm | Searcher:
    """Return what chooses the points; each seed of a grid sees the same ones."""
    if searcher == "random":
        return BasicVariantGenerator(
            constant_grid_search=True,
            random_state=first_seed(space),
            max_concurrent=space.max_concurrent or 0,
        )
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError as error:
        raise UserError("--search optuna needs Optuna: pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return OptunaSearch(metric=space.metric, mode=space.mode, seed=first_seed(space))


def make_scheduler(space: SearchSpace, epochs: int) -> TrialScheduler:
    """Return who ends trials early, where the longest has so many epochs."""
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
        )
    return FIFOScheduler()  # type: ignore[no-untyped-call]
