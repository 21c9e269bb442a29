"""Extension points: implementations by name, and a user's own by import path.

    >>> LOSSES = Registry[type[nn.Module]]("local loss", "--loss")
    >>> LOSSES.add("goodness", "rayff.learning.losses.goodness:Goodness")
    >>> LOSSES.load("goodness"), LOSSES.load("my_package.losses:MyLoss")

An import path is `package.module:object`. It is saved as it is, so it must be importable wherever
the run goes on: on every node of a cluster, and where the model is loaded.
"""

from __future__ import annotations

import importlib
import pkgutil
import platform
import re
import sys
import traceback
from typing import Any, Generic, TypeVar, cast

from rayff.config.errors import UserError, nearest

T = TypeVar("T")


class ImportPathError(UserError):
    """An import path does not lead to an object on this machine, or not to one that works."""


_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class Registry(Generic[T]):
    """The implementations of one extension point.

    Args:
        kind: what it holds, such as "optimizer", for messages.
        flag: the option that selects one, such as "--optimizer".
    """

    def __init__(self, kind: str, flag: str) -> None:
        self.kind = kind
        self.flag = flag
        self._entries: dict[str, T | str] = {}

    def add(self, name: str, entry: T | str) -> None:
        """Register an implementation, or where it is as `module:object`, to be imported when used.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._entries:
            raise ValueError(f"the {self.kind} {name!r} is registered already")
        self._entries[name] = entry

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the order of their registration."""
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def load(self, name: str) -> T:
        """Return the implementation of that name, or import that of `package.module:object`.

        Raises:
            UserError: an unknown name, or an import path that does not lead to an object.
        """
        if name in self._entries:
            entry = self._entries[name]
            return cast(T, pkgutil.resolve_name(entry)) if isinstance(entry, str) else entry
        if is_import_path(name):
            return cast(T, import_object(name, self.flag))
        raise UserError(
            f"{self.flag}: unknown {self.kind} {name!r}{nearest(name, self._entries)}; known are "
            f"{', '.join(self._entries)}, and yours as package.module:object"
        )


def is_import_path(name: str) -> bool:
    """Return whether a name has the form package.module:object."""
    return _IMPORT_PATH.fullmatch(name) is not None


def import_object(path: str, flag: str) -> Any:
    """Return the object at an import path.

    Raises:
        UserError: the module cannot be imported, or has no such object.
    """
    module_name, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs the user's code, which may do so
        raise ImportPathError(
            f"{flag} {path}: the module {module_name} cannot be imported on {platform.node()} "
            f"({type(error).__name__}: {error}); {_import_remedy(module_name, error)}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(found) if not name.startswith("_")]
            raise ImportPathError(
                f"{flag} {path}: {module_name} has no {attribute!r}{nearest(part, public)}"
                f"{_standard_library(module_name)}"
            )
        found = getattr(found, part)
    return found


def _import_remedy(module_name: str, error: BaseException) -> str:
    """Return what helps: a path to a module that is not found, else the place of its mistake."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is None or not f"{module_name}.".startswith(f"{missing}."):
        frames = traceback.extract_tb(error.__traceback__)[1:]
        own = [frame for frame in frames if "importlib" not in frame.filename]
        place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
        return f"it is found, and fails by itself{place}: correct it, or install what it imports"
    if module_name.endswith(".py"):
        return f"name the module, {module_name.removesuffix('.py')}, instead of its file"
    return (
        "it must be on the Python path of every process of the run: start in its folder, install "
        "it, or submit it with --working-dir or py_modules"
    )


def _standard_library(module_name: str) -> str:
    """Return a hint where a module of Python's own hides the user's."""
    name = module_name.partition(".")[0]
    if name not in sys.stdlib_module_names:
        return ""
    return f"; {name} is a module of Python itself: give yours another name"
