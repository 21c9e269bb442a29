"""Ray Tune's callbacks for MLflow and Weights & Biases, which log the trials of a search."""

from __future__ import annotations

from collections.abc import Callable

from ray.tune.logger import LoggerCallback

from rayff.config.errors import UserError
from rayff.distributed.loggers import mlflow_experiment, mlflow_uri, sentence, wandb_options


def _mlflow(search: str) -> LoggerCallback:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    return MLflowLoggerCallback(
        tracking_uri=mlflow_uri(), experiment_name=mlflow_experiment(), tags={"search": search}
    )


def _wandb(search: str) -> LoggerCallback:
    from ray.air.integrations.wandb import WandbLoggerCallback

    return WandbLoggerCallback(group=search, **wandb_options())


CALLBACKS: dict[str, Callable[[str], LoggerCallback]] = {"mlflow": _mlflow, "wandb": _wandb}
"""Factory of each library's callback, from the name of the search."""


def check_reachable(name: str) -> None:
    """Raise a UserError if a library cannot be reached, or refuses access."""
    try:
        CALLBACKS[name]("").setup()
    except Exception as error:  # each library has errors of its own
        raise UserError(
            f"--logger {name} cannot begin ({sentence(error)}): correct that, or leave {name} "
            "out of --logger"
        ) from error
