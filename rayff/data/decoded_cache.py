"""Decoded images in the cache folder, by a hash of the encoded ones.

A file holds what became of the images of one split. Its name is a hash of their bytes, of the
format that they become, and of what decodes them, so it needs no date and never goes stale. Those
that were used last are kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL
from pyarrow import fs
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rayff.config.activity import activity
from rayff.config.environment import cache_dir
from rayff.config.errors import UserError
from rayff.data import images as decoder
from rayff.data.images import Change, ImageFormat, Pixels, Survey
from rayff.data.sources import Source

MOST_BYTES = 2**32
"""Of all files together."""
_FREE = 4
"""A file is written where the disk has this many times its size free."""


def cache_file(source: Source, form: ImageFormat) -> Path | None:
    """Return where the decoded images of a split are kept, or would be.

    None where they are not: an image is missing, files elsewhere would be fetched twice, or there
    is no cache folder.
    """
    if any(not isinstance(block.where.files, fs.LocalFileSystem) for block in source.blocks):
        return None
    code = Path(decoder.__file__).read_bytes()
    digest = hashlib.sha256(repr((form, PIL.__version__)).encode() + code)
    with activity("looking for decoded images", source.num_rows) as looking:
        for block in source.blocks:
            for encoded in block.images():
                for data in encoded:
                    if data is None:
                        return None
                    digest.update(len(data).to_bytes(8, "little"))
                    digest.update(data)
                looking.advance(len(encoded))
    with suppress(UserError):
        return cache_dir() / "decoded" / f"{digest.hexdigest()}.safetensors"
    return None


def load(file: Path, shape: tuple[int, ...]) -> tuple[Pixels, Survey] | None:
    """Return the images of a file and what they were like; None without images of this shape."""
    try:
        with safe_open(file, framework="numpy") as opened:
            images: Pixels = opened.get_tensor("images")
            facts = opened.metadata()
        survey = json.loads(facts["survey"])
        if images.shape != shape or images.dtype != np.uint8:
            raise ValueError("it is of other images")
        if facts["sha256"] != _digest(images):
            raise ValueError("a disk or another program changed it")
        os.utime(file)
        changes = {Change[name]: number for name, number in survey["changes"].items()}
        least, most = tuple(survey["least"]), tuple(survey["most"])
        return images, Survey(survey["images"], changes, least, most)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None  # there is none, or it is no file of this module


def save(file: Path, images: Pixels, survey: Survey) -> None:
    """Keep images, and let those go that were not used for longest; a disk may refuse it."""
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    changes = {change.name: number for change, number in survey.changes.items()}
    facts = {
        "survey": json.dumps({**dataclasses.asdict(survey), "changes": changes}),
        "sha256": _digest(images),
    }
    with suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        if images.nbytes > min(MOST_BYTES, shutil.disk_usage(file.parent).free // _FREE):
            return
        try:
            save_file({"images": images}, aside, metadata=facts)
            with aside.open("rb") as written:
                os.fsync(written.fileno())
            aside.replace(file)
        finally:
            aside.unlink(missing_ok=True)
        _trim(file.parent)


def _digest(images: Pixels) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()


def _trim(folder: Path) -> None:
    newest_first = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for path in newest_first:
        total += path.stat().st_size
        if total > MOST_BYTES:
            path.unlink()
