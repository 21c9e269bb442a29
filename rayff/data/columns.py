"""Which columns of a table hold the images and the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rayff.config.errors import UserError

IMAGE_COLUMNS = ("image", "img")
"""Names that are taken without a word."""
LABEL_COLUMNS = (
    *("label", "fine_label", "coarse_label", "labels", "class", "cls", "target", "category"),
    *("class_name", "y"),
)
"""Names that mean the class; a table with several of them needs --label-column."""
SPLIT_COLUMN = "split"
OTHER_COLUMNS = frozenset(
    "split id idx index image_id path file file_name filename image_path url width height caption "
    "text __key__ __url__ __index_level_0__".split()
)
"""Names that never mean the class."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Columns that the user named; None for those that rayff chooses."""

    image: str | None = None
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a table that are read."""

    image: str
    """Path of the encoded bytes in the schema, such as image.bytes."""
    label: str
    notes: tuple[str, ...] = ()


def choose_columns(
    schema: Any, where: str, choice: Choice, preferred_labels: Sequence[str] = ()
) -> Columns:
    """Return the columns to read.

    Args:
        schema: of the table, from pyarrow.
        where: the file, for messages.
        choice: what the user named.
        preferred_labels: names of the label column in a named task, the first match wins.

    Raises:
        UserError: there is no such column, more than one fits, or one is of another type.
    """
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise UserError(f"{where} has more than one column {name!r}: drop all but one")
    image, image_notes = _choose(
        schema, where, choice.image, IMAGE_COLUMNS, "image", lambda name, kind: _is_image(kind)
    )
    preferred = tuple(name for name in preferred_labels if name in schema.names)[:1]
    label, label_notes = _choose(
        *(schema, where, choice.label, preferred or LABEL_COLUMNS, "label"),
        lambda name, kind: is_label(kind) and name != image and name.lower() not in OTHER_COLUMNS,
    )
    kind = schema.field(label).type
    if not is_label(kind):
        raise UserError(
            f"{where}: the label column {label!r} is of type {kind}, expected whole numbers, text "
            "or true and false: one class an image"
        )
    return Columns(
        image=_bytes_of(schema, image, where), label=label, notes=(*image_notes, *label_notes)
    )


def _choose(
    schema: Any,
    where: str,
    named: str | None,
    known: Sequence[str],
    role: str,
    fits: Callable[[str, Any], bool],
) -> tuple[str, tuple[str, ...]]:
    """Return a column, and a note where it was not named and is not called as usual."""
    shown = ", ".join(map(repr, schema.names))
    if named is not None:
        if named not in schema.names:
            raise UserError(f"--{role}-column {named}: the columns of {where} are {shown}")
        return named, ()
    usual = [name for name in known if name in schema.names]
    fitting = [name for name in schema.names if fits(name, schema.field(name).type)]
    found = usual or fitting
    if len(found) == 1:
        taken = found[0]
        note = f"the {role} column is {taken!r}, the only one that fits"
        return taken, () if taken in (*IMAGE_COLUMNS, "label", *known[:1]) else (note,)
    if not found:
        raise UserError(
            f"{where} has no {role} column: expected {' or '.join(map(repr, known[:2]))}, the "
            f"columns there are {shown}"
        )
    raise UserError(
        f"{where} has several columns that may be the {role}: choose one with --{role}-column "
        f"{' or '.join(name if name.isidentifier() else repr(name) for name in found)}"
    )


def _bytes_of(schema: Any, name: str, where: str) -> str:
    """Return the column to read: the encoded bytes alone, without the path."""
    kind = schema.field(name).type
    if _is_image(kind):
        return f"{name}.bytes" if pa.types.is_struct(kind) else name
    raise UserError(
        f"{where}: the column {name!r} is of type {kind}, expected encoded images as "
        "struct<bytes: binary, path: string> or binary"
    )


def _is_image(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or _is_view(kind, "binary_view")
    )


def _is_view(kind: Any, name: str) -> bool:
    return str(kind) == name


def is_label(kind: Any) -> bool:
    """Return whether values of a type can be classes."""
    if pa.types.is_dictionary(kind):
        return is_label(kind.value_type)
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or is_text(kind)
    )


def is_text(kind: Any) -> bool:
    """Return whether a type is text."""
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_view(kind, "string_view")
    )
