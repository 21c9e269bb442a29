"""Images on the cluster: those in memory are shared once, those in files are decoded by actors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
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


class Readers:
    """Actors that decode blocks; they start with the first one and end with their owner.

    One for each CPU that no actor has reserved, but one at least. They reserve none themselves:
    replicas start their readers at the same time, and one whose CPU another one took would be
    waited for without end. A reader that dies with its worker or node is restarted by Ray, and
    decodes again what was lost.
    """

    def __init__(self) -> None:
        self._actors: list[Any] = []

    def __call__(self, blocks: Iterable[Block], form: ImageFormat, ahead: int) -> Iterator[Pixels]:
        """Yield the images of each block in order; the next ones are decoded meanwhile.

        Raises:
            UserError: an image is null or no image.
        """
        actors = self._actors = self._actors or _start_readers()
        numbered = enumerate(blocks)

        def submit(count: int) -> list[ObjectRef[Any]]:
            return [
                actors[number % len(actors)].decode.remote(block, form)
                for number, block in islice(numbered, count)
            ]

        waiting = deque(submit(max(ahead, len(actors))))
        try:
            while waiting:
                pixels = _result(waiting.popleft())
                waiting.extend(submit(1))
                yield pixels
        finally:
            for reference in waiting:
                ray.cancel(reference)


class Reader:
    """Decodes blocks; it keeps nothing, so that it may be restarted at any time."""

    def decode(self, block: Block, form: ImageFormat) -> Pixels:
        """Return the images of a block, (n, K, S, S)."""
        return decode_block(block, form)


def _start_readers() -> list[Any]:
    found: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    free = int(found.get("CPU", 0.0))
    wrap: Any = ray.remote(max_restarts=-1, max_task_retries=RETRIES)
    kind = wrap(Reader).options(num_cpus=0, scheduling_strategy="SPREAD")
    return [kind.remote() for _ in range(max(1, free))]


def _result(reference: ObjectRef[Any]) -> Pixels:
    try:
        pixels: Pixels = ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    return pixels
