"""Search spaces: small Python files that give fields of a run a value or a sampler of Ray Tune.

A space is its user's own code, run like any script of theirs: it may import and compute.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import runpy
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer

from rayff.config.errors import UserError, nearest
from rayff.config.train_config import TrainConfig
from rayff.data.tasks import TASKS
from rayff.runs.metrics import EpochRecord

SchedulerName = Literal["asha", "pbt", "none"]
Mode = Literal["min", "max"]

METRICS = tuple(f.name for f in dataclasses.fields(EpochRecord) if f.type in ("int", "float"))
"""What of an epoch a search can look at."""

MAX_POINTS = 10_000
"""Combinations that are checked before a search starts; further ones are as they begin."""

_DECIDES_RESOURCES = frozenset(
    "arch method loss width task data_dir download limit batch_size stages elastic cuts replicas "
    "transport placement device cpus_per_stage gpus_per_stage".split()
)


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """What a search looks through, and how."""

    name: str
    """The file's name without .py."""
    param_space: Mapping[str, Any]
    """Fields of a run: values, samplers, or grids as `tune.grid_search` makes them."""
    metric: str = "valid_accuracy"
    mode: Mode = "max"
    num_samples: int = 1
    """How often to draw, or to go through the grid."""
    scheduler: SchedulerName = "none"
    max_concurrent: int | None = None
    """Trials at a time at most."""
    title: str = ""
    published: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Test accuracy of others in percent, by architecture and task."""

    def __post_init__(self) -> None:
        known = {f.name for f in dataclasses.fields(TrainConfig)} - {"run_dir"}
        if not isinstance(self.param_space, Mapping) or not self.param_space:
            raise UserError(
                f"the search space {self.name!r} needs a param_space: a dict of a run's options, "
                'such as {"lr": tune.loguniform(1e-4, 1e-1)}'
            )
        for name, value in self.param_space.items():
            if name not in known:
                hint = "; the search has a folder for each trial" if name == "run_dir" else ""
                raise UserError(
                    f"the search space {self.name!r}: param_space names {name!r}, which is no "
                    f"option that can vary{nearest(str(name), known)}{hint}"
                )
            if is_grid(value) and not value["grid_search"]:
                raise UserError(f"the search space {self.name!r}: the grid of {name} is empty")
        for name, value, choices in (
            ("metric", self.metric, METRICS),
            ("mode", self.mode, get_args(Mode)),
            ("scheduler", self.scheduler, get_args(SchedulerName)),
        ):
            if value not in choices:
                raise UserError(
                    f"the search space {self.name!r}: unknown {name} {value!r}"
                    f"{nearest(str(value), choices)}; known are {', '.join(choices)}"
                )
        for name in ("num_samples", "max_concurrent"):
            count = getattr(self, name)
            optional = name == "max_concurrent" and count is None
            if not optional and (type(count) is not int or count < 1):
                raise UserError(
                    f"the search space {self.name!r}: {name} must be a whole number of 1 or more, "
                    f"not {count!r}"
                )

    @property
    def varied(self) -> list[str]:
        """The options that differ from trial to trial."""
        return [name for name, value in self.param_space.items() if varies(value)]

    @property
    def num_trials(self) -> int:
        """Trials of the whole search."""
        grids = (len(v["grid_search"]) for v in self.param_space.values() if is_grid(v))
        return self.num_samples * math.prod(grids)

    def fixed(self, options: Mapping[str, Any], seeds: Sequence[int]) -> SearchSpace:
        """Return the space with some options fixed, each point repeated with each of the seeds.

        A trial that says nothing of its pipeline has one stage, so that trials run side by side.
        Paths are made absolute, since a trial runs in a folder of its own.
        """
        merged = {**self.param_space, **options}
        if seeds:
            merged["seed"] = {"grid_search": list(seeds)} if len(seeds) > 1 else seeds[0]
        if not {"stages", "elastic", "cuts", "replicas"} & merged.keys():
            merged["stages"] = 1
        for name, change in (("data_dir", absolute), ("task", absolute_task)):
            if name in merged:
                merged[name] = _each(merged[name], change)
        return dataclasses.replace(self, param_space=merged)

    def points(self) -> Iterator[dict[str, Any]]:
        """Yield what a trial can be: every combination that decides what it needs.

        Of the other options each value stands once. A range is seen at its ends; what a function
        draws is not known before.
        """
        seen = {name: _choices(value) for name, value in self.param_space.items()}
        first = {name: values[0] for name, values in seen.items() if values}
        deciding = [name for name in first if name in _DECIDES_RESOURCES]
        combinations = itertools.product(*(seen[name] for name in deciding))
        for values in itertools.islice(combinations, MAX_POINTS):
            yield {**first, **dict(zip(deciding, values, strict=True))}
        for name in first.keys() - deciding:
            for value in seen[name][1:]:
                yield {**first, name: value}


def is_grid(value: Any) -> bool:
    """Return whether `tune.grid_search` made it."""
    return isinstance(value, Mapping) and value.keys() == {"grid_search"}


def varies(value: Any) -> bool:
    """Return whether a value of a param_space differs from trial to trial."""
    return is_grid(value) or isinstance(value, Domain)


def _choices(value: Any) -> list[Any]:
    """Return the values that an option can take, or the ends of their range; none if unknown."""
    if is_grid(value):
        return list(value["grid_search"])
    if isinstance(value, Categorical):
        return list(value.categories)
    if isinstance(value, Integer):
        return [value.lower, value.upper - 1]
    if isinstance(value, Float):
        return [end for end in (value.lower, value.upper) if math.isfinite(end)]
    return [] if isinstance(value, Domain) else [value]


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """Return a value, grid or choice with each of its texts changed."""
    if is_grid(value):
        return {"grid_search": [_each(item, change) for item in value["grid_search"]]}
    if isinstance(value, Categorical):
        return tune.choice([_each(item, change) for item in value.categories])
    return change(value) if isinstance(value, str) else value


def absolute(path: str) -> str:
    """Return a path from the root."""
    return str(Path(path).expanduser().absolute())


def absolute_task(task: str) -> str:
    """Return the path of a task's folder from the root; the name of a task stays a name."""
    return task if task in TASKS else absolute(task) if Path(task).is_dir() else task


def space_folders() -> list[Path]:
    """Return where spaces are found by name: here, in the repository, and where pip puts them."""
    return [
        Path("tune_spaces"),
        Path(__file__).resolve().parents[2] / "tune_spaces",
        Path(sysconfig.get_path("data")) / "share" / "rayff" / "tune_spaces",
    ]


def find_space(name: str) -> Path:
    """Return the file of a space, given as a path or by name.

    Raises:
        UserError: there is none.
    """
    path = Path(name).expanduser()
    is_path = path.suffix == ".py" or len(path.parts) > 1
    places = [path] if is_path else [folder / f"{name}.py" for folder in space_folders()]
    for place in places:
        if place.suffix == ".py" and place.is_file():
            return place
    if path.is_file():
        raise UserError(f"{name} is no search space: that is a .py file, or the name of one")
    folders = [path.parent] if is_path else space_folders()
    known = sorted({file.stem for folder in folders for file in folder.glob("*.py")})
    shown = [f"{path.parent / stem}.py" for stem in known] if is_path else known
    what = f"no file {name}" if is_path else f"no search space {name!r}"
    where = f"; there are {', '.join(shown)}" if shown else ""
    raise UserError(f"there is {what}{nearest(name, shown)}{where}")


def load_space(name: str) -> SearchSpace:
    """Run the file of a space and return what it says.

    Raises:
        UserError: there is no such file, it does not run, or it is no search space.
    """
    path = find_space(name)
    try:
        said = runpy.run_path(str(path))
    except SyntaxError as error:
        raise UserError(f"{path} does not parse: {error.msg}, line {error.lineno}") from error
    except (Exception, SystemExit) as error:  # whatever the user's code does
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__)]
        own = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).name == path.name
        ]
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} fails in line {(own or lines)[-1]}: {reason}") from error
    wanted = [f.name for f in dataclasses.fields(SearchSpace) if f.name != "name"]
    if "param_space" not in said:
        names = [name for name in said if not name.startswith("_")]
        raise UserError(
            f"{path} has no param_space{nearest('param_space', names)}: a dict of a run's options"
        )
    return SearchSpace(name=path.stem, **{name: said[name] for name in wanted if name in said})
