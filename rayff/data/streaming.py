"""Images that are read, decoded and forgotten while they are used: data larger than memory.

Blocks are decoded in the order of the epoch, a few ahead of the one that is needed, and kept until
the window of blocks that is shuffled together has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rayff.data.classes import Labels
from rayff.data.images import ImageFormat, Pixels, Survey
from rayff.data.order import Indices, StreamOrder
from rayff.data.reading import decode_block, decode_blocks
from rayff.data.sources import Block, Source

WINDOW_BYTES = 2**28
"""Decoded images that are shuffled together at least."""
MAX_WINDOW_ROWS = 2**14
BLOCKS_A_WINDOW = 4
"""Blocks with more than this part of a window are cut."""

_SAMPLED = 32

Feed = Callable[[Sequence[Block], ImageFormat], Iterator[Pixels]]
"""Decodes blocks in parallel, and yields the images of each, (n, K, S, S), in order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamedSet:
    """The images of one split, in files."""

    source: Source
    """Cut into blocks of a bounded number of rows; see `streamed`."""
    labels: Labels
    """(N,)."""
    form: ImageFormat
    window: int
    """Images that are shuffled together at least."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of an image, (K, S, S)."""
        return self.form.shape

    @cached_property
    def order(self) -> StreamOrder:
        """The order of its training epochs."""
        sizes = tuple(block.num_rows for block in self.source.blocks)
        return StreamOrder(sizes, self.window)

    def take(self, indices: NDArray[np.int64]) -> StreamedSet:
        """Return some of the images, by ascending indices."""
        return streamed(self.source.take(indices), self.labels[indices], self.form)

    def some(self) -> Pixels:
        """Return a few of its first and last images, for a fingerprint."""
        return self._sample[0]

    def survey(self) -> Survey:
        """Return what a few of its first and last images are like."""
        return self._sample[1]

    @cached_property
    def _sample(self) -> tuple[Pixels, Survey]:
        blocks = self.source.blocks
        ends = [blocks[0].take(np.arange(min(_SAMPLED, blocks[0].num_rows)))]
        if len(blocks) > 1:
            count = blocks[-1].num_rows
            ends.append(blocks[-1].take(np.arange(max(0, count - _SAMPLED), count)))
        survey = Survey()
        return np.concatenate([decode_block(block, self.form, survey) for block in ends]), survey

    def parts(self, feed: Feed = decode_blocks) -> Iterator[Pixels]:
        """Yield all images in the order of their rows, some at a time."""
        yield from feed(self.source.blocks, self.form)


def window_rows(form: ImageFormat) -> int:
    """Return how many images of a format are shuffled together at least, by their bytes."""
    return int(min(MAX_WINDOW_ROWS, max(1, WINDOW_BYTES // np.prod(form.shape))))


def streamed(source: Source, labels: Labels, form: ImageFormat) -> StreamedSet:
    """Return a set whose blocks are cut to bounded sizes."""
    window = window_rows(form)
    most = max(1, window // BLOCKS_A_WINDOW)
    blocks: list[Block] = []
    for block in source.blocks:
        pieces = -(-block.num_rows // most)
        if pieces == 1:
            blocks.append(block)
        else:
            for rows in np.array_split(np.arange(block.num_rows), pieces):
                blocks.append(block.take(rows))
    cut = Source(blocks=blocks, labels=source.labels, names=source.names)
    return StreamedSet(source=cut, labels=labels, form=form, window=window)


class Window:
    """The decoded blocks of a stream around the place where it is read.

    Rows are asked for in the order of an epoch, or of a split where it is evaluated; another
    place, as after a failure, makes it read from there.

    Args:
        data: what is read.
        feed: decodes blocks.
    """

    def __init__(self, data: StreamedSet, feed: Feed = decode_blocks) -> None:
        self.data = data
        self.feed = feed
        sizes = np.array(data.order.sizes)
        self._starts = np.cumsum(sizes) - sizes
        self._order: NDArray[np.int64] = np.arange(0)
        self._window_of: NDArray[np.int64] = np.arange(0)
        self._held: dict[int, Pixels] = {}
        self._place = 0
        self._coming: Iterator[Pixels] = iter(())

    def images(self, rows: Indices, blocks: Indices, windows: Sequence[Indices]) -> Pixels:
        """Return the images of some rows, (n, K, S, S).

        Args:
            rows: of the whole split, in the order of the stream.
            blocks: all blocks in that order.
            windows: the same, cut into what is kept together.

        Raises:
            UserError: an image cannot be read.
        """
        moved = not np.array_equal(blocks, self._order)
        if moved:
            self._order = blocks
            self._window_of = np.empty(len(blocks), np.int64)
            for number, window in enumerate(windows):
                self._window_of[window] = number
        needed = np.searchsorted(self._starts, rows, side="right") - 1
        first = int(self._window_of[needed].min())
        missing = {int(block) for block in needed} - self._held.keys()
        passed = missing.intersection(self._order[: self._place].tolist())
        if moved or passed:  # another epoch or split, or back to a snapshot
            self._seek(int(np.argmax(self._window_of[self._order] == first)))
            missing = {int(block) for block in needed}
        for block in [block for block in self._held if self._window_of[block] < first]:
            del self._held[block]
        while missing:
            block, self._place = int(self._order[self._place]), self._place + 1
            self._held[block] = next(self._coming)
            missing.discard(block)
        images = np.empty((len(rows), *self.data.image_shape), np.uint8)
        for block in np.unique(needed):
            inside = needed == block
            images[inside] = self._held[int(block)][rows[inside] - self._starts[block]]
        return images

    def _seek(self, place: int) -> None:
        """Read from a place in the order."""
        self.close()
        self._held = {}
        self._place = place
        blocks = [self.data.source.blocks[block] for block in self._order[place:]]
        self._coming = self.feed(blocks, self.data.form)

    def close(self) -> None:
        """Stop what is being decoded ahead."""
        close = getattr(self._coming, "close", None)
        if close is not None:
            close()
