"""The columns of images and labels: named, found, offered or refused."""

import pyarrow as pa
import pytest

from rayff.config.errors import UserError
from rayff.data.columns import Choice, choose_columns
from tests.data.files import STRUCT

KINDS = {
    "i": STRUCT,
    "b": pa.binary(),
    "n": pa.int64(),
    "s": pa.string(),
    "l": pa.list_(pa.int8()),
}


def schema(columns: str) -> pa.Schema:
    """Columns as in "image:i label:n", with a letter for the type."""
    pairs = [column.split(":") for column in columns.split()]
    return pa.schema([(name, KINDS[kind]) for name, kind in pairs])


def choose(columns: str, preferred=(), **choice: str):
    return choose_columns(schema(columns), "x.parquet", Choice(**choice), preferred)


@pytest.mark.parametrize(
    ("columns", "image", "label", "notes"),
    [
        ("image:i label:n", "image.bytes", "label", 0),
        ("img:b label:s", "img", "label", 0),
        ("jpg:b cls:n", "jpg", "cls", 2),
        ("pixel_values:i labels:n", "pixel_values.bytes", "labels", 2),
        ("image:i label:n text:s id:n split:s", "image.bytes", "label", 0),
        ("image:i species:s file_name:s", "image.bytes", "species", 1),
        ("image:i mask:i label:n", "image.bytes", "label", 0),
    ],
)
def test_the_columns_that_fit_are_taken(columns: str, image: str, label: str, notes: int):
    found = choose(columns)
    assert (found.image, found.label, len(found.notes)) == (image, label, notes)


def test_a_column_that_is_taken_by_its_type_is_said():
    assert choose("jpg:b cls:n").notes == (
        "the image column is 'jpg', the only one that fits",
        "the label column is 'cls', the only one that fits",
    )


def test_the_users_choice_comes_first():
    found = choose("image:i thumb:b label:n coarse:s", image="thumb", label="coarse")
    assert (found.image, found.label, found.notes) == ("thumb", "coarse", ())


def test_a_named_task_knows_its_label():
    assert (
        choose("img:i fine_label:n coarse_label:n", ("label", "fine_label")).label == "fine_label"
    )


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ("image:i fine_label:n coarse_label:n", "--label-column fine_label or coarse_label"),
        ("image:i label:n labels:n", "several columns that may be the label: choose one with"),
        ("image:i a:n b:s", "choose one with --label-column a or b"),
        ("a:i b:b label:n", "several columns that may be the image: choose one with --image-co"),
        ("label:n", "x.parquet has no image column: expected 'image' or 'img', the columns there"),
        ("image:i id:n", "x.parquet has no label column: expected 'label' or"),
        ("image:n label:n", "the column 'image' is of type int64, expected encoded images as"),
        ("image:i label:l", "the label column 'label' is of type list<"),
        ("image:i label:n label:n", "has more than one column 'label': drop all but one"),
    ],
)
def test_what_cannot_be_decided_is_asked(columns: str, sentence: str):
    with pytest.raises(UserError) as caught:
        choose(columns)
    assert sentence in str(caught.value)


def test_a_column_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(UserError, match="--label-column lable: the columns of x.parquet are"):
        choose("image:i label:n", label="lable")
