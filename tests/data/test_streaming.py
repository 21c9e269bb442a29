"""Images that are decoded while they are used: the same images, in an order of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayff.config.errors import UserError
from rayff.data import streaming
from rayff.data.images import ImageFormat, Pixels
from rayff.data.order import StreamOrder
from rayff.data.sources import Block
from rayff.data.streaming import StreamedSet, Window, decode_in_threads
from tests.data.files import encoded, image_structs, load

ROWS = 61


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Row i of the training split is the constant i; row groups of 7."""
    for split, rows in (("train", ROWS), ("test", 6), ("valid", 5)):
        images = [encoded(np.full((8, 8, 3), row, np.uint8)) for row in range(rows)]
        labels = [row % 3 for row in range(rows)]
        table = pa.table({"image": image_structs([*images]), "label": labels})
        pq.write_table(table, tmp_path / f"{split}.parquet", row_group_size=7)
    return tmp_path


def train_set(folder: Path, **options: object) -> StreamedSet:
    images = load(folder, stream=True, image_size=8, **options).train
    assert isinstance(images, StreamedSet)
    return images


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    window=st.integers(1, 30),
    seed=st.integers(0, 2**64),
    epoch=st.integers(0, 1000),
)
def test_an_order_has_every_row_once_and_keeps_windows_together(
    sizes: list[int], window: int, seed: int, epoch: int
):
    order = StreamOrder(tuple(sizes), window)
    rows = order.rows(seed=seed, epoch=epoch)
    assert sorted(rows) == list(range(sum(sizes)))
    assert (rows == order.rows(seed=seed, epoch=epoch)).all()
    block_of = np.repeat(np.arange(len(sizes)), sizes)
    windows = order.windows(order.blocks(seed=seed, epoch=epoch))
    assert sorted(np.concatenate(windows)) == list(range(len(sizes)))
    begin = 0
    for blocks in windows:
        count = sum(sizes[block] for block in blocks)
        assert set(block_of[rows[begin : begin + count]]) == set(blocks)
        begin += count
    *full, _ = windows
    for blocks in full:
        count = sum(sizes[block] for block in blocks)
        assert count >= window > count - sizes[blocks[-1]]


def test_orders_differ_by_seed_and_epoch():
    order = StreamOrder((5,) * 20, 20)
    drawn = [tuple(order.rows(seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(drawn)) == 4


class TestWindow:
    """Rows in the order of an epoch, some at a time, from any place on."""

    @pytest.fixture(autouse=True)
    def small_windows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streaming, "MAX_WINDOW_ROWS", 16)
        self.decoded: list[int] = []

    def feed(self, blocks: Iterable[Block], form: ImageFormat, ahead: int) -> Iterator[Pixels]:
        for pixels in decode_in_threads(blocks, form, ahead):
            self.decoded.append(len(pixels))
            yield pixels

    def read(self, window: Window, epoch: int, first: int, size: int) -> list[int]:
        order = window.data.order
        rows = order.rows(seed=3, epoch=epoch)[first : first + size]
        images = window.images(rows, epoch)
        assert (images == images[:, :1, :1, :1]).all()
        assert images[:, 0, 0, 0].tolist() == rows.tolist()
        return rows.tolist()

    def test_blocks_are_cut(self, folder: Path):
        assert max(train_set(folder).order.sizes) <= 4

    @pytest.mark.parametrize("size", [1, 5, 16, 40])
    def test_an_epoch_decodes_every_image_once(self, folder: Path, size: int):
        window = Window(train_set(folder), 3, 3, self.feed)
        for epoch in (0, 1, 2):
            seen = [row for n in range(0, ROWS, size) for row in self.read(window, epoch, n, size)]
            assert sorted(seen) == list(range(ROWS))
            assert sum(self.decoded) == (epoch + 1) * ROWS

    def test_a_window_is_forgotten_behind_it(self, folder: Path):
        window = Window(train_set(folder), 3, 3, self.feed)
        for first in range(0, ROWS, 4):
            self.read(window, 0, first, 4)
            assert sum(map(len, window._held.values())) <= 2 * (16 + 4)

    def test_it_begins_anywhere_and_goes_back(self, folder: Path):
        window = Window(train_set(folder), 3, 3, self.feed)
        self.read(window, 2, 48, 8)
        assert sum(self.decoded) < ROWS
        for first in (8, 32, 0, 56):
            self.read(window, 2, first, 8)


def test_streamed_images_are_those_in_memory(folder: Path):
    stored = load(folder, stream=False, image_size=8)
    streams = load(folder, stream=True, image_size=8)
    for split, images in stored.splits.items():
        others = streams.splits[split]
        assert isinstance(others, StreamedSet)
        assert (np.concatenate([*others.parts()]) == images.images).all()
        assert (others.labels == images.labels).all()
        assert others.image_shape == images.image_shape


def test_a_limit_is_the_same_sample(folder: Path):
    stored = load(folder, stream=False, image_size=8, limit=10).train
    others = load(folder, stream=True, image_size=8, limit=10).train
    assert (np.concatenate([*others.parts()]) == stored.images).all()


def test_little_memory_makes_it_stream(folder: Path, monkeypatch: pytest.MonkeyPatch):
    needed = (ROWS + 6 + 5) * 3 * 8 * 8
    for free, expected in ((2 * needed - 2, True), (2 * needed, False)):
        monkeypatch.setattr("rayff.data.loading.memory_bytes", lambda free=free: (2**40, free))
        data = load(folder, image_size=8)
        assert isinstance(data.train, StreamedSet) == expected
        note = "images stay in their files, and are decoded while they are used"
        assert (note in data.notes) == expected


def test_a_colour_image_among_grey_ones_is_named(tmp_path: Path):
    images = [encoded(np.full((8, 8), 9, np.uint8))] * 3000
    images[1501] = encoded(np.full((8, 8, 3), 9, np.uint8))
    for split in ("train", "test", "valid"):
        labels = [row % 2 for row in range(3000)]
        table = pa.table({"image": image_structs([*images]), "label": labels})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    data = load(tmp_path, stream=True, image_size=8)
    with pytest.raises(UserError, match=r"row 1501 .*of colour.*--image-channels 1 or 3"):
        list(data.train.parts())
    assert load(tmp_path, stream=True, channels=3).train.image_shape == (3, 32, 32)


def test_a_damaged_row_is_named_where_it_is_reached(folder: Path):
    images = [encoded(np.full((8, 8, 3), row, np.uint8)) for row in range(40)]
    images[33] = b"no image"
    table = pa.table({"image": image_structs([*images]), "label": [row % 3 for row in range(40)]})
    pq.write_table(table, folder / "test.parquet", row_group_size=7)
    data = load(folder, stream=True, image_size=8)
    with pytest.raises(UserError, match=r"test\.parquet, row 33 \(counted from 0\): the bytes"):
        list(data.test.parts())


def test_a_fingerprint_changes_with_images_and_labels(folder: Path):
    stream, stored = (load(folder, stream=s, image_size=8).fingerprint for s in (True, False))
    again = load(folder, stream=True, image_size=8).fingerprint
    assert stream == again
    assert load(folder, stream=False, image_size=8).fingerprint == stored
    table = pq.read_table(folder / "train.parquet")
    pq.write_table(table, folder / "train.parquet", row_group_size=9)  # read in another order
    assert load(folder, stream=True, image_size=8).fingerprint != stream
    assert load(folder, stream=False, image_size=8).fingerprint == stored
    labels = pa.array([*table.column("label").to_pylist()[:-2], 0, 1])
    changed = table.set_column(1, "label", labels)
    pq.write_table(changed, folder / "train.parquet", row_group_size=7)
    assert load(folder, stream=True, image_size=8).fingerprint != stream
