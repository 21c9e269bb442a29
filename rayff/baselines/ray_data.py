"""Ray Data as the reader of streamed images, to compare rayff's own with."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import ray.data

from rayff.data.images import ImageFormat, Pixels
from rayff.data.reading import decode_block
from rayff.data.sources import Block


class RayDataReader:
    """Decodes blocks in order, as tasks on the CPUs that no actor has reserved.

    Args:
        blocks: in the order of an epoch.
        form: what every image becomes.
        batch_size: images of each array that it yields.
    """

    def __init__(self, blocks: Sequence[Block], form: ImageFormat, batch_size: int = 128) -> None:
        def decode(rows: dict[str, Any]) -> Iterator[dict[str, Any]]:
            yield from ({"image": decode_block(blocks[int(row)], form)} for row in rows["item"])

        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        numbers = ray.data.from_items([*range(len(blocks))], override_num_blocks=len(blocks))
        self.dataset = numbers.map_batches(decode, batch_size=1, num_cpus=1)
        self.batch_size = batch_size

    def __call__(self) -> Iterator[Pixels]:
        """Yield all images once."""
        for batch in self.dataset.iter_batches(batch_size=self.batch_size):
            yield batch["image"]
