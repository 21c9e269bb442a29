"""Mistakes in a Parquet file whose sentence or remedy matters.

Damage of every kind is tested by tests/fuzz/test_parquet.py.
"""

import json
import os
import pickle  # noqa: TID251 - an attacker's files are made with it
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayff.config.errors import UserError
from rayff.data.columns import Choice
from rayff.data.images import ImageFormat, ImageSet
from rayff.data.parquet import class_names, read_source
from rayff.data.reading import read_images
from tests.data.files import image_structs, load, location, png, write_columns, write_parquet
from tests.helpers.pickles import MarkerOnLoad


def read_split(*paths) -> ImageSet:
    source, _ = read_source([location(path) for path in paths], Choice())
    labels = source.labels.to_numpy().astype(np.int64)
    return read_images(source, labels, ImageFormat(1, 32))[0]


def message_of(path, **options):
    for other in ("valid", "test"):
        write_parquet(path.parent / f"{other}.parquet", [0, 1])
    with pytest.raises(UserError) as caught:
        load(options.pop("task", path.parent), **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_truncated_file_is_named(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", [0, 1])
    path.write_bytes(path.read_bytes()[:-100])
    assert "cannot be read as a Parquet file" in message_of(path)
    assert "fetch or write it again" in message_of(path)


@pytest.mark.parametrize("content", [b"", b"label,image\n0,x\n" * 10], ids=["empty", "text"])
def test_a_file_that_is_no_parquet_is_named(tmp_path, content):
    path = tmp_path / "train.parquet"
    path.write_bytes(content)
    assert "cannot be read as a Parquet file" in message_of(path)


def test_a_file_without_rows_is_named(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", [])
    assert "has no rows: give a file that holds images" in message_of(path)


def test_a_file_without_an_image_column_is_named_with_its_columns(tmp_path):
    path = write_columns(tmp_path / "train.parquet", picture=["x"], label=[0])
    assert (
        "has no image column: expected 'image' or 'img', the columns there are 'picture', 'label'"
    ) in message_of(path)


def test_a_file_without_a_label_column_is_named_with_its_columns(tmp_path):
    path = write_columns(tmp_path / "train.parquet", image=[png(0)], width=[0])
    assert (
        "has no label column: expected 'label' or 'fine_label', the columns there are "
        "'image', 'width'"
    ) in message_of(path)


def test_an_image_column_of_another_type_is_named(tmp_path):
    path = write_columns(tmp_path / "train.parquet", image=["seven.png"], label=[0])
    assert "the column 'image' is of type string, expected encoded" in message_of(path)


def test_a_null_image_is_named_by_its_row(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", [0, 1, 2], [png(0), png(1), None])
    assert "row 2 (counted from 0): the image is null" in message_of(path)
    assert "correct or drop that row" in message_of(path)


def test_a_null_struct_is_a_null_image(tmp_path):
    images = pa.array([{"bytes": png(0), "path": None}, None], image_structs([]).type)
    path = write_columns(tmp_path / "train.parquet", image=images, label=[0, 1])
    assert "row 1 (counted from 0): the image is null" in message_of(path)


def test_a_null_first_image_is_named_when_its_colour_is_asked_for(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", [0, 1], [None, png(0)])
    assert "train.parquet, row 0 (counted from 0): the image is null" in message_of(path)


def test_a_first_image_of_other_bytes_is_named_when_its_colour_is_asked_for(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", [0, 1], [b"seven", png(0)])
    assert "train.parquet, row 0 (counted from 0): the bytes are not an image" in message_of(path)


def test_bytes_that_are_no_image_are_named_by_their_row(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", [0, 1], [png(0), b"seven"])
    assert "row 1 (counted from 0): the bytes are not an image" in message_of(path)


def test_of_many_bad_images_the_first_is_named(tmp_path):
    images = [png(0)] * 3000
    for row in (2999, 2500, 2400):
        images[row] = b"seven"
    path = write_parquet(tmp_path / "train.parquet", [0, 1] * 1500, images)
    with pytest.raises(UserError, match=r"row 2400 \(counted from 0\)"):
        read_split(path)


def test_a_null_label_is_named_by_its_row(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", [0, None, 2])
    assert "row 1 (counted from 0): the label is null" in message_of(path)


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_outside_the_classes_is_named_by_its_row(tmp_path, label):
    path = write_parquet(tmp_path / "train.parquet", [0, 9, label])
    assert (
        f"row 2 (counted from 0): the label is {label}, expected 0 to 9; correct or drop"
    ) in message_of(path, task="mnist", data_dir=tmp_path)


def test_a_label_too_large_for_an_index_is_refused(tmp_path):
    labels = pa.array([0, 2**64 - 1], pa.uint64())
    path = write_columns(tmp_path / "train.parquet", image=[png(0), png(1)], label=labels)
    assert "the label is 18446744073709551615, which is too large" in message_of(path)


def test_the_row_is_counted_within_its_shard(tmp_path):
    first = write_parquet(tmp_path / "a.parquet", [0, 1])
    second = write_parquet(tmp_path / "b.parquet", [0, 1], [png(0), b"seven"])
    with pytest.raises(UserError, match=r"b\.parquet, row 1 "):
        read_split(first, second)


@pytest.mark.parametrize("name", ["image", "label"])
def test_two_columns_of_one_name_are_refused(tmp_path, name):
    columns = {"image": image_structs([png(0)]), "label": pa.array([0])}
    table = pa.table(columns).append_column(name, columns[name])
    pq.write_table(table, tmp_path / "train.parquet")
    assert f"has more than one column '{name}': drop all but one" in message_of(
        tmp_path / "train.parquet"
    )


def test_a_shard_of_more_than_can_be_counted_is_refused(tmp_path):
    write_parquet(tmp_path / "train-00001-of-999999999999999999.parquet", [0])
    with pytest.raises(
        UserError,
        match=r"has 1 of the 9{18} shards .*: train-00000-of-9+\.parquet is missing, and 9+7 more",
    ):
        load(tmp_path)


@pytest.mark.parametrize("name", ["\x1b[2Jcat", "cat\ndog", "\ud800"])
def test_a_class_name_that_would_steer_a_terminal_is_refused(tmp_path, name):
    features = json.dumps({"info": {"features": {"label": {"names": ["cat", name]}}}})
    table = pa.table({"image": image_structs([png(0)] * 9), "label": pa.array([0] * 9)})
    table = table.replace_schema_metadata({"huggingface": features})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(UserError, match="a class of the metadata, '[ -~]*', is no plain text"):
        load(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train.parquet")
    assert "it is no file; replace it" in message_of(tmp_path / "train.parquet")


def test_other_numbers_of_rows_than_there_are_give_the_same_rows_or_a_mistake(tmp_path):
    """Five rows are the bytes 16 0a in the footer, once for the file and some for its parts."""
    path = write_parquet(tmp_path / "train.parquet", [0, 1, 2, 0, 1])
    whole = path.read_bytes()
    images = read_split(path).images
    refusals = []
    for at in (found.start() for found in re.finditer(b"\x16\x0a", whole)):
        for rows in (4, 6, 30):
            path.write_bytes(whole[: at + 1] + bytes([2 * rows]) + whole[at + 2 :])
            try:
                read = read_split(path)
            except UserError as error:
                refusals.append(str(error))
                continue
            assert read.labels.tolist() == [0, 1, 2, 0, 1]
            np.testing.assert_array_equal(read.images, images)
    assert f"{path} is damaged: its columns do not have the rows that it claims" in refusals[-1]


def test_pickles_in_metadata_and_extension_types_are_only_bytes(tmp_path):
    marker = tmp_path / "executed"
    pickled = pickle.dumps(MarkerOnLoad(marker))
    kinds = {b"ARROW:extension:name": b"arrow.py_extension_type"}
    kinds[b"ARROW:extension:metadata"] = pickled
    schema = pa.schema(
        [
            pa.field("image", pa.binary(), metadata=kinds),
            pa.field("label", pa.int64(), metadata=kinds),
        ],
        metadata={b"pandas": pickled, b"huggingface": pickled},
    )
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table([pa.array([png(0)]), pa.array([0])], schema=schema), path)
    assert class_names(pq.read_schema(path), "label") is None
    assert read_split(path).labels.tolist() == [0]
    table = pq.read_table(path)
    table = table.replace_schema_metadata({b"ARROW:schema": pickled})
    pq.write_table(table, path)
    assert "cannot be read as a Parquet file" in message_of(path)
    assert not marker.exists()
    pickle.loads(pickled)
    assert marker.exists()  # so it would have shown


@pytest.mark.parametrize("second", [["dog", "cat"], ["cat", "dog", "owl"]])
def test_shards_that_name_their_classes_otherwise_are_refused(tmp_path, second):
    """One number would mean two classes."""
    shards = [tmp_path / f"train-0000{number}-of-00002.parquet" for number in range(2)]
    write_parquet(shards[0], [0, 1])
    write_parquet(shards[1], [0, 1], class_names=["cat", "dog"])
    assert read_source([location(path) for path in shards], Choice())[0].names == ("cat", "dog")
    write_parquet(shards[0], [0, 1], class_names=second)
    assert "names its classes otherwise than the files of its split" in message_of(shards[1])
