"""Where a run begins that continues another training: with its layers, or after its last epoch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from rayff.config.errors import UserError
from rayff.config.kernels import Kernels
from rayff.config.recipe import Recipe
from rayff.config.resolved import resolve
from rayff.config.train_config import TrainConfig
from rayff.config.validation import as_option
from rayff.engine.learner import StageSpec, make_learner
from rayff.engine.run import PreparedRun
from rayff.learning.classifier import Classifier
from rayff.learning.layer_state import fixed_tensors, is_of_layer, learned_parameters
from rayff.learning.losses import loss_class
from rayff.learning.losses.goodness import Goodness
from rayff.learning.lr_schedule import epoch_lr
from rayff.runs.checkpoint import Checkpoint, Progress


def initial_checkpoint(
    prepared: PreparedRun, source: Classifier, path: Path
) -> tuple[Checkpoint, list[str]]:
    """Return layers that begin as those of another network, and what is to be said of it.

    A tensor is taken over where the same layer of the other network has one of its name and
    shape; optimizers begin without state.

    Args:
        prepared: the new run.
        source: the other network.
        path: its run directory.

    Raises:
        UserError: nothing fits, or a layer that is frozen does not.
    """
    trained = {
        spec.index: {**learned_parameters(module), **fixed_tensors(module)}
        for spec, module in source.learned_layers
    }
    taken, made_anew = _Names(), _Names()
    states = _initial_states(prepared)
    for index, state in states.items():
        for name, tensor in state.items():
            found = trained.get(index, {}).get(name)
            if found is None or (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
                made_anew.add(name, index)
            else:
                taken.add(name, index)
                state[name] = found.detach()
    if not taken.layers:
        raise UserError(
            f"--init-from {path}: no layer of {source.architecture.name!r} has the shape of one "
            f"of {prepared.architecture.name!r}; use the --arch and --width of its config.json"
        )
    _check_frozen_are_trained(prepared.config, made_anew, path)
    notes = [f"begins with the {taken} of {path}"]
    if made_anew.layers:
        notes.append(f"made anew, for other shapes: {made_anew}")
    before, now = source.architecture.num_classes, prepared.architecture.num_classes
    if before != now and issubclass(loss_class(prepared.config.loss), Goodness):
        notes.append(
            f"the channel groups, which stood for {before} classes, stand for {now} and learn anew"
        )
    encoded = {
        index: np.frombuffer(save({n: t.contiguous() for n, t in state.items()}), dtype=np.uint8)
        for index, state in states.items()
    }
    return Checkpoint(step=0, progress=Progress(), states=encoded), notes


def _check_frozen_are_trained(config: TrainConfig, made_anew: _Names, path: Path) -> None:
    """Raise a UserError where a frozen layer would keep random weights; its head may be new."""
    own = {
        name: layers for name, layers in made_anew.layers.items() if not name.startswith("loss.")
    }
    random = sorted({index for layers in own.values() for index in layers} & {*config.frozen})
    if random:
        raise UserError(
            f"--freeze {config.freeze}: layer {as_ranges(random)} has another shape than in "
            f"{path} ({', '.join(own)}), so it begins anew and must learn; leave it out"
        )


def _initial_states(prepared: PreparedRun) -> dict[int, dict[str, Tensor]]:
    """Return the parameters and buffers of each layer at the start of a run."""
    config, network = prepared.config, prepared.architecture
    resolved = resolve(
        config,
        prepared.recipe,
        "fp32",
        (Kernels(),) * len(network),
        prepared.class_weights,
        of_modules=network.source is not None,
    )
    spec = StageSpec(architecture=network, is_last=True, config=resolved)
    states = make_learner(spec, torch.device("cpu")).states()
    return {
        index: {name: tensor for name, tensor in state.items() if is_of_layer(name)}
        for index, state in states.items()
    }


@dataclass
class _Names:
    """Names of tensors with the numbers of their layers, as text: weight of layers 0-3."""

    layers: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str, index: int) -> None:
        self.layers.setdefault(name, []).append(index)

    def __str__(self) -> str:
        by_numbers: dict[str, list[str]] = {}
        for name, numbers in self.layers.items():
            by_numbers.setdefault(as_ranges(numbers), []).append(name)
        return "; ".join(
            f"{', '.join(names)} of layer{'' if numbers.isdigit() else 's'} {numbers}"
            for numbers, names in by_numbers.items()
        )


def as_ranges(numbers: Iterable[int]) -> str:
    """Return ascending numbers as text, such as 0-3,5."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ",".join("-".join(map(str, each)) for each in ranges)


def changed_schedule(before: Recipe, recipe: Recipe, done: int) -> str | None:
    """Return what changed in a resumed run's schedule, and how that goes on; else None.

    Args:
        before: the recipe of the epochs that are complete.
        recipe: the recipe now.
        done: epochs that are complete.
    """
    if before == recipe:
        return None
    last, rate = recipe.epochs - 1, f"{epoch_lr(recipe, done):.3g} in epoch {done + 1}"
    if done:
        rate += f" (before: {epoch_lr(before, done - 1):.3g} in epoch {done})"
    end = f", {epoch_lr(recipe, last):.3g} in epoch {last + 1}" if last > done else ""
    pairs = ((f.name, getattr(before, f.name), getattr(recipe, f.name)) for f in fields(Recipe))
    changes = [
        f"{as_option(name, new)} instead of {as_option(name, old).partition(' ')[2]}"
        for name, old, new in pairs
        if old != new and None not in (old, new)
    ]
    return f"goes on with {', '.join(changes)}: learning rate {rate}{end}"
