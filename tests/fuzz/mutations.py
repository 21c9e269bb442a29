"""Files that are not as they were written: bytes and JSON trees with something changed."""

import copy
import math
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

LENGTHS = [0, 1, 0xFF, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 1]
"""What a damaged header may claim to hold."""


@st.composite
def broken_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Return the bytes after one to three changes; some of them change nothing."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["flip", "set", "cut", "drop", "insert", "repeat", "length"]))
        if how == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "set":
            new = draw(st.binary(min_size=1, max_size=4))
            data[at : at + len(new)] = new
        elif how == "cut":
            del data[at:]
        elif how == "drop":
            del data[at : at + draw(st.integers(1, 64))]
        elif how == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif how == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        else:
            size = draw(st.sampled_from([4, 8]))
            length = draw(st.sampled_from(LENGTHS)) % 256**size
            data[at : at + size] = length.to_bytes(size, draw(st.sampled_from(["little", "big"])))
    return bytes(data)


WRONG = [None, True, -1, 0.5, 10**400, math.inf, math.nan, "2", "\ud800", "../x", [1.0], {}]
"""A value of every kind."""


def replaced(tree: Any) -> Iterator[Any]:
    """Yield copies of a JSON tree, each with one value deleted or replaced by one of WRONG.

    Of a list the first and the last item are taken.
    """
    for number, (parent, key) in enumerate(_places(tree)):
        if isinstance(parent, list) and key not in (0, len(parent) - 1):
            continue
        for value in (_places, *WRONG):
            changed = copy.deepcopy(tree)
            parent, key = [*_places(changed)][number]
            if value is _places:
                del parent[key]
            else:
                parent[key] = value
            yield changed


def nested(depth: int) -> Any:
    """Return lists in lists."""
    tree: Any = []
    for _ in range(depth):
        tree = [tree]
    return tree


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([*LENGTHS, -1, -(2**63), 10**30, 10**400]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["", ".", "..", "../../x", "/etc/passwd", "~nobody/x", "/dev/zero", "\0", "\ud800"]
        + ["\x1b[31m", "a\nb", "x" * 5000, "%d", "{0}", "[red]", "auto", "add", "1,2"]
    ),
    st.lists(st.integers(-1, 5) | st.text(max_size=2) | st.floats(), max_size=5),
    st.dictionaries(st.text(max_size=3), st.none() | st.integers(), max_size=2),
    st.sampled_from([nested(50), nested(200), {"a": nested(3)}]),
)
"""Values of every kind, above all those that break readers."""


@st.composite
def broken_json(draw: st.DrawFn, tree: Any) -> Any:
    """Return a JSON tree after one to three changes; some of them change nothing."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = [*_places(tree)]
        if not places:
            return tree
        parent, key = draw(st.sampled_from(places))
        other_parent, other_key = draw(st.sampled_from(places))
        how = draw(st.sampled_from(["set", "set", "set", "nudge", "delete", "copy", "add"]))
        value = parent[key]
        if how == "set":
            parent[key] = copy.deepcopy(draw(VALUES))  # samples are shared
        elif how == "nudge" and type(value) in (int, float):
            parent[key] = draw(st.sampled_from([value + 1, value - 1, -value, value * 2, 1.0]))
        elif how == "delete":
            del parent[key]
        elif how == "copy":
            parent[key] = copy.deepcopy(other_parent[other_key])
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(value))
        else:
            parent[draw(st.text(max_size=4))] = copy.deepcopy(value)
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Return (parent, key) of all values in a JSON tree but the root."""
    if not isinstance(tree, dict | list):
        return []
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    return [(tree, key) for key in keys] + [place for key in keys for place in _places(tree[key])]
