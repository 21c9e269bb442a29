"""Parquet of a task: any file gives images and labels or a mistake."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayff.data.tasks import TaskData
from tests.data.files import image_structs, png, write_parquet
from tests.data.files import load as load_task
from tests.fuzz.checks import cases, read_or_refused
from tests.fuzz.mutations import LENGTHS, broken_bytes, broken_json

CLASSES = ["cat", "dog", "owl"]
FEATURES = {
    "info": {
        "features": {
            "label": {"names": CLASSES, "_type": "ClassLabel"},
            "image": {"_type": "Image"},
        }
    }
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task of grey images; the tests write train.parquet anew."""
    folder = tmp_path / "task"
    for split, rows in (("train", 6), ("validation", 2), ("test", 2)):
        labels: list[int | None] = [row % 3 for row in range(rows)]
        write_parquet(folder / f"{split}.parquet", labels, class_names=CLASSES)
    return folder


def load(folder: Path) -> TaskData | None:
    data = read_or_refused(lambda: load_task(folder), folder)
    if data is not None:
        for images in data.splits.values():
            assert len(images) > 0
            assert images.images.shape == (len(images), data.image_channels, 32, 32)
            assert 0 <= images.labels.min() <= images.labels.max() < data.num_classes
        "".join(data.class_names).encode()
    return data


@cases(300)
@given(data=st.data())
def test_with_bytes_changed(folder: Path, data: st.DataObject) -> None:
    whole = folder.parent / "whole.parquet"
    if not whole.exists():
        whole.write_bytes((folder / "train.parquet").read_bytes())
    (folder / "train.parquet").write_bytes(data.draw(broken_bytes(whole.read_bytes())))
    load(folder)


@cases(300)
@given(data=st.data())
def test_with_bytes_changed_in_its_footer(folder: Path, data: st.DataObject) -> None:
    """Where the schema, the numbers of rows and the places of the pages are."""
    whole = folder.parent / "whole.parquet"
    if not whole.exists():
        whole.write_bytes((folder / "train.parquet").read_bytes())
    content = whole.read_bytes()
    size = int.from_bytes(content[-8:-4], "little")
    head, footer = content[: -8 - size], content[-8 - size : -8]
    broken = data.draw(broken_bytes(footer))
    tail = len(broken).to_bytes(4, "little") + b"PAR1"
    (folder / "train.parquet").write_bytes(head + broken + tail)
    load(folder)


GOOD = [png(0), png(1, channels=3), png(2, size=8)]
BAD = [b"", b"seven", GOOD[0][:40], None, b"\x89PNG\r\n\x1a\n"]
LABELS = st.sampled_from([0, 1, 2, 3, -1, None, 2**31, 2**62, -(2**63), 65_535, 65_536])


def columns() -> st.SearchStrategy[pa.Array]:
    """Columns of two rows, of every kind that Parquet has."""
    images = st.lists(st.sampled_from([*GOOD, *BAD]), min_size=2, max_size=2)
    labels = st.lists(LABELS, min_size=2, max_size=2)
    integers = st.sampled_from([pa.int64(), pa.int32(), pa.int8(), pa.uint8(), pa.uint64()])
    others: list[list[Any]] = [
        [1.5, float("nan")],
        ["cat", "dog"],
        [True, False],
        [None, None],
        [[0], [1, 2]],
        [{"bytes": 1}, {"bytes": 2}],
        [{"bytes": ["x"]}, None],
        [{"bytes": {"bytes": GOOD[0]}}, {"bytes": None}],
        [{"path": "/etc/passwd"}, {"path": "x"}],
        [{"a": [{"b": [1]}]}, None],
    ]
    plain = [pa.array(values) for values in others]
    return st.one_of(
        images.map(image_structs),
        images.map(lambda values: pa.array(values, pa.binary())),
        images.map(lambda values: pa.array(values, pa.large_binary())),
        images.map(lambda values: pa.array(values, pa.binary()).dictionary_encode()),
        labels.map(lambda values: pa.array(values, pa.int64())),
        st.tuples(integers).map(lambda kind: pa.array([0, 1], kind[0])),
        st.just(pa.array([0, 1]).dictionary_encode()),
        st.sampled_from(plain),
        st.sampled_from(plain).map(lambda column: pa.array([None, None], column.type)),
    )


NAMES = st.sampled_from(
    ["image", "label", "img", "fine_label", "image.bytes", "bytes", "", "x\ny", "\x1b[2J"]
)


@cases(200)
@given(parts=st.lists(st.tuples(NAMES, columns()), max_size=4), data=st.data())
def test_of_any_columns(
    folder: Path, parts: list[tuple[str, pa.Array]], data: st.DataObject
) -> None:
    if data.draw(st.booleans()):
        good = (("image", image_structs(GOOD[:2])), ("label", pa.array([0, 1])))
        parts = [*parts, data.draw(st.sampled_from(good))]
    table = pa.Table.from_arrays(
        [column for _, column in parts], names=[name for name, _ in parts]
    )
    codec = data.draw(st.sampled_from(["none", "snappy", "gzip", "zstd", "lz4"]))
    pq.write_table(table, folder / "train.parquet", compression=codec)
    load(folder)


@cases(150)
@given(labels=st.lists(LABELS, max_size=6), images=st.lists(st.sampled_from(GOOD + BAD)))
def test_of_any_rows(folder: Path, labels: list[int | None], images: list[bytes | None]) -> None:
    rows = min(len(labels), len(images))
    write_parquet(folder / "train.parquet", labels[:rows], images[:rows])
    data = load(folder)
    if data is not None:
        assert data.class_names == tuple(CLASSES)  # which the other splits name
        assert data.train.labels.tolist() == labels[:rows]


@cases(150)
@given(features=broken_json(FEATURES), raw=st.none() | st.binary(max_size=20))
def test_of_any_metadata(folder: Path, features: object, raw: bytes | None) -> None:
    metadata = json.dumps(features).encode() if raw is None else raw
    table = pa.table({"image": image_structs(GOOD[:1] * 2), "label": pa.array([0, 1])})
    table = table.replace_schema_metadata({"huggingface": metadata, "pandas": metadata})
    pq.write_table(table, folder / "train.parquet")
    data = load(folder)
    assert data is None or data.train.labels.tolist() == [0, 1]


@cases(100)
@given(
    first=st.sampled_from(["0", "00000", "7"]),
    total=st.sampled_from(["0", "1", "2", "00002", *map(str, LENGTHS), "9" * 200]),
    prefix=st.sampled_from(["train", "test", "val", "dev"]),
)
def test_of_any_name(tmp_path: Path, first: str, total: str, prefix: str) -> None:
    for path in tmp_path.glob("*.parquet"):
        path.unlink()
    write_parquet(tmp_path / f"{prefix}-{first}-of-{total}.parquet", [0, 1])
    for other in ("train", "test"):
        write_parquet(tmp_path / f"{other}.parquet", [0, 1, 2])
    load(tmp_path)


def test_the_cases_begin_with_a_task_that_is_read(folder: Path) -> None:
    data = load(folder)
    assert data is not None
    assert data.class_names == tuple(CLASSES)
    np.testing.assert_array_equal(data.train.labels, [0, 1, 2, 0, 1, 2])
