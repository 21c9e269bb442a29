"""Images a second that actors and Ray Data decode in the order of an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pyarrow.fs import LocalFileSystem

from rayff.baselines.ray_data import RayDataReader
from rayff.data.columns import Choice
from rayff.data.images import ImageFormat
from rayff.data.parquet import read_source
from rayff.data.sources import Block, Location
from rayff.distributed.reading import Readers
from rayff.distributed.session import ray_session

Count = Callable[[], int]
"""Decodes all images once, and returns their number."""


def rate_of(count: Count) -> float:
    """Return images a second."""
    start = time.perf_counter()
    number = count()
    return number / (time.perf_counter() - start)


def rates_on_ray(parquet: Path, size: int) -> dict[str, Callable[[], float]]:
    """Return what decodes the training images on an instance of Ray of its own, by name.

    Each returns images a second of a second pass; the first one starts the workers.

    Args:
        parquet: folder of the data set.
        size: pixels a side that the images are brought to.
    """
    location = Location(files=LocalFileSystem(), path=f"{parquet}/train.parquet", shown="train")
    source, _ = read_source([location], Choice())
    order = np.random.default_rng(0).permutation(len(source.blocks))
    blocks = [source.blocks[number] for number in order]
    form = ImageFormat(3, size)

    def second_pass(start: Callable[[list[Block], ImageFormat], Count]) -> Callable[[], float]:
        def rate() -> float:
            with ray_session():
                count = start(blocks, form)
                count()
                return rate_of(count)

        return rate

    return {"rayff's readers": second_pass(_readers), "Ray Data": second_pass(_ray_data)}


def _readers(blocks: list[Block], form: ImageFormat) -> Count:
    readers = Readers()
    return lambda: sum(map(len, readers(blocks, form, ahead=4)))


def _ray_data(blocks: list[Block], form: ImageFormat) -> Count:
    reader = RayDataReader(blocks, form)
    return lambda: sum(map(len, reader()))
