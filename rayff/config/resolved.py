"""The resolved config: every option that decides the bits of a run, none of them None."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from rayff.config.errors import UserError
from rayff.config.kernels import Kernels, format_kernels, parse_kernels
from rayff.config.recipe import BACKPROPAGATION, Method, Recipe, recipe
from rayff.config.train_config import Precision, RuleName, TrainConfig
from rayff.config.validation import PIPELINE_OPTIONS, flag


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """Everything that stages and schedule read; with the data it decides a run's bits."""

    method: Method
    loss: str
    augment: str
    seed: int
    recipe: Recipe
    rule: RuleName
    precision: Precision
    kernels: tuple[Kernels, ...]
    """Of each layer; torch's convolution with the plain rule."""


def resolve_recipe(config: TrainConfig, task_recipe: Mapping[str, Any]) -> Recipe:
    """Return the paper's recipe for the architecture, with the values of task and config over it.

    Args:
        config: its own values come first.
        task_recipe: the task's values, by name.
    """
    own = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(Recipe)
        if getattr(config, field.name) is not None
    }
    method = {} if config.method == "ff" else BACKPROPAGATION
    return recipe(config.arch, {**task_recipe, **method, **own})


def with_recipe(config: TrainConfig, recipe: Recipe) -> TrainConfig:
    """Return the config with every value of the recipe written out."""
    return dataclasses.replace(config, **dataclasses.asdict(recipe))


def resolve(
    config: TrainConfig, recipe: Recipe, precision: Precision, kernels: tuple[Kernels, ...]
) -> ResolvedConfig:
    """Return the resolved config.

    Args:
        config: the user's.
        recipe: as `resolve_recipe` returns it.
        precision: the user's, or the best of the devices.
        kernels: of each layer.
    """
    return ResolvedConfig(
        method=config.method,
        loss=config.loss,
        augment=config.augment,
        seed=config.seed,
        recipe=recipe,
        rule=resolve_rule(config),
        precision=precision,
        kernels=kernels,
    )


def resolve_rule(config: TrainConfig) -> RuleName:
    """Return the rule: the user's, or fast where the loss has a closed form."""
    default: RuleName = "fast" if config.loss == "goodness" else "plain"
    return config.rule or default


def written_out(config: TrainConfig, resolved: ResolvedConfig) -> TrainConfig:
    """Return the user's config with what was resolved, for the run's config.json."""
    pipeline = config.method == "ff"
    return dataclasses.replace(
        with_recipe(config, resolved.recipe),
        rule=resolved.rule if pipeline else config.rule,
        precision=resolved.precision,
        kernels=format_kernels(resolved.kernels) if pipeline and resolved.rule == "fast" else None,
        autotune=False,
    )


_FOUND = ("precision", "kernels")
"""Options that a run resolves by the machine where it starts, and keeps when it is resumed."""

_FIXED = (
    *("arch", "method", "loss", "width", "task", "limit", "augment", "seed"),
    *(field.name for field in dataclasses.fields(Recipe)),
)
"""Options that decide a run's bits, and so stay when it is resumed."""


def deciding_options(config: TrainConfig) -> dict[str, Any]:
    """Return the options that decide what a run learns, up to rounding; the seed aside."""
    names = (name for name in (*_FIXED, "precision") if name != "seed")
    return {name: getattr(config, name) for name in names}


def resume_config(saved: TrainConfig, asked: TrainConfig) -> TrainConfig:
    """Return the config with which a run goes on.

    Args:
        saved: the run's, as `written_out` returned it.
        asked: the user's, with its recipe written out.

    Raises:
        UserError: `asked` would change the run's bits.
    """
    for name in (*_FIXED, *_FOUND, "rule"):
        was, wanted = getattr(saved, name), getattr(asked, name)
        if name == "kernels" and was and wanted:  # one entry may stand for all layers
            named = parse_kernels(was)
            was, wanted = named, parse_kernels(wanted, len(named))
        if was != wanted and not (wanted is None and name in (*_FOUND, "rule")):
            raise UserError(
                f"{flag(name)} {getattr(asked, name)}: the run was made with "
                f"{getattr(saved, name)}, and a resumed run keeps it; leave the option out, or "
                "start a new --run-dir"
            )
    if asked.autotune:
        raise UserError(
            f"--autotune: the run was made with the kernels {saved.kernels}, and a resumed run "
            "keeps them; leave the option out, or start a new --run-dir"
        )
    found = {name: getattr(saved, name) for name in (*_FOUND, "rule")}
    return dataclasses.replace(asked, **found)


def without_excluded(saved: TrainConfig, asked: TrainConfig, given: Set[str]) -> TrainConfig:
    """Return a saved config without the options that those given now exclude.

    Of stages, cuts, replicas and elastic the given ones replace the others; but a number of actors
    and `auto`, which groups them, go together. Another method begins with its own learning rates
    and without what only the one before it has. Another loss or rule leaves the kernels behind.

    Args:
        saved: of a file or a run.
        asked: has the given options.
        given: their names.
    """
    dropped: set[str] = set()
    if "method" in given and asked.method != saved.method:
        dropped |= {*PIPELINE_OPTIONS, "workers", *BACKPROPAGATION}
    if "loss" in given and asked.loss != saved.loss:
        dropped |= {"rule", "kernels", "autotune"}
    if given & {"rule", "kernels", "autotune"}:
        dropped |= {"kernels", "autotune"}
    plan = {"stages", "cuts", "replicas", "elastic"}
    if given & plan:
        replicas = asked.replicas if "replicas" in given else saved.replicas
        grouped = replicas == "auto" and not given & {"cuts", "elastic"}
        dropped |= {"cuts", "elastic"} if grouped else plan
    defaults = {name: getattr(TrainConfig, name) for name in dropped - given}
    return dataclasses.replace(saved, **defaults)
