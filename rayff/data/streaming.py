"""Images that are read, decoded and forgotten while they are used: data larger than memory.

Blocks are decoded in the order of the epoch, a few ahead of the one that is needed, and kept until
the window of blocks that is shuffled together has passed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, tee

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from rayff.data.classes import Labels
from rayff.data.images import ImageFormat, Pixels, Survey
from rayff.data.order import Indices, StreamOrder
from rayff.data.reading import decode_block
from rayff.data.sources import Block, Source

WINDOW_BYTES = 2**27
"""Decoded images that are shuffled together at least."""
MAX_WINDOW_ROWS = 2**14
BLOCKS_A_WINDOW = 4
"""Blocks with more than this part of a window are cut."""

_SAMPLED = 32

_NEXT_BLOCKS = 2

Feed = Callable[[Iterable[Block], ImageFormat, int], Iterator[Pixels]]
"""Decodes blocks in parallel, so many ahead, and yields the images of each, (n, K, S, S), in
order."""


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

    def parts(self) -> Iterator[Pixels]:
        """Yield all images in the order of their rows, some at a time."""
        yield from decode_in_threads(self.source.blocks, self.form, cpu_count())


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

    Rows are asked for in the order of the epochs; another place, as after a failure, makes it
    read from there.

    Args:
        data: what is read.
        seed: of the run, where the images are trained on; None where they are evaluated in the
            order of their rows.
        epochs: of the run, behind which nothing is read ahead.
        feed: decodes blocks.
    """

    def __init__(self, data: StreamedSet, seed: int | None, epochs: int, feed: Feed) -> None:
        self.data = data
        self.seed = seed
        self.epochs = epochs
        self.feed = feed
        sizes = np.array(data.order.sizes)
        self._starts = np.cumsum(sizes) - sizes
        self._held: dict[_Key, Pixels] = {}
        self._coming: Iterator[tuple[_Key, Pixels]] = iter(())
        self._next: tuple[int, int] | None = None
        """Epoch, and place in its order, of the next block that comes."""
        self._epoch = -1
        self._blocks = self._window_of = np.arange(0)

    def images(self, rows: Indices, epoch: int) -> Pixels:
        """Return the images of some rows, (n, K, S, S).

        Args:
            rows: of the whole split, in the order of the epoch.
            epoch: from 0.

        Raises:
            UserError: an image cannot be read.
        """
        if epoch != self._epoch:
            self._epoch = epoch
            self._blocks, self._window_of = self._order(epoch)
        of_row = np.searchsorted(self._starts, rows, side="right") - 1
        first = int(self._window_of[of_row].min())
        needed = {(epoch, int(block)) for block in of_row}
        missing = needed - self._held.keys()
        if missing and not self._will_come(missing):
            self._seek(epoch, int(np.argmax(self._window_of[self._blocks] == first)))
            missing = needed
        for key in [key for key in self._held if self._is_behind(key, epoch, first)]:
            del self._held[key]
        while missing:
            key, pixels = next(self._coming)
            at, place = self._next or key
            end = place + 1 == len(self._blocks)
            self._next = (at + 1, 0) if end else (at, place + 1)
            missing.discard(key)
            if not self._is_behind(key, epoch, first):
                self._held[key] = pixels
        images = np.empty((len(rows), *self.data.image_shape), np.uint8)
        for block in np.unique(of_row):
            inside = of_row == block
            found = self._held[epoch, int(block)]
            images[inside] = found[rows[inside] - self._starts[block]]
        return images

    def _order(self, epoch: int) -> tuple[Indices, NDArray[np.int64]]:
        """Return the blocks of an epoch in their order, and the window of each block."""
        order = self.data.order
        if self.seed is None:
            blocks = np.arange(len(order.sizes))
            return blocks, blocks
        blocks = order.blocks(seed=self.seed, epoch=epoch)
        window_of = np.empty(len(blocks), np.int64)
        for number, window in enumerate(order.windows(blocks)):
            window_of[window] = number
        return blocks, window_of

    def _is_behind(self, key: _Key, epoch: int, first: int) -> bool:
        """Return whether a block is of an earlier epoch or window."""
        return key[0] < epoch or (key[0] == epoch and self._window_of[key[1]] < first)

    def _will_come(self, missing: set[_Key]) -> bool:
        """Return whether all these blocks of the present epoch are still to come."""
        if self._next is None:
            return False
        epoch, place = self._next
        passed = self._blocks[:place] if epoch == self._epoch else self._blocks
        if epoch < self._epoch:  # not more than the end of the epoch before
            return epoch + 1 == self._epoch
        return missing.isdisjoint((self._epoch, int(block)) for block in passed)

    def _seek(self, epoch: int, place: int) -> None:
        """Read from a place in the order of an epoch."""
        self.close()
        self._held = {}
        self._next = (epoch, place)
        keys, for_blocks = tee(self._keys(epoch, place))
        blocks = (self.data.source.blocks[block] for _, block in for_blocks)
        self._coming = zip(keys, self.feed(blocks, self.data.form, self._ahead), strict=False)

    def _keys(self, epoch: int, place: int) -> Iterator[_Key]:
        for current in range(epoch, max(epoch + 1, self.epochs)):
            blocks = self._order(current)[0]
            for block in blocks[place if current == epoch else 0 :]:
                yield current, int(block)

    @property
    def _ahead(self) -> int:
        """Blocks that are decoded ahead: of a window that is shuffled, or just the next ones."""
        if self.seed is None:
            return _NEXT_BLOCKS
        sizes = self.data.order.sizes
        return max(_NEXT_BLOCKS, round(self.data.window * len(sizes) / sum(sizes)) + 1)

    def close(self) -> None:
        """Stop what is being decoded ahead."""
        self._coming = iter(())


_Key = tuple[int, int]
"""Epoch and number of a block."""


def decode_in_threads(blocks: Iterable[Block], form: ImageFormat, ahead: int) -> Iterator[Pixels]:
    """Yield the images of each block in order; the next ones are decoded by threads meanwhile.

    Raises:
        UserError: an image is null or no image.
    """
    coming = iter(blocks)
    with ThreadPoolExecutor(cpu_count()) as pool:
        waiting = deque(pool.submit(decode_block, b, form) for b in islice(coming, ahead))
        try:
            while waiting:
                pixels = waiting.popleft().result()
                waiting.extend(pool.submit(decode_block, b, form) for b in islice(coming, 1))
                yield pixels
        finally:
            for future in waiting:
                future.cancel()
