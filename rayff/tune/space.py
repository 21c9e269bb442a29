"""Search spaces: Python files that give options of a training values, grids or samplers.

A space file is executed: use only spaces that you trust.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import runpy
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer

from rayff.config.errors import UserError, nearest
from rayff.config.text import plural
from rayff.config.train_config import TrainConfig
from rayff.distributed.loggers import LOGGERS
from rayff.runs.metrics import EpochRecord

SchedulerName = Literal["asha", "pbt", "none"]
Mode = Literal["min", "max"]

METRICS = tuple(f.name for f in dataclasses.fields(EpochRecord) if f.type in ("int", "float"))
"""Metrics of an epoch that trials report and that a search can optimize."""

MAX_POINTS = 10_000
"""Combinations that are checked before a search starts; a further one is when its trial starts."""

_COMBINED = frozenset(
    "arch method loss width task data_dir download limit image_size image_channels image_column "
    "label_column stream batch_size stages elastic cuts replicas transport placement device "
    "cpus_per_stage gpus_per_stage".split()
)
"""Options that decide together whether a trial can run, and on what resources."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The points of a search and how they are tried."""

    name: str
    """The file's name without .py."""
    param_space: Mapping[str, Any]
    """Options of a training: values, samplers, or grids as `tune.grid_search` returns them."""
    metric: str = "valid_accuracy"
    mode: Mode = "max"
    num_samples: int = 1
    """Draws, or repetitions of the grid."""
    scheduler: SchedulerName = "none"
    max_concurrent: int | None = None
    """Concurrent trials at most."""
    title: str = ""
    published: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Test accuracy that others published, in percent, by architecture and task."""

    def __post_init__(self) -> None:
        for mistake in self._mistakes():
            raise UserError(f"the search space {self.name!r}: {mistake}")

    def _mistakes(self) -> Iterator[str]:
        known = {f.name for f in dataclasses.fields(TrainConfig)} - {"run_dir"}
        if not isinstance(self.param_space, Mapping) or not self.param_space:
            example = '{"lr": tune.loguniform(1e-4, 1e-1)}'
            yield f"param_space must be a dict of options of a training, such as {example}"
        for name, value in self.param_space.items():
            if name not in known:
                hint = "; each trial has a run directory of its own" if name == "run_dir" else ""
                near = nearest(str(name), known)
                yield f"{name!r} in param_space is not an option that can vary{near}{hint}"
            if is_grid(value) and not value["grid_search"]:
                yield f"the grid of {name} is empty"
        if varies(self.param_space.get("logger")):
            yield "logger holds for the whole search; give one value"
        choices = {"metric": METRICS, "mode": get_args(Mode), "scheduler": get_args(SchedulerName)}
        for name, names in choices.items():
            value = getattr(self, name)
            if value not in names:
                near = nearest(str(value), names)
                yield f"unknown {name} {value!r}{near}; known are {', '.join(names)}"
        most = 1 if self.max_concurrent is None else self.max_concurrent
        for name, count in (("num_samples", self.num_samples), ("max_concurrent", most)):
            if type(count) is not int or count < 1:
                yield f"{name} must be a whole number of 1 or more, not {count!r}"
        keys = self.published if isinstance(self.published, Mapping) else [None]
        if not all(isinstance(key, tuple) and len(key) == 2 for key in keys):
            yield 'published must be a dict such as {("resnet", "mnist"): 99.63}'

    @property
    def varied(self) -> list[str]:
        """The options that differ between trials."""
        return [name for name, value in self.param_space.items() if varies(value)]

    @property
    def num_trials(self) -> int:
        """Trials of the whole search."""
        grids = (len(v["grid_search"]) for v in self.param_space.values() if is_grid(v))
        return self.num_samples * math.prod(grids)

    @property
    def loggers(self) -> list[str]:
        """The libraries that log the trials, such as mlflow."""
        given = {"logger": self.param_space.get("logger", TrainConfig.logger)}
        config = TrainConfig.from_dict(given, "the search space")
        return [name for name in config.loggers if name in LOGGERS]

    def description(self, searcher: str) -> str:
        """Return the lines that describe the search."""
        extreme = "highest" if self.mode == "max" else "lowest"
        strategy = (
            f"{plural(self.num_trials, 'trial')} of {self.name}: {searcher} search, scheduler "
            f"{self.scheduler}, {extreme} {self.metric}"
        )
        return f"{self.title}\n{strategy}" if self.title else strategy

    def fixed(self, options: Mapping[str, Any], seeds: Sequence[int]) -> SearchSpace:
        """Return the space with some options fixed, and each point repeated with each seed.

        Trials have one stage by default, so that many run at a time.
        """
        merged = {**self.param_space, **options}
        if seeds:
            merged["seed"] = tune.grid_search(list(seeds)) if len(seeds) > 1 else seeds[0]
        if not {"stages", "elastic", "cuts", "replicas"} & merged.keys():
            merged["stages"] = 1
        return dataclasses.replace(self, param_space=merged)

    def points(self) -> Iterator[dict[str, Any]]:
        """Yield configurations that together cover the trials, for checks before the first one.

        These are all combinations of the options that decide resources, then each value of every
        other option once. A range counts by its ends; a `tune.sample_from` is left out.
        """
        values = {name: _choices(value) for name, value in self.param_space.items()}
        first = {name: choices[0] for name, choices in values.items() if choices}
        combined = [name for name in first if name in _COMBINED]
        products = itertools.product(*(values[name] for name in combined))
        for point in itertools.islice(products, MAX_POINTS):
            yield {**first, **dict(zip(combined, point, strict=True))}
        for name in first:
            for value in values[name][1:] if name not in _COMBINED else []:
                yield {**first, name: value}


def is_grid(value: Any) -> bool:
    """Return whether `tune.grid_search` made the value."""
    return isinstance(value, Mapping) and value.keys() == {"grid_search"}


def varies(value: Any) -> bool:
    """Return whether a value of a param_space differs between trials."""
    return is_grid(value) or isinstance(value, Domain)


def _choices(value: Any) -> list[Any]:
    """Return the values of an option, or the ends of their range; none if unknown."""
    if is_grid(value):
        return list(value["grid_search"])
    if isinstance(value, Categorical):
        return list(value.categories)
    if isinstance(value, Integer):
        return [value.lower, value.upper - 1]
    if isinstance(value, Float):
        return [end for end in (value.lower, value.upper) if math.isfinite(end)]
    return [] if isinstance(value, Domain) else [value]


def space_folders() -> list[Path]:
    """Return the folders of spaces by name: of the user, the repository and the installation."""
    return [
        Path("tune_spaces"),
        Path(__file__).resolve().parents[2] / "tune_spaces",
        Path(sysconfig.get_path("data")) / "share" / "rayff" / "tune_spaces",
    ]


def find_space(name: str) -> Path:
    """Return the file of a space, by its path or its name; UserError if there is none."""
    path = Path(name).expanduser()
    by_path = path.suffix == ".py" or len(path.parts) > 1
    places = [path] if by_path else [folder / f"{name}.py" for folder in space_folders()]
    for place in places:
        if place.suffix == ".py" and place.is_file():
            return place
    if path.is_file():
        raise UserError(f"{name} is not a search space: name a .py file, or a space of rayff")
    files = [file for place in places for file in place.parent.glob("*.py")]
    known = sorted({str(file) if by_path else file.stem for file in files})
    what = f"file {name}" if by_path else f"search space {name!r}"
    where = f"; there are {', '.join(known)}" if known else ""
    raise UserError(f"there is no {what}{nearest(name, known)}{where}")


def load_space(name: str) -> SearchSpace:
    """Execute the file of a space and return the space; UserError for a mistake in it."""
    path = find_space(name)
    try:
        defined = runpy.run_path(str(path))
    except SyntaxError as error:
        raise UserError(f"{path} does not parse: {error.msg}, line {error.lineno}") from error
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f" in line {f.lineno}" for f in frames if f.filename == str(path)]
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} fails{''.join(lines[-1:])}: {reason}") from error
    if "param_space" not in defined:
        names = [name for name in defined if not name.startswith("_")]
        near = nearest("param_space", names)
        raise UserError(f"{path} has no param_space{near}: a dict of options of a training")
    fields = {f.name for f in dataclasses.fields(SearchSpace)} - {"name"}
    return SearchSpace(name=path.stem, **{name: defined[name] for name in fields & defined.keys()})
