"""Which rows of which source are the training, the validation and the test split."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rayff.config.errors import UserError
from rayff.data.images import Split
from rayff.data.order import Indices, holdout
from rayff.data.sources import Source

MAX_HELD_OUT = 10_000
"""Most images that are held out of a folder's training images; it is 10% otherwise."""


def without_unlabelled(
    sources: dict[Split, Source],
) -> tuple[dict[Split, Source], list[str]]:
    """Leave out splits whose labels are all -1, as in competitions."""
    labelled, notes = {}, []
    for split, source in sources.items():
        values = source.labels.unique().to_pylist()
        if split != "train" and values in ([-1], [None], [-1.0]):
            notes.append(f"the {split} split is unlabelled (all {values[0]}), and is not used")
        else:
            labelled[split] = source
    return labelled, notes


def split_rows(
    sources: Mapping[Split, Source], valid_size: int | None, shown: str
) -> tuple[dict[Split, tuple[Split, Indices]], list[str]]:
    """Return the source and the rows of each split; those that are missing are held out.

    A validation split without a test split is the test split.
    """
    whole = {split: np.arange(source.num_rows) for split, source in sources.items()}
    found: dict[Split, tuple[Split, Indices]] = {s: (s, rows) for s, rows in whole.items()}
    notes = []
    if "test" not in found and "valid" in found:
        found["test"] = found.pop("valid")
        notes.append("there is no labelled test split: the validation split is the test split")
    train = whole["train"]
    for split in ("test", "valid"):
        if split in found:
            continue
        size = valid_size if split == "valid" else None
        if size is None:
            size = max(1, min(MAX_HELD_OUT, len(train) // 10))
        kept, out = hold_out(len(train), size, shown)
        found[split] = "train", train[out]
        train = train[kept]
        found["train"] = "train", train
        if split == "test" or valid_size is None:
            word = "validation" if split == "valid" else split
            notes.append(
                f"{size:,} of the training images are held out for {word}: there is no such split"
            )
    return found, notes


def hold_out(num_images: int, size: int, shown: str) -> tuple[Indices, Indices]:
    """Choose the images to hold out: (kept, held out).

    Raises:
        UserError: there are too few.
    """
    if num_images <= size:
        raise UserError(
            f"{shown} has {num_images:,} training images, of which {size:,} are to be held out "
            "for validation: give more, or a validation split"
        )
    return holdout(num_images, size)
