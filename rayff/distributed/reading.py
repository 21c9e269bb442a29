"""Images on the cluster: those in memory are shared once, those in files are decoded by tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayTaskError

from rayff.config.errors import UserError
from rayff.data.images import ImageFormat, ImageSet, Pixels
from rayff.data.reading import decode_block
from rayff.data.sources import Block
from rayff.data.tasks import TaskData
from rayff.distributed.placement import nodes

SHARE_OF_STORE = 0.25
"""Of the smallest object store: images that take more are copied by those who use them, so that
the store may move its own to the disk."""
RETRIES = 20
"""Deaths of a reader at the same block: one that a damaged file kills must not go on for ever."""
BLOCKS_AHEAD = 2
"""Blocks that are being decoded for each CPU, and wait where they are not needed yet."""


@dataclass(frozen=True)
class SharedImages:
    """The images of a run in the object store."""

    reference: ObjectRef[Any]
    """Of the splits."""
    copied: bool
    """Whether who uses them makes a copy first."""


def hand_over(data: TaskData) -> SharedImages:
    """Put the images of a run into the object store, and let this process's own go."""
    _ = data.fingerprint  # of the images
    in_memory = [images for images in data.splits.values() if isinstance(images, ImageSet)]
    size = sum(images.images.nbytes for images in in_memory)
    store = min((node.store_bytes for node in nodes()), default=0.0)
    shared = SharedImages(ray.put(data.splits), copied=size > SHARE_OF_STORE * store)
    for images in in_memory:
        images.release()
    return shared


def decode_on_cluster(blocks: Sequence[Block], form: ImageFormat) -> Iterator[Pixels]:
    """Yield the images of each block in order; they are decoded by tasks wherever CPUs are free.

    A task that dies with its worker or node is repeated by Ray.

    Raises:
        UserError: an image is null or no image.
    """
    found: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    free = int(found.get("CPU", 0.0))
    # where actors have reserved all CPUs, tasks that asked for one would wait for ever
    wrap: Any = ray.remote(num_cpus=min(1, free), max_retries=RETRIES)
    decode = wrap(decode_block).options(name="decode")
    waiting: deque[ObjectRef[Any]] = deque()
    for block in blocks:
        waiting.append(decode.remote(block, form))
        if len(waiting) > BLOCKS_AHEAD * max(1, free):
            yield _result(waiting.popleft())
    while waiting:
        yield _result(waiting.popleft())


def _result(reference: ObjectRef[Any]) -> Pixels:
    try:
        pixels: Pixels = ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    return pixels
