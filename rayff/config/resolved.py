"""The resolved config: every option that decides the bits of a run, none of them left open."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from rayff.config.errors import UserError
from rayff.config.kernels import Kernels, format_kernels, parse_kernels
from rayff.config.local_loss import OWN_LOSS_OPTIONS, LossConfig, loss_config, loss_tier
from rayff.config.recipe import (
    OF_DATA,
    SCHEDULE_OPTIONS,
    Method,
    Recipe,
    defaults_of,
    make_recipe,
)
from rayff.config.train_config import Precision, RuleName, TrainConfig
from rayff.config.validation import PIPELINE_OPTIONS, as_option, flag


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """Everything that stages and schedule read; with the data it decides a run's bits.

    None is only what the recipe has no use for.
    """

    method: Method
    loss: LossConfig
    augment: str
    seed: int
    recipe: Recipe
    rule: RuleName
    precision: Precision
    kernels: tuple[Kernels, ...]
    """Of each layer; torch's convolution with the plain rule."""
    frozen: tuple[int, ...] = ()
    """Layers that only run forward."""

    @property
    def num_layers(self) -> int:
        """Layers of the whole network."""
        return len(self.kernels)


def resolve_recipe(config: TrainConfig, task_recipe: Mapping[str, Any]) -> Recipe:
    """Return the recipe of method, loss and architecture under the values of task and config.

    Args:
        config: its own values come first.
        task_recipe: the task's values, by name.

    Raises:
        UserError: the config's values contradict each other or the recipe.
    """
    own = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(Recipe)
        if getattr(config, field.name) is not None
    }
    defaults = defaults_of(config.method, config.loss)
    return make_recipe(defaults, config.arch, task_recipe, own)


def with_recipe(config: TrainConfig, recipe: Recipe) -> TrainConfig:
    """Return the config with every value of the recipe written out."""
    return dataclasses.replace(config, **dataclasses.asdict(recipe))


def resolve(
    config: TrainConfig,
    recipe: Recipe,
    precision: Precision,
    kernels: tuple[Kernels, ...],
    class_weights: tuple[float, ...] | None = None,
    *,
    of_modules: bool = False,
) -> ResolvedConfig:
    """Return the resolved config.

    Args:
        config: the user's.
        recipe: as `resolve_recipe` returns it.
        precision: the user's, or the best of the devices.
        kernels: of each layer.
        class_weights: of the training images, where the config asks for them.
        of_modules: whether the network's layers are modules.
    """
    return ResolvedConfig(
        method=config.method,
        loss=loss_config(config, class_weights),
        augment=config.augment,
        seed=config.seed,
        recipe=recipe,
        rule=resolve_rule(config, of_modules=of_modules),
        precision=precision,
        kernels=kernels,
        frozen=config.frozen,
    )


def resolve_rule(config: TrainConfig, *, of_modules: bool = False) -> RuleName:
    """Return the rule: the user's, or fast for convolutions whose loss sees pooled moments.

    Args:
        config: the user's.
        of_modules: whether the network's layers are modules.

    Raises:
        UserError: the fast rule, or its kernels, for modules or for a loss that sees the map.
    """
    if not of_modules and loss_tier(config.loss) == "pooled":
        return config.rule or "fast"
    why = (
        f"convolutions, and the layers of --arch {config.arch} are modules"
        if of_modules
        else f"losses of pooled moments, and --loss {config.loss} sees the map itself"
    )
    for name in ("rule", "kernels", "autotune"):
        value = getattr(config, name)
        if value and value != "plain":
            raise UserError(
                f"{as_option(name, value)}: the fast rule trains {why}: leave --{name} out"
            )
    return "plain"


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


_FOUND = ("precision", "kernels", "stream", "init_from")
"""Options of the start of a run, in part resolved by its machine, which it keeps when it is
resumed."""

_RECIPE = tuple(field.name for field in dataclasses.fields(Recipe))

_OF_SCHEDULE = ("epochs", "lr", "lr_schedule", "warmup_epochs", "lr_scale") + sum(
    SCHEDULE_OPTIONS.values(), ()
)
"""Values of the recipe that may change where a run goes on."""

_FIXED = (
    *("arch", "method", "loss", "width", "task", "limit", "augment", "seed"),
    *("image_size", "resize", "image_channels", "image_column", "label_column"),
    *(*OWN_LOSS_OPTIONS, "label_smoothing", "class_weights"),
    *(name for name in _RECIPE if name not in _OF_SCHEDULE),
)
"""Options that decide a run's bits, and stay when it is resumed."""


def deciding_options(config: TrainConfig) -> dict[str, Any]:
    """Return the options that decide what a run learns, up to rounding; the seed aside."""
    others = (*_OF_SCHEDULE, "precision", "stream", "init_from", "freeze")
    return {name: getattr(config, name) for name in (*_FIXED, *others) if name != "seed"}


def resume_config(saved: TrainConfig, asked: TrainConfig) -> TrainConfig:
    """Return the config with which a run goes on: epochs, schedule and frozen layers may change.

    Args:
        saved: the run's, as `written_out` returned it.
        asked: the user's; what is None in its recipe is as in the run.

    Raises:
        UserError: `asked` would change the bits of what is trained already.
    """
    schedule = asked.lr_schedule or saved.lr_schedule
    unused = [n for owner, names in SCHEDULE_OPTIONS.items() if owner != schedule for n in names]
    same = [n for n in (*_RECIPE, "freeze") if getattr(asked, n) is None and n not in unused]
    asked = dataclasses.replace(asked, **{name: getattr(saved, name) for name in same})
    if asked.lr is not None and asked.lr_min == saved.lr_min and asked.lr < (saved.lr_min or 0):
        asked = dataclasses.replace(asked, lr_min=asked.lr)
    for name in (*_FIXED, *_FOUND, "rule"):
        was, wanted = getattr(saved, name), getattr(asked, name)
        if name == "kernels" and was and wanted:  # one entry may stand for all layers
            named = parse_kernels(was)
            was, wanted = named, parse_kernels(wanted, len(named))
        if was != wanted and (wanted or name not in (*_FOUND, "rule")):
            raise UserError(
                f"{flag(name)} {getattr(asked, name)}: the run was made {_with(saved, name)}, and "
                "a resumed run keeps it; leave the option out, or start a new --run-dir"
            )
    if asked.autotune:
        raise UserError(
            f"--autotune: the run was made with the kernels {saved.kernels}, and a resumed run "
            "keeps them; leave the option out, or start a new --run-dir"
        )
    found = {name: getattr(saved, name) for name in (*_FOUND, "rule")}
    return dataclasses.replace(asked, **found)


def _with(saved: TrainConfig, name: str) -> str:
    """Return "with VALUE", or "without it"."""
    value = getattr(saved, name)
    return "without it" if value is None else f"with {value}"


def without_excluded(saved: TrainConfig, asked: TrainConfig, given: Set[str]) -> TrainConfig:
    """Return a saved config without the options that those given now exclude.

    Of stages, cuts, replicas and elastic the given ones replace the others; but a number of actors
    and `auto`, which groups them, go together. Another method begins without what only the one
    before it has. Another network, loss or rule leaves the kernels behind. Another method or loss
    begins with its own values where its recipe differs. Another schedule begins without what it
    has no use for.

    Args:
        saved: of a file or a run.
        asked: has the given options.
        given: their names.
    """
    dropped: set[str] = set()
    if "method" in given and asked.method != saved.method:
        dropped |= {*PIPELINE_OPTIONS, "workers", "lr_scale"}
    if "arch" in given and asked.arch != saved.arch:
        dropped |= {"kernels", "autotune"} | ({"rule"} if saved.rule == "fast" else set())
    if "loss" in given and asked.loss != saved.loss:
        dropped |= {"rule", "kernels", "autotune", *OWN_LOSS_OPTIONS}
    dropped |= _changed_defaults(saved, asked, given)
    for schedule, names in SCHEDULE_OPTIONS.items():
        if "lr_schedule" in dropped or ("lr_schedule" in given and asked.lr_schedule != schedule):
            dropped |= {*names}
    if given & {"rule", "kernels", "autotune"}:
        dropped |= {"kernels", "autotune"}
    plan = {"stages", "cuts", "replicas", "elastic"}
    if given & plan:
        replicas = asked.replicas if "replicas" in given else saved.replicas
        grouped = replicas == "auto" and not given & {"cuts", "elastic"}
        dropped |= {"cuts", "elastic"} if grouped else plan
    defaults = {name: getattr(TrainConfig, name) for name in dropped - given}
    return dataclasses.replace(saved, **defaults)


def _changed_defaults(saved: TrainConfig, asked: TrainConfig, given: Set[str]) -> set[str]:
    """Return what another method or loss has other defaults for: not the data's own values."""
    method = asked.method if "method" in given else saved.method
    loss = asked.loss if "loss" in given else saved.loss
    before, after = defaults_of(saved.method, saved.loss), defaults_of(method, loss)
    was, now = before.of(saved.arch), after.of(saved.arch)
    return {n for n in {*was, *now} - {*OF_DATA} if was.get(n) != now.get(n)}
