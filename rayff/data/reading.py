"""Decode the images of a split into one array, in parallel."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky import get_reusable_executor

from rayff.config.activity import activity
from rayff.config.errors import UserError
from rayff.data.classes import Labels, row_error
from rayff.data.decoded_cache import cache_file, load, save
from rayff.data.images import (
    ColourImageError,
    ImageFormat,
    ImageSet,
    Pixels,
    Survey,
    UnsuitableImageError,
    decode_image,
    holds_grey,
)
from rayff.data.sources import Block, Encoded, Source

IMAGES_A_TASK = 128
FEW_IMAGES = 4096
"""Images that one thread decodes before other processes would have started."""
FEW_BYTES = 4096
"""Images of fewer bytes are decoded in processes, the others in threads: of small ones several
threads would wait for Python's lock most of the time."""
KEPT_S = 1.0
"""Images whose decoding takes longer are kept in the cache folder."""
_SAMPLED = 64


class _Task(NamedTuple):
    """Some consecutive images of a block."""

    block: Block
    first_row: int
    encoded: Encoded


class ColourFoundError(UserError):
    """A data set that was taken for grey holds an image of colour."""


class BadImage(NamedTuple):
    """An image that cannot be decoded, by its position among others."""

    row: int
    problem: str
    coloured: bool = False
    """Whether it is its colour that is not wanted."""


def decode_all(encoded: Encoded, form: ImageFormat) -> tuple[Pixels, Survey] | BadImage:
    """Decode images to one array (N, K, S, S), or return the first that cannot be decoded."""
    images = np.empty((len(encoded), *form.shape), np.uint8)
    survey = Survey()
    for index, data in enumerate(encoded):
        if data is None:
            return BadImage(index, "the image is null")
        try:
            decoded = decode_image(data, form)
        except UnsuitableImageError as error:
            return BadImage(index, str(error), isinstance(error, ColourImageError))
        except ValueError as error:
            return BadImage(index, f"the bytes are not an image ({error})")
        images[index] = decoded.pixels
        survey.record(decoded)
    return images, survey


def read_images(
    source: Source,
    labels: Labels,
    form: ImageFormat,
    *,
    cached: bool = True,
) -> tuple[ImageSet, Survey]:
    """Decode the images of a split, large ones and many of them on all cores, or recall them.

    Args:
        source: of the split.
        labels: the class of each row, (N,).
        form: what each image becomes.
        cached: recall images from the cache folder, and keep those there that take long.

    Raises:
        UserError: an image is null or no image, or all of them do not fit into memory.
        ColourFoundError: an image is of colour, and the format is for grey ones alone.
    """
    file = cache_file(source, form) if cached else None
    shape = (source.num_rows, *form.shape)
    if file is not None and (kept := load(file, shape)) is not None:
        images, survey = kept
        return ImageSet(images=images, labels=labels), survey
    start = time.monotonic()
    try:
        images = np.empty(shape, np.uint8)
    except MemoryError as error:
        raise UserError(
            f"the {source.num_rows:,} images of {source.place(0)} and beyond do not fit into this "
            "machine's memory: give fewer, or smaller ones with --image-size"
        ) from error
    survey = Survey()
    with activity("decoding images", len(images)) as decoding:
        for _, pixels, part in _decoded(source.blocks, form):
            images[decoding.done : decoding.done + len(pixels)] = pixels
            decoding.advance(len(pixels))
            survey.add(part)
    if file is not None and time.monotonic() - start > KEPT_S:
        save(file, images, survey)
    return ImageSet(images=images, labels=labels), survey


def decode_block(block: Block, form: ImageFormat, survey: Survey | None = None) -> Pixels:
    """Return the images of a block, (n, K, S, S), decoded by this thread.

    What they were like goes to `survey`.

    Raises:
        UserError: an image is null or no image.
    """
    parts: list[Pixels] = []
    for task in _tasks([block]):
        pixels, part = _checked(task, decode_all(task.encoded, form))
        parts.append(pixels)
        if survey is not None:
            survey.add(part)
    return np.concatenate(parts)


def _checked(task: _Task, result: tuple[Pixels, Survey] | BadImage) -> tuple[Pixels, Survey]:
    if isinstance(result, BadImage):
        error = row_error(task.block.place(task.first_row + result.row), result.problem)
        raise ColourFoundError(str(error)) if result.coloured else error
    return result


def _decoded(blocks: Sequence[Block], form: ImageFormat) -> Iterator[tuple[Block, Pixels, Survey]]:
    """Yield the images of each task in order."""
    tasks = _tasks(blocks)
    first = next(tasks, None)
    if first is None:
        return
    waiting: deque[_Task] = deque()  # those that are being decoded, to name a bad row
    failures: list[UserError] = []

    def calls() -> Iterator[Any]:
        """Read the files; joblib calls it from a thread of its own, which must not raise."""
        try:
            for task in chain([first], tasks):
                waiting.append(task)
                yield delayed(decode_all)(task.encoded, form)
        except UserError as error:
            failures.append(error)

    small = sum(len(data or b"") for data in first.encoded) < FEW_BYTES * len(first.encoded)
    alone = cpu_count() == 1 or (small and sum(block.num_rows for block in blocks) < FEW_IMAGES)
    parallel = Parallel(
        n_jobs=1 if alone else cpu_count(),
        backend="loky" if small else "threading",
        return_as="generator",
        pre_dispatch="2 * n_jobs",
    )
    try:
        for result in parallel(calls()):
            task = waiting.popleft()
            yield task.block, *_checked(task, result)
        if failures:
            raise failures[0]
    finally:
        if small and not alone:  # processes that would wait for more work for minutes
            get_reusable_executor().shutdown(wait=False)


def _tasks(blocks: Iterable[Block]) -> Iterator[_Task]:
    for block in blocks:
        row = 0
        for encoded in block.images():
            part: Encoded
            for start in range(0, len(encoded), IMAGES_A_TASK):
                part = encoded[start : start + IMAGES_A_TASK]
                yield _Task(block, row + start, part)
            row += len(encoded)


def looks_grey(sources: Iterable[Source]) -> bool:
    """Return whether the images of a sample are all grey.

    Raises:
        UserError: one of them is null or no image.
    """
    for source in sources:
        blocks = source.blocks
        for position in np.linspace(0, len(blocks) - 1, min(len(blocks), 4)).astype(int):
            block = blocks[position]
            encoded: Encoded = next(block.images(), [])
            for row in np.linspace(0, len(encoded) - 1, min(len(encoded), _SAMPLED)).astype(int):
                data = encoded[row]
                if data is None:
                    raise row_error(block.place(int(row)), "the image is null")
                try:
                    if not holds_grey(data):
                        return False
                except ValueError as error:
                    raise row_error(
                        block.place(int(row)), f"the bytes are not an image ({error})"
                    ) from error
    return True
