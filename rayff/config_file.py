"""The options of a run as a YAML or JSON file: what --config reads and --print-config writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig

_CORE_SCHEMA = {
    None: [
        (f"tag:yaml.org,2002:{tag}", re.compile(f"({pattern})$"))
        for tag, pattern in {
            "null": "|~|null|Null|NULL",
            "bool": "true|True|TRUE|false|False|FALSE",
            "int": "[-+]?(0|[1-9][0-9]*)",
            "float": r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        }.items()
    ]
}
"""What a word without quotes is, by YAML 1.2's core schema.

PyYAML's own rules are those of YAML 1.1, where 1e-3 is text, 2:4 is 124 and no is false.
"""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    yaml_implicit_resolvers: ClassVar[Any] = _CORE_SCHEMA


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    yaml_implicit_resolvers: ClassVar[Any] = _CORE_SCHEMA


def read_options(path: Path) -> TrainConfig:
    """Return the run that a file describes: JSON where it is called .json, and else YAML.

    Raises:
        UserError: the file cannot be read, or does not hold the options of a run.
    """
    if path.suffix == ".json":
        from rayff.runs.run_directory import read_config

        return read_config(path)
    try:
        data = yaml.load(path.read_bytes(), _Loader)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # PyYAML raises anything for a tag that does not fit its value
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return TrainConfig.from_dict(data, str(path))


def as_yaml(config: TrainConfig) -> str:
    """Return a run's options as `read_options` reads them."""
    return str(yaml.dump(config.to_dict(), Dumper=_Dumper, sort_keys=False))
