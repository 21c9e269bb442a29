"""Forward-Forward networks, trained as pipelines of Ray actors.

    >>> import rayff
    >>> result = rayff.train(rayff.TrainConfig(arch="tinycnn", task="digits"))
    >>> model = rayff.load(result.run_dir)          # a plain nn.Module
    >>> rayff.evaluate(result.run_dir).accuracy

What a function needs is imported when it is called: `load` and `evaluate` work without Ray.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig

if TYPE_CHECKING:
    from rayff.baselines.model import Classifier
    from rayff.distributed.training import TrainResult
    from rayff.engine.evaluation import Evaluation

__all__ = ["TrainConfig", "UserError", "evaluate", "load", "train"]


def train(
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> TrainResult:
    """Train a network as a pipeline of Ray actors, and show how it goes.

    Joins the cluster that RAY_ADDRESS names or that the process is connected to, and else
    starts a local one for the time of the training.

    Args:
        config: the run, as a TrainConfig or a mapping of its fields; by default `tinycnn` on the
            embedded digits.
        resume: go on from the last checkpoint in `config.run_dir`.
        quiet: show nothing.

    Returns:
        the run directory and a record of each epoch.

    Raises:
        UserError: a mistake in the run, with its remedy.
    """
    from rayff.console.run_view import observe, observe_quietly
    from rayff.distributed.training import train as train_on_cluster

    run = config if isinstance(config, TrainConfig) else TrainConfig.from_dict(config or {})
    if quiet:
        return train_on_cluster(run, observe_quietly, resume=resume)
    return train_on_cluster(run, observe, resume=resume, notify=print)


def load(run_dir: str | PathLike[str]) -> Classifier:
    """Return the trained network of a run, a plain `nn.Module` on the CPU in eval mode.

    It takes uint8 images (B, K, 32, 32) and returns logits (B, C): the goodness summed over the
    window of layers that SIP chose.

    Raises:
        UserError: no run directory, no model in it yet, or a damaged one.
    """
    from rayff.runs.run_directory import RunDirectory

    return RunDirectory(Path(run_dir)).load_model()


def evaluate(run_dir: str | PathLike[str], **options: Any) -> Evaluation:
    """Evaluate a run's network; see `rayff.engine.evaluation.evaluate` for the options."""
    from rayff.engine.evaluation import evaluate as evaluate_run

    return evaluate_run(Path(run_dir), **options)


class _Package(ModuleType):
    """Keeps `rayff.train` the function when the command's module of that name is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
