"""What strangers and damage put into files."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st


class MarkerOnLoad:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.mkdir, (self.marker,)


def places(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a JSON tree but the root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in items:
        found.append((*prefix, key))
        if isinstance(value, dict | list):
            found += places(value, (*prefix, key))
    return found


WRONG_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(max_value=-1),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)


def wrong_value(data: st.DataObject, old: Any) -> Any:
    """Return a value of another kind, whatever stood there."""
    return data.draw(WRONG_VALUES, label="value")


def mutate(
    tree: Any, data: st.DataObject, value: Callable[[st.DataObject, Any], Any] = wrong_value
) -> Any:
    """Return a copy of a JSON tree with one place deleted, or holding `value` of what it held."""
    mutated = copy.deepcopy(tree)
    *above, key = data.draw(st.sampled_from(places(tree)), label="place")
    parent = mutated
    for step in above:
        parent = parent[step]
    if data.draw(st.booleans(), label="delete"):
        del parent[key]
    else:
        parent[key] = value(data, parent[key])
    return mutated
