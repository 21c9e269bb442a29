"""Checks of a run's options: each one alone, against the others, and against network and batch."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from rayff.config.errors import UserError, nearest
from rayff.config.kernels import parse_kernels
from rayff.config.local_loss import OWN_LOSS_OPTIONS, check_loss_options
from rayff.config.text import is_path, is_plain, plural

if TYPE_CHECKING:
    from rayff.config.train_config import TrainConfig

PIPELINE_OPTIONS = (
    *("stages", "elastic", "cuts", "replicas", "rebalance", "transport", "rule", "kernels"),
    *("autotune", "loss", "freeze", *OWN_LOSS_OPTIONS),
)
"""Options that a run by backpropagation has no use for."""

LOGGERS = ("tensorboard", "mlflow", "wandb")
"""Where the metrics of a run can go."""

_TOO_LARGE = 2**128
"""More than a seed can use, and less than a float can hold."""

_LAYERS = re.compile("[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*")
_REPLICAS = re.compile("[1-9][0-9]{0,5}(,[1-9][0-9]{0,5})*")

_AT_LEAST = {
    **dict.fromkeys(
        ("image_size", "width", "limit", "epochs", "batch_size", "stages", "workers"), 1
    ),
    **dict.fromkeys(("chunk", "window", "keep_checkpoints", "patience"), 1),
    **dict.fromkeys(("eval_every", "checkpoint_every", "log_every"), 1),
    **dict.fromkeys(("seed", "lr", "lr_min", "weight_decay", "warmup_epochs"), 0),
    **dict.fromkeys(("cpus_per_stage", "gpus_per_stage"), 0),
    "max_failures": -1,
}
_LARGEST = 4096
_WIDEST = 100_000
"""Channels; a layer with so many has hundreds of gigabytes of weights."""
_CHOICES: dict[str, tuple[str, ...]] = {
    "method": ("ff", "bp", "bp-deepsup"),
    "lr_schedule": ("cosine", "constant", "step"),
    "precision": ("fp32", "bf16"),
    "rule": ("fast", "plain"),
    "device": ("auto", "cpu", "cuda"),
    "transport": ("object-store", "auto", "cuda-ipc", "nccl", "nixl", "gloo"),
    "placement": ("pack", "spread", "strict_spread"),
    "class_weights": ("none", "balanced"),
    "resize": ("crop", "stretch", "pad"),
}


def validate(config: TrainConfig) -> None:
    """Raise a UserError where an option is wrong by itself or contradicts another one."""
    for name, least in _AT_LEAST.items():
        _check_number(name, getattr(config, name), at_least=least)
    if config.image_size is not None and config.image_size > _LARGEST:
        raise UserError(
            f"--image-size {config.image_size}: images have {_LARGEST:,} pixels a side at most"
        )
    if config.image_channels not in (None, 1, 3):
        raise UserError(
            f"--image-channels must be 1 (grey) or 3 (colour), not {config.image_channels}"
        )
    if config.width is not None and config.width > _WIDEST:
        raise UserError(f"--width must be a number of {_WIDEST:,} at most: choose a smaller one")
    _check_resources(config)
    _check_learning_rates(config)
    for name in ("task", "data_dir", "run_dir", "storage_path", "init_from"):
        value = getattr(config, name)
        if value is not None and not is_path(value):
            raise UserError(
                f"{flag(name)}: {value!a} is not a valid path: remove NUL or undecodable "
                "characters"
            )
    for name in ("run_dir", "storage_path", "init_from"):
        if getattr(config, name) == "":
            raise UserError(f"{flag(name)} '' names no folder: name one, or leave the option out")
    if not is_plain(config.tags or ""):
        raise UserError(f"--tags {config.tags!a}: remove control characters")
    if not is_plain((config.notes or "").replace("\n", " ").replace("\t", " ")):
        raise UserError(f"--notes {config.notes!a}: remove control characters")
    if config.dropout is not None and not 0 <= config.dropout <= 255 / 256:
        raise UserError(f"--dropout must be from 0 to 255/256 (0.996), not {config.dropout}")
    if config.replicas not in (None, "auto") and not _REPLICAS.fullmatch(str(config.replicas)):
        raise UserError(
            f"--replicas {_one_line(config.replicas)}: give the number of actors of each stage, "
            "such as 1,2,1, or auto"
        )
    if config.elastic is not None:
        _check_elastic(config)
    if config.freeze not in (None, "none") and not _LAYERS.fullmatch(str(config.freeze)):
        raise UserError(
            f"--freeze {_one_line(config.freeze)}: give numbers of layers, such as 0-4 or 0,2-3, "
            "or none"
        )
    check_loss_options(config)
    _check_kernels(config)
    for name in config.loggers:
        if name not in LOGGERS:
            raise UserError(
                f"--logger {config.logger}: unknown {name!r}{nearest(name, LOGGERS)}; known are "
                f"{', '.join(LOGGERS)}, with commas between them, or none"
            )
    for name, known in _CHOICES.items():
        value = getattr(config, name)
        if value not in (None, *known):
            raise UserError(
                f"{flag(name)}: unknown {value!r}{nearest(str(value), known)}; known are "
                f"{', '.join(known)}"
            )


def _check_number(name: str, value: float | None, *, at_least: int) -> None:
    if value is None or at_least <= value < _TOO_LARGE:
        return
    if _TOO_LARGE <= value < math.inf:  # it may have more digits than can be shown
        raise UserError(f"{flag(name)} must be a number below 2**128: choose a smaller one")
    raise UserError(f"{flag(name)} must be a number of {at_least} or more, not {value}")


def _check_resources(config: TrainConfig) -> None:
    """Raise a UserError for an amount that Ray does not give: it counts in steps of 1/10,000."""

    def in_steps(amount: float) -> bool:
        return math.isclose(round(amount, 4), amount)

    cpus, gpus = config.cpus_per_stage, config.gpus_per_stage
    if cpus is not None and not (cpus > 0 and in_steps(cpus)):
        raise UserError(f"--cpus-per-stage must be more than 0, in steps of 1/10,000, not {cpus}")
    if gpus is not None and not (in_steps(gpus) if gpus < 1 else gpus % 1 == 0):
        raise UserError(
            "--gpus-per-stage must be a whole number, or a fraction below 1 in steps of "
            f"1/10,000, not {gpus}"
        )


def _check_learning_rates(config: TrainConfig) -> None:
    """Raise a UserError for factors and shares that are out of their range."""
    for name in ("lr_scale", "lr_decay", "clip_norm"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UserError(f"{flag(name)} must be a number above 0, not {value}")
        _check_number(name, value, at_least=0)
    if config.lr_decay is not None and config.lr_decay >= 1:
        raise UserError(f"--lr-decay must be a number below 1, not {config.lr_decay}")
    steps = config.lr_steps
    for step in steps or ():
        _check_number("lr_steps", step, at_least=0)
    if steps is not None and not (
        steps
        and all(0 < step < 1 for step in steps)
        and all(before < after for before, after in zip(steps, steps[1:], strict=False))
    ):
        raise UserError(
            f"{as_option('lr_steps', steps)}: give shares of the run's epochs between 0 and 1, "
            "ascending, such as 0.5,0.75,0.9"
        )


def _check_elastic(config: TrainConfig) -> None:
    low, high = config.elastic_range or (0, 0)
    given = f"--elastic {_one_line(config.elastic)}"
    if not 1 <= low <= high:
        raise UserError(f"{given}: give the fewest and the most stages, such as 2:4")
    for name in ("stages", "cuts", "replicas"):
        if getattr(config, name) is not None:
            raise UserError(
                f"{given} finds the number of stages and the boundaries by itself; leave --{name} "
                "out"
            )


def _check_kernels(config: TrainConfig) -> None:
    plain = config.rule == "plain"
    for name in ("kernels", "autotune"):
        value = getattr(config, name)
        if value and plain:
            raise UserError(
                f"{as_option(name, value)} is for the fast rule: the plain one has torch's "
                f"convolution alone; leave out --{name} or --rule plain"
            )
    if config.kernels is None:
        return
    if config.autotune:
        raise UserError(
            f"--autotune chooses the kernels, and --kernels {config.kernels} names them; leave "
            "one of the two out"
        )
    backends = {b for each in parse_kernels(config.kernels) for b in each.backends}
    if config.precision == "fp32" and "amx" in backends:
        raise UserError(
            f"--kernels {config.kernels}: amx multiplies bfloat16 only: use --precision bf16, or "
            "other kernels"
        )


def check_method(config: TrainConfig, batch_size: int) -> None:
    """Raise a UserError where an option belongs to the other way of learning."""
    if config.method == "ff":
        if config.workers is not None:
            raise UserError(
                f"--workers {config.workers} is for --method bp; Forward-Forward has --stages and "
                "--replicas"
            )
        return
    for name in PIPELINE_OPTIONS:
        value = getattr(config, name)
        if value != getattr(type(config), name):
            raise UserError(
                f"{as_option(name, value)} is for Forward-Forward: --method {config.method} has "
                "the whole network on each of its --workers; leave the option out"
            )
    if config.lr_scale not in (None, 1):
        raise UserError(
            f"--lr-scale {config.lr_scale} is for Forward-Forward: with --method {config.method} "
            "one loss trains all layers; leave the option out"
        )
    if (config.workers or 1) > batch_size:
        raise UserError(
            f"--workers {config.workers} cannot share a batch of {batch_size}; use fewer, or a "
            "larger --batch-size"
        )


def check_cuts(cuts: tuple[int, ...], stages: int | None, num_layers: int) -> None:
    """Raise a UserError where cuts are out of order, out of range, or not stages - 1 in number."""
    shown = ",".join(map(str, cuts))
    if any(cut < 1 for cut in cuts) or any(
        after <= before for before, after in zip(cuts, cuts[1:], strict=False)
    ):
        raise UserError(
            f"--cuts {shown}: give the first layer of each later stage, ascending and from 1 on, "
            "such as 5,9,13"
        )
    if stages is not None and len(cuts) != stages - 1:
        raise UserError(
            f"--cuts {shown} makes {plural(len(cuts) + 1, 'stage')}, but --stages says {stages}; "
            "leave one of the two out"
        )
    if cuts and cuts[-1] >= num_layers:
        raise UserError(
            f"--cuts {shown}: the network has {num_layers} layers, so a cut is at most "
            f"{num_layers - 1}"
        )


def check_frozen(config: TrainConfig, num_layers: int) -> None:
    """Raise a UserError where a frozen layer is not there, or none is left to learn."""
    frozen = config.frozen
    if config.freeze not in (None, "none") and not frozen:
        raise UserError(f"--freeze {config.freeze}: a range begins with its lower number")
    if frozen and frozen[-1] >= num_layers:
        raise UserError(
            f"--freeze {config.freeze}: the network has {num_layers} layers, of which the last is "
            f"number {num_layers - 1}"
        )
    if len(frozen) == num_layers:
        raise UserError(
            f"--freeze {config.freeze} leaves no layer to learn; freeze fewer, or use rayff "
            "evaluate"
        )


def check_replicas(config: TrainConfig, num_layers: int, batch_size: int) -> None:
    """Raise a UserError where replicas contradict stages, cuts, batch size or transport."""
    flag, counts = f"--replicas {config.replicas}", config.replica_counts
    if config.replicas == "auto":
        if config.cuts is not None:
            raise UserError(
                f"{flag} finds the cuts by itself; leave --cuts out, or give the actors of each "
                "stage, such as --replicas 1,2"
            )
    elif counts is not None:
        others = {
            "--stages": config.stages,
            "--cuts": None if config.cuts is None else len(config.cuts) + 1,
        }
        for other, stages in others.items():
            if stages not in (None, len(counts)):
                raise UserError(
                    f"{flag} makes {plural(len(counts), 'stage')}, but {other} makes {stages}; "
                    "leave one of the two out"
                )
        if len(counts) > num_layers:
            raise UserError(
                f"{flag} makes {len(counts)} stages, but the network has {num_layers} layers, and "
                f"a stage needs one at least; give {num_layers} numbers or fewer"
            )
        if max(counts) > batch_size:
            raise UserError(
                f"{flag}: {max(counts)} actors cannot share a batch of {batch_size}; use fewer, "
                "or a larger --batch-size"
            )
    replicated = config.replicas == "auto" or max(counts or (1,)) > 1
    if replicated and config.transport not in ("object-store", "auto"):
        raise UserError(
            f"{flag}: --transport {config.transport} connects stages of one actor only; use "
            "--transport object-store"
        )


def flag(name: str) -> str:
    """Return the option of a field, such as --batch-size."""
    return "--" + name.replace("_", "-")


def as_option(name: str, value: Any) -> str:
    """Return an option with its value as a command line has it: --cuts 5,9 or --rebalance."""
    if value is True:
        return flag(name)
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"{flag(name)} {shown}"


def _one_line(text: str | None) -> str:
    return str(text) if is_plain(str(text)) else ascii(text)
